//! A Rust toolchain out of a Debian release, unpacked beside the build and run by that release's
//! own loader, so that the machine's packages and its C library stay as they are.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use crate::apt::Apt;

/// Which release has which Rust.
const RELEASES: &[(&str, &str)] = &[("1.85", "trixie")];

/// A compiler that can be run.
pub(crate) struct Toolchain {
    /// A script that runs it.
    pub(crate) rustc: PathBuf,
    /// What it says it is.
    pub(crate) version: String,
}

/// The compiler of this version, unpacked under `folder` unless it is there already.
pub(crate) fn rustc(sh: &Shell, version: &str, folder: &Path) -> Result<Toolchain> {
    let release = release_with(version)?;
    let folder = folder.join(release);
    let rustc = folder.join("rustc");
    if let Ok(toolchain) = ask_version(sh, &rustc, version) {
        return Ok(toolchain);
    }
    println!("unpacking Rust {version} of Debian {release} under {}", folder.display());
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    let root = folder.join("root");
    unpack(sh, release, &folder, &root)?;
    write_wrapper(&rustc, &root)?;
    cmd!(sh, "chmod +x {rustc}").quiet().run()?;
    ask_version(sh, &rustc, version)
}

/// Unpacks the libraries for another machine beside a compiler that [`rustc`] unpacked, unless they
/// are there already. `machine` is Debian's name of it, `target` the compiler's.
pub(crate) fn add_library(
    sh: &Shell,
    version: &str,
    folder: &Path,
    machine: &str,
    target: &str,
) -> Result<()> {
    let release = release_with(version)?;
    let folder = folder.join(release);
    let root = folder.join("root");
    let library = root.join("usr/lib/rustlib").join(target).join("lib");
    if library.is_dir() {
        return Ok(());
    }
    println!("unpacking the libraries of Rust {version} for {target}");
    let apt = Apt::read(sh, release, &folder.join(format!("apt-{machine}")), Some(machine))?;
    apt.unpack(&[format!("libstd-rust-dev:{machine}")], &root)?;
    if !library.is_dir() {
        bail!("Debian's package has no {}", library.display());
    }
    Ok(())
}

/// The Debian release that has this Rust.
fn release_with(version: &str) -> Result<&'static str> {
    match RELEASES.iter().find(|(rust, _)| *rust == version) {
        Some((_, release)) => Ok(release),
        None => bail!(
            "no Debian release is known to have Rust {version}: `rustup toolchain install {version}`"
        ),
    }
}

/// Runs the compiler; fails unless it is of the version wanted.
fn ask_version(sh: &Shell, rustc: &Path, version: &str) -> Result<Toolchain> {
    if !rustc.is_file() {
        bail!("{} is not there", rustc.display());
    }
    let said = cmd!(sh, "{rustc} --version").quiet().read().context("the unpacked rustc fails")?;
    if !said.starts_with(&format!("rustc {version}.")) {
        bail!("Debian has `{said}`, not Rust {version}: `rustup toolchain install {version}`");
    }
    Ok(Toolchain { rustc: rustc.to_path_buf(), version: said })
}

/// Downloads the compiler, its libraries and the standard library, and unpacks them into `root`.
fn unpack(sh: &Shell, release: &str, folder: &Path, root: &Path) -> Result<()> {
    let apt = Apt::read(sh, release, &folder.join("apt"), None)
        .context("rustup has no such toolchain, and neither has apt")?;
    let mut packages = vec!["rustc".to_string()];
    packages.extend(apt.needed_by("libstd-rust-dev")?);
    apt.unpack(&packages, root)
}

/// A script that runs the unpacked compiler with the loader and the libraries that it was built for.
fn write_wrapper(path: &Path, root: &Path) -> Result<()> {
    let libraries = root.join("usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH));
    let loader = loader(&libraries)?;
    let text = format!(
        "#!/bin/sh\nexec '{loader}' --library-path '{libraries}' '{root}/usr/bin/rustc' \
         --sysroot '{root}/usr' \"$@\"\n",
        loader = loader.display(),
        libraries = libraries.display(),
        root = root.display(),
    );
    Ok(fs::write(path, text)?)
}

/// The dynamic loader among the unpacked libraries.
fn loader(libraries: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(libraries).with_context(|| libraries.display().to_string())?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("ld-linux-") {
            return Ok(path);
        }
    }
    bail!("the unpacked C library has no loader in {}", libraries.display())
}
