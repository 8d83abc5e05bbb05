//! Following a job to its end, across restarts of the controller.

use std::time::Duration;

use muster_common::proto::v1;
use tokio::time::{Instant, sleep_until};
use tonic::Streaming;

use super::{Client, selector};
use crate::{
    error::Error,
    model::job::Job,
    output::{Output, style::Look},
};

/// A controller that restarts is back in seconds; one that is away for this many tries is gone.
const TRIES: u32 = 20;

/// Between two tries; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);

const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The summaries of one job, newest as they come. Dropping it ends the watch.
#[derive(Debug)]
pub(crate) struct Watch {
    client: Client,
    output: Output,
    what: String,
    stream: Option<Streaming<v1::JobSummary>>,
    failures: u32,
    resume_at: Option<Instant>,
}

impl Watch {
    /// Watches the job that `what` names; nothing is asked before the first `next`.
    pub(crate) fn new(client: &Client, output: Output, what: impl Into<String>) -> Self {
        Self { client: client.clone(), output, what: what.into(), stream: None, failures: 0, resume_at: None }
    }

    /// The next summary; a final one is the last. Cancel safe: a summary is returned or still to come.
    pub(crate) async fn next(&mut self) -> Result<Job, Error> {
        loop {
            if let Some(at) = self.resume_at {
                sleep_until(at).await;
                self.resume_at = None;
            }
            match self.try_next().await {
                Ok(Some(summary)) => {
                    self.failures = 0;
                    return Ok(Job::from(summary));
                }
                // The stream ended before the job did: the controller stops or another leads.
                Ok(None) => self.pause(None)?,
                Err(error) if error.is_unreachable() => self.pause(Some(error))?,
                Err(error) => return Err(error),
            }
        }
    }

    async fn try_next(&mut self) -> Result<Option<v1::JobSummary>, Error> {
        if self.stream.is_none() {
            let request = v1::WatchJobRequest { selector: selector(&self.what) };
            self.stream = Some(self.client.rpc.watch_job(request).await?.into_inner());
        }
        match &mut self.stream {
            Some(stream) => Ok(stream.message().await?),
            None => Ok(None),
        }
    }

    fn pause(&mut self, error: Option<Error>) -> Result<(), Error> {
        self.stream = None;
        self.failures += 1;
        if self.failures > TRIES {
            let error = error.unwrap_or_else(|| {
                Error::new(crate::exit::Exit::UNREACHABLE, "the controller ends every watch before the job is finished")
            });
            return Err(error.detail(format!("job {} goes on", self.what)));
        }
        // One lost stream is a restart at work; only a second one in a row is worth a word.
        if self.failures == 2 {
            let place = &self.client.place.url;
            self.output.note(Look::Warn, &format!("the controller at {place} is away; trying again"));
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << (self.failures - 1).min(10)).min(LONGEST_PAUSE);
        self.resume_at = Some(Instant::now() + pause);
        Ok(())
    }

    /// The final summary.
    pub(crate) async fn finish(mut self) -> Result<Job, Error> {
        loop {
            let job = self.next().await?;
            if job.is_final() {
                return Ok(job);
            }
        }
    }
}
