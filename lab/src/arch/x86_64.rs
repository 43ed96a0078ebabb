//! The PC of QEMU (`-M q35`): entered in 32-bit mode by its loader (PVH), console and exit by ports.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, Ordering};

use super::{Boot, Span, Tables, acpi};

/// What people call it.
pub(crate) const NAME: &str = "x86-64";

/// `-debugcon stdio`.
const CONSOLE: u16 = 0xe9;

/// `-device isa-debug-exit,iobase=0xf4`: the emulator's exit code is twice the value, plus 1.
const EXIT: u16 = 0xf4;

/// The exit values of a run; 0 and 1 would look like QEMU's own errors.
const PASSED: u32 = 0x10;
const FAILED: u32 = 0x11;

/// The ACPI timer counts at this rate, in Hz (ACPI 6.5, 4.8.2.1).
const TIMER_HZ: u64 = 3_579_545;

/// Time-stamp counts in 2^20 ns, measured once.
static COUNTS: AtomicU64 = AtomicU64::new(1 << 20);

// The note names the entry, which is entered with paging off and the start information in EBX
// (Xen's boot/pvh.h). The first 4 GiB are mapped one to one by 2 MiB pages. SSE is switched on, for
// the core library is compiled with it; nothing else uses it.
global_asm!(
    ".section .note.Xen, \"a\", @note",
    ".balign 4",
    ".long 4, 4, 18",
    ".asciz \"Xen\"",
    ".long pvh_start",
    ".section .data.boot, \"aw\"",
    ".balign 4096",
    "boot_pml4: .quad boot_pdpt + 3",
    ".fill 511, 8, 0",
    "boot_pdpt: .quad boot_pd + 0x0003, boot_pd + 0x1003, boot_pd + 0x2003, boot_pd + 0x3003",
    ".fill 508, 8, 0",
    "boot_pd:",
    ".set at, 0",
    ".rept 2048",
    ".quad at + 0x83",
    ".set at, at + 0x200000",
    ".endr",
    "boot_gdt: .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff",
    "boot_gdt_pointer: .word 23",
    ".long boot_gdt",
    ".section .bss.boot, \"aw\", @nobits",
    ".balign 16",
    ".skip 0x40000",
    "boot_stack:",
    ".section .text.boot, \"ax\"",
    ".code32",
    ".globl pvh_start",
    "pvh_start:",
    "cli",
    "cld",
    "movl $boot_stack, %esp",
    "movl $0x620, %eax", // PAE, OSFXSR, OSXMMEXCPT
    "movl %eax, %cr4",
    "movl $boot_pml4, %eax",
    "movl %eax, %cr3",
    "movl $0xc0000080, %ecx", // EFER
    "rdmsr",
    "orl $0x100, %eax", // LME
    "wrmsr",
    "movl %cr0, %eax",
    "andl $0xfffffffb, %eax", // no emulation of the FPU
    "orl $0x80000002, %eax",  // PG, MP
    "movl %eax, %cr0",
    "lgdt boot_gdt_pointer",
    "ljmp $0x08, $long_mode",
    ".code64",
    "long_mode:",
    "movw $0x10, %ax",
    "movw %ax, %ds",
    "movw %ax, %es",
    "movw %ax, %ss",
    "movl %ebx, %edi",
    "xorl %ebp, %ebp",
    "call {enter}",
    "ud2",
    ".text",
    enter = sym enter,
    options(att_syntax)
);

/// What the loader leaves (Xen's arch-x86/hvm/start_info.h).
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    root_pointer: u64,
    memory_map: u64,
    memory_entries: u32,
    reserved: u32,
}

