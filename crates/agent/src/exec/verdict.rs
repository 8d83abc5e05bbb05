//! What became of a container: its engine's end says it, or the daemon that made it, which is asked and has to let go of it.

use super::{
    attempt::Attempt,
    contained::{Contained, Said},
    os::{Leader, Status, Survivor},
};
use crate::{
    cgroup::{Place, Slot},
    containers::{Removal, Told},
};

/// Exit codes that a client has of its own, too.
const ITS_OWN: std::ops::RangeInclusive<i32> = 125..=127;

/// What follows for an attempt that ended by itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Its engine ended as its first process did.
    AsItEnded,
    /// Its first process never was.
    NeverRan(String),
    /// How it ended cannot be known.
    Lost(String),
}

impl Attempt {
    /// What a daemon knows of its container, as soon as its client has ended; none: no daemon made one. Unless that
    /// `is_over`, it is ended first: nobody heeds wishes and limits any more, and the daemon may take its time.
    pub(super) async fn ask_daemon(&self, is_over: bool) -> Option<Told> {
        let contained = self.contained().filter(Contained::has_daemon)?;
        let slot = self.confined.place.as_ref().and_then(Place::slot).filter(|_| !is_over);
        let was_ended = slot.is_some_and(Slot::kill_sheltered);
        let told = contained.tell().await;
        Some(if was_ended { told.before_it_was_ended() } else { told })
    }

    /// Makes sure that no daemon runs its container, or will, when its cgroups were found empty but for `survivors`. A client
    /// that was killed may have asked for a start that goes on without it: removing waits for that. Says whether the container was
    /// to be removed, and who lives.
    pub(super) async fn part(
        &mut self,
        told: Option<&Told>,
        status: Option<Status>,
        leader: &Leader,
        survivors: Vec<Survivor>,
    ) -> (bool, Vec<Survivor>) {
        let Some((told, contained)) = told.zip(self.contained()) else { return (false, survivors) };
        // A client that ended by itself had an answer to all that it asked for.
        if matches!(status, Some(Status::Exit(_))) && told.is_over() {
            return (false, survivors);
        }
        match contained.remove().await {
            Removal::Done => {}
            Removal::Absent => contained.remove_later(),
            Removal::Failed => self.confined.place.iter_mut().for_each(Place::abandon),
        }
        (true, self.kill_all(leader).await)
    }
}

/// Of a container whose engine ended with `status`.
pub(super) fn fate(contained: Option<&Contained>, told: Option<&Told>, status: Status, said: &Said) -> Fate {
    match told {
        Some(told) => by_daemon(told, status, said),
        None if contained.is_some_and(|contained| !contained.has_run()) => Fate::NeverRan(said.reason()),
        None => Fate::AsItEnded,
    }
}

fn by_daemon(told: &Told, status: Status, said: &Said) -> Fate {
    let client = match status {
        Status::Exit(code) => format!("its docker client ended with exit code {code}"),
        Status::Signal(number) => format!("its docker client was killed by signal {number}"),
    };
    match (told, status) {
        (Told::State(state), Status::Exit(_)) if !state.has_run() => Fate::NeverRan(match &*state.error {
            "" => said.reason(),
            error => format!("its container did not start: {error}"),
        }),
        (Told::State(state), Status::Signal(_)) if !state.has_run() => {
            Fate::NeverRan(format!("{client} before its container started"))
        }
        (Told::State(state), _) if state.running => {
            Fate::Lost(format!("{client} while its container ran, which was ended"))
        }
        (Told::State(state), Status::Exit(code)) if state.exit_code == code => Fate::AsItEnded,
        (Told::State(state), _) => {
            Fate::Lost(format!("{client}, and its container, as Docker tells, with exit code {}", state.exit_code))
        }
        (_, Status::Exit(code)) if !ITS_OWN.contains(&code) => Fate::AsItEnded,
        (Told::Absent, Status::Exit(_)) => Fate::NeverRan(said.reason()),
        (Told::Absent, Status::Signal(_)) => Fate::NeverRan(format!("{client} before its container was made")),
        (Told::Nothing(why), _) => {
            Fate::Lost(format!("{client}, and Docker cannot tell of its container, which was ended: {why}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::State;

    fn state(started: &str, running: bool, exit_code: i32, error: &str) -> Told {
        let text =
            format!(r#"{{"Running":{running},"ExitCode":{exit_code},"Error":{error:?},"StartedAt":"{started}"}}"#);
        Told::State(serde_json::from_str::<State>(&text).expect("it is right"))
    }

    #[test]
    fn an_end_is_the_tasks_own_only_where_client_and_daemon_agree_on_it() {
        let (never, then) = ("0001-01-01T00:00:00Z", "2026-01-01T00:00:00Z");
        let gone = || Told::Nothing("no answer".into());
        let table = [
            (state(then, false, 0, ""), Status::Exit(0), "as it ended"),
            (state(then, false, 127, ""), Status::Exit(127), "as it ended"),
            (state(then, false, 125, ""), Status::Exit(125), "as it ended"),
            (state(never, false, 127, "no such program"), Status::Exit(127), "never: did not start: no such program"),
            (state(never, false, 0, ""), Status::Exit(125), "never: did not start: the daemon said so"),
            (state(never, false, 0, ""), Status::Signal(9), "never: killed by signal 9 before"),
            (state(then, true, 0, ""), Status::Signal(9), "lost: killed by signal 9 while its container ran"),
            (state(then, true, 0, ""), Status::Exit(125), "lost: exit code 125 while its container ran"),
            (state(then, false, 137, ""), Status::Exit(125), "lost: as Docker tells, with exit code 137"),
            (state(then, false, 0, ""), Status::Signal(15), "lost: as Docker tells, with exit code 0"),
            (Told::Absent, Status::Exit(125), "never: the daemon said so"),
            (Told::Absent, Status::Exit(3), "as it ended"),
            (Told::Absent, Status::Signal(9), "never: before its container was made"),
            (gone(), Status::Exit(0), "as it ended"),
            (gone(), Status::Exit(7), "as it ended"),
            (gone(), Status::Exit(125), "lost: exit code 125, and Docker cannot tell"),
            (gone(), Status::Exit(127), "lost: which was ended: no answer"),
            (gone(), Status::Signal(9), "lost: killed by signal 9, and Docker cannot tell"),
        ];
        let ended = state(then, false, 137, "").before_it_was_ended();
        assert!(!ended.is_over(), "it is not put away yet");
        let cut = (ended, Status::Signal(9), "lost: killed by signal 9 while its container ran, which was ended");
        let mut said = Said::default();
        said.add(b"docker: Error response from daemon: the daemon said so\n");
        for (told, status, expected) in table.into_iter().chain([cut]) {
            let found = match fate(None, Some(&told), status, &said) {
                Fate::AsItEnded => "as it ended".to_owned(),
                Fate::NeverRan(why) => format!("never: {why}"),
                Fate::Lost(why) => format!("lost: {why}"),
            };
            let (kind, words) = expected.split_once(": ").unwrap_or((expected, ""));
            assert!(found.starts_with(kind) && found.contains(words), "{told:?}, {status:?}: {found}, not {expected}");
        }
        assert_eq!(fate(None, None, Status::Exit(127), &said), Fate::AsItEnded);
    }
}
