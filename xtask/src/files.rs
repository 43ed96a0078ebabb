//! Finding the project's source files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// All files under `folder` with this extension, sorted. Build output and hidden folders are left
/// out. A folder that does not exist holds none.
pub(crate) fn under(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    collect(folder, extension, &mut found)?;
    found.sort();
    Ok(found)
}

fn collect(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name();
        let skip = name == "target" || name.to_string_lossy().starts_with('.');
        if entry.file_type()?.is_dir() {
            if !skip {
                collect(&path, extension, found)?;
            }
        } else if path.extension().is_some_and(|ext| ext == extension) {
            found.push(path);
        }
    }
    Ok(())
}

/// The folders in `folder`, sorted. A folder that does not exist holds none.
pub(crate) fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// The folders of the crates under `crates/`, sorted.
pub(crate) fn crates(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = folders(&root.join("crates"))?;
    found.retain(|folder| folder.join("Cargo.toml").is_file());
    Ok(found)
}
