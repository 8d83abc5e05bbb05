//! `ctl run`: a job to its end, on the controller that is named or on a system of its own.

use std::{
    path::PathBuf,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use muster_agent::containers::Choice;
use muster_common::proto::v1;

use super::{Ctl, cancel::cancel, result, wait};
use crate::{
    error::Error,
    exit::Exit,
    live::{self, Live, Outcome},
    model::{
        change::{Ran, Submitted},
        job::Job,
        task::Task,
    },
    output::{self, Format, progress::Show, style::Look},
    remote::{
        Client,
        output::{Printer, Shape},
        selector,
        submit::submit,
    },
    system::{self, System},
    work::{self, Where, Work},
};

/// After a job's end its output may still be on its way; this long without any more, and it is not. A little less than a
/// controller waits for it, which then ends without a word.
const OUTPUT_QUIET: Duration = Duration::from_secs(4);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    work: work::WorkArgs,
    /// Run here in this folder, and keep it; otherwise it is a temporary one
    #[arg(long, value_name = "DIR", conflicts_with = "controller")]
    data: Option<PathBuf>,
    /// Show what the tasks write, each line with its task's name; a CMD's output is always shown
    #[arg(long)]
    logs: bool,
}

/// Whether a Ctrl-C ends the work or only the following.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnInterrupt {
    Cancel,
    Detach,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let named = if args.data.is_some() { None } else { ctl.named()? };
    if let Some(place) = named {
        let work = args.work.read(ctl.output, Where::of(&place))?;
        let client = ctl.connect(place).await?;
        return Box::pin(Run::new(ctl, client, work, args.logs, OnInterrupt::Detach).drive()).await;
    }
    let work = args.work.read(ctl.output, Where::Here)?;
    let has_image = work.spec.tasks.iter().any(|task| task.container.is_some());
    let containers = if has_image || args.data.is_some() { Choice::Auto } else { Choice::Off };
    let system = System::start(system::Options { data: args.data, containers, ..system::Options::default() }).await?;
    let ended = match system.client().await {
        Ok(client) => Box::pin(Run::new(ctl, client, work, args.logs, OnInterrupt::Cancel).drive()).await,
        Err(error) => Err(error),
    };
    ctl.leave_behind(match ended {
        // The second Ctrl-C: at once.
        Err(Error::Quiet(Exit::INTERRUPTED)) => system.abandon(),
        Err(_) => system.stop().await,
        Ok(_) => system.leave().await,
    });
    ended
}

/// One job on its way.
struct Run<'a> {
    ctl: &'a Ctl,
    client: Client,
    work: Work,
    logs: bool,
    on_interrupt: OnInterrupt,
    arrived: Arc<AtomicU64>,
}

impl<'a> Run<'a> {
    fn new(ctl: &'a Ctl, client: Client, work: Work, logs: bool, on_interrupt: OnInterrupt) -> Self {
        Self { ctl, client, work, logs, on_interrupt, arrived: Arc::default() }
    }

    async fn drive(mut self) -> Result<Exit, Error> {
        let output = self.ctl.output;
        let spec = std::mem::take(&mut self.work.spec);
        let last = last_task(&spec);
        let submitted = submit(&self.client, spec, None).await?;
        self.greet(&submitted);
        let show = match (self.work.is_command, output.is_machine()) {
            (true, _) => Show::Quiet,
            (false, true) => Show::Aside,
            (false, false) => Show::Live,
        };
        let mut live = Live::new(self.client.clone(), output, submitted.job, show);
        let mut interrupted = false;
        let job = {
            let mut job = None;
            let mut passing = pin!(self.pass_output(submitted.job));
            let mut passed = false;
            while job.is_none() {
                // One following for both: begun anew, it would leave a watch behind on the controller.
                let outcome = {
                    let mut following = pin!(live.follow());
                    loop {
                        tokio::select! {
                            outcome = &mut following => break outcome?,
                            ended = &mut passing, if !passed => {
                                ended?;
                                passed = true;
                            }
                        }
                    }
                };
                match outcome {
                    Outcome::Ended(ended) => job = Some(*ended),
                    Outcome::Interrupted if interrupted => return Err(Error::Quiet(Exit::INTERRUPTED)),
                    Outcome::Interrupted => {
                        self.interrupt(&mut live, submitted.job).await?;
                        interrupted = true;
                    }
                }
            }
            if !passed {
                self.rest_of_output(passing).await?;
            }
            job.unwrap_or_else(|| Job::from(v1::JobSummary::default()))
        };
        let exit = self.conclude(&live, job, last).await?;
        Ok(if interrupted { Exit::INTERRUPTED } else { exit })
    }

