//! What a guest's output means. Silence, an early end and a run without a check are failures.

use super::qemu::Output;

/// The sums that the guest printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) passed: u32,
    pub(super) failed: u32,
}

/// The judgement of one run.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// `None` if the guest did not get to its end.
    pub(super) sums: Option<Sums>,
    /// The lines of the checks that failed, without the word.
    pub(super) failures: Vec<String>,
    /// What else is wrong with the run.
    pub(super) wrong: Option<String>,
}

impl Verdict {
    /// Judges what a run left. `passed` is the emulator's exit code after a run whose checks all
    /// passed.
    pub(super) fn of(output: &Output, passed: i32) -> Self {
        let lines = output.text.lines();
        let failures: Vec<String> = lines
            .clone()
            .filter_map(|line| line.strip_prefix("FAILED").map(|rest| rest.trim().to_string()))
            .collect();
        let passes = lines.clone().filter(|line| line.starts_with("ok ")).count();
        let sums = lines.clone().rev().find_map(sums);
        let wrong = match sums {
            _ if output.timed_out => Some("it did not end in time".to_string()),
            None => Some("it printed no sums: it ended early".to_string()),
            Some(sums)
                if (sums.passed as usize, sums.failed as usize) != (passes, failures.len()) =>
            {
                Some(format!(
                    "its sums are not those of the checks it printed, {passes} and {}",
                    failures.len()
                ))
            }
            Some(Sums { passed: 0, failed: 0 }) => Some("it checked nothing".to_string()),
            Some(Sums { failed: 0, .. }) if output.code != Some(passed) => {
                Some(format!("the emulator ended with {:?}", output.code))
            }
            Some(_) => None,
        };
        Self { sums, failures, wrong }
    }

    /// Demands at least one passed check, `ok      STEP: …`, of each of these steps.
    pub(super) fn require(&mut self, output: &Output, steps: &[&str]) {
        let passed = |step: &str| {
            let of_step = |line: &str| {
                let (name, _) = line.strip_prefix("ok ")?.split_once(": ")?;
                Some(name.trim() == step)
            };
            output.text.lines().any(|line| of_step(line) == Some(true))
        };
        let missing: Vec<_> = steps.iter().copied().filter(|step| !passed(step)).collect();
        if self.wrong.is_none() && !missing.is_empty() {
            self.wrong = Some(format!("no check passed of: {}", missing.join(", ")));
        }
    }

    /// Whether every check passed, and there were some.
    pub(super) fn is_pass(&self) -> bool {
        self.wrong.is_none() && self.failures.is_empty()
    }

    /// Whether checks failed in a run that got to its end.
    pub(super) fn is_caught(&self) -> bool {
        self.wrong.is_none() && !self.failures.is_empty()
    }
}

/// Reads `N passed, N failed`.
fn sums(line: &str) -> Option<Sums> {
    let (passed, failed) = line.split_once(" passed, ")?;
    let failed = failed.strip_suffix(" failed")?;
    Some(Sums { passed: passed.parse().ok()?, failed: failed.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(text: &str, code: i32) -> Verdict {
        let output = Output { text: text.into(), code: Some(code), timed_out: false };
        Verdict::of(&output, 33)
    }

    #[test]
    fn only_a_whole_run_passes() {
        assert!(judge("ok      a\nok      b\n2 passed, 0 failed\n", 33).is_pass());
        assert!(!judge("ok      a\nok      b\n2 passed, 0 failed\n", 0).is_pass());
        assert!(!judge("ok      a\n2 passed, 0 failed\n", 33).is_pass());
        assert!(!judge("0 passed, 0 failed\n", 33).is_pass());
        assert!(!judge("ok      a\n", 33).is_pass());
        assert!(!judge("", 33).is_pass());
    }

    #[test]
    fn a_failed_check_is_told_from_an_early_end() {
        let failed = judge("ok      a\nFAILED  b: 1, not 2\n1 passed, 1 failed\n", 35);
        assert!(!failed.is_pass() && failed.is_caught());
        assert_eq!(failed.failures, ["b: 1, not 2"]);
        let early = judge("ok      a\nFAILED  panicked\n", 35);
        assert!(!early.is_pass() && !early.is_caught());
    }

    #[test]
    fn a_step_without_a_check_is_missed() {
        let text = "ok      a: x\nok      b: y\n2 passed, 0 failed\n".to_string();
        let output = Output { text, code: Some(0), timed_out: false };
        let mut verdict = Verdict::of(&output, 0);
        verdict.require(&output, &["a", "b"]);
        assert!(verdict.is_pass());
        verdict.require(&output, &["a", "c", "b"]);
        assert_eq!(verdict.wrong.as_deref(), Some("no check passed of: c"));
    }

    #[test]
    fn a_run_that_hangs_fails_whatever_it_printed() {
        let text = "ok      a\n1 passed, 0 failed\n".into();
        let output = Output { text, code: None, timed_out: true };
        assert!(!Verdict::of(&output, 33).is_pass());
    }
}
