//! Whether a spec can be accepted: every problem at once, each with the place it is at.

use std::fmt;

/// One thing that is wrong with a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where: `name`, `tasks[2].after[0]`, ...
    pub path: String,
    /// What, and what would be accepted.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}
