//! Removes what an engine keeps of containers that nobody needs any more: those of attempts that were killed, and those
//! that an earlier instance of this agent left.

use std::{sync::Arc, time::Duration};

use muster_core::id::Token;
use tracing::{info, warn};

use super::{
    docker,
    engine::{Engine, Kind, last_line},
    podman,
};

/// For one word to an engine that removes a container, or lists them.
const LIMIT: Duration = Duration::from_secs(20);
/// The first word about a container whose processes were all killed may only find that out.
const TRIES: u32 = 4;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(200);
/// Before each look at what an earlier instance left: a daemon may still be making what its dead client asked for, and then
/// knows it by no name.
const LOOKS: [Duration; 3] = [Duration::ZERO, Duration::from_secs(5), Duration::from_secs(30)];
/// Before each look at one that was unknown when its client was killed, for the same reason.
const LATER: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];
/// Between two questions to an engine that gives no list, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// What became of the wish that a container be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// It is.
    Done,
    /// None of that name is known.
    Absent,
    /// It is not, which was told.
    Failed,
}

impl Engine {
    /// Removes what is kept of a container that is dead: its name, its files, its mounts. A daemon kills and waits for one
    /// that is not.
    pub(crate) async fn remove(&self, name: &str) -> Removal {
        let words: &[&str] = match self.kind() {
            Kind::Podman => podman::REMOVE,
            Kind::Docker => docker::REMOVE,
        };
        let words: Vec<&str> = words.iter().copied().chain([name]).collect();
        let mut why = String::new();
        for _ in 0..TRIES {
            match self.run(&words, LIMIT).await {
                // Later clients take it for a success.
                Ok(output) if self.kind() == Kind::Docker && docker::is_unknown(&output.stderr) => {
                    return Removal::Absent;
                }
                Ok(output) if output.status.success() => return Removal::Done,
                Ok(output) => why = last_line(&output.stderr),
                Err(error) => why = error.to_string(),
            }
            tokio::time::sleep(PAUSE).await;
        }
        warn!(
            container = name,
            why, "a container that is dead could not be removed; it is tried again at the next start"
        );
        Removal::Failed
    }

    /// Removes a container that is not known yet, if a daemon makes it: whoever asked for it is dead, and nobody will start it.
    pub(crate) fn remove_later(self: &Arc<Self>, name: String) {
        tokio::spawn(Arc::clone(self).look_again(name, LATER));
    }

    async fn look_again(self: Arc<Self>, name: String, pauses: impl IntoIterator<Item = Duration>) {
        for pause in pauses {
            tokio::time::sleep(pause).await;
            if self.remove(&name).await == Removal::Done {
                info!(container = name, "a container that was made after its attempt had ended was removed");
                return;
            }
        }
    }

    /// Removes what an earlier instance left, but for the containers of attempts of which `is_live` holds; nobody waits for
    /// that. To be called when all are dead who could have asked for more.
    pub(crate) fn remove_leftovers(self: &Arc<Self>, is_live: impl Fn(Token) -> bool + Send + Sync + 'static) {
        tokio::spawn(Arc::clone(self).remove_all(is_live, LOOKS, AGAIN));
    }

    async fn remove_all(
        self: Arc<Self>,
        is_live: impl Fn(Token) -> bool,
        looks: impl IntoIterator<Item = Duration>,
        again: (Duration, Duration),
    ) {
        for pause in looks {
            tokio::time::sleep(pause).await;
            let mut left = self.all_of_ours(again).await;
            left.retain(|name| !self.token_of(name).is_some_and(&is_live));
            if !left.is_empty() {
                info!(containers = left.len(), "an earlier instance of this agent left containers; they are removed");
            }
            for name in left {
                let _told_if_not = self.remove(&name).await;
            }
        }
    }

    /// All containers with our mark, as soon as the engine can tell.
    async fn all_of_ours(&self, (first, longest): (Duration, Duration)) -> Vec<String> {
        let filter = format!("--filter=label={}", Self::label(self.owner()));
        let mut pause = first;
        loop {
            let why = match self.run(&["ps", "--all", "--format={{.Names}}", &filter], LIMIT).await {
                Ok(output) if output.status.success() => {
                    let text = String::from_utf8_lossy(&output.stdout);
                    return text.split_whitespace().map(str::to_owned).collect();
                }
                Ok(output) => last_line(&output.stderr),
                Err(error) => error.to_string(),
            };
            if pause == first {
                warn!(why, "cannot tell which containers an earlier agent left; it is asked again until that is known");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(longest);
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

    use super::*;
    use crate::containers::{Settings, engine::Found};

    const SOON: Duration = Duration::from_millis(1);

    /// An engine that is a script with its own folder at hand; it notes what it is told in the file `told`.
    fn engine(kind: Kind, folder: &Path, script: &str) -> Arc<Engine> {
        let program = folder.join("engine");
        let text = format!("#!/bin/sh\ncd {} || exit\necho \"$1 $4\" >> told\n{script}\n", folder.display());
        fs::write(&program, text).expect("ours");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("ours");
        let found = Found { kind, program, runtime: None, settings: Settings::default() };
        Arc::new(Engine::with(found, "owner"))
    }

    fn removed(folder: &Path) -> Vec<String> {
        let told = fs::read_to_string(folder.join("told")).expect("it was asked");
        told.lines().filter_map(|line| line.strip_prefix("rm ")).map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn leftovers_are_asked_for_until_they_are_known_and_those_of_live_attempts_stay() {
        let folder = tempfile::tempdir().expect("a folder");
        let script = "[ $1 = ps ] || exit 0\n\
                      [ -e asked ] || { : > asked; exit 1; }\n\
                      [ -e again ] || { : > again; exit 1; }\n\
                      [ -e late ] && echo muster-owner-9\n: > late\n\
                      echo muster-owner-7 muster-owner-8 behind muster-other-7";
        let engine = engine(Kind::Docker, folder.path(), script);
        engine.remove_all(|token| token == Token(7), [SOON; 2], (SOON, SOON)).await;
        let first = ["muster-owner-8", "behind", "muster-other-7"];
        let second = ["muster-owner-9", "muster-owner-8", "behind", "muster-other-7"];
        assert_eq!(removed(folder.path()), [first.as_slice(), second.as_slice()].concat());
    }

    #[tokio::test]
    async fn a_container_that_was_unknown_is_removed_when_its_daemon_has_made_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let script = "[ -e later ] && exit 0\n[ -e asked ] && : > later\n: > asked\n\
                      echo 'Error: No such container: x' >&2; exit 1";
        let engine = engine(Kind::Docker, folder.path(), script);
        assert_eq!(engine.remove("x").await, Removal::Absent);
        Arc::clone(&engine).look_again("x".into(), [SOON; 5]).await;
        assert_eq!(removed(folder.path()), ["x"; 3]);
    }

    #[tokio::test]
    async fn what_cannot_be_removed_is_tried_a_few_times_and_what_is_unknown_is_no_success() {
        let folder = tempfile::tempdir().expect("a folder");
        let docker = engine(Kind::Docker, folder.path(), "echo busy >&2; exit 1");
        assert_eq!(docker.remove("x").await, Removal::Failed);
        assert_eq!(removed(folder.path()).len(), TRIES as usize);
        let folder = tempfile::tempdir().expect("a folder");
        let newer = engine(Kind::Docker, folder.path(), "echo 'Error response from daemon: No such container: x' >&2");
        assert_eq!(newer.remove("x").await, Removal::Absent);
    }
}
