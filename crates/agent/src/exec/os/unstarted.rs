//! Linux: why a process did not become the program that it was made for: at which step, and in words for people.

use std::{
    fs::File,
    io::{self, BufRead, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use nix::{
    errno::Errno,
    sys::statvfs::{FsFlags, statvfs},
};

use super::start::Program;

/// See the module.
#[derive(Debug)]
pub(crate) struct Unstarted {
    pub(super) step: Step,
    pub(super) error: io::Error,
}

/// What a start does, one after another. The same number tells different things at different steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The process is made, and what it is to have.
    Make,
    /// It takes its streams, and its group or session.
    Place,
    /// It enters its cgroups.
    Cgroup,
    /// It takes limits of its own.
    Limits,
    Nice,
    /// It becomes its user, with no more rights than that has.
    User,
    /// It enters its folder.
    Folder,
    /// The program is loaded.
    Load,
}

impl From<io::Error> for Unstarted {
    fn from(error: io::Error) -> Self {
        Self { step: Step::Make, error }
    }
}

impl Unstarted {
    fn errno(&self) -> Option<Errno> {
        self.error.raw_os_error().map(Errno::from_raw)
    }
}

/// Whether trying again a little later may help.
pub(crate) fn is_shortage(unstarted: &Unstarted) -> bool {
    matches!(unstarted.errno(), Some(Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE))
}

/// Whether it may be for want of memory: what a limit of its own leaves nothing of, starting a program wants as well.
pub(crate) fn wants_memory(unstarted: &Unstarted) -> bool {
    // The kernel has other names for it where it keeps open files and arguments.
    matches!(unstarted.errno(), Some(Errno::ENOMEM | Errno::ENFILE | Errno::E2BIG))
}

/// Whether others are where it was to go.
pub(crate) fn is_busy(unstarted: &Unstarted) -> bool {
    unstarted.errno() == Some(Errno::EBUSY)
}

/// Why `program` could not be started in `cwd`, in words for the person who wrote the job.
pub(crate) fn explain(program: &Program, cwd: &Path, unstarted: &Unstarted) -> String {
    if program.has_zero() {
        return "the command has a zero byte in an argument, which no program can be given".into();
    }
    let error = &unstarted.error;
    match (unstarted.step, unstarted.errno()) {
        (Step::Make, Some(Errno::EAGAIN | Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE)) => {
            format!("this machine has no room for another process: {error}")
        }
        (Step::Make, _) => format!("no process could be made for it: {error}"),
        (Step::Place, _) => format!("its process could not take its streams, or lead a group of its own: {error}"),
        (Step::Cgroup, _) => format!("its process could not enter its cgroup: {error}"),
        (Step::Limits, _) => format!("its process could not be given its limits (`RLIMIT_CORE`, `RLIMIT_DATA`): {error}"),
        (Step::Nice, Some(Errno::EACCES | Errno::EPERM)) => {
            "its `nice` is lower than the agent's own, which takes an agent that is root (CAP_SYS_NICE): ask for more, or \
             leave it out"
                .into()
        }
        (Step::Nice, _) => format!("it could not be given its `nice`: {error}"),
        (Step::User, Some(Errno::EPERM)) => {
            "the agent is root and may become nobody else: its unit or its container took CAP_SETUID or CAP_SETGID from it"
                .into()
        }
        (Step::User, _) => format!("its process could not become its user: {error}"),
        (Step::Folder, Some(Errno::EACCES)) => {
            let cwd = cwd.display();
            format!(
                "the working directory {cwd} may not be entered: it, or a folder above it, is closed (`namei -l {cwd}` \
                 shows which): `chmod +x` that, or name another `cwd`"
            )
        }
        (Step::Folder, _) => format!("the working directory {} cannot be used: {error}", cwd.display()),
        (Step::Load, _) => unloaded(program.file(), unstarted),
    }
}

fn unloaded(program: &Path, unstarted: &Unstarted) -> String {
    let (shown, error) = (program.display(), &unstarted.error);
    match unstarted.errno() {
        Some(Errno::ENOENT) => match interpreter(program) {
            Some(line) => format!("{shown} asks for the interpreter `{line}` in its first line, which does not exist"),
            None => format!("the program {shown} does not exist on this agent"),
        },
        Some(Errno::EACCES) => forbidden(program),
        Some(Errno::ENOTDIR) => format!("a part of the path {shown} is not a folder"),
        Some(Errno::ENOEXEC) => {
            format!("{shown} is not a program for this machine: it has no `#!` line, or is built for another processor")
        }
        Some(Errno::E2BIG) => "the arguments and the environment together are larger than this machine takes".into(),
        Some(Errno::EAGAIN) => {
            "its user has as many processes as it may have (`ulimit -u`): let fewer run at one time, or raise that"
                .into()
        }
        Some(Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE) => {
            format!("this machine has no room for another process: {error}")
        }
        _ => format!("{shown} could not be started: {error}"),
    }
}

/// Why `program` may not be run.
fn forbidden(program: &Path) -> String {
    let shown = program.display();
    // Where we may not look, whom it runs as may not either.
    let mode = std::fs::metadata(program).map(|file| file.permissions().mode() & 0o7777);
    match mode {
        Ok(_) if program.is_dir() => format!("{shown} is a folder, not a program"),
        Ok(mode) if mode & 0o111 == 0 => {
            format!("{shown} is not executable (mode {mode:o}): `chmod +x` it, or name its interpreter")
        }
        _ if is_on_noexec(program) => {
            format!(
                "{shown} lies on a file system from which nothing may be run (mounted `noexec`): put it elsewhere, or name \
                 its interpreter"
            )
        }
        _ => match interpreter(program) {
            Some(line) => {
                format!("{shown}, or the interpreter `{line}` in its first line, may not be run: see their modes")
            }
            None => format!(
                "{shown} may not be run: it, or a folder above it, is closed (`namei -l {shown}` shows which): `chmod +x` \
                 that, or name another program"
            ),
        },
    }
}

fn is_on_noexec(file: &Path) -> bool {
    statvfs(file).is_ok_and(|found| found.flags().contains(FsFlags::ST_NOEXEC))
}

/// What the first line of a script asks for.
fn interpreter(program: &Path) -> Option<String> {
    let mut line = String::new();
    io::BufReader::new(File::open(program).ok()?).take(256).read_line(&mut line).ok()?;
    Some(line.strip_prefix("#!")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, fs};

    use nix::{libc, unistd::Uid};

    use super::*;
    use crate::exec::os::{start::Confines, unix::spawn, who::Who};

    /// In every Debian and its like, and in no group of root's.
    const NOBODY: libc::uid_t = 65534;

    /// Does `work` as somebody who is not root, with no group of root's. Rights belong to threads: this one has ended then.
    fn with_no_rights<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        let as_nobody = || {
            if Uid::effective().is_root() {
                // SAFETY: integers. The C library's calls would change all threads.
                #[expect(unsafe_code, reason = "one thread becomes another user")]
                let done = unsafe {
                    [
                        libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()),
                        libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY),
                        libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY),
                    ]
                };
                assert_eq!(done, [0; 3]);
            }
            work()
        };
        std::thread::scope(|scope| scope.spawn(as_nobody).join().expect("it ends"))
    }

    fn closed(path: &Path, mode: u32) {
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("ours");
    }

    #[test]
    fn each_step_that_is_refused_is_told_as_what_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        closed(folder.path(), 0o755);
        let [inside, tool, script, plain] = ["inside", "tool", "script", "plain"].map(|name| folder.path().join(name));
        fs::create_dir(&inside).expect("made");
        fs::write(&script, format!("#!{}\n", tool.display())).expect("written");
        for file in [&tool, &plain] {
            fs::write(file, "").expect("written");
        }
        // For its owner, and for everybody else.
        closed(&tool, 0o070);
        closed(&plain, 0o644);
        closed(&script, 0o755);
        closed(&inside, 0);
        let good = Path::new("/bin/true");
        let low = Who { nice: Some(-5), ..Who::default() };
        let table: &[(&Path, &Path, &Who, Step, &str)] = &[
            (
                good,
                &inside,
                &Who::default(),
                Step::Folder,
                "inside may not be entered: it, or a folder above it, is closed",
            ),
            (good, &inside.join("deeper"), &Who::default(), Step::Folder, "deeper may not be entered"),
            (good, &folder.path().join("none"), &Who::default(), Step::Folder, "none cannot be used: No such file"),
            (good, folder.path(), &low, Step::Nice, "its `nice` is lower than the agent's own"),
            (&plain, folder.path(), &Who::default(), Step::Load, "plain is not executable (mode 644)"),
            (
                &tool,
                folder.path(),
                &Who::default(),
                Step::Load,
                "tool may not be run: it, or a folder above it, is closed",
            ),
            (&script, folder.path(), &Who::default(), Step::Load, "tool` in its first line, may not be run"),
            (&inside.join("x"), folder.path(), &Who::default(), Step::Load, "x may not be run"),
        ];
        for (file, cwd, who, step, words) in table {
            let mut program = Program::new(file, OsStr::new("it"));
            program.folder(cwd);
            let started = with_no_rights(|| {
                let confines = Confines { who: Some(who), ..Confines::default() };
                spawn(&program, false, confines)
                    .err()
                    .map(|unstarted| (unstarted.step, explain(&program, cwd, &unstarted)))
            });
            let (found, why) = started.unwrap_or_else(|| panic!("{} was started", file.display()));
            assert_eq!(found, *step, "{why}");
            assert!(why.contains(words), "{why}");
        }
        closed(&inside, 0o700);
    }
}
