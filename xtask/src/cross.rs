//! Compilers for other machines' bare metal, for the images of the lab.
//!
//! rustup's target is used where it is installed, as on most machines. Elsewhere the compiler and the
//! core library come from the Debian release that has the oldest Rust that is supported, unpacked
//! under the build folder ([`crate::msrv::debian`]): its targets are those of Linux, which do as well
//! for an image that is linked at a fixed address and uses no library of the system's.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use xshell::{PushEnv, Shell, cmd};

use crate::msrv::debian;
use crate::no_std::has_core_library;
use crate::{Chores, Unavailable};

/// A machine that is not this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cross {
    /// rustup's target: bare metal.
    pub(crate) bare: &'static str,
    /// Debian's target.
    linux: &'static str,
    /// What Debian calls the machine.
    debian: &'static str,
}

/// AArch64.
pub(crate) const AARCH64: Cross =
    Cross { bare: "aarch64-unknown-none", linux: "aarch64-unknown-linux-gnu", debian: "arm64" };

/// RISC-V of 64 bits.
pub(crate) const RISCV64: Cross = Cross {
    bare: "riscv64gc-unknown-none-elf",
    linux: "riscv64gc-unknown-linux-gnu",
    debian: "riscv64",
};

/// What builds for a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Toolchain {
    /// The ordinary one, with this target.
    Rustup {
        /// The target.
        target: &'static str,
    },
    /// Debian's, unpacked.
    Debian {
        /// A script that runs the compiler.
        rustc: PathBuf,
        /// The target.
        target: &'static str,
        /// The linker, which the ordinary toolchain brings.
        linker: PathBuf,
    },
}

impl Toolchain {
    /// The target that cargo is told.
    pub(crate) fn target(&self) -> &'static str {
        match self {
            Self::Rustup { target } | Self::Debian { target, .. } => target,
        }
    }

    /// What it is, for people.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Rustup { target } => format!("rustup's {target}"),
            Self::Debian { target, .. } => format!("Debian's {target}"),
        }
    }

    /// Sets what cargo needs to know, until the result is dropped.
    #[must_use]
    pub(crate) fn environment<'sh>(&self, sh: &'sh Shell) -> Vec<PushEnv<'sh>> {
        let Self::Debian { rustc, target, linker } = self else { return Vec::new() };
        let flags = format!("CARGO_TARGET_{}_RUSTFLAGS", target.to_uppercase().replace('-', "_"));
        let link = format!("-Clinker={} -Clinker-flavor=ld.lld", linker.display());
        vec![
            sh.push_env("RUSTC", rustc),
            // The wrapper of whoever runs this chore may not suit another compiler.
            sh.push_env("RUSTC_WRAPPER", ""),
            sh.push_env("RUSTC_WORKSPACE_WRAPPER", ""),
            sh.push_env(flags, format!("{link} -Cpanic=abort -Crelocation-model=static")),
        ]
    }
}

/// The compiler for a machine.
///
/// [`Unavailable`] if neither rustup nor Debian has one here.
pub(crate) fn toolchain_for(chores: &Chores, cross: Cross) -> Result<Toolchain> {
    if has_core_library(chores, cross.bare) {
        return Ok(Toolchain::Rustup { target: cross.bare });
    }
    from_debian(chores, cross)
        .context(Unavailable)
        .with_context(|| format!("no core library for {}: `rustup target add {0}`", cross.bare))
}

/// Debian's compiler with the core library for the machine.
fn from_debian(chores: &Chores, cross: Cross) -> Result<Toolchain> {
    let folder = chores.target.join("msrv");
    let version = crate::msrv::version(chores)?;
    let toolchain = debian::rustc(&chores.sh, &version, &folder)?;
    debian::add_library(&chores.sh, &version, &folder, cross.debian, cross.linux)?;
    let linker = linker(chores)?;
    Ok(Toolchain::Debian { rustc: toolchain.rustc, target: cross.linux, linker })
}

/// The linker of the ordinary toolchain: it links for every machine.
fn linker(chores: &Chores) -> Result<PathBuf> {
    let sysroot = cmd!(chores.sh, "rustc --print sysroot").quiet().read()?;
    let host = cmd!(chores.sh, "rustc -vV").quiet().read()?;
    let host = host
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc does not say what it runs on")?
        .to_string();
    let linker = Path::new(&sysroot).join("lib/rustlib").join(host).join("bin/rust-lld");
    if linker.is_file() {
        return Ok(linker);
    }
    Err(anyhow!("the toolchain has no rust-lld ({})", linker.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_foreign_compiler_changes_the_environment() {
        let sh = Shell::new().unwrap();
        assert!(Toolchain::Rustup { target: AARCH64.bare }.environment(&sh).is_empty());
        let debian =
            Toolchain::Debian { rustc: "/r".into(), target: RISCV64.linux, linker: "/lld".into() };
        let _environment = debian.environment(&sh);
        let flags = sh.var("CARGO_TARGET_RISCV64GC_UNKNOWN_LINUX_GNU_RUSTFLAGS").unwrap();
        assert!(flags.starts_with("-Clinker=/lld -Clinker-flavor=ld.lld "), "{flags}");
        assert_eq!(sh.var("RUSTC").unwrap(), "/r");
        assert_eq!(debian.target(), "riscv64gc-unknown-linux-gnu");
    }
}
