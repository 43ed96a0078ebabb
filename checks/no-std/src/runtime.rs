//! What std and a C library would bring: the entry, the exit, the panic handler, and the functions
//! that the compiler calls.

use core::panic::PanicInfo;

/// A panic inside a check; shells use the same code for an abort.
const PANICKED: u8 = 134;

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    exit(PANICKED)
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
core::arch::global_asm!(
    // The kernel enters with an aligned stack, no return address and nothing in %rbp.
    ".globl _start",
    "_start: call {main}",
    main = sym crate::main,
);

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    crate::main()
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub(crate) fn exit(code: u8) -> ! {
    const EXIT_GROUP: u32 = 231;
    // SAFETY: the system call ends the process.
    unsafe {
        core::arch::asm!(
            "syscall",
            in("eax") EXIT_GROUP,
            in("edi") u32::from(code),
            options(noreturn),
        );
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
pub(crate) fn exit(_: u8) -> ! {
    loop {
        core::hint::spin_loop();
    }
}

/// Compiled into the core library for Linux, though nothing ever unwinds.
#[cfg(target_os = "linux")]
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// What the compiler expects of the C library; on bare metal the core library brings its own.
/// Volatile accesses keep the compiler from turning a loop into a call of the function it is in.
#[cfg(target_os = "linux")]
mod c_library {
    /// Copies from the lowest address up.
    ///
    /// # Safety
    /// Both are valid for `len` bytes.
    unsafe fn copy_up(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        for at in 0..len {
            // SAFETY: `at` is below `len`.
            unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) };
        }
        to
    }

    /// # Safety
    /// As in C: both are valid for `len` bytes, and do not overlap.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { copy_up(to, from, len) }
    }

    /// # Safety
    /// As in C: both are valid for `len` bytes.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        if to.addr() <= from.addr() {
            // SAFETY: the caller's promise. No byte is overwritten before it was read.
            return unsafe { copy_up(to, from, len) };
        }
        for at in (0..len).rev() {
            // SAFETY: `at` is below `len`.
            unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) };
        }
        to
    }

    /// # Safety
    /// As in C: valid for `len` bytes.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
        for at in 0..len {
            // SAFETY: `at` is below `len`. C uses the low byte.
            unsafe { to.add(at).write_volatile(byte as u8) };
        }
        to
    }

    /// # Safety
    /// As in C: both are valid for `len` bytes.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
        for at in 0..len {
            // SAFETY: `at` is below `len`.
            let (a, b) = unsafe { (a.add(at).read_volatile(), b.add(at).read_volatile()) };
            if a != b {
                return i32::from(a) - i32::from(b);
            }
        }
        0
    }

    /// # Safety
    /// As `memcmp`.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { memcmp(a, b, len) }
    }
}
