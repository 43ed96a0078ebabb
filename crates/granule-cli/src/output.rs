//! Standard output, and output files that are whole or not there.

use std::fs::Permissions;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tempfile::{Builder, NamedTempFile};

use crate::error::CliError;

/// Prints all of `text`. A reader who has left early (`| head`) is no error.
pub(crate) fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(CliError::Write { path: "standard output".into(), error })
        }
        _ => Ok(()),
    }
}

/// What `--json` prints for a value.
pub(crate) fn json<T: Serialize>(value: &T) -> String {
    // Plain structs, strings and numbers always have a JSON form.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

/// Prints to standard error; if that is closed, nobody is left to be told.
pub(crate) fn complain(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// A file that is written beside its place, and put there by [`commit`](Self::commit) or not at all.
#[derive(Debug)]
pub(crate) struct Staged {
    file: NamedTempFile,
    target: PathBuf,
}

impl Staged {
    /// Begins a file for `path`. What is there stays until the commit.
    pub(crate) fn new(path: &Path) -> Result<Self, CliError> {
        let wrap = |error| CliError::Write { path: path.into(), error };
        // A link stays a link: what it leads to is replaced.
        let target = match path.canonicalize() {
            Ok(target) if !target.is_file() => {
                return Err(wrap(io::Error::other("it is there and no ordinary file")));
            }
            Ok(target) => target,
            Err(error) if error.kind() == ErrorKind::NotFound => path.into(),
            Err(error) => return Err(wrap(error)),
        };
        let folder = match target.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        // The mode of any new file, less the user's umask.
        let mode = Permissions::from_mode(0o666);
        let file = Builder::new().prefix(".granule-").permissions(mode).tempfile_in(folder);
        Ok(Self { file: file.map_err(wrap)?, target })
    }

    /// Where the file is written until the commit.
    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Writes all of it.
    pub(crate) fn write(&mut self, text: &str) -> Result<(), CliError> {
        let written = self.file.write_all(text.as_bytes());
        written.map_err(|error| CliError::Write { path: self.target.clone(), error })
    }

    /// Puts the file in its place.
    pub(crate) fn commit(self) -> Result<(), CliError> {
        let wrap = |error| CliError::Write { path: self.target.clone(), error };
        self.file.as_file().sync_all().map_err(wrap)?;
        let target = self.target.clone();
        let placed = self.file.persist(&target);
        placed.map(|_| ()).map_err(|error| CliError::Write { path: target, error: error.error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_or_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out");
        std::fs::write(&path, "old").expect("written");
        let mut staged = Staged::new(&path).expect("staged");
        staged.write("new").expect("written");
        drop(staged);
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "old");
        let mut staged = Staged::new(&path).expect("staged");
        staged.write("new").expect("written");
        staged.commit().expect("committed");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "new");
        assert_eq!(folder.path().read_dir().expect("listed").count(), 1);
        assert!(Staged::new(folder.path()).is_err());
        assert!(Staged::new(Path::new("/dev/null")).is_err());
        assert!(Staged::new(&folder.path().join("no/where")).is_err());
    }
}