    fn greet(&self, submitted: &Submitted) {
        let output = self.ctl.output;
        for warning in &submitted.warnings {
            output.note(Look::Warn, &format!("warning: {warning}"));
        }
        if self.on_interrupt == OnInterrupt::Detach {
            output.note(Look::Dim, &format!("job {} on {}", submitted.job, self.client.place.url));
        }
    }

    /// The first Ctrl-C.
    async fn interrupt(&self, live: &mut Live, job: u64) -> Result<(), Error> {
        if self.on_interrupt == OnInterrupt::Detach {
            return Err(live.detached());
        }
        live.note(Look::Warn, &format!("\ncancelling job {job}; Ctrl-C again stops at once"))?;
        cancel(&self.client, &job.to_string(), "interrupted", false).await?;
        Ok(())
    }

    /// Shows what the tasks write until they are over.
    async fn pass_output(&self, job: u64) -> Result<(), Error> {
        let shape = match (self.work.is_command, self.ctl.output.is_machine()) {
            (false, _) if !self.logs => return Ok(()),
            (_, true) => Shape::Aside,
            (true, false) => Shape::Split,
            (false, false) => Shape::Lines { names: true, times: false },
        };
        let request = v1::LogsRequest { selector: selector(&job.to_string()), follow: true, ..Default::default() };
        let mut printer = Printer::new(shape, self.ctl.output);
        printer.arrived = Arc::clone(&self.arrived);
        printer.drain(self.client.clone(), request).await
    }

    /// The job is over: what it wrote last is still shown, however long that takes while it comes.
    async fn rest_of_output(
        &self,
        mut passing: std::pin::Pin<&mut impl Future<Output = Result<(), Error>>>,
    ) -> Result<(), Error> {
        loop {
            let before = self.arrived.load(Ordering::Relaxed);
            match tokio::time::timeout(OUTPUT_QUIET, &mut passing).await {
                Ok(ended) => return ended,
                Err(_) if self.arrived.load(Ordering::Relaxed) > before => {}
                Err(_) => {
                    let text = "warning: the last of the output did not arrive";
                    self.ctl.output.note(Look::Warn, text);
                    return Ok(());
                }
            }
        }
    }

    /// The summary, the result, and the exit code.
    async fn conclude(&self, live: &Live, job: Job, last: Option<String>) -> Result<Exit, Error> {
        let output = self.ctl.output;
        let single = if self.work.is_single { live::single(&self.client, job.id).await? } else { None };
        let exit = match single.as_ref().and_then(Task::end) {
            Some(end) if job.state != "cancelled" => end.exit(),
            _ => wait::exit_of(&job),
        };
        let result = self.result(&job, last).await?;
        if output.is_machine() {
            let tasks = live::ended(&self.client, &job).await?.tasks;
            output.one(&Ran { job, tasks, result, exit_code: exit.0 })?;
            return Ok(exit);
        }
        match (&single, self.work.is_command) {
            (_, false) => live.tell_end(&job)?,
            (Some(task), true) if exit != Exit::OK => live.note(Look::Bad, &task.line(&output.page()))?,
            _ => {}
        }
        if let Some(result) = result {
            output::raw(output::machine(Format::Json, &result)?.as_bytes())?;
        }
        Ok(exit)
    }

    /// The result of the job's last task, if it wrote one.
    async fn result(&self, job: &Job, last: Option<String>) -> Result<Option<serde_json::Value>, Error> {
        let Some(name) = last else { return Ok(None) };
        let what = format!("{}.{name}", job.id);
        match crate::remote::tasks::page(&self.client, &what, &[], 1, "").await?.tasks.first() {
            Some(task) if task.has_result => Ok(Some(result::fetch(&self.client, &what).await?)),
            _ => Ok(None),
        }
    }
}

/// The task whose result is the job's: the last entry that is ordinary work and no array.
fn last_task(spec: &v1::JobSpec) -> Option<String> {
    let last = spec.tasks.iter().rfind(|task| task.role() == v1::Role::Work)?;
    last.array.is_none().then(|| last.name.clone())
}
