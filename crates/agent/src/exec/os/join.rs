//! Linux: starts a command beside a process that runs: with its environment, folder, user and cgroups, as the kernel tells
//! of them. So it does not matter who started that process.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
};

use nix::{libc::mode_t, unistd::Uid};

use super::{
    Leader, Running, Ways,
    lookup::find_program,
    proc::Stat,
    pty::{Ends, Pty},
    start::{Confines, Program},
    unix::{Begun, Fresh, is_boot, spawn},
    unstarted::Unstarted,
    who::{Identity, Who},
};
use crate::{
    cgroup,
    exec::beside::{Asked, Beside, Terminal},
};

/// A command that was just started, before anybody waits for it. Who drops it kills it.
pub(crate) enum Joined {
    Pipes(Fresh),
    Terminal(Begun, OwnedFd),
}

impl Joined {
    /// Has the runtime watch it; must be called inside one.
    pub(crate) fn watch(self) -> io::Result<(Leader, Ways)> {
        match self {
            Self::Pipes(fresh) => {
                let Running { leader, stdin, stdout, stderr, .. } = fresh.watch()?;
                Ok((leader, Ways::Pipes { stdin, stdout, stderr }))
            }
            Self::Terminal(begun, ours) => Ok((begun.watch()?, Ways::Terminal(Pty::new(ours)?))),
        }
    }
}

/// Starts a command. Its end of the attempt is that of all its processes: it dies with it. Blocks until the program is
/// loaded. `Err` is for people.
pub(crate) fn join(beside: &Beside, asked: &Asked) -> Result<Joined, String> {
    let Beside { process: beside, run_as, rules } = beside;
    let ordered = Who::of(run_as, rules)?;
    let pid = i32::try_from(beside.pid).map_err(|_| GONE)?;
    let lives = || is_boot(&beside.boot) && Stat::read(pid).is_some_and(|s| s.start == beside.start && !s.is_dead());
    if !lives() {
        return Err(GONE.into());
    }
    let (place, status) = Place::of(pid).map_err(|error| format!("the task's process cannot be read: {error}"))?;
    let who = who(&status, ordered, Uid::effective())?;
    let path = place.variables.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str());
    let mut program = find_program(&asked.command, path.unwrap_or_default(), &place.cwd)?;
    let terminal = asked.terminal.as_ref();
    let name = terminal.map(|terminal| OsStr::new(&terminal.name)).filter(|name| !name.is_empty());
    // Its own terminal, if it has one, is not this one.
    let kept = place.variables.iter().filter(|(variable, _)| name.is_none() || variable != TERM);
    kept.for_each(|(variable, value)| program.variable(variable, value));
    name.into_iter().for_each(|name| program.variable(OsStr::new(TERM), name));
    program.folder(&place.cwd);
    let joins: Vec<_> = place.cgroups.iter().map(AsRawFd::as_raw_fd).collect();
    // What was opened is its own only if it has lived until now.
    if !lives() {
        return Err(GONE.into());
    }
    let confines = Confines { place: None, data_limit: None, who: Some(&who), joins: Some(&joins) };
    let joined = start(&program, terminal, confines, &place.cwd)?;
    // While it lives its cgroups are nobody else's. What was started is killed when it is dropped.
    if lives() { Ok(joined) } else { Err(GONE.into()) }
}

/// By pipes, or on a new terminal that belongs to whom it runs as.
fn start(program: &Program, terminal: Option<&Terminal>, confines: Confines<'_>, cwd: &Path) -> Result<Joined, String> {
    let told = |error: Unstarted| super::explain(program, cwd, &error);
    let Some(Terminal { size, .. }) = terminal else {
        return spawn(program, true, confines).map(Joined::Pipes).map_err(told);
    };
    let owner = confines.who.and_then(|who| who.identity.as_ref()).map(|identity| identity.uid);
    let ends = Ends::open(*size, owner).map_err(|error| {
        format!(
            "the agent's machine gives it no terminal: {error}; see that /dev/pts is mounted there and has room \
             (/proc/sys/kernel/pty), or ask for none (`ctl exec` without `--tty`)"
        )
    })?;
    ends.start(program, confines).map(|(begun, ours)| Joined::Terminal(begun, ours)).map_err(told)
}

/// Names the kind of terminal, see environ(7).
const TERM: &str = "TERM";
const GONE: &str = "the task's first process has ended";

/// Where a process runs.
struct Place {
    variables: Vec<(OsString, OsString)>,
    cwd: PathBuf,
    cgroups: Vec<File>,
}

