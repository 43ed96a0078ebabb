//! Running commands as a person types them, and keeping what they print.

use std::process::{Command, Stdio};

use crate::Failure;
use crate::report::Report;

/// How a command went.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What was typed.
    line: String,
    /// Its exit code; `None` if a signal ended it.
    code: Option<i32>,
    /// What it printed.
    pub(crate) out: String,
    /// What it complained about.
    pub(crate) err: String,
}

/// Runs a line as root.
pub(crate) fn run(line: &str) -> Result<Outcome, Failure> {
    println!("$ {line}");
    outcome(line, Command::new("sh").args(["-c", line]))
}

/// Runs a line as a user who is not root.
pub(crate) fn run_as_user(line: &str) -> Result<Outcome, Failure> {
    println!("user$ {line}");
    outcome(line, Command::new("su").args(["user", "-c", line]))
}

/// Runs a line that has to succeed, and answers what it printed.
pub(crate) fn must(line: &str) -> Result<String, Failure> {
    let outcome = quietly(line, Command::new("sh").args(["-c", line]))?;
    match outcome.code {
        Some(0) => Ok(outcome.out),
        _ => Err(outcome.describe().into()),
    }
}

fn outcome(line: &str, command: &mut Command) -> Result<Outcome, Failure> {
    let outcome = quietly(line, command)?;
    // For the log: a line of it must not look like a check of ours.
    for line in outcome.out.lines().chain(outcome.err.lines()) {
        println!("  | {line}");
    }
    Ok(outcome)
}

fn quietly(line: &str, command: &mut Command) -> Result<Outcome, Failure> {
    let output = command.stdin(Stdio::null()).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Outcome {
        line: line.to_string(),
        code: output.status.code(),
        out: text(&output.stdout),
        err: text(&output.stderr),
    })
}

impl Outcome {
    /// Checks that it succeeded.
    pub(crate) fn succeeds(&self, report: &mut Report, what: &str) -> bool {
        let holds = self.code == Some(0);
        report.check(what, holds, || self.describe());
        holds
    }

    /// Checks that it printed all of these.
    pub(crate) fn prints(&self, report: &mut Report, what: &str, words: &[&str]) {
        let missing = missing(&self.out, words);
        report.check(what, missing.is_empty(), || format!("{missing:?} not in {}", self.out));
    }

    /// Checks that it was refused: an exit code that says so, nothing but an error in words, which
    /// has all of these.
    pub(crate) fn is_refused(&self, report: &mut Report, what: &str, words: &[&str]) {
        let missing = missing(&self.err, words);
        let refused = self.code.is_some_and(|code| code != 0 && code != 101);
        report.check(what, refused && missing.is_empty() && !self.err.contains("panicked"), || {
            format!("{missing:?} missing: {}", self.describe())
        });
    }

    fn describe(&self) -> String {
        format!("`{}` ended with {:?}: {} {}", self.line, self.code, self.out, self.err)
    }
}

fn missing<'a>(text: &str, words: &[&'a str]) -> Vec<&'a str> {
    words.iter().copied().filter(|word| !text.contains(word)).collect()
}
