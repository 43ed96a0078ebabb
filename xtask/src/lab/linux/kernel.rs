//! The kernels: Debian's, unpacked; and one that is built from Debian's source, since none of
//! Debian's has iommufd. Both are kept under the build folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use xshell::{Shell, cmd};

use super::Interface;
use crate::apt::Apt;
use crate::{Chores, Unavailable, files};

/// The release that kernel and busybox are taken from.
const RELEASE: &str = "trixie";

/// The metapackage of the kernel: the flavour for virtual machines is a third of the other's size.
const IMAGE: &str = "linux-image-cloud-amd64";

/// The package of the source, and the archive's folder.
const SOURCE: &str = "linux-source-6.12";

/// The package of the tools for the guest. It runs here too.
const BUSYBOX: &str = "busybox-static";

/// The modules that the guest loads.
const MODULES: &[&str] =
    &["irqbypass", "vfio", "vfio_iommu_type1", "vfio-pci-core", "vfio-pci", "virtio-iommu"];

/// The configuration of the kernel with iommufd, from the project's root.
const CONFIGURATION: &str = "lab/linux/iommufd.config";

/// What Debian calls what a kernel's build needs.
const BUILD_TOOLS: &str = "make gcc flex bison bc libelf-dev libssl-dev xz-utils";

/// A kernel, and what goes with it.
pub(super) struct Kernel {
    /// What it is, for people.
    pub(super) about: String,
    /// What QEMU boots.
    pub(super) image: PathBuf,
    /// Modules: file names and contents.
    pub(super) modules: Vec<(String, Vec<u8>)>,
    /// The program.
    pub(super) busybox: PathBuf,
}

/// The kernel for an interface, made under `folder` unless it is there already.
///
/// [`Unavailable`] if the packages cannot be had here.
pub(super) fn get(chores: &Chores, interface: Interface, folder: &Path) -> Result<Kernel> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!(
            anyhow!("the programs for the guest are built on Linux on x86-64").context(Unavailable)
        );
    }
    let debian = Debian { sh: &chores.sh, folder };
    let busybox = debian.package(BUSYBOX)?.join("usr/bin/busybox");
    match interface {
        Interface::Vfio => debian_kernel(&debian, busybox),
        Interface::Iommufd => {
            let configuration = fs::read_to_string(chores.root.join(CONFIGURATION))?;
            built_kernel(&debian, &configuration, busybox)
        }
    }
}

/// Debian's packages, unpacked.
struct Debian<'a> {
    sh: &'a Shell,
    folder: &'a Path,
}

impl Debian<'_> {
    /// The folder with a package's content.
    fn package(&self, name: &str) -> Result<PathBuf> {
        let root = self.folder.join(name);
        if root.is_dir() {
            return Ok(root);
        }
        self.unpack(name, &root).context(Unavailable)?;
        Ok(root)
    }

    /// Under another name first: a folder that is there is whole.
    fn unpack(&self, name: &str, root: &Path) -> Result<()> {
        let apt = Apt::read(self.sh, RELEASE, &self.folder.join("apt"), None)?;
        let package = if name == IMAGE { apt.behind(name)? } else { name.to_string() };
        let begun = self.folder.join(format!("{name}-begun"));
        remove(&begun)?;
        apt.unpack(&[package], &begun)?;
        Ok(fs::rename(&begun, root)?)
    }
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    Ok(())
}

fn debian_kernel(debian: &Debian<'_>, busybox: PathBuf) -> Result<Kernel> {
    let root = debian.package(IMAGE)?;
    let image = only_file(&root.join("boot"), "vmlinuz-")?;
    let version = image.file_name().unwrap_or_default().to_string_lossy().replace("vmlinuz-", "");
    let packed = files::under(&root.join("usr/lib/modules"), "xz")?;
    let mut modules = Vec::new();
    for name in MODULES {
        let file = format!("{name}.ko");
        let path = packed
            .iter()
            .find(|path| path.file_stem().is_some_and(|stem| stem == file.as_str()))
            .with_context(|| format!("Debian's kernel {version} has no module {name}"))?;
        // busybox does it, so that no other tool is needed.
        let unpacked = cmd!(debian.sh, "{busybox} xz -dc {path}").quiet().output()?;
        modules.push((file, unpacked.stdout));
    }
    Ok(Kernel { about: format!("Debian's {version}"), image, modules, busybox })
}

