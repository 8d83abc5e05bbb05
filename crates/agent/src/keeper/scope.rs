//! Where a keeper stands under systemd: in a scope of its own, if a service could not be started again around it.
//!
//! A service starts in its own cgroup, and the kernel lets nobody into one of version 2 whose children have controllers.
//! Newer managers start it in a leaf instead (`DelegateSubgroup=`, 254); there the keeper may stay where its agent is.

use nix::unistd::Uid;
use tokio::process::Command;

use crate::exec::guard::Program;

/// What `program` is started with.
pub(super) fn command(program: &Program, is_apart: bool) -> Command {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let unit = unit_around(&groups).filter(|_| is_apart && Uid::effective().is_root());
    #[expect(clippy::disallowed_methods, reason = "the keeper starts processes; this starts the keeper")]
    let mut command = Command::new(if unit.is_some() { "systemd-run".as_ref() } else { program.exe.as_os_str() });
    if let Some(unit) = unit {
        command.args(words(unit, &uuid::Uuid::new_v4().simple().to_string())).arg(&program.exe);
    }
    command.args(&program.args);
    command
}

/// The service in whose own cgroup of version 2 we stand.
fn unit_around(groups: &str) -> Option<&str> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    path.rsplit_once('/')?.1.strip_suffix(".service").filter(|name| !name.is_empty())
}

/// It makes a scope, steps into it and becomes the program. A stop of the machine ends the service first, and that its tasks.
fn words(unit: &str, id: &str) -> Vec<String> {
    let id = id.get(..8).unwrap_or(id);
    [
        "--scope",
        "--quiet",
        "--collect",
        "--slice-inherit",
        "--property=Delegate=yes",
        "--property=TasksMax=infinity",
        &format!("--property=Before={unit}.service"),
        &format!("--description=What tasks of {unit} run in"),
        &format!("--unit={unit}-keeper-{id}"),
        "--",
    ]
    .map(str::to_owned)
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_stands_in_the_cgroup_of_a_service_itself_starts_it_apart() {
        let found = [
            "12:memory:/a.service\n0::/system.slice/muster-agent.service\n",
            "0::/system.slice/muster-agent.service/agent\n",
            "0::/user.slice/user-0.slice/session-1.scope\n",
            "1:memory:/system.slice/muster-agent.service\n",
            "0::/\n",
            "0::/.service\n",
            "",
        ]
        .map(unit_around);
        assert_eq!(found, [Some("muster-agent"), None, None, None, None, None, None]);
        let words = words("muster-agent", "0123456789");
        assert!(words.contains(&"--unit=muster-agent-keeper-01234567".to_owned()), "{words:?}");
    }
}
