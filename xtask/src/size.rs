//! Long source files: a file is about one subject, and 500 lines is where one should have been two.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::{Chores, files};

/// The most lines that a source file may have.
const LIMIT: usize = 500;

pub(crate) fn list(chores: &Chores, check: bool) -> Result<()> {
    let mut long = Vec::new();
    let mut count = 0;
    for path in files::under(&chores.root, "rs")? {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        count += 1;
        let lines = text.lines().count();
        if lines > LIMIT {
            long.push((lines, path));
        }
    }
    long.sort_by(|a, b| b.cmp(a));
    for (lines, path) in &long {
        println!("{lines:5}  {}", chores.relative(path).display());
    }
    println!("{} of {count} source files are longer than {LIMIT} lines", long.len());
    if check && !long.is_empty() {
        bail!("split the long files by subject");
    }
    Ok(())
}
