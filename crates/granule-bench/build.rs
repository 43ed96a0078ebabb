//! Notes the compiler's version: recorded instruction counts are good for that compiler only.

use std::process::Command;

fn main() {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().ok();
    let version = version.and_then(|output| String::from_utf8(output.stdout).ok());
    let version = version.as_deref().map_or("unknown", str::trim);
    println!("cargo::rustc-env=GRANULE_BENCH_RUSTC={version}");
    println!("cargo::rerun-if-changed=build.rs");
}