/// The file in a folder whose name begins so.
fn only_file(folder: &Path, begin: &str) -> Result<PathBuf> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(begin)) {
            return Ok(path);
        }
    }
    bail!("{} has no {begin}*", folder.display())
}

fn built_kernel(debian: &Debian<'_>, configuration: &str, busybox: PathBuf) -> Result<Kernel> {
    let image = debian.folder.join("bzImage");
    let built_with = debian.folder.join("bzImage.config");
    let source = source(debian)?;
    if !image.is_file() || fs::read_to_string(&built_with).ok().as_deref() != Some(configuration) {
        println!("building a kernel with iommufd under {}: minutes, once", source.display());
        build(debian.sh, &source, configuration)
            .with_context(|| format!("building a kernel needs: apt-get install {BUILD_TOOLS}"))?;
        fs::copy(source.join("arch/x86/boot/bzImage"), &image)?;
        fs::write(&built_with, configuration)?;
    }
    let version = cmd!(debian.sh, "make -s -C {source} kernelversion").quiet().read()?;
    let about = format!("{version} with iommufd, built from Debian's {SOURCE}");
    Ok(Kernel { about, image, modules: Vec::new(), busybox })
}

/// The unpacked source.
fn source(debian: &Debian<'_>) -> Result<PathBuf> {
    let source = debian.folder.join("source");
    if source.is_dir() {
        return Ok(source);
    }
    let archive = debian.package(SOURCE)?.join(format!("usr/src/{SOURCE}.tar.xz"));
    let begun = debian.folder.join("source-begun");
    remove(&begun)?;
    fs::create_dir_all(&begun)?;
    cmd!(debian.sh, "tar -xf {archive} -C {begun}")
        .quiet()
        .run()
        .context("unpacking needs xz-utils")?;
    fs::rename(begun.join(SOURCE), &source)?;
    Ok(source)
}

fn build(sh: &Shell, source: &Path, configuration: &str) -> Result<()> {
    let wanted = source.join("granule.config");
    fs::write(&wanted, configuration)?;
    cmd!(sh, "make -s -C {source} KCONFIG_ALLCONFIG={wanted} allnoconfig").quiet().run()?;
    let got = fs::read_to_string(source.join(".config"))?;
    let lost = lost(configuration, &got);
    if !lost.is_empty() {
        bail!("this kernel does not take what {CONFIGURATION} says: {}", lost.join(", "));
    }
    let jobs = thread::available_parallelism().map_or(1, usize::from).to_string();
    Ok(cmd!(sh, "make -s -C {source} -j{jobs} bzImage").quiet().run()?)
}

/// The options that were wanted and are otherwise: kconfig drops them without a word if something
/// that they depend on is missing.
fn lost<'a>(wanted: &'a str, got: &str) -> Vec<&'a str> {
    let holds = |line: &str| match line.strip_suffix("=n") {
        Some(name) => !got.lines().any(|have| have.starts_with(&format!("{name}="))),
        None => got.lines().any(|have| have == line),
    };
    wanted.lines().filter(|line| line.starts_with("CONFIG_") && !holds(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_kconfig_dropped_are_named() {
        let wanted = "# text\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_C=n\nCONFIG_D=n\n";
        let got = "CONFIG_A=y\n# CONFIG_B is not set\n# CONFIG_C is not set\nCONFIG_D=y\n";
        assert_eq!(lost(wanted, got), ["CONFIG_B=y", "CONFIG_D=n"]);
    }
}
