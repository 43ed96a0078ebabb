//! `println!` to the machine's console.

use core::fmt::{self, Write};

struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(crate::arch::put);
        Ok(())
    }
}

pub(crate) fn write(arguments: fmt::Arguments<'_>) {
    // The console takes everything.
    let _ = Console.write_fmt(arguments);
}

macro_rules! println {
    ($($arguments:tt)*) => {{
        $crate::console::write(format_args!($($arguments)*));
        $crate::console::write(format_args!("\n"));
    }};
}
