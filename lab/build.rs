//! Links the image at the address where the machine's firmware puts it, without a C library.

use std::env::var;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=link");
    let (Ok(arch), Ok(folder)) = (var("CARGO_CFG_TARGET_ARCH"), var("CARGO_MANIFEST_DIR")) else {
        return;
    };
    let script = format!("{folder}/link/{arch}.ld");
    // On Linux targets the linker is the C compiler, which is told to leave out all it would add.
    if arch == "x86_64" && var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        for arg in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"] {
            println!("cargo::rustc-link-arg-bins={arg}");
        }
        println!("cargo::rustc-link-arg-bins=-Wl,-z,max-page-size=4096");
        println!("cargo::rustc-link-arg-bins=-Wl,-T{script}");
    } else {
        println!("cargo::rustc-link-arg-bins=-T{script}");
    }
}
