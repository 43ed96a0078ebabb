//! QEMU's `-M virt` for AArch64: entered at EL1 with the MMU off, console by the PL011, exit by
//! semihosting.

use core::arch::{asm, global_asm};

use super::virt;

/// What people call it.
pub(crate) const NAME: &str = "AArch64";

/// Where the emulator leaves the device tree for a kernel that is an ELF file: where RAM begins.
const DEVICE_TREE: u64 = 0x4000_0000;

/// The PL011: data register, and control register with the enabling of all and of the sender.
const CONSOLE: usize = 0x0900_0000;
const CONTROL: usize = 0x30;
const ENABLE: u32 = 1 << 8 | 1;

/// Semihosting: `SYS_EXIT_EXTENDED`, and that the application ended by itself.
const EXIT: u64 = 0x20;
const BY_ITSELF: u64 = 0x2_0026;

/// The emulator's exit codes.
const PASSED: u64 = 33;
const FAILED: u64 = 35;

// One table of level 1, by 1 GiB: registers of devices, RAM, and configuration space above 256 GiB.
// Floating point is switched on, for the core library is compiled with it.
global_asm!(
    ".section .data.boot, \"aw\"",
    ".balign 4096",
    "boot_table:",
    ".quad 0x0060000000000401", // device memory, never executed
    ".quad 0x0000000040000705", // normal memory, inner shareable
    ".fill 254, 8, 0",
    ".quad 0x0060004000000401",
    ".fill 255, 8, 0",
    ".section .bss.boot, \"aw\", @nobits",
    ".balign 16",
    ".skip 0x40000",
    "boot_stack:",
    ".section .text.boot, \"ax\"",
    ".globl _start",
    "_start:",
    "mov x1, #0x300000", // CPACR_EL1.FPEN
    "msr cpacr_el1, x1",
    "mov x1, #0xff04", // MAIR_EL1: 0 device nGnRE, 1 normal write-back
    "msr mair_el1, x1",
    // TCR_EL1: T0SZ 25, write-back and inner shareable walks of 4 KiB tables, no TTBR1, 40 bits out.
    "ldr x1, =0x200803519",
    "msr tcr_el1, x1",
    "ldr x1, =boot_table",
    "msr ttbr0_el1, x1",
    "isb",
    "tlbi vmalle1",
    "dsb nsh",
    "isb",
    "mrs x1, sctlr_el1",
    "mov x2, #0x1005", // M, C, I
    "orr x1, x1, x2",
    "bic x1, x1, #2", // no alignment checks
    "msr sctlr_el1, x1",
    "isb",
    "ldr x1, =boot_stack",
    "mov sp, x1",
    "mov x29, #0",
    "mov x30, #0",
    "bl {enter}",
    "b .",
    ".text",
    enter = sym enter,
);

extern "C" fn enter() -> ! {
    let control = core::ptr::with_exposed_provenance_mut::<u32>(CONSOLE + CONTROL);
    // SAFETY: the console's control register, mapped one to one.
    unsafe { control.write_volatile(ENABLE) };
    crate::main(&virt::boot(DEVICE_TREE))
}

/// Nanoseconds since the machine started.
pub(crate) fn now() -> u64 {
    let (count, rate): (u64, u64);
    // SAFETY: reading the counter and its rate changes nothing.
    unsafe {
        asm!("isb", "mrs {}, cntvct_el0", "mrs {}, cntfrq_el0", out(reg) count, out(reg) rate)
    };
    u64::try_from(u128::from(count) * 1_000_000_000 / u128::from(rate.max(1))).unwrap_or(u64::MAX)
}

/// A byte to the console.
pub(crate) fn put(byte: u8) {
    let data = core::ptr::with_exposed_provenance_mut::<u32>(CONSOLE);
    // SAFETY: the console's data register, mapped one to one; it prints a byte.
    unsafe { data.write_volatile(byte.into()) };
}

/// Ends the emulator.
pub(crate) fn exit(passed: bool) -> ! {
    let block = [BY_ITSELF, if passed { PASSED } else { FAILED }];
    loop {
        // SAFETY: the call ends the emulator; it reads two words at the address.
        unsafe { asm!("hlt #0xf000", in("x0") EXIT, in("x1") block.as_ptr()) };
    }
}
