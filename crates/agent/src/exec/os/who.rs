//! Linux: as whom a process runs, found in the system's own lists of users and groups.

use std::{
    ffi::{CString, OsStr, OsString},
    fs::{Metadata, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use muster_core::run_as::RunAs;
use nix::{
    libc::{gid_t, mode_t, uid_t},
    unistd::{Gid, Group, Uid, User, getgrouplist, getgroups},
};

use crate::exec::Rules;

/// What is different from how the agent itself runs.
#[derive(Debug, Default)]
pub(crate) struct Who {
    /// None: as the agent.
    pub(super) identity: Option<Identity>,
    pub(super) umask: Option<mode_t>,
    pub(super) nice: Option<i32>,
    pub(super) no_new_privs: bool,
}

/// A user with all groups.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) uid: uid_t,
    pub(super) gid: gid_t,
    pub(super) groups: Vec<gid_t>,
    pub(super) name: String,
    pub(super) home: OsString,
    pub(super) shell: OsString,
}

impl Who {
    /// As whom a task runs; none: as the agent does, in every way. `Err` is for people.
    pub(crate) fn of(run_as: &RunAs, rules: &Rules) -> Result<Option<Self>, String> {
        if run_as.is_default() && rules.user.is_none() {
            return Ok(None);
        }
        Ok(Some(Self {
            identity: identity(run_as, rules)?,
            umask: run_as.umask,
            nice: run_as.nice,
            no_new_privs: run_as.no_new_privs,
        }))
    }

    /// Whether it is another user than the agent.
    pub(crate) fn is_other(&self) -> bool {
        self.identity.is_some()
    }

    /// Its name, for people.
    pub(crate) fn name(&self) -> Option<&str> {
        self.identity.as_ref().map(|identity| identity.name.as_str())
    }

    /// What its environment says of it.
    pub(crate) fn variables(&self) -> Vec<(&'static str, &OsStr)> {
        let Some(identity) = &self.identity else { return Vec::new() };
        let name = OsStr::new(&identity.name);
        vec![("HOME", &*identity.home), ("SHELL", &*identity.shell), ("USER", name), ("LOGNAME", name)]
    }

    /// Makes a file or folder its own.
    pub(crate) fn give(&self, path: &Path) -> io::Result<()> {
        match &self.identity {
            Some(identity) => chown(path, Some(identity.uid), Some(identity.gid)),
            None => Ok(()),
        }
    }
}

/// Whether it belongs to another user.
pub(crate) fn is_others(file: &Metadata) -> bool {
    file.uid() != Uid::effective().as_raw()
}

/// Only its owner may look into it.
pub(crate) fn close_folder(path: &Path) -> io::Result<()> {
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o700))
}

/// A file that is made is for nobody else to read: not by a mask, which what we start would inherit.
pub(crate) fn for_us_alone(options: &mut OpenOptions) -> &mut OpenOptions {
    options.mode(0o600)
}

/// Nobody else may read it from now on.
pub(crate) fn close_file(path: &Path) -> io::Result<()> {
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))
}

/// Lets other users reach what is theirs, by the folders of `way`, if there may be any, and nothing else of the agent's
/// folder.
pub(crate) fn open_way(data_dir: &Path, way: &[&PathBuf]) -> io::Result<()> {
    if !Uid::effective().is_root() {
        return Ok(());
    }
    let mode = |path: &Path| Ok::<_, io::Error>(std::fs::metadata(path)?.permissions().mode() & 0o7777);
    let passed = std::iter::once(data_dir).chain(way.iter().map(|path| path.as_path()));
    // First what is not theirs is closed, as far as an earlier agent or the start of this one made it otherwise.
    for folder in [data_dir, &data_dir.join("run")] {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if way.contains(&&path) || path.is_symlink() {
                continue;
            }
            let closed =
                mode(&path).and_then(|mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode & !0o077)));
            // The agent's other threads work there already: a file that was being written has its name by now.
            closed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
        }
    }
    for path in passed {
        std::fs::set_permissions(path, PermissionsExt::from_mode((mode(path)? & !0o077) | 0o011))?;
    }
    Ok(())
}

