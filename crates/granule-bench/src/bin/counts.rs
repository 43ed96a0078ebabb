//! `cargo run --release -p granule-bench --bin counts -- --check`: instructions of six key paths.
//!
//! Each path runs under callgrind in a process of its own, and only its steady state is counted.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use granule_bench::keys::{COUNTED, KEYS, Key};
use granule_bench::platform::boot;

const HELP: &str = "\
Instructions of six key paths, counted by callgrind.

Usage: cargo run --release -p granule-bench --bin counts -- [--check | --record | --profile NAME]

  (nothing)       print the counts beside the recorded ones
  --check         fail if one has grown by more than 5 %; exit with 77 if they cannot be
                  compared here (another rustc or target, no valgrind)
  --record        write them to crates/granule-bench/counts.txt
  --profile NAME  show where the instructions of one path go
";

/// What `.ci/run` takes for `skipped`.
const SKIPPED: u8 = 77;
const TOLERANCE: f64 = 0.05;
const RUSTC: &str = env!("GRANULE_BENCH_RUSTC");

enum Failure {
    Skipped(String),
    Failed(String),
}

use Failure::{Failed, Skipped};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["--run", name] => run(name),
        [] => compare(false),
        ["--check"] => compare(true),
        ["--record"] => record(),
        ["--profile", name] => profile(name),
        _ => {
            print!("{HELP}");
            return if words == ["--help"] { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Skipped(why)) => {
            println!("skipped: {why}");
            ExitCode::from(SKIPPED)
        }
        Err(Failed(why)) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}

fn key(name: &str) -> Result<&'static Key, Failure> {
    KEYS.iter().find(|key| key.name == name).ok_or_else(|| {
        let names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
        Failed(format!("no path is named {name}; there are {}", names.join(", ")))
    })
}

/// What callgrind is started with.
fn run(name: &str) -> Result<(), Failure> {
    let key = key(name)?;
    boot();
    granule_bench::keys::run(key);
    Ok(())
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("counts.txt")
}

fn target() -> String {
    format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS)
}

/// Runs a path under callgrind, whose output goes to `out`.
fn callgrind(key: &Key, out: &Path) -> Result<(), Failure> {
    let program = std::env::current_exe().map_err(|error| Failed(error.to_string()))?;
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", "--compress-strings=no"])
        .arg(format!("--toggle-collect={COUNTED}"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(["--run", key.name])
        .stdout(Stdio::null())
        .output();
    let run = run.map_err(|error| Skipped(format!("valgrind cannot be started: {error}")))?;
    if run.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&run.stderr);
    Err(Failed(format!("valgrind failed on {}: {words}", key.name)))
}

/// Instructions an operation.
fn count(key: &Key) -> Result<f64, Failure> {
    let out = std::env::temp_dir().join(format!("granule-counts-{}", std::process::id()));
    let done = callgrind(key, &out);
    let text = std::fs::read_to_string(&out).unwrap_or_default();
    let _ = std::fs::remove_file(&out);
    done?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals:")).unwrap_or("");
    match total.trim().parse::<f64>() {
        Ok(total) if total > 0.0 => Ok(total / key.ops as f64),
        _ => Err(Failed(format!("callgrind counted nothing in {}", key.name))),
    }
}

fn record() -> Result<(), Failure> {
    let mut text = String::from(
        "# Instructions an operation, by callgrind: cargo run --release -p granule-bench --bin counts -- --record\n",
    );
    let _ = writeln!(text, "# They are good for this compiler and target only.");
    let _ = writeln!(text, "rustc: {RUSTC}\ntarget: {}", target());
    for key in &KEYS {
        let count = count(key)?;
        let _ = writeln!(text, "{}: {count:.1}", key.name);
        println!("{:36} {count:10.1}", key.name);
    }
    std::fs::write(file(), text).map_err(|error| Failed(error.to_string()))
}

fn recorded() -> Result<BTreeMap<String, String>, Failure> {
    let text = std::fs::read_to_string(file())
        .map_err(|error| Failed(format!("{}: {error}; --record makes it", file().display())))?;
    let pairs = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (name, value) = line.split_once(": ")?;
        Some((name.to_string(), value.to_string()))
    });
    Ok(pairs.collect())
}

fn compare(strict: bool) -> Result<(), Failure> {
    let recorded = recorded()?;
    for (what, ours) in [("rustc", RUSTC), ("target", &target())] {
        let theirs = recorded.get(what).map_or("", String::as_str);
        if theirs != ours && strict {
            return Err(Skipped(format!(
                "counts.txt was recorded with `{theirs}`, this is `{ours}`: \
                 other compilers emit other instructions"
            )));
        }
    }
    let mut grown = Vec::new();
    for key in &KEYS {
        let base = recorded.get(key.name).and_then(|value| value.parse().ok());
        let base: f64 = base.ok_or_else(|| {
            Failed(format!("counts.txt has no figure for {}: --record makes it", key.name))
        })?;
        let count = count(key)?;
        let change = count / base - 1.0;
        println!("{:36} {count:10.1}  recorded {base:10.1}  {:+6.1} %", key.name, change * 100.0);
        if change > TOLERANCE {
            grown.push(key.name);
        } else if change < -TOLERANCE {
            println!("    fewer than recorded: --record keeps the gain");
        }
    }
    if strict && !grown.is_empty() {
        return Err(Failed(format!(
            "more than {:.0} % over what was recorded: {}. If that is meant, --record it",
            TOLERANCE * 100.0,
            grown.join(", ")
        )));
    }
    Ok(())
}

fn profile(name: &str) -> Result<(), Failure> {
    let key = key(name)?;
    let out = std::env::temp_dir().join(format!("granule-profile-{}", std::process::id()));
    let done = callgrind(key, &out);
    let shown = Command::new("callgrind_annotate")
        .args(["--auto=yes", "--context=2", "--threshold=99"])
        .arg(&out)
        .status();
    let _ = std::fs::remove_file(&out);
    done?;
    println!("\nDivide by {} for one operation.", key.ops);
    match shown {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(Failed("callgrind_annotate failed".into())),
        Err(error) => Err(Skipped(format!("callgrind_annotate cannot be started: {error}"))),
    }
}
