//! The machines that are emulated.

use crate::cross::{self, Cross};

/// What every machine is told first. `-icount` lets virtual time run ahead of real time: each transfer
/// of an `edu` device takes a tenth of a virtual second.
pub(super) const EVERY: &[&str] = &[
    "-accel",
    "tcg",
    "-icount",
    "shift=10,sleep=off",
    "-m",
    "256M",
    "-nodefaults",
    "-display",
    "none",
    "-no-reboot",
];

/// A machine: which emulator, which image, how a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Machine {
    /// A PC, `-M q35`.
    X86,
    /// AArch64's `-M virt`.
    AArch64,
    /// RISC-V's `-M virt`.
    RiscV64,
}

impl Machine {
    /// The emulator.
    pub(super) const fn emulator(self) -> &'static str {
        match self {
            Self::X86 => "qemu-system-x86_64",
            Self::AArch64 => "qemu-system-aarch64",
            Self::RiscV64 => "qemu-system-riscv64",
        }
    }

    /// What its image is built by, if not by the ordinary toolchain's own target.
    pub(super) const fn cross(self) -> Option<Cross> {
        match self {
            Self::X86 => None,
            Self::AArch64 => Some(cross::AARCH64),
            Self::RiscV64 => Some(cross::RISCV64),
        }
    }

    /// Debian's package of it.
    pub(super) const fn package(self) -> &'static str {
        match self {
            Self::X86 => "qemu-system-x86",
            Self::AArch64 => "qemu-system-arm",
            Self::RiscV64 => "qemu-system-riscv",
        }
    }

    /// What every row of the machine starts with.
    pub(super) const fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::X86 => &[
                "-M",
                "q35",
                "-debugcon",
                "stdio",
                "-device",
                "isa-debug-exit,iobase=0xf4,iosize=0x04",
            ],
            Self::AArch64 => &[
                "-M",
                "virt,iommu=smmuv3",
                "-cpu",
                "max",
                "-serial",
                "stdio",
                "-semihosting-config",
                "enable=on,target=native",
            ],
            Self::RiscV64 => &["-M", "virt", "-bios", "none", "-serial", "stdio"],
        }
    }

    /// The emulator's exit code after a run whose checks all passed.
    pub(super) const fn passed(self) -> i32 {
        match self {
            // `isa-debug-exit` doubles the guest's 0x10 and adds 1; the others give the same.
            Self::X86 | Self::AArch64 | Self::RiscV64 => 33,
        }
    }
}
