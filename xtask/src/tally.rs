//! What a run of many checks came to: read from libtest's own words, from the skip log, and from steps.

use std::fmt;

/// Counts, and the names behind every count that is not a pass.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    passed: u64,
    failed: Vec<String>,
    skipped: Vec<Skip>,
}

#[derive(Debug, PartialEq, Eq)]
struct Skip {
    what: String,
    why: String,
}

impl Tally {
    /// A step that is one check.
    pub(crate) fn step(&mut self, name: &str, ok: bool) {
        if ok {
            self.passed += 1;
        } else {
            self.failed.push(name.to_owned());
        }
    }

    /// Something that could not run here.
    pub(crate) fn skip(&mut self, what: &str, why: &str) {
        self.skipped.push(Skip { what: what.to_owned(), why: why.to_owned() });
    }

    /// One line of `cargo test`'s standard output.
    pub(crate) fn libtest_line(&mut self, line: &str) {
        let Some((name, verdict)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")) else {
            return;
        };
        match verdict.trim() {
            "ok" => self.passed += 1,
            "FAILED" => self.failed.push(name.to_owned()),
            ignored if ignored.starts_with("ignored") => self.skip(name, "marked #[ignore]"),
            _ => (),
        }
    }

    /// The skip log of a test run: a line is `test<TAB>reason`. Such a test returned early, and libtest counted a pass.
    pub(crate) fn skip_log(&mut self, log: &str) {
        for (what, why) in log.lines().filter_map(|line| line.split_once('\t')) {
            self.passed = self.passed.saturating_sub(1);
            self.skip(what, why);
        }
    }

    /// Whether anything failed so far.
    pub(crate) fn has_failures(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Whether the run as a whole is good. Where nobody looks, a skip is a failure.
    pub(crate) fn is_good(&self, in_ci: bool) -> bool {
        let skips_count = in_ci && !self.skipped.is_empty();
        self.failed.is_empty() && self.passed > 0 && !skips_count
    }

    /// Every failure and every skip, one line each.
    pub(crate) fn details(&self) -> Vec<String> {
        let failed = self.failed.iter().map(|name| format!("failed: {name}"));
        failed.chain(self.skipped.iter().map(|skip| format!("skipped: {}: {}", skip.what, skip.why))).collect()
    }
}

/// The closing line.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&str]) -> Tally {
        let mut tally = Tally::default();
        lines.iter().for_each(|line| tally.libtest_line(line));
        tally
    }

    #[test]
    fn verdicts_of_libtest_are_counted_by_name() {
        let tally = of(&[
            "running 3 tests",
            "test a::b ... ok",
            "test a::c ... FAILED",
            "test src/lib.rs - x (line 3) ... ok",
            "test d ... ignored, takes long",
            "test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured",
        ]);
        assert_eq!(tally.to_string(), "2 passed, 1 failed, 1 skipped");
        assert_eq!(tally.details(), ["failed: a::c", "skipped: d: marked #[ignore]"]);
    }

    #[test]
    fn a_skipped_test_is_no_pass() {
        let mut tally = of(&["test disk::full ... ok", "test grpc::health ... ok"]);
        tally.skip_log("disk::full\tmounting needs root\n");
        assert_eq!(tally.to_string(), "1 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn a_skip_fails_only_where_nobody_looks() {
        let mut tally = of(&["test a ... ok"]);
        tally.skip("windows", "no compiler");
        assert!(tally.is_good(false));
        assert!(!tally.is_good(true));
    }

    #[test]
    fn a_run_that_checked_nothing_is_not_good() {
        assert!(!Tally::default().is_good(false));
    }
}
