//! What differs between machines. An architecture is a module here that offers:
//!
//! | item | what |
//! | --- | --- |
//! | `NAME` | its name, for people |
//! | its entry, in assembly | sets up a stack and memory mapped one to one, with registers of devices reachable, and calls [`crate::main`] with a [`Boot`] |
//! | `put(u8)` | a byte to the console |
//! | `exit(bool) -> !` | ends the emulator; success or not |
//! | `now() -> u64` | nanoseconds since some moment |
//!
//! Everything else is shared.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // The PC describes itself so.
mod acpi;
#[cfg(target_arch = "riscv64")]
mod riscv64;
pub(crate) mod tree;
#[cfg(not(target_arch = "x86_64"))]
mod virt;
#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::{NAME, exit, now, put};
#[cfg(target_arch = "riscv64")]
pub(crate) use riscv64::{NAME, exit, now, put};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{NAME, exit, now, put};

/// A range of physical memory or of device registers: first byte, length.
pub(crate) type Span = (u64, u64);

/// What the machine says of itself at the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Boot {
    /// `row=… break=…`: what the launcher asks for.
    pub command_line: &'static str,
    /// Free memory, the image and all that firmware keeps left out.
    pub memory: Span,
    /// PCI configuration space, one to one (ECAM), from bus 0 on.
    pub ecam: Span,
    /// Where BARs that firmware left unassigned may be put; `None` where it assigns them.
    pub bars: Option<Span>,
    /// Where the machine describes its hardware.
    pub tables: Tables,
}

impl Boot {
    /// The ACPI table with this signature, header included.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // The PC describes itself so.
    pub(crate) fn acpi_table(&self, signature: &[u8; 4]) -> Option<&'static [u8]> {
        match self.tables {
            Tables::Acpi(root) => acpi::find(root, signature),
            Tables::DeviceTree(_) => None,
        }
    }
}

/// How a machine describes its hardware.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code)] // Each architecture makes one of them.
pub(crate) enum Tables {
    /// The address of ACPI's root pointer.
    Acpi(u64),
    /// The address of a flattened device tree.
    DeviceTree(u64),
}
