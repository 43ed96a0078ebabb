//! Ctrl-C: the first asks for an orderly end, the second ends.

use std::io;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::CliError;

/// What a shell reports of a program that Ctrl-C ended.
const STATUS: i32 = 130;

/// From now on Ctrl-C sets this flag. For once in a process.
pub(crate) fn watch() -> Result<Arc<AtomicBool>, CliError> {
    let flag = Arc::new(AtomicBool::new(false));
    let seen = flag.clone();
    let handler = move || {
        if seen.swap(true, Ordering::Relaxed) {
            process::exit(STATUS);
        }
    };
    ctrlc::set_handler(handler)
        .map_err(|error| CliError::Signals { error: io::Error::other(error) })?;
    Ok(flag)
}

/// Whether Ctrl-C was pressed.
pub(crate) fn happened(flag: &AtomicBool) -> bool {
    flag.load(Ordering::Relaxed)
}
