//! Lines with a pattern, in what the tasks of many jobs wrote: job after job, newest first, in bounded memory.

use std::{ops::Range, sync::Arc};

use futures::{Stream, stream};
use muster_common::proto::v1::{self, LogFrame};
use muster_core::{access::Reach, id::JobId};
use tokio::sync::Semaphore;
use tonic::Status;

use crate::{
    grpc::{
        Parts,
        follow::stream_of,
        jobs::Wanted,
        layout::Layout,
        select::resolve,
        sieve::{Span, pattern},
        status::{of_field, of_logs, stopping},
    },
    logs::{Attempts, Lines, Pattern, Piece, Reader, Selection},
    view::JobView,
};

/// Lines in an answer if nobody says, and at most.
const LIMIT: u32 = 1000;
const LIMIT_MAX: u32 = 1_000_000;
/// Jobs that are seen at one go, wanted or not.
const SCAN: usize = 1000;
/// Searches that look at one time: each reads from the object store as fast as it can.
pub(super) const AT_ONCE: usize = 4;

/// What is left to look at.
enum Left {
    /// This job alone, of it these tasks.
    One(Option<(Arc<JobView>, Range<u32>)>),
    /// Of all jobs those that are wanted, older than the last one.
    Many { wanted: Box<Wanted>, reach: Reach, before: Option<JobId>, ended: bool },
}

/// What is to be looked at next.
enum Next {
    /// Of this job these tasks.
    Job(Arc<JobView>, Range<u32>),
    /// Nothing yet: none of those that were seen now is wanted.
    Others,
    /// There is no more.
    None,
}

/// The job that is looked through.
struct Open {
    job: Arc<JobView>,
    layout: Layout,
    reader: Reader,
    lines: Lines,
}

struct Search {
    parts: Parts,
    pattern: Pattern,
    span: Span,
    stream: Option<v1::Stream>,
    left: Left,
    open: Option<Open>,
    limit: u64,
    totals: v1::SearchTotals,
    is_over: bool,
    /// Held while it looks, and not while its answer is read: who does not read stops nobody.
    turns: Arc<Semaphore>,
}

pub(super) fn search(
    parts: Parts,
    reach: &Reach,
    turns: &Arc<Semaphore>,
    request: v1::SearchLogsRequest,
) -> Result<impl Stream<Item = Result<v1::SearchLogsReply, Status>> + Send + 'static, Status> {
    let stream = stream_of(&request.stream)?;
    let pattern = pattern(&request.pattern, request.ignore_case)?
        .ok_or_else(|| of_field("pattern", "is empty; say what to look for"))?;
    let limit = match request.limit {
        0 => LIMIT,
        limit if limit <= LIMIT_MAX => limit,
        limit => return Err(of_field("limit", format!("is {limit}; at most {LIMIT_MAX} lines are given at one time"))),
    };
    let left = if request.selector.as_ref().is_some_and(|selector| !selector.text.trim().is_empty()) {
        let found = resolve(&parts.view.load(), reach, request.selector)?;
        let tasks = found.range();
        Left::One(Some((found.job, tasks)))
    } else {
        let wanted = Box::new(Wanted::new(&request.jobs.unwrap_or_default())?);
        Left::Many { wanted, reach: reach.clone(), before: None, ended: false }
    };
    let span = Span { since: request.since_us, until: request.until_us };
    let search = Search {
        parts,
        pattern,
        span,
        stream,
        left,
        open: None,
        limit: limit.into(),
        totals: v1::SearchTotals::default(),
        is_over: false,
        turns: Arc::clone(turns),
    };
    Ok(stream::try_unfold(search, |mut search| async move {
        let reply = search.next().await?;
        Ok(reply.map(|reply| (reply, search)))
    }))
}

