//! What tasks wrote, as a stream: what is there, and with `follow` what still comes, until the end of the work and of its logs.

use std::{collections::VecDeque, ops::Range, sync::Arc, time::Duration};

use futures::{Stream, stream};
use muster_common::proto::v1;
use muster_core::{
    access::Reach,
    id::JobId,
    spec::Command,
    state::{Attempt, End, Task},
    time::Timestamp,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tonic::Status;

use crate::{
    grpc::{
        Parts,
        layout::{Layout, known},
        select::{Found, resolve},
        sieve::Sieve,
        status::{of_field, of_logs, stopping},
    },
    logs::{Attempts, Piece, Reader, Selection},
    view::JobView,
};

/// How long after the end of the work its last output is waited for.
const LAST_WITHIN: Duration = Duration::from_secs(5);
/// Where nobody says whether there is more (older agents do not): how long no agent may have sent anything until that is
/// all (an attempt that wrote nothing says nothing, and output may come by a few milliseconds after the end), and at most.
const QUIET: Duration = Duration::from_millis(100);
const QUIET_WITHIN: Duration = Duration::from_secs(1);
/// Selections of more tasks are not looked through for the last output of each.
const COUNTED: u32 = 256;

/// One person's look at logs.
struct Follow {
    parts: Parts,
    reader: Reader,
    sieve: Sieve,
    layout: Layout,
    id: JobId,
    tasks: Range<u32>,
    follow: bool,
    changed: watch::Receiver<u64>,
    ready: VecDeque<v1::LogsReply>,
    /// The work was seen before it was over.
    saw_it_run: bool,
    /// When the work was first seen to be over.
    over: Option<Instant>,
}

/// Whether more may come.
#[derive(Debug, PartialEq)]
enum Next {
    Over,
    Wait(Option<Instant>),
}

/// What is to come of the output of work that is over; more of it is the larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Owed {
    /// All is here.
    Nothing,
    /// Whether anything was written is not known.
    Unknown,
    /// Something was written that is not here.
    More,
}

pub(super) async fn logs(
    parts: Parts,
    reach: &Reach,
    request: v1::LogsRequest,
) -> Result<impl Stream<Item = Result<v1::LogsReply, Status>> + Send + 'static, Status> {
    let stream = stream_of(&request.stream)?;
    let sieve = Sieve::new(&request)?;
    let changed = parts.view.changed();
    let found = resolve(&parts.view.load(), reach, request.selector)?;
    let attempts = attempts_of(&found, request.attempt)?;
    let (id, tasks) = (found.id(), found.range());
    let selection = Selection { job: id, tasks: tasks.clone(), attempts, stream };
    let mut reader = parts.logs.reader(selection).await.map_err(|error| of_logs(&error))?;
    if request.tail_lines > 0 && !sieve.finds_the_last() {
        reader.tail(request.tail_lines).await.map_err(|error| of_logs(&error))?;
    }
    let layout = Layout::new(&found.job.job);
    let (follow, ready) = (request.follow, VecDeque::new());
    let mut state =
        Follow { parts, reader, sieve, layout, id, tasks, follow, changed, ready, saw_it_run: false, over: None };
    state.saw_it_run = state.ended(&found.job).is_none();
    Ok(stream::try_unfold(state, |mut state| async move {
        let next = state.next().await?;
        Ok(next.map(|reply| (reply, state)))
    }))
}

pub(super) fn stream_of(word: &str) -> Result<Option<v1::Stream>, Status> {
    match word {
        "" => Ok(None),
        "stdout" => Ok(Some(v1::Stream::Stdout)),
        "stderr" => Ok(Some(v1::Stream::Stderr)),
        other => {
            Err(of_field("stream", format!("`{other}` is no stream; known are stdout, stderr, and nothing for both")))
        }
    }
}