impl Place {
    /// With what the kernel says of its rights.
    fn of(pid: i32) -> io::Result<(Self, String)> {
        let environ = std::fs::read(format!("/proc/{pid}/environ"))?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let folders = cgroup::folders_of(pid)?;
        let place = Self {
            variables: variables(&environ),
            cwd: std::fs::read_link(format!("/proc/{pid}/cwd"))?,
            cgroups: folders.iter().map(File::open).collect::<Result<_, _>>()?,
        };
        Ok((place, status))
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

/// As whom a command runs beside a process of which proc_pid_status(5) says this, and which was started as `ordered`. An
/// agent whose user is not root (`own`) can only be as it is. `Err` is for people.
///
/// A program that is setuid or setgid lends its rights to the task's process: they are not the task's to hand on.
fn who(status: &str, ordered: Option<Who>, own: Uid) -> Result<Who, String> {
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().split_ascii_whitespace()
    };
    let numbers = |name: &str| line(name).filter_map(|id| id.parse().ok()).collect::<Vec<u32>>();
    // Real, effective, saved, of the file system.
    let (uids, gids) = (numbers("Uid"), numbers("Gid"));
    let only = |ids: &[u32]| ids.first().copied().filter(|first| ids.len() == 4 && ids.iter().all(|id| id == first));
    let identity = match ordered.and_then(|who| who.identity) {
        _ if !own.is_root() => None,
        Some(ordered) if only(&uids) == Some(ordered.uid) => Some(ordered),
        Some(ordered) => {
            return Err(format!(
                "the task's first process is not the user `{}` any more (it runs a program that is setuid), and a command \
                 beside it would be more than the task may be",
                ordered.name
            ));
        }
        None => {
            let mixed = "the task's first process has the rights of more than one user or group (it runs a program that \
                         is setuid or setgid), and a command beside it cannot be the right one";
            let (uid, gid) = only(&uids).zip(only(&gids)).ok_or(mixed)?;
            let groups = numbers("Groups");
            Some(Identity { uid, gid, groups, name: String::new(), home: OsString::new(), shell: OsString::new() })
        }
    };
    Ok(Who {
        identity,
        umask: line("Umask").next().and_then(|umask| mode_t::from_str_radix(umask, 8).ok()),
        nice: None,
        no_new_privs: line("NoNewPrivs").next() == Some("1"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(uid: u32) -> Option<Who> {
        let (name, home, shell) = ("etl".into(), OsString::new(), OsString::new());
        let identity = Some(Identity { uid, gid: 5, groups: vec![6], name, home, shell });
        Some(Who { identity, ..Who::default() })
    }

    #[test]
    fn a_command_is_whom_its_task_was_started_as_or_nobody() {
        let table = [
            ("7 7 7 7", "5 5 5 5", ordered(7), Ok((7, 5, vec![6]))),
            // Its groups are as they were ordered, whatever it has got since.
            ("7 7 7 7", "5 0 0 0", ordered(7), Ok((7, 5, vec![6]))),
            ("7 0 0 0", "5 5 5 5", ordered(7), Err("is not the user `etl` any more")),
            ("0 0 0 0", "0 0 0 0", ordered(7), Err("is not the user `etl` any more")),
            ("7 7 0 7", "5 5 5 5", ordered(7), Err("is not the user `etl` any more")),
            ("", "", ordered(7), Err("is not the user `etl` any more")),
            // Who was started as root may have become somebody, and be that alone.
            ("8 8 8 8", "9 9 9 9", None, Ok((8, 9, vec![1, 2]))),
            ("0 0 0 0", "0 0 0 0", None, Ok((0, 0, vec![1, 2]))),
            ("8 0 0 0", "9 9 9 9", None, Err("more than one user")),
            ("8 8 8 8", "9 0 9 9", None, Err("more than one user")),
            ("8 8 8", "9 9 9 9", None, Err("more than one user")),
        ];
        for (uids, gids, ordered, expected) in table {
            let found =
                who(&format!("Umask:\t0022\nUid:\t{uids}\nGid:\t{gids}\nGroups:\t1 2 \n"), ordered, Uid::from_raw(0));
            let found =
                found.map(|who| who.identity.map(|is| (is.uid, is.gid, is.groups)).expect("root can be anybody"));
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{uids}, {gids}"),
                (Err(why), Err(part)) => assert!(why.contains(part), "{uids}, {gids}: {why}"),
                (found, expected) => panic!("{uids}, {gids}: {found:?}, not {expected:?}"),
            }
        }
    }
}
