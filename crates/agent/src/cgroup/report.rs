//! What this machine can hold attempts to, and why not: for the log, and for who demands it.

use std::fmt;

use muster_core::{record::Enforced, usage::Unenforced};

/// What an operator asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enforce {
    /// An agent that cannot enforce limits does not start.
    Required,
    /// What can be enforced is; attempts say what was not.
    #[default]
    Auto,
    /// No cgroups are used.
    Off,
}

impl fmt::Display for Enforce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Required => "required",
            Self::Auto => "auto",
            Self::Off => "off",
        })
    }
}

impl std::str::FromStr for Enforce {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "required" => Ok(Self::Required),
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            _ => Err("must be \"required\", \"auto\" or \"off\"".to_owned()),
        }
    }
}

/// One thing that is enforced, by what, or why it is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) what: &'static str,
    pub(crate) found: Result<String, String>,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report(pub(crate) Vec<Line>);

impl Report {
    /// Nothing is enforced, for one reason.
    pub(crate) fn nothing(why: &str) -> Self {
        let line = |what| Line { what, found: Err(why.to_owned()) };
        Self(["memory", "cpu", "pids", "io", "kill"].map(line).to_vec())
    }

    /// What is missing of that without which nothing is started where limits must hold. Limits of disks are not among it:
    /// many folders lie on no disk, few tasks ask for them, and those that do are not started then.
    pub(crate) fn missing(&self) -> Option<String> {
        let demanded = self.0.iter().filter(|line| line.found.is_err() && line.what != "io");
        let missing: Vec<String> = demanded.map(ToString::to_string).collect();
        (!missing.is_empty()).then(|| missing.join("; "))
    }

    /// The same for those who look from elsewhere.
    pub(crate) fn told(&self) -> Vec<Enforced> {
        let told = |line: &Line| {
            let (by, why_not) = match &line.found {
                Ok(by) => (by.clone(), String::new()),
                Err(why) => (String::new(), why.clone()),
            };
            Enforced { what: line.what.to_owned(), by, why_not }
        };
        self.0.iter().map(told).collect()
    }

    /// The limits that attempts are not held to, but those of disks, which each attempt asks about its own.
    pub(crate) fn unenforced(&self) -> Unenforced {
        let missing = |what: &str| self.0.iter().any(|line| line.what == what && line.found.is_err());
        let limits = [("memory", Unenforced::MEMORY), ("cpu", Unenforced::CPU), ("pids", Unenforced::PIDS)];
        let missing = limits.into_iter().filter(|(what, _)| missing(what));
        missing.fold(Unenforced::default(), |all, (_, one)| all.and(one))
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.found {
            Ok(by) => write!(f, "{}: {by}", self.what),
            Err(why) => write!(f, "{} is not enforced: {why}", self.what),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_its_reason_and_marked_on_attempts() {
        let mut report = Report::nothing("no cgroups are mounted");
        report.0[1].found = Ok("cgroup v2".to_owned());
        let missing = report.missing().expect("some is");
        assert!(missing.starts_with("memory is not enforced: no cgroups are mounted; pids is not"), "{missing}");
        assert_eq!(report.unenforced(), Unenforced::MEMORY.and(Unenforced::PIDS));
        let told: Vec<_> = report.told().into_iter().map(|one| (one.what, one.by, one.why_not)).collect();
        let why = "no cgroups are mounted";
        assert_eq!(
            told[..2],
            [("memory", "", why), ("cpu", "cgroup v2", "")].map(|(a, b, c)| (a.into(), b.into(), c.into()))
        );
        report.0.iter_mut().for_each(|line| line.found = Ok("cgroup v2".to_owned()));
        assert_eq!((report.missing(), report.unenforced()), (None, Unenforced::default()));
    }

    #[test]
    fn limits_of_disks_are_demanded_of_nobody_who_does_not_ask_for_them() {
        let mut report = Report::nothing("it lies in memory");
        report.0.iter_mut().filter(|line| line.what != "io").for_each(|line| line.found = Ok("cgroup v2".to_owned()));
        assert_eq!(report.missing(), None);
        assert!(report.to_string().contains("io is not enforced: it lies in memory"), "{report}");
    }
}