/// One entry of its memory map.
#[repr(C)]
#[derive(Clone, Copy)]
struct MemoryEntry {
    start: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

/// The kind of a memory entry that is memory.
const RAM: u32 = 1;

unsafe extern "C" {
    /// The first byte behind the image.
    static image_end: u8;
}

extern "C" fn enter(info: *const StartInfo) -> ! {
    // SAFETY: the loader's promise: it leaves this structure, and what it points to, in memory that
    // is mapped one to one.
    let (info, command_line) = unsafe {
        let info = &*info;
        (info, text(info.command_line))
    };
    let entries = core::ptr::with_exposed_provenance(info.memory_map as usize);
    // SAFETY: as above.
    let entries: &[MemoryEntry] =
        unsafe { core::slice::from_raw_parts(entries, info.memory_entries as usize) };
    let root = info.root_pointer;
    measure_clock(root);
    crate::main(&Boot {
        command_line,
        memory: free_memory(entries),
        ecam: ecam(root),
        bars: None,
        tables: Tables::Acpi(root),
    })
}

/// # Safety
/// `address` is 0, or that of a string that ends with 0 and stays.
unsafe fn text(address: u64) -> &'static str {
    if address == 0 {
        return "";
    }
    let start = core::ptr::with_exposed_provenance(address as usize);
    // SAFETY: the caller's promise.
    unsafe { core::ffi::CStr::from_ptr(start) }.to_str().unwrap_or("")
}

/// The memory behind the image: the rest of the stretch that it lies in.
fn free_memory(entries: &[MemoryEntry]) -> Span {
    let end = &raw const image_end as u64;
    let inside = |entry: &&MemoryEntry| {
        entry.kind == RAM && entry.start <= end && end - entry.start < entry.size
    };
    match entries.iter().find(inside) {
        // The loader keeps the start information and firmware its tables at the end of memory.
        Some(entry) => (end, entry.start + entry.size - end),
        None => panic!("the memory map does not hold the image"),
    }
}

/// Configuration space, from the table MCFG (PCI Firmware Specification 3.3, 4.1.2).
fn ecam(root: u64) -> Span {
    let entry = acpi::find(root, b"MCFG").and_then(|table| table.get(acpi::HEADER + 8..));
    let found = entry.and_then(|entry| {
        let buses = u64::from(*entry.get(11)?) - u64::from(*entry.get(10)?) + 1;
        Some((acpi::read_u64(entry, 0)?, buses << 20))
    });
    found.unwrap_or_else(|| panic!("ACPI has no table MCFG"))
}

/// Measures the time-stamp counter by the ACPI timer, whose port the table FACP names at 76.
fn measure_clock(root: u64) {
    const TICKS: u32 = 3580; // About a millisecond.
    let port = acpi::find(root, b"FACP").and_then(|table| acpi::read_u32(table, 76));
    let Some(port) = port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
    else {
        return;
    };
    let (begin, counts) = (read_timer(port), counter());
    let mut ticks = 0;
    while ticks < TICKS {
        ticks = read_timer(port).wrapping_sub(begin) & 0xff_ffff;
    }
    let nanoseconds = u64::from(ticks) * 1_000_000_000 / TIMER_HZ;
    let measured = ((counter() - counts) << 20) / nanoseconds.max(1);
    COUNTS.store(measured.max(1), Ordering::Relaxed);
}

fn read_timer(port: u16) -> u32 {
    let value;
    // SAFETY: reading the timer changes nothing.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) };
    value
}

fn counter() -> u64 {
    // SAFETY: every processor of 64 bits has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Nanoseconds since the machine started.
pub(crate) fn now() -> u64 {
    let counts = u128::from(counter()) << 20;
    u64::try_from(counts / u128::from(COUNTS.load(Ordering::Relaxed))).unwrap_or(u64::MAX)
}

/// A byte to the console.
pub(crate) fn put(byte: u8) {
    // SAFETY: the port prints a byte, and does nothing else.
    unsafe { asm!("out dx, al", in("dx") CONSOLE, in("al") byte, options(nomem, nostack)) };
}

/// Ends the emulator.
pub(crate) fn exit(passed: bool) -> ! {
    let value = if passed { PASSED } else { FAILED };
    loop {
        // SAFETY: the port ends the emulator.
        unsafe { asm!("out dx, eax", in("dx") EXIT, in("eax") value, options(nomem, nostack)) };
    }
}