/// The attempts that are wanted: one by number, or of each task the newest one and those that follow it.
fn attempts_of(found: &Found, attempt: u32) -> Result<Attempts, Status> {
    if attempt == 0 {
        let job = Arc::clone(&found.job);
        return Ok(Attempts::From(Arc::new(move |task| known(&job, task).map_or(1, Task::attempts))));
    }
    let tasks = found.range();
    if tasks.end - tasks.start == 1 {
        let there = known(&found.job, tasks.start).map_or(0, Task::attempts);
        if attempt > there {
            return Err(Status::not_found(match there {
                0 => format!("{} was not tried yet", found.text),
                1 => format!("{} was tried once; attempt {attempt} does not exist", found.text),
                _ => format!("{} was tried {there} times; attempt {attempt} does not exist", found.text),
            }));
        }
    }
    Ok(Attempts::Only(attempt))
}

impl Follow {
    async fn next(&mut self) -> Result<Option<v1::LogsReply>, Status> {
        loop {
            if let Some(reply) = self.ready.pop_front() {
                return Ok(Some(reply));
            }
            // Before looking, so that what comes between looking and waiting is not missed.
            let grown = self.reader.grown();
            self.changed.borrow_and_update();
            if let Some(pieces) = self.read().await? {
                self.give(pieces);
                continue;
            }
            let next = if self.follow { self.look() } else { Next::Over };
            if let Next::Over = next {
                // What came since it was read, and made us look so.
                if self.follow
                    && let Some(pieces) = self.read().await?
                {
                    self.give(pieces);
                    continue;
                }
                let rest = self.sieve.rest();
                self.give(rest);
            }
            let known = self.sieve.known();
            self.give(known);
            if !self.ready.is_empty() {
                continue;
            }
            let Next::Wait(until) = next else { return Ok(None) };
            tokio::select! {
                () = grown => {}
                changed = self.changed.changed(), if until.is_none() => changed.map_err(|_| stopping())?,
                () = sleep_until(until.unwrap_or_else(far)), if until.is_some() => {}
            }
        }
    }

    /// What is there, as far as it is wanted; none: nothing new.
    async fn read(&mut self) -> Result<Option<Vec<Piece>>, Status> {
        let pieces = self.reader.next().await.map_err(|error| of_logs(&error))?;
        Ok(pieces.map(|pieces| pieces.into_iter().flat_map(|piece| self.sieve.sift(piece)).collect()))
    }

    fn give(&mut self, pieces: Vec<Piece>) {
        let replies: Vec<_> = pieces.into_iter().map(|piece| self.reply(piece)).collect();
        self.ready.extend(replies);
    }

    fn reply(&self, piece: Piece) -> v1::LogsReply {
        v1::LogsReply {
            job: self.id.0,
            task: piece.task,
            task_name: self.layout.name(piece.task),
            attempt: piece.attempt,
            frames: piece.frames,
        }
    }

    /// Whether something may still come, and until when that is to be believed.
    fn look(&mut self) -> Next {
        let snapshot = self.parts.view.load();
        // A deleted job writes no more.
        let Some(job) = snapshot.job(self.id) else { return Next::Over };
        let Some(ended) = self.ended(job) else {
            (self.saw_it_run, self.over) = (true, None);
            return Next::Wait(None);
        };
        // By a clock of the agent's, which may be wrong; nor has what ended while it was cut off come any sooner.
        if !self.saw_it_run && self.parts.clock.wall().since(ended) > LAST_WITHIN {
            return Next::Over;
        }
        let now = Instant::now();
        let seen = *self.over.get_or_insert(now);
        after_the_end(self.owed(job), now, seen, self.parts.logs.quiet_for())
    }

    /// When the selected work ended; none: it has not.
    fn ended(&self, job: &JobView) -> Option<Timestamp> {
        if job.summary.state.is_final() {
            return Some(job.summary.finished);
        }
        if self.tasks.end - self.tasks.start > COUNTED {
            return None;
        }
        let mut ended = Timestamp(0);
        for index in self.tasks.clone() {
            if !job.state_of(index)?.is_final() {
                return None;
            }
            let attempt = known(job, index).and_then(|task| task.attempt.as_ref());
            ended = attempt.map_or(ended, |attempt| ended.max(attempt.ended));
        }
        // The agent's clock may be wrong: what is no time of ours is now.
        Some(if ended.is_never() { self.parts.clock.wall() } else { ended })
    }

