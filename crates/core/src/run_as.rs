//! As whom a task's process runs, and what it is given and denied there.

use serde::{Deserialize, Serialize};

/// See the module. What is not said is as the agent has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAs {
    /// A user of the agent's machine, by name or number.
    pub user: Option<String>,
    /// Its group, by name or number; none: the first one of `user`.
    pub group: Option<String>,
    /// Its other groups, by name or number; none: those of `user`.
    pub groups: Option<Vec<String>>,
    /// Permissions that files are made without.
    pub umask: Option<u32>,
    /// Its place in line for processors, from -20 (first) to 19 (last).
    pub nice: Option<i32>,
    /// No program that it starts gets rights that it does not have itself (setuid, file capabilities).
    pub no_new_privs: bool,
}

/// Whether an attempt gets a folder to itself, and what becomes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scratch {
    /// Only where it names no working folder.
    #[default]
    None,
    /// An empty one, which goes with the attempt.
    Private,
    /// An empty one, which stays when the attempt fails.
    KeepOnFailure,
}

impl RunAs {
    /// Whether it asks for nothing.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
