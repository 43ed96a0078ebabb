//! The machines that are emulated.

/// A machine: which emulator, which image, how a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Machine {
    /// A PC, `-M q35`.
    X86,
}

impl Machine {
    /// The emulator.
    pub(super) const fn emulator(self) -> &'static str {
        match self {
            Self::X86 => "qemu-system-x86_64",
        }
    }

    /// Debian's package of it.
    pub(super) const fn package(self) -> &'static str {
        match self {
            Self::X86 => "qemu-system-x86",
        }
    }

    /// What every row of the machine starts with. `-icount` lets virtual time run ahead of real
    /// time: each transfer of an `edu` device takes a tenth of a virtual second.
    pub(super) const fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::X86 => &[
                "-M",
                "q35",
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
                "-debugcon",
                "stdio",
                "-device",
                "isa-debug-exit,iobase=0xf4,iosize=0x04",
            ],
        }
    }

    /// The emulator's exit code after a run whose checks all passed.
    pub(super) const fn passed(self) -> i32 {
        match self {
            // `isa-debug-exit` doubles the guest's 0x10 and adds 1.
            Self::X86 => 33,
        }
    }
}
