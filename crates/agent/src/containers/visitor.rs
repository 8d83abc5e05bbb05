//! A command that people run in the container of an attempt, from its start to its end in there: of an engine's client that
//! is ended, the command hears nothing.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;
use uuid::Uuid;

use crate::exec::os::Marked;

/// What such a command alone has in its environment.
const VARIABLE: &str = "MUSTER_EXEC";
/// Between two looks at all processes of the machine.
const PAUSE: Duration = Duration::from_millis(100);
/// From SIGTERM, or SIGHUP to what is on a terminal, to SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
/// For so long nobody is seen before nobody will be: an engine may have been about to start it.
const QUIET: Duration = Duration::from_secs(1);
/// For one that cannot be killed.
const LIMIT: Duration = Duration::from_secs(30);

/// See the module. Who drops it before it [ended](Self::ended) ends it where it is, soon.
pub(crate) struct Visitor {
    mark: Arc<str>,
    is_on_terminal: bool,
    is_over: bool,
    tracker: TaskTracker,
    /// Of the agent, which leaves no time to anybody.
    stop: CancellationToken,
}

impl Visitor {
    /// One that nobody started yet. What becomes of it is waited for by `tracker`.
    pub(crate) fn new(is_on_terminal: bool, tracker: TaskTracker, stop: CancellationToken) -> Self {
        let mark = format!("{VARIABLE}={}", Uuid::new_v4().simple()).into();
        Self { mark, is_on_terminal, is_over: false, tracker, stop }
    }

    /// What it is to have in its environment.
    pub(crate) fn mark(&self) -> &str {
        &self.mark
    }

    /// It ended by itself, or never began. What it started may stay, as it may beside a task that is in no container.
    pub(crate) fn ended(mut self) {
        self.is_over = true;
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        if !self.is_over {
            self.tracker.spawn(end(Marked::new(&self.mark, self.is_on_terminal), self.stop.clone()));
        }
    }
}

/// They are asked, have their time, and are killed.
async fn end(mut marked: Marked, stop: CancellationToken) {
    let began = Instant::now();
    let (mut first, mut last) = (None, began);
    while last.elapsed() < QUIET {
        let in_time = !stop.is_cancelled() && first.is_none_or(|first: Instant| first.elapsed() < GRACE);
        let looked = spawn_blocking(move || {
            let seen = if in_time { marked.ask() } else { marked.kill() };
            (marked, seen)
        });
        let Ok((again, seen)) = looked.await else { return };
        marked = again;
        if seen > 0 {
            last = Instant::now();
            first.get_or_insert(last);
        }
        if began.elapsed() > LIMIT {
            warn!(seen, "a command in a container lives, though its caller left and it was killed");
            return;
        }
        sleep(PAUSE).await;
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// A shell that has `mark` and runs `text`, and says when it does.
    fn shell(mark: &str, text: &str) -> Child {
        use std::io::Read as _;
        #[expect(clippy::disallowed_methods, reason = "an ordinary process, as an engine starts them")]
        let mut command = Command::new("/bin/sh");
        let (name, value) = mark.split_once('=').expect("a variable");
        let text = format!("{text}\necho up\nwhile :; do sleep 0.05; done");
        command.args(["-c", &text]).env(name, value).stdout(std::process::Stdio::piped());
        let mut child = command.spawn().expect("starts");
        let mut up = [0; 3];
        child.stdout.as_mut().expect("a pipe").read_exact(&mut up).expect("it speaks");
        child
    }

    fn visitor(tracker: &TaskTracker, stop: &CancellationToken) -> Visitor {
        Visitor::new(false, tracker.clone(), stop.clone())
    }

    #[tokio::test]
    async fn who_left_takes_all_that_has_its_mark_and_nobody_else_along() {
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let (left, stays, over) = (visitor(&tracker, &stop), visitor(&tracker, &stop), visitor(&tracker, &stop));
        let heard = shell(left.mark(), "trap 'exit 7' TERM");
        let shows = Visitor::new(true, tracker.clone(), stop.clone());
        let hung_up = shell(shows.mark(), "trap 'exit 9' TERM; trap 'exit 8' HUP");
        let deaf = shell(left.mark(), "trap '' TERM HUP");
        let (mut neighbour, mut child) = (shell(stays.mark(), ""), shell(over.mark(), ""));
        drop((left, shows));
        over.ended();
        tracker.close();
        tracker.wait().await;
        let ends = [heard, hung_up, deaf].map(|mut child| child.wait().expect("it ended").code());
        assert_eq!(ends, [Some(7), Some(8), None]);
        for child in [&mut neighbour, &mut child] {
            assert!(child.try_wait().expect("asked").is_none(), "a neighbour was ended");
            child.kill().and_then(|()| child.wait()).expect("it is ours");
        }
        stays.ended();
    }

    #[tokio::test]
    async fn one_that_starts_late_is_found_and_an_agent_that_stops_gives_no_time() {
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let left = visitor(&tracker, &stop);
        let mark = left.mark().to_owned();
        drop(left);
        stop.cancel();
        let mut late = shell(&mark, "trap 'exit 7' TERM HUP");
        tracker.close();
        tracker.wait().await;
        assert_eq!(late.wait().expect("it ended").code(), None, "it was asked first");
    }
}