fn identity(run_as: &RunAs, rules: &Rules) -> Result<Option<Identity>, String> {
    let named = run_as.user.as_deref().or(rules.user.as_deref());
    let own = Uid::effective();
    let user = match named {
        Some(name) => find_user(name)?,
        None if run_as.group.is_none() && run_as.groups.is_none() => return Ok(None),
        None => User::from_uid(own)
            .ok()
            .flatten()
            .ok_or_else(|| format!("the agent's own user {own} has no entry among the machine's users"))?,
    };
    if let Some(name) = run_as.user.as_deref() {
        may_be(name, &user, rules)?;
    }
    let member = memberships(&user)?;
    let gid = run_as.group.as_deref().map_or(Ok(user.gid), |name| group_of(name, &user, &member, rules))?;
    let groups = match &run_as.groups {
        Some(names) => {
            names.iter().map(|name| group_of(name, &user, &member, rules)).collect::<Result<Vec<_>, String>>()?
        }
        None => member.clone(),
    };
    if !own.is_root() {
        let is_own = user.uid == own && gid == Gid::effective() && run_as.groups.is_none();
        return if is_own { Ok(None) } else { Err(not_root(own, &user, run_as)) };
    }
    Ok(Some(Identity {
        uid: user.uid.as_raw(),
        gid: gid.as_raw(),
        groups: groups.into_iter().map(Gid::as_raw).collect(),
        name: user.name,
        home: user.dir.into_os_string(),
        shell: if user.shell.as_os_str().is_empty() { super::unix::SHELL.into() } else { user.shell.into_os_string() },
    }))
}

fn not_root(own: Uid, user: &User, run_as: &RunAs) -> String {
    let own = User::from_uid(own).ok().flatten().map_or_else(|| own.to_string(), |user| user.name);
    let what = match user.name == own {
        true => format!("with {}", if run_as.group.is_some() { "another group" } else { "other groups" }),
        false => format!("as `{}`", user.name),
    };
    format!("the agent runs as `{own}` and not as root, so that it cannot run a task {what}")
}

/// Whether the operator lets tasks run as this user.
fn may_be(name: &str, user: &User, rules: &Rules) -> Result<(), String> {
    if !rules.is_strict() {
        return Ok(());
    }
    let allowed = rules.users.iter().flatten().chain(&rules.user);
    let is_it = |other: &String| other == &user.name || find_user(other).is_ok_and(|other| other.uid == user.uid);
    if allowed.clone().any(is_it) {
        return Ok(());
    }
    let list = allowed.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    Err(format!("this agent runs no task as `{name}`; its file allows {list}"))
}

fn group_of(name: &str, user: &User, member: &[Gid], rules: &Rules) -> Result<Gid, String> {
    let gid = find_group(name)?;
    if rules.is_strict() && gid != user.gid && !member.contains(&gid) {
        let user = &user.name;
        return Err(format!("`{user}` is no member of the group `{name}`, and this agent gives no other groups"));
    }
    Ok(gid)
}

fn memberships(user: &User) -> Result<Vec<Gid>, String> {
    if user.uid == Uid::effective() && !user.uid.is_root() {
        return getgroups().map_err(|error| format!("the agent's own groups cannot be read: {error}"));
    }
    let name = CString::new(user.name.as_str()).map_err(|_| "a user's name holds a zero byte".to_owned())?;
    getgrouplist(&name, user.gid).map_err(|error| format!("the groups of `{}` cannot be read: {error}", user.name))
}

/// Whether this machine knows the user, now.
pub(crate) fn is_user(name: &str) -> bool {
    find_user(name).is_ok()
}

fn find_user(name: &str) -> Result<User, String> {
    let found = match name.parse() {
        Ok(number) => User::from_uid(Uid::from_raw(number)),
        Err(_) => User::from_name(name),
    };
    match found {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(format!("the agent's machine has no user `{name}`")),
        Err(error) => Err(format!("the user `{name}` cannot be looked up: {error}")),
    }
}

