//! Who this agent is: one number for its data folder, one agent for the folder, and one machine.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use uuid::Uuid;

use super::credentials;
use crate::exec::os;

/// The folder's number, and beside it the machine where the agent with this number runs.
const UID: &str = "agent-uid";
const MACHINE: &str = "agent-machine";

/// Why a data folder cannot be taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The file system says no.
    #[error("failed to use {path}; the agent's data folder must be readable and writable", path = .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is somebody else's.
    #[error(
        "the data folder {folder} holds {name:?}, which no agent made; an agent keeps others out of all that its folder \
         holds: give it an empty one of its own, with --data or as `data` in its file",
        folder = .folder.display()
    )]
    Foreign {
        /// The folder.
        folder: PathBuf,
        /// One of the things in it.
        name: OsString,
    },
    /// Another agent has it.
    #[error(
        "another agent{other} uses the data folder {folder}; stop it, or give this one its own with --data",
        folder = .folder.display()
    )]
    Taken {
        /// The folder.
        folder: PathBuf,
        /// Its process, if it says so: ` (process 12)`.
        other: String,
    },
    /// The file with our number holds something else.
    #[error(
        "{path} does not hold an agent's number; take the file away and this becomes a new agent",
        path = .path.display()
    )]
    Unreadable {
        /// Which file.
        path: PathBuf,
    },
    /// Two agents with one number would take each other's connection for ever, and run each other's work twice.
    #[error(
        "the data folder {folder} belongs to the agent of another machine, as {MACHINE} in it says: it was copied, perhaps with \
         the image of that machine; empty the folder, and this becomes an agent of its own (with TLS it joins anew, with a \
         token of `ctl admin join-token`). If that agent is gone for good and this is to go on in its place, start once with \
         --adopt-data",
        folder = .folder.display()
    )]
    Copied {
        /// The folder.
        folder: PathBuf,
    },
}

/// What becomes of a folder of another machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    /// It stays as it is.
    Refuse,
    /// It is of this machine from now on: somebody said that the other agent is gone.
    Adopt,
}

/// A data folder that is ours while this lives.
#[derive(Debug)]
pub(super) struct Identity {
    /// Stable for the folder.
    pub(super) uid: Arc<str>,
    /// Ends the lock when it is closed, and so when the process dies, however it dies.
    _lock: File,
}

impl Identity {
    /// Makes the folder if it is not there, takes it, and reads or gives its number.
    ///
    /// # Errors
    /// See [`Error`].
    pub(super) fn take(folder: &Path, machine: &str, foreign: Foreign) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(failed(folder))?;
        refuse_foreign(folder)?;
        let lock = lock(folder)?;
        // First: who has no number yet is of this machine, whatever else lies there.
        if folder.join(UID).exists() && foreign == Foreign::Refuse && is_foreign(folder, machine)? {
            return Err(Error::Copied { folder: folder.to_owned() });
        }
        note(folder, machine);
        Ok(Self { uid: uid(&folder.join(UID))?, _lock: lock })
    }
}

/// Whether the folder is another machine's. One that says nothing, of an older build, is taken for ours; and where the system does
/// not say which machine it is, nothing can be told.
fn is_foreign(folder: &Path, machine: &str) -> Result<bool, Error> {
    let path = folder.join(MACHINE);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(!machine.is_empty() && !text.trim().is_empty() && text.trim() != machine),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::Io { path, source }),
    }
}

/// On a full disk an agent must start all the same, or what it left ends; then the next one writes it down.
fn note(folder: &Path, machine: &str) {
    let path = folder.join(MACHINE);
    let known = fs::read_to_string(&path).unwrap_or_default();
    if machine.is_empty() || known.trim() == machine {
        return;
    }
    if let Err(error) = credentials::write(&path, &format!("{machine}\n")) {
        tracing::warn!(path = %path.display(), %error, "cannot write down of which machine the data folder is");
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}

/// What an agent makes first of all.
const LOCK: &str = "agent.lock";
/// What an empty disk holds.
const OF_DISKS: &str = "lost+found";

/// A folder that no agent ever had must be empty: all in it would be closed to its owners.
fn refuse_foreign(folder: &Path) -> Result<(), Error> {
    if folder.join(LOCK).exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).map_err(failed(folder))? {
        let name = entry.map_err(failed(folder))?.file_name();
        if name != OF_DISKS {
            return Err(Error::Foreign { folder: folder.to_owned(), name });
        }
    }
    Ok(())
}

