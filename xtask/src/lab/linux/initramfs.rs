//! What the kernel unpacks and starts: busybox, modules, and programs of ours that need no library.
//!
//! The archive is cpio's format `newc`, as the kernel's `Documentation/driver-api/early-userspace/
//! buffer-format.rst` has it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use xshell::cmd;

use super::kernel::Kernel;
use crate::Chores;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Programs that carry their C library; in a build folder of their own, since flags are part of what
/// cargo caches by.
const FLAGS: (&str, &str) =
    ("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-Ctarget-feature=+crt-static");

/// What the guest needs of `/etc`: a user who is not root.
const PASSWD: &str = "root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000:user:/:/bin/sh\n";
const GROUP: &str = "root:x:0:\nuser:x:1000:\n";

/// Modes of `stat`: a folder, a program, a file.
const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;

/// The archive's bytes.
pub(super) fn make(chores: &Chores, kernel: &Kernel, folder: &Path) -> Result<Vec<u8>> {
    let programs = programs(chores, folder)?;
    let mut archive = Archive::default();
    for name in ["bin", "dev", "etc", "modules", "proc", "sys", "tmp"] {
        archive.add(name, FOLDER, &[]);
    }
    archive.add("etc/passwd", FILE, PASSWD.as_bytes());
    archive.add("etc/group", FILE, GROUP.as_bytes());
    archive.add("init", PROGRAM, &read(&chores.root.join("lab/linux/init"))?);
    archive.add("bin/busybox", PROGRAM, &read(&kernel.busybox)?);
    for program in programs {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        archive.add(&format!("bin/{name}"), PROGRAM, &read(&program)?);
    }
    for (name, bytes) in &kernel.modules {
        archive.add(&format!("modules/{name}"), FILE, bytes);
    }
    Ok(archive.finish())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

/// Builds the command `granule`, the example for NVMe and the guest's own program.
fn programs(chores: &Chores, folder: &Path) -> Result<Vec<PathBuf>> {
    let sh = &chores.sh;
    let folder = folder.join("build");
    let _flags = sh.push_env(FLAGS.0, FLAGS.1);
    let _strip = sh.push_env("CARGO_PROFILE_RELEASE_STRIP", "true");
    let build = ["build", "--quiet", "--release", "--target", TARGET];
    for what in [
        &["-p", "granule-cli", "--bin", "granule"][..],
        &["-p", "granule-linux", "--example", "nvme_identify"],
        &["-p", "granule-lab-linux"],
    ] {
        cmd!(sh, "cargo {build...} --target-dir {folder} {what...}").run()?;
    }
    let built = folder.join(TARGET).join("release");
    let names = ["granule", "examples/nvme_identify", "granule-lab-linux"];
    Ok(names.iter().map(|name| built.join(name)).collect())
}

/// An archive that is being written.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: usize,
}

impl Archive {
    /// Adds a folder or a file, which belong to root.
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let links = if mode == FOLDER { 2 } else { 1 };
        let fields = [
            self.entries, // its number
            mode as usize,
            0, // user
            0, // group
            links,
            0, // time
            content.len(),
            0, // device, major and minor
            0,
            0, // of a device's node, major and minor
            0,
            name.len() + 1,
            0, // checksum: this format has none
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_the_format_says() {
        let mut archive = Archive::default();
        archive.add("bin", FOLDER, &[]);
        archive.add("bin/a", PROGRAM, b"hello");
        let bytes = archive.finish();
        let text = String::from_utf8(bytes).unwrap();
        // 110 bytes of header, the name with a zero and up to a multiple of 4.
        assert!(text.starts_with("07070100000001000041ed00000000000000000000000200000000"));
        assert_eq!(&text[110..116], "bin\0\0\0".get(..6).unwrap());
        let file = &text[116..];
        assert!(file.starts_with("07070100000002000081ed"), "{file}");
        assert_eq!(&file[54..62], "00000005");
        assert_eq!(&file[110..124], "bin/a\0hello\0\0\0");
        assert_eq!(text.len() % 4, 0);
        assert!(text.contains("TRAILER!!!"));
    }
}