fn find_group(name: &str) -> Result<Gid, String> {
    if let Ok(number) = name.parse() {
        return Ok(Gid::from_raw(number));
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err(format!("the agent's machine has no group `{name}`")),
        Err(error) => Err(format!("the group `{name}` cannot be looked up: {error}")),
    }
}

/// What tasks cannot be given here, for the start-up report; none: nothing.
pub(crate) fn missing_rights() -> Option<String> {
    let own = Uid::effective();
    (!own.is_root()).then(|| {
        let own = User::from_uid(own).ok().flatten().map_or_else(|| own.to_string(), |user| user.name);
        format!("not root: every task runs as `{own}`, with its groups, and `nice` only goes up")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn as_user(user: &str) -> RunAs {
        RunAs { user: Some(user.into()), ..RunAs::default() }
    }

    fn rules(user: Option<&str>, users: Option<&[&str]>) -> Rules {
        let users = users.map(|users| users.iter().map(|user| (*user).to_owned()).collect());
        Rules { user: user.map(Into::into), users, ..Rules::default() }
    }

    #[test]
    fn who_asks_for_nothing_runs_as_the_agent() {
        assert!(Who::of(&RunAs::default(), &Rules::default()).expect("nothing is asked").is_none());
    }

    #[test]
    fn a_file_that_has_another_name_by_then_is_no_reason_not_to_start() {
        let data = tempfile::tempdir().expect("a folder");
        let (run, draft, file) = (data.path().join("run"), data.path().join("draft"), data.path().join("file"));
        std::fs::create_dir(&run).expect("ours");
        std::fs::write(data.path().join("others"), "").expect("ours");
        std::fs::set_permissions(data.path().join("others"), PermissionsExt::from_mode(0o644)).expect("ours");
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::fs::write(&draft, "").expect("ours");
                    std::fs::rename(&draft, &file).expect("ours");
                }
            });
            let opened: io::Result<()> = (0..2000).try_for_each(|_| open_way(data.path(), &[&run]));
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            opened.expect("it is for nobody else to read, whatever its name");
        });
        if Uid::effective().is_root() {
            let mode = std::fs::metadata(data.path().join("others")).expect("there").permissions().mode();
            assert_eq!(mode & 0o077, 0, "what stays is closed");
        }
    }

    #[test]
    fn whom_the_machine_does_not_know_is_told_by_name() {
        let why = |run_as: &RunAs| Who::of(run_as, &Rules::default()).expect_err("there is none");
        assert_eq!(why(&as_user("no-such-user")), "the agent's machine has no user `no-such-user`");
        let group = RunAs { group: Some("no-such-group".into()), ..as_user("root") };
        assert_eq!(why(&group), "the agent's machine has no group `no-such-group`");
    }

    #[test]
    fn an_operator_who_names_users_allows_no_others_by_whatever_name() {
        let table = [
            (rules(None, None), "root", true),
            (rules(Some("nobody"), None), "nobody", true),
            (rules(Some("nobody"), None), "65534", true),
            (rules(Some("nobody"), None), "0", false),
            (rules(None, Some(&["nobody"])), "root", false),
            (rules(None, Some(&["nobody"])), "nobody", true),
            (rules(Some("nobody"), Some(&["*"])), "0", true),
        ];
        for (rules, name, is_good) in table {
            let user = find_user(name).expect("every machine has it");
            assert_eq!(may_be(name, &user, &rules).is_ok(), is_good, "{name} by {rules:?}");
        }
    }

    #[test]
    fn groups_beyond_those_of_the_user_are_given_only_where_everything_is() {
        let user = find_user("nobody").expect("every machine has it");
        let member = memberships(&user).expect("known");
        assert!(group_of("0", &user, &member, &rules(None, Some(&["nobody"]))).is_err());
        assert!(group_of("0", &user, &member, &Rules::default()).is_ok());
        assert!(group_of(&user.gid.to_string(), &user, &member, &rules(Some("nobody"), None)).is_ok());
    }
}