    /// Of all attempts that are selected.
    fn owed(&self, job: &JobView) -> Owed {
        let mut owed = Owed::Nothing;
        if self.tasks.end - self.tasks.start > COUNTED {
            owed = Owed::Unknown;
        } else {
            for index in self.tasks.clone() {
                let runs = self.layout.group_of(index).is_none_or(|group| group.spec.command != Command::Empty);
                let attempts = known(job, index).into_iter().flat_map(|task| task.past.iter().chain(&task.attempt));
                let missing = attempts.filter(|attempt| self.reader.lacks_the_end_of(index, attempt.number));
                owed = missing.map(|attempt| owed_by(attempt, runs)).fold(owed, Ord::max);
            }
        }
        if owed == Owed::Unknown && self.reader.is_open() { Owed::More } else { owed }
    }
}

/// By an attempt whose last output is not here. For a join point nothing `runs`, and nothing is counted.
fn owed_by(attempt: &Attempt, runs: bool) -> Owed {
    match attempt.usage.and_then(|usage| usage.has_output) {
        Some(true) => Owed::More,
        Some(false) => Owed::Nothing,
        None if !runs || attempt.started.is_never() || attempt.end == Some(End::Lost) => Owed::Nothing,
        None => Owed::Unknown,
    }
}

/// What follows for who saw the end of the work at `seen`, where no agent has sent anything for `quiet`.
fn after_the_end(owed: Owed, now: Instant, seen: Instant, quiet: Duration) -> Next {
    let until = match owed {
        Owed::Nothing => return Next::Over,
        Owed::More => seen + LAST_WITHIN,
        Owed::Unknown => (now + QUIET.saturating_sub(quiet)).max(seen + QUIET).min(seen + QUIET_WITHIN),
    };
    if until <= now { Next::Over } else { Next::Wait(Some(until)) }
}

fn far() -> Instant {
    Instant::now() + LAST_WITHIN
}

#[cfg(test)]
mod tests {
    use muster_core::{
        id::{AgentId, Token},
        usage::Usage,
    };

    use super::*;

    #[test]
    fn an_attempt_owes_what_it_says_and_without_a_word_what_ran_may_owe_something() {
        let table = [
            (1, End::Succeeded, Some(Some(false)), Owed::Nothing),
            (1, End::Exit(3), Some(Some(true)), Owed::More),
            (1, End::Succeeded, Some(None), Owed::Unknown),
            (1, End::Succeeded, None, Owed::Unknown),
            (0, End::NotStarted, None, Owed::Nothing),
            (1, End::Lost, None, Owed::Nothing),
            // The agent gave it up, and has what it wrote.
            (1, End::Lost, Some(Some(true)), Owed::More),
        ];
        for (started, end, said, owed) in table {
            let attempt = Attempt {
                number: 1,
                token: Token(1),
                agent: AgentId(1),
                leased: Timestamp(1),
                started: Timestamp(started),
                ended: Timestamp(2),
                end: Some(end),
                why: None,
                usage: said.map(|has_output| Usage { has_output, ..Usage::default() }),
            };
            assert_eq!(owed_by(&attempt, true), owed, "{attempt:?}");
            if owed == Owed::Unknown {
                assert_eq!(owed_by(&attempt, false), Owed::Nothing, "of a join point: {attempt:?}");
            }
        }
    }

    #[test]
    fn what_is_owed_is_waited_for_and_what_is_known_not_to_come_is_not() {
        let seen = Instant::now();
        let ms = Duration::from_millis;
        let wait = |at| Next::Wait(Some(seen + ms(at)));
        // Milliseconds since the end was seen, and since anybody sent anything.
        let table = [
            (Owed::Nothing, 0, 0, Next::Over),
            (Owed::More, 0, 9_000, wait(5000)),
            (Owed::More, 4999, 9_000, wait(5000)),
            (Owed::More, 5000, 0, Next::Over),
            (Owed::Unknown, 0, 9_000, wait(100)),
            (Owed::Unknown, 100, 9_000, Next::Over),
            (Owed::Unknown, 100, 30, wait(170)),
            (Owed::Unknown, 999, 0, wait(1000)),
            (Owed::Unknown, 1000, 0, Next::Over),
        ];
        for (owed, since, quiet, next) in table {
            let found = after_the_end(owed, seen + ms(since), seen, ms(quiet));
            assert_eq!(found, next, "{owed:?} {since} {quiet}");
        }
    }
}
