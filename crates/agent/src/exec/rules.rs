//! What the operator of a machine says of the tasks that run there.

use muster_core::run_as::RunAs;
use tracing::warn;

use super::os;

/// As whom tasks run, and what they see of the agent's environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Whom tasks run as that name nobody; none: the agent's own user.
    pub user: Option<String>,
    /// Whom tasks may name besides; `*` is everybody. None: everybody if `user` is none, too.
    pub users: Option<Vec<String>>,
    /// Variables of the agent's environment that tasks get.
    pub pass_env: Vec<String>,
    /// Bytes that may lie in the scratch folder of a task that does not say; none: no limit.
    pub scratch_size: Option<u64>,
}

impl Rules {
    /// Whether tasks that name nobody can be run at all; why not is for people. May ask over a network.
    pub(crate) fn can_run(&self) -> Result<(), String> {
        os::Who::of(&RunAs::default(), self).map(drop)
    }

    /// Tells whoever starts the agent of users that may be named and are not there. May ask over a network.
    pub(crate) fn warn_of_strangers(&self) {
        for name in self.users.iter().flatten().filter(|name| *name != "*" && !os::is_user(name)) {
            warn!(name, "`run_as.users` names one whom this machine does not know");
        }
    }

    /// Whether tasks may name some users and no others.
    #[cfg(unix)]
    pub(crate) fn is_strict(&self) -> bool {
        match &self.users {
            Some(users) => !users.iter().any(|user| user == "*"),
            None => self.user.is_some(),
        }
    }
}
