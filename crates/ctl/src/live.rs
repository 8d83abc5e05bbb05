//! Following one job on this terminal: what is seen while it runs, and what Ctrl-C means.

use std::collections::BTreeSet;

use muster_common::shutdown;
use tokio::time::{Duration, MissedTickBehavior, interval};

use crate::{
    error::Error,
    exit::Exit,
    model::{
        job::Job,
        task::{Task, Tasks},
    },
    output::{
        Output,
        progress::{Progress, Show},
        style::Look,
    },
    remote::{Client, follow::Watch, tasks},
};

/// The ends of a job's tasks are looked up this often, and only when something ended.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Every end of a job of at most this many tasks is told; of a larger one only what went wrong.
pub(crate) const TOLD_TASKS: u64 = 1000;

/// Failures of a large job that are told one by one.
const TOLD_FAILURES: usize = 100;

/// How following came to its end.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The job is over.
    Ended(Box<Job>),
    /// A person pressed Ctrl-C; the job goes on.
    Interrupted,
}

/// One followed job.
#[derive(Debug)]
pub(crate) struct Live {
    client: Client,
    output: Output,
    id: u64,
    watch: Watch,
    progress: Progress,
    show: Show,
    told: BTreeSet<u32>,
    ended: u64,
}

impl Live {
    /// Follows job `id`; nothing is asked before `follow`.
    pub(crate) fn new(client: Client, output: Output, id: u64, show: Show) -> Self {
        let watch = Watch::new(&client, output, id.to_string());
        let (told, progress) = (BTreeSet::new(), Progress::new(output, show));
        Self { client, output, id, watch, progress, show, told, ended: 0 }
    }

    /// To the end, or to a Ctrl-C. May be called again after one. Every end is told before this returns.
    pub(crate) async fn follow(&mut self) -> Result<Outcome, Error> {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut interrupt = std::pin::pin!(shutdown::signal());
        let mut news: Option<Job> = None;
        loop {
            tokio::select! {
                job = self.watch.next() => {
                    let job = job?;
                    self.progress.update(&job)?;
                    if job.is_final() {
                        self.tell_tasks(&job).await?;
                        self.progress.finish();
                        return Ok(Outcome::Ended(Box::new(job)));
                    }
                    news = Some(job);
                }
                _ = look.tick(), if news.is_some() => {
                    if let Some(job) = news.take() {
                        self.tell_tasks(&job).await?;
                    }
                }
                _ = &mut interrupt => return Ok(Outcome::Interrupted),
            }
        }
    }

    /// Tells the tasks that ended since it was called last.
    async fn tell_tasks(&mut self, job: &Job) -> Result<(), Error> {
        if self.show == Show::Quiet || job.tasks.finished == self.ended {
            return Ok(());
        }
        let tasks = ended(&self.client, job).await?.tasks;
        let page = self.progress.page();
        for task in tasks {
            if self.told.insert(task.index) {
                self.progress.line(&task.line(&page))?;
            }
        }
        self.ended = job.tasks.finished;
        Ok(())
    }

    /// The job's summary as the last line.
    pub(crate) fn tell_end(&self, job: &Job) -> Result<(), Error> {
        let more = usize::try_from(job.tasks.failed).unwrap_or(usize::MAX).saturating_sub(TOLD_FAILURES);
        if job.tasks.total > TOLD_TASKS && more > 0 {
            self.progress.line(&format!("and {more} more failed: ctl show {} --state failed", job.id))?;
        }
        self.progress.line(&job.line(&self.progress.page()))
    }

    /// A note that does not disturb the bar.
    pub(crate) fn note(&self, look: Look, text: &str) -> Result<(), Error> {
        self.progress.line(&self.progress.page().paint(look, text))
    }

    /// What is left to say when a person went away from work that goes on.
    pub(crate) fn detached(&mut self) -> Error {
        self.progress.finish();
        let id = self.id;
        let text = format!("\ndetached; job {id} goes on: ctl wait {id}, ctl logs -f {id}, ctl cancel {id}");
        self.output.note(Look::Warn, &text);
        Error::Quiet(Exit::INTERRUPTED)
    }
}

/// The tasks of a job that are over: all of a job that is not large, else what failed first.
pub(crate) async fn ended(client: &Client, job: &Job) -> Result<Tasks, Error> {
    let large = job.tasks.total > TOLD_TASKS;
    let (states, limit): (&[&str], _) = if large { (&["failed"], TOLD_FAILURES) } else { (&tasks::ENDED, 1000) };
    if large && job.tasks.failed == 0 {
        return Ok(Tasks { tasks: Vec::new(), next_page_token: None });
    }
    let states: Vec<_> = states.iter().map(|state| (*state).to_owned()).collect();
    tasks::first(client, &job.id.to_string(), &states, limit).await
}

/// The one task of a job of one.
pub(crate) async fn single(client: &Client, job: u64) -> Result<Option<Task>, Error> {
    Ok(tasks::first(client, &job.to_string(), &[], 1).await?.tasks.pop())
}