fn lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join(LOCK);
    let mut options = OpenOptions::new();
    // Who can open it could lock it.
    os::for_us_alone(options.create(true).truncate(false).read(true).write(true));
    let mut file = options.open(&path).map_err(failed(&path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let other = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u32>().ok());
            let other = other.map_or_else(String::new, |pid| format!(" (process {pid})"));
            return Err(Error::Taken { folder: folder.to_owned(), other });
        }
        Err(TryLockError::Error(source)) => return Err(Error::Io { path, source }),
    }
    // Only who is told of us misses it: on a full disk an agent must start all the same, or what it left ends.
    let _said_or_not = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

fn uid(path: &Path) -> Result<Arc<str>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => match Uuid::parse_str(text.trim()) {
            Ok(uid) => Ok(uid.to_string().into()),
            Err(_) => Err(Error::Unreadable { path: path.to_owned() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let uid = Uuid::new_v4().to_string();
            // An agent that forgets its number leaves its leases to their expiry.
            credentials::write(path, &format!("{uid}\n")).map_err(failed(path))?;
            Ok(uid.into())
        }
        Err(source) => Err(Error::Io { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(folder: &Path) -> Result<Identity, Error> {
        Identity::take(folder, "here", Foreign::Refuse)
    }

    #[test]
    fn an_agent_keeps_its_number_over_restarts() {
        let folder = tempfile::tempdir().expect("a folder");
        let first = take(folder.path()).expect("new").uid;
        let second = take(folder.path()).expect("free again").uid;
        assert_eq!(first, second);
        let other = tempfile::tempdir().expect("a folder");
        assert_ne!(first, take(&other.path().join("deep/er")).expect("made").uid);
    }

    #[test]
    fn a_folder_has_one_agent_and_the_second_is_told_who() {
        let folder = tempfile::tempdir().expect("a folder");
        let _first = take(folder.path()).expect("new");
        let error = take(folder.path()).expect_err("taken").to_string();
        let pid = std::process::id();
        assert!(error.contains(&format!("(process {pid})")) && error.contains("--data"), "{error}");
    }

    #[test]
    fn a_folder_that_holds_what_no_agent_made_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join(OF_DISKS)).expect("made");
        fs::write(folder.path().join("a letter"), "dear").expect("written");
        let error = take(folder.path()).expect_err("refused").to_string();
        assert!(error.contains("\"a letter\"") && error.contains("--data"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).expect("there").count(), 2);
        fs::remove_file(folder.path().join("a letter")).expect("ours");
        let first = take(folder.path()).expect("a new disk").uid;
        // What comes later is anybody's business.
        fs::write(folder.path().join("a letter"), "dear").expect("written");
        assert_eq!(first, take(folder.path()).expect("it had it before").uid);
    }

    #[test]
    fn a_number_that_is_none_is_refused_and_not_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join(LOCK), "").expect("written");
        fs::write(folder.path().join("agent-uid"), "garbage").expect("written");
        let error = take(folder.path()).expect_err("refused").to_string();
        assert!(error.contains("agent-uid"), "{error}");
        assert_eq!(fs::read_to_string(folder.path().join("agent-uid")).expect("there"), "garbage");
    }

    #[test]
    fn a_folder_that_was_copied_from_another_machine_is_refused_until_somebody_adopts_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let on = |machine: &str, foreign| Identity::take(folder.path(), machine, foreign).map(|identity| identity.uid);
        let uid = on("there", Foreign::Refuse).expect("new");
        let error = on("here", Foreign::Refuse).expect_err("a copy").to_string();
        for part in
            [&*folder.path().to_string_lossy(), "another machine", "empty the folder", "--adopt-data", "join-token"]
        {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert_eq!(on("there", Foreign::Refuse).expect("it is as it was"), uid);
        assert_eq!(on("here", Foreign::Adopt).expect("adopted"), uid);
        assert_eq!(on("here", Foreign::Refuse).expect("ours"), uid);
        on("there", Foreign::Refuse).expect_err("it is ours now");
    }

    #[test]
    fn a_folder_of_an_older_build_and_a_system_that_does_not_say_who_it_is_go_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let on = |machine: &str| Identity::take(folder.path(), machine, Foreign::Refuse).map(|identity| identity.uid);
        let uid = on("").expect("new");
        assert!(!folder.path().join(MACHINE).exists());
        assert_eq!(on("here").expect("it says nothing"), uid);
        assert_eq!(on("").expect("nothing can be told"), uid);
        on("there").expect_err("it is known from its second start on");
        // The number alone is taken away: a new agent, wherever that is.
        fs::remove_file(folder.path().join(UID)).expect("it is there");
        assert_ne!(on("there").expect("an agent of its own"), uid);
        on("here").expect_err("it is there now");
    }
}
