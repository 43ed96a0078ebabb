//! Boards: device-tree sources are what people edit, the blobs beside them are what crates include.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use xshell::cmd;

use crate::{Chores, files};

/// Where the sources and the blobs lie.
const FOLDER: &str = "crates/granule-board/boards";

/// Compiles every source, in place; with `check`, elsewhere, and compares.
pub(crate) fn compile(chores: &Chores, check: bool) -> Result<()> {
    let folder = chores.root.join(FOLDER);
    let sources = files::under(&folder, "dts")?;
    if sources.is_empty() {
        bail!("there is no device-tree source (*.dts) under {FOLDER}");
    }
    if cmd!(chores.sh, "dtc --version").quiet().ignore_stdout().run().is_err() {
        bail!("dtc is not installed; on Debian: apt-get install device-tree-compiler");
    }
    let mut stale = Vec::new();
    for source in &sources {
        let blob = source.with_extension("dtb");
        let new = compile_one(chores, source)?;
        if fs::read(&blob).ok().as_deref() == Some(new.as_slice()) {
            println!("unchanged  {}", chores.relative(&blob).display());
        } else if check {
            println!("STALE      {}", chores.relative(&blob).display());
            stale.push(blob);
        } else {
            fs::write(&blob, &new).with_context(|| blob.display().to_string())?;
            println!("written    {}", chores.relative(&blob).display());
        }
    }
    let orphans = orphans(&folder)?;
    for blob in &orphans {
        println!("NO SOURCE  {}", chores.relative(blob).display());
    }
    if !stale.is_empty() {
        bail!("{} blob(s) differ from their source: run `cargo xtask boards`", stale.len());
    }
    if !orphans.is_empty() {
        bail!("{} blob(s) have no source beside them: add it, or remove them", orphans.len());
    }
    Ok(())
}

/// What dtc makes of `source`; with `-@`, since labels are names that people may use.
fn compile_one(chores: &Chores, source: &Path) -> Result<Vec<u8>> {
    let out = chores.target.join("boards");
    fs::create_dir_all(&out)?;
    let name = source.file_name().context("a source without a name")?;
    let out = out.join(name).with_extension("dtb");
    cmd!(chores.sh, "dtc -q -@ -I dts -O dtb -o {out} {source}").quiet().run()?;
    fs::read(&out).with_context(|| out.display().to_string())
}

/// Blobs that no source makes.
fn orphans(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut blobs = files::under(folder, "dtb")?;
    blobs.retain(|blob| !blob.with_extension("dts").is_file());
    Ok(blobs)
}
