//! `granule soak` under signals: Ctrl-C ends it in order and says what was done and how to go on; a second
//! one ends it at once.
#![cfg(target_os = "linux")]

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

const SIGINT: u32 = 2;

/// `granule soak` for an hour, with these options; it watches for Ctrl-C already.
fn start(options: &[&str]) -> Child {
    let child = Command::new(env!("CARGO_BIN_EXE_granule"))
        .args(["soak", "--seconds", "3600"])
        .args(options)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command was built");
    while !watches(&child) {
        thread::sleep(Duration::from_millis(5));
    }
    child
}

/// Whether the process has a handler for Ctrl-C.
fn watches(child: &Child) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("it runs");
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let mask = u64::from_str_radix(caught.expect("Linux says it").trim(), 16).expect("a mask");
    mask & 1 << (SIGINT - 1) != 0
}

fn interrupt(child: &Child) {
    let kill = format!("kill -INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().expect("a shell").success());
}

#[test]
fn ctrl_c_ends_in_order_with_a_summary_that_says_how_to_go_on() {
    let child = start(&["--seed", "40", "--threads", "1", "--fault-rate", "0.25"]);
    interrupt(&child);
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "no bar without a terminal");
    assert!(text.contains("on 1 threads, seeds 40 to ") && text.contains("stopped by Ctrl-C"));
    let number = |from: &str| -> u64 {
        let rest = text.split(from).nth(1).unwrap_or_else(|| panic!("no `{from}` in {text}"));
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
        digits.expect("a number").parse().expect("a number")
    };
    let (last, next) = (number("seeds 40 to "), number("granule soak --seed "));
    assert_eq!((next, number("soak: ")), (last + 1, next - 40), "{text}");
    assert!(text.contains("--threads 1 --fault-rate 0.25\n"), "{text}");
}

#[test]
fn a_second_ctrl_c_ends_at_once() {
    // A round of so many threads takes long enough to be in it.
    let mut child = start(&["--threads", "64"]);
    // Until it is seen to have ended: a signal that comes while the first is handled is one with it.
    while child.try_wait().expect("a child").is_none() {
        interrupt(&child);
        thread::sleep(Duration::from_millis(1));
    }
    let output = child.wait_with_output().expect("it ends");
    let code = output.status.code();
    let text = String::from_utf8_lossy(&output.stdout);
    // The round may have ended in between: then there is a summary.
    assert!(
        code == Some(130) && text.is_empty() || code == Some(0) && !text.is_empty(),
        "{code:?}"
    );
}
