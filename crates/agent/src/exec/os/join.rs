//! Linux: starts a command beside a process that runs: with its environment, folder, user and cgroups, as the kernel tells
//! of them. So it does not matter who started that process.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::{
        fd::AsRawFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::PathBuf,
};

use nix::{libc::mode_t, unistd::Uid};

use super::{
    lookup::find_program,
    proc::Stat,
    start::Confines,
    unix::{Fresh, is_boot, spawn},
    who::{Identity, Who},
};
use crate::{cgroup, exec::ProcessIdentity};

/// Starts `command`. Its end of the attempt is that of all its processes: it dies with it. Blocks until the program is
/// loaded. `Err` is for people.
pub(crate) fn join(beside: &ProcessIdentity, command: &[String]) -> Result<Fresh, String> {
    let pid = i32::try_from(beside.pid).map_err(|_| GONE)?;
    let lives = || is_boot(&beside.boot) && Stat::read(pid).is_some_and(|s| s.start == beside.start && !s.is_dead());
    if !lives() {
        return Err(GONE.into());
    }
    let place = Place::of(pid).map_err(|error| format!("the task's process cannot be read: {error}"))?;
    let path = place.variables.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str());
    let mut program = find_program(command, path.unwrap_or_default(), &place.cwd)?;
    place.variables.iter().for_each(|(name, value)| program.variable(name, value));
    program.folder(&place.cwd);
    let joins: Vec<_> = place.cgroups.iter().map(AsRawFd::as_raw_fd).collect();
    // What was opened is its own only if it has lived until now.
    if !lives() {
        return Err(GONE.into());
    }
    let confines = Confines { place: None, data_limit: None, who: Some(&place.who), joins: &joins };
    let fresh = spawn(&program, true, confines).map_err(|error| super::explain(&program, &place.cwd, &error))?;
    // While it lives its cgroups are nobody else's. What was started is killed when it is dropped.
    if lives() { Ok(fresh) } else { Err(GONE.into()) }
}

const GONE: &str = "the task's first process has ended";

/// Where and as what a process runs.
struct Place {
    variables: Vec<(OsString, OsString)>,
    cwd: PathBuf,
    who: Who,
    cgroups: Vec<File>,
}

impl Place {
    fn of(pid: i32) -> std::io::Result<Self> {
        let environ = std::fs::read(format!("/proc/{pid}/environ"))?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let folders = cgroup::folders_of(pid)?;
        Ok(Self {
            variables: variables(&environ),
            cwd: std::fs::read_link(format!("/proc/{pid}/cwd"))?,
            who: who(&status),
            cgroups: folders.iter().map(File::open).collect::<Result<_, _>>()?,
        })
    }
}

/// Of `NAME=value` with a zero behind each, each name once.
fn variables(environ: &[u8]) -> Vec<(OsString, OsString)> {
    let mut variables: Vec<(OsString, OsString)> = Vec::new();
    for entry in environ.split(|byte| *byte == 0) {
        let Some(at) = entry.iter().position(|byte| *byte == b'=').filter(|at| *at > 0) else { continue };
        let name = OsStr::from_bytes(&entry[..at]);
        if variables.iter().all(|(known, _)| known != name) {
            variables.push((name.to_owned(), OsString::from_vec(entry[at + 1..].to_vec())));
        }
    }
    variables
}

/// What proc_pid_status(5) says of a process. An agent that is not root can only be as it is.
fn who(status: &str) -> Who {
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().split_ascii_whitespace()
    };
    // Real, effective, saved, of the file system.
    let effective = |name: &str| line(name).nth(1).and_then(|id| id.parse().ok());
    let identity = effective("Uid").zip(effective("Gid")).filter(|_| Uid::effective().is_root());
    Who {
        identity: identity.map(|(uid, gid)| Identity {
            uid,
            gid,
            groups: line("Groups").filter_map(|id| id.parse().ok()).collect(),
            name: String::new(),
            home: OsString::new(),
            shell: OsString::new(),
        }),
        umask: line("Umask").next().and_then(|umask| mode_t::from_str_radix(umask, 8).ok()),
        nice: None,
        no_new_privs: line("NoNewPrivs").next() == Some("1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_is_taken_apart_and_keeps_its_first_of_each_name() {
        let found = variables(b"A=1\0B=x=y\0=odd\0novalue\0A=2\0C=\0");
        let found: Vec<_> = found.iter().map(|(n, v)| (n.to_str().unwrap(), v.to_str().unwrap())).collect();
        assert_eq!(found, [("A", "1"), ("B", "x=y"), ("C", "")]);
    }

    #[test]
    fn what_the_kernel_says_of_a_user_is_what_the_command_gets() {
        let status = "Name:\tx\nUmask:\t0027\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nNoNewPrivs:\t1\n";
        let who = who(status);
        assert_eq!((who.umask, who.no_new_privs), (Some(0o027), true));
        if let Some(identity) = who.identity {
            assert_eq!((identity.uid, identity.gid, identity.groups), (2, 6, vec![9, 10]));
        } else {
            assert!(!Uid::effective().is_root());
        }
    }
}
