//! QEMU's `-M virt -bios none` for RISC-V: entered in machine mode without translation, console by
//! the 16550, exit by the test device.

use core::arch::{asm, global_asm};

use super::virt;

/// What people call it.
pub(crate) const NAME: &str = "RISC-V";

/// The 16550's data register.
const CONSOLE: usize = 0x1000_0000;

/// The test device (`sifive,test0`): the exit code in the upper half, and that it is one.
const EXIT: usize = 0x10_0000;
const WITH_CODE: u32 = 0x3333;

/// The emulator's exit codes.
const PASSED: u32 = 33;
const FAILED: u32 = 35;

/// The timer counts at this rate, in Hz (`timebase-frequency`).
const TIMER_HZ: u128 = 10_000_000;

// The emulator passes the device tree's address in a1. Floating point is switched on, for the core
// library is compiled with it.
global_asm!(
    ".section .bss.boot, \"aw\", @nobits",
    ".balign 16",
    ".skip 0x40000",
    "boot_stack:",
    ".section .text.boot, \"ax\"",
    ".globl _start",
    "_start:",
    ".option push",
    ".option norelax",
    "la sp, boot_stack",
    "li t0, 0x2000", // mstatus.FS: initial
    "csrs mstatus, t0",
    "mv a0, a1",
    "mv ra, zero",
    "call {enter}",
    "1: j 1b",
    ".option pop",
    ".text",
    enter = sym enter,
);

extern "C" fn enter(tree: u64) -> ! {
    crate::main(&virt::boot(tree))
}

/// Nanoseconds since the machine started.
pub(crate) fn now() -> u64 {
    let count: u64;
    // SAFETY: reading the timer changes nothing.
    unsafe { asm!("rdtime {}", out(reg) count) };
    u64::try_from(u128::from(count) * 1_000_000_000 / TIMER_HZ).unwrap_or(u64::MAX)
}

/// A byte to the console.
pub(crate) fn put(byte: u8) {
    let data = core::ptr::with_exposed_provenance_mut::<u8>(CONSOLE);
    // SAFETY: the console's data register, mapped one to one; it prints a byte.
    unsafe { data.write_volatile(byte) };
}

/// Ends the emulator.
pub(crate) fn exit(passed: bool) -> ! {
    let code = if passed { PASSED } else { FAILED };
    let register = core::ptr::with_exposed_provenance_mut::<u32>(EXIT);
    loop {
        // SAFETY: the test device's register, mapped one to one; it ends the emulator.
        unsafe { register.write_volatile(code << 16 | WITH_CODE) };
    }
}