impl Search {
    /// Lines that were found, or at the end what was looked at.
    async fn next(&mut self) -> Result<Option<v1::SearchLogsReply>, Status> {
        let turns = Arc::clone(&self.turns);
        let _turn = turns.acquire().await.map_err(|_| stopping())?;
        while !self.is_over {
            let mut matches = self.step().await?;
            // What is in memory is waited for by nobody: heartbeats are answered by the same threads.
            tokio::task::yield_now().await;
            let room = self.limit - self.totals.matches;
            if matches.len() as u64 >= room {
                matches.truncate(usize::try_from(room).unwrap_or(usize::MAX));
                (self.totals.is_limited, self.is_over) = (true, true);
            }
            self.totals.matches += matches.len() as u64;
            let totals = self.is_over.then_some(self.totals);
            if !matches.is_empty() || totals.is_some() {
                return Ok(Some(v1::SearchLogsReply { matches, totals }));
            }
        }
        Ok(None)
    }

    /// Looks at a little more.
    async fn step(&mut self) -> Result<Vec<v1::LogMatch>, Status> {
        let Some(mut open) = self.open.take() else {
            match self.next_job() {
                Next::Job(job, tasks) => self.open = Some(self.begin(job, tasks).await?),
                Next::Others => {}
                Next::None => self.is_over = true,
            }
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        match open.reader.next().await.map_err(|error| of_logs(&error))? {
            Some(pieces) => {
                for piece in &pieces {
                    self.look(piece, &mut open, &mut found);
                    tokio::task::yield_now().await;
                }
                self.open = Some(open);
            }
            None => {
                let mut rest = Vec::new();
                open.lines.finish(|task, attempt, line| rest.push((task, attempt, line)));
                let rest = rest.into_iter().filter(|(_, _, line)| self.is_match(line));
                found.extend(rest.map(|(task, attempt, line)| open.found(task, attempt, line)));
            }
        }
        Ok(found)
    }

    fn look(&mut self, piece: &Piece, open: &mut Open, found: &mut Vec<v1::LogMatch>) {
        let (task, attempt) = (piece.task, piece.attempt);
        let mut lines = Vec::new();
        for frame in piece.frames.iter().filter(|frame| self.span.has(frame)) {
            self.totals.bytes += frame.data.len() as u64;
            self.totals.missing_bytes += frame.cut_bytes;
            open.lines.push(task, attempt, frame, |task, attempt, line| lines.push((task, attempt, line)));
        }
        let lines = lines.into_iter().filter(|(_, _, line)| self.is_match(line));
        found.extend(lines.map(|(task, attempt, line)| open.found(task, attempt, line)));
    }

    fn is_match(&self, line: &LogFrame) -> bool {
        !line.data.is_empty() && self.pattern.is_in(line.data.strip_suffix(b"\n").unwrap_or(&line.data))
    }

    async fn begin(&mut self, job: Arc<JobView>, tasks: Range<u32>) -> Result<Open, Status> {
        self.totals.jobs += 1;
        let attempts = Attempts::From(Arc::new(|_| 1));
        let selection = Selection { job: job.job.id, tasks, attempts, stream: self.stream };
        let reader = self.parts.logs.reader(selection).await.map_err(|error| of_logs(&error))?;
        Ok(Open { layout: Layout::new(&job.job), job, reader, lines: Lines::default() })
    }

    /// What is looked at next. What was deleted meanwhile is not.
    fn next_job(&mut self) -> Next {
        match &mut self.left {
            Left::One(one) => one.take().map_or(Next::None, |(job, tasks)| Next::Job(job, tasks)),
            Left::Many { ended: true, .. } => Next::None,
            Left::Many { wanted, reach, before, ended } => {
                let snapshot = self.parts.view.load();
                let jobs = snapshot.newest_first(*before);
                let mut seen = 0;
                for job in jobs.take(SCAN) {
                    (seen, *before) = (seen + 1, Some(job.job.id));
                    if reach.covers(&job.job.spec.queue) && wanted.matches(job) {
                        return Next::Job(Arc::clone(job), 0..job.task_count());
                    }
                }
                *ended = seen < SCAN;
                Next::Others
            }
        }
    }
}

impl Open {
    fn found(&self, task: u32, attempt: u32, line: LogFrame) -> v1::LogMatch {
        let job = &self.job.job;
        let (job, job_name, task_name) = (job.id.0, job.spec.name.clone(), self.layout.name(task));
        v1::LogMatch { job, job_name, task, task_name, attempt, line: Some(line) }
    }
}
