//! A Rust toolchain out of a Debian release, unpacked beside the build and run by that release's
//! own loader, so that the machine's packages and its C library stay as they are.
//!
//! apt gets a configuration of its own: the machine's package sources with another release's name
//! in them, and folders under the build folder for everything that apt writes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

/// The machine's package sources.
const SOURCES: &str = "/etc/apt/sources.list.d/debian.sources";

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
    let sh = sh.clone();
    let apt = folder.join(format!("apt-{machine}"));
    sh.set_var("APT_CONFIG", configure_apt(release, &apt, Some(machine))?);
    sh.set_var("LC_ALL", "C.UTF-8");
    update(&sh, release)?;
    let package = format!("libstd-rust-dev:{machine}");
    fetch(&sh, &[package], &folder, &root)?;
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
    for tool in ["apt-get", "apt-cache", "dpkg"] {
        if cmd!(sh, "{tool} --version").quiet().ignore_stdout().ignore_stderr().run().is_err() {
            bail!("{tool} is not installed, and rustup has no such toolchain");
        }
    }
    let sh = sh.clone();
    sh.set_var("APT_CONFIG", configure_apt(release, &folder.join("apt"), None)?);
    sh.set_var("LC_ALL", "C.UTF-8");
    update(&sh, release)?;
    let mut packages = vec!["rustc".to_string()];
    packages.extend(needed_by(&sh, "libstd-rust-dev")?);
    fetch(&sh, &packages, folder, root)
}

/// Reads what the release has.
fn update(sh: &Shell, release: &str) -> Result<()> {
    // Errors of single sources are only warnings by default.
    cmd!(sh, "apt-get update -qq --error-on=any").quiet().run().with_context(|| {
        format!("Debian {release} cannot be reached through the machine's package sources")
    })
}

/// Downloads packages and unpacks them into `root`.
fn fetch(sh: &Shell, packages: &[String], folder: &Path, root: &Path) -> Result<()> {
    let debs = folder.join("debs");
    fs::create_dir_all(&debs)?;
    fs::create_dir_all(root)?;
    let sh = sh.clone();
    sh.change_dir(&debs);
    println!("packages: {}", packages.join(" "));
    cmd!(sh, "apt-get download -qq {packages...}").quiet().run().context("downloading packages")?;
    for deb in sh.read_dir(&debs)? {
        cmd!(sh, "dpkg -x {deb} {root}").quiet().run()?;
    }
    Ok(fs::remove_dir_all(&debs)?)
}

/// The package and all that it depends on, down to the C library.
fn needed_by(sh: &Shell, package: &str) -> Result<Vec<String>> {
    let listing = cmd!(sh, "apt-cache depends --recurse --important {package}").quiet().read()?;
    let packages = package_names(&listing);
    if packages.is_empty() {
        bail!("the package sources do not list {package}");
    }
    Ok(packages)
}

/// The lines of `apt-cache depends` that name a package; the others are dependencies (indented) or
/// virtual packages (`<…>`).
fn package_names(listing: &str) -> Vec<String> {
    listing.lines().filter(|line| !line.starts_with([' ', '<', '|'])).map(str::to_string).collect()
}

/// Writes the configuration and returns its path. `machine` is one whose packages are wanted beside
/// this machine's.
fn configure_apt(release: &str, folder: &Path, machine: Option<&str>) -> Result<PathBuf> {
    let sources = fs::read_to_string(SOURCES)
        .with_context(|| format!("{SOURCES}: the machine has no Debian package sources"))?;
    for empty in ["lists/partial", "cache/archives/partial", "sources"] {
        fs::create_dir_all(folder.join(empty))?;
    }
    fs::write(folder.join("status"), "")?;
    fs::write(folder.join("sources/debian.sources"), sources_of(&sources, release)?)?;
    let path = folder.join("apt.conf");
    let folder = folder.to_str().context("the build folder's path is not UTF-8")?;
    let machine =
        machine.map(|machine| format!("APT::Architectures:: \"{machine}\";\n")).unwrap_or_default();
    let text = format!(
        "{machine}Dir::State \"{folder}\";\n\
         Dir::State::lists \"{folder}/lists\";\n\
         Dir::State::status \"{folder}/status\";\n\
         Dir::Cache \"{folder}/cache\";\n\
         Dir::Etc::sourcelist \"/dev/null\";\n\
         Dir::Etc::sourceparts \"{folder}/sources\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::http::Timeout \"20\";\n\
         APT::Sandbox::User \"root\";\n"
    );
    fs::write(&path, text)?;
    Ok(path)
}

/// The machine's package sources for another release. Those of security updates are left out: the
/// release itself has all that is needed, and names its updates differently.
fn sources_of(machine: &str, release: &str) -> Result<String> {
    let stanzas: Vec<_> = machine
        .split("\n\n")
        .filter(|stanza| suites(stanza).is_some_and(|suites| !suites.contains("-security")))
        .map(|stanza| in_release(stanza, release))
        .collect();
    if stanzas.is_empty() {
        bail!("{SOURCES} has no line `Suites:` of a Debian release");
    }
    Ok(stanzas.join("\n"))
}

fn suites(stanza: &str) -> Option<&str> {
    stanza.lines().find_map(|line| line.strip_prefix("Suites:"))
}

fn in_release(stanza: &str, release: &str) -> String {
    let mut text = String::new();
    for line in stanza.lines() {
        match line.strip_prefix("Suites:") {
            Some(_) => text.push_str(&format!("Suites: {release}")),
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_change_their_release_and_nothing_else() {
        let machine = "Types: deb\n# Text\nURIs: uri:a\nSuites: bookworm bookworm-updates\n\
                       Components: main\n\nTypes: deb\nURIs: uri:b\nSuites: bookworm-security\n";
        let expected = "Types: deb\n# Text\nURIs: uri:a\nSuites: trixie\nComponents: main\n";
        assert_eq!(sources_of(machine, "trixie").unwrap(), expected);
        assert!(sources_of("deb uri:a bookworm main\n", "trixie").is_err());
    }

    #[test]
    fn dependencies_are_told_from_packages() {
        let listing = "libstd\n  Depends: libc6\n |Depends: a\n    b\n<virtual>\nlibc6\n";
        assert_eq!(package_names(listing), ["libstd", "libc6"]);
    }
}
