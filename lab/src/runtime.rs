//! What std and a C library would bring: the panic handler, and the functions the compiler calls.

use core::panic::PanicInfo;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("FAILED  {info}");
    crate::arch::exit(false)
}

/// Compiled into the core library for Linux, though nothing ever unwinds.
#[cfg(target_os = "linux")]
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// Called from landing pads of the library crates for Linux, which nothing ever enters.
#[cfg(target_os = "linux")]
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    crate::arch::exit(false)
}

/// What the compiler expects of the C library; on bare-metal targets the core library brings its
/// own. Volatile accesses keep the compiler from turning a loop into a call of the function it is in.
#[cfg(target_os = "linux")]
mod c_library {
    /// The bytes of a machine word.
    const WORD: usize = size_of::<usize>();

    /// Copies from the lowest address up, by words where both are aligned.
    ///
    /// # Safety
    /// Both are valid for `len` bytes.
    unsafe fn copy_up(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        let mut at = 0;
        if (to.addr() | from.addr()) % WORD == 0 {
            while at + WORD <= len {
                // SAFETY: the word is inside and aligned.
                unsafe {
                    let word = from.add(at).cast::<usize>().read_volatile();
                    to.add(at).cast::<usize>().write_volatile(word);
                }
                at += WORD;
            }
        }
        while at < len {
            // SAFETY: `at` is below `len`.
            unsafe { to.add(at).write_volatile(from.add(at).read_volatile()) };
            at += 1;
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
            // SAFETY: the caller's promise. No byte is overwritten before it was read: a word is
            // read whole before one at a lower or the same address is written.
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
        // C uses the low byte.
        let byte = byte as u8;
        let word = usize::from_ne_bytes([byte; WORD]);
        let mut at = 0;
        if to.addr() % WORD == 0 {
            while at + WORD <= len {
                // SAFETY: the word is inside and aligned.
                unsafe { to.add(at).cast::<usize>().write_volatile(word) };
                at += WORD;
            }
        }
        while at < len {
            // SAFETY: `at` is below `len`.
            unsafe { to.add(at).write_volatile(byte) };
            at += 1;
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

    /// # Safety
    /// As in C: a string that ends with 0.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn strlen(text: *const core::ffi::c_char) -> usize {
        let mut len = 0;
        // SAFETY: the caller's promise; the loop ends at the 0.
        while unsafe { text.add(len).read_volatile() } != 0 {
            len += 1;
        }
        len
    }
}
