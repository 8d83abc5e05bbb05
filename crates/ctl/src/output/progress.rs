//! What is seen of a job while it runs: a live bar on a terminal, plain lines elsewhere.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use muster_core::time::{Mono, micros};

use super::{Output, style::Look};
use crate::{error::Error, model::job::Job};

/// Where no bar can be drawn, a line this often, and only when something changed.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// How a running job is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    /// Lines on standard output; a bar when it is a terminal.
    Live,
    /// The same on standard error: standard output belongs to somebody else.
    Aside,
    /// Nothing but what went wrong, on standard error.
    Quiet,
}

/// The display of one job.
#[derive(Debug)]
pub(crate) struct Progress {
    output: Output,
    show: Show,
    bar: Option<ProgressBar>,
    last: Option<(Mono, u64)>,
}

impl Progress {
    /// A display that shows nothing yet.
    pub(crate) fn new(output: Output, show: Show) -> Self {
        let terminal = io::stderr().is_terminal() && (show == Show::Aside || io::stdout().is_terminal());
        let bar = (terminal && show != Show::Quiet).then(bar);
        Self { output, show, bar, last: None }
    }

    /// A line of the log, above the bar.
    pub(crate) fn line(&self, text: &str) -> Result<(), Error> {
        let write = || match self.show {
            Show::Live => super::raw(format!("{text}\n").as_bytes()),
            Show::Aside | Show::Quiet => super::raw_error(format!("{text}\n").as_bytes()),
        };
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// The page that the lines go to.
    pub(crate) fn page(&self) -> super::Page {
        let page = self.output.page();
        match self.show {
            Show::Live => page,
            Show::Aside | Show::Quiet => super::Page { style: self.output.error_style, ..page },
        }
    }

    /// How the job stands now.
    pub(crate) fn update(&mut self, job: &Job) -> Result<(), Error> {
        match (&self.bar, self.show) {
            (Some(bar), _) => {
                bar.set_length(job.tasks.total);
                bar.set_position(job.tasks.finished);
                let mut message = format!("{} running", job.tasks.running);
                if job.tasks.failed > 0 {
                    let failed = format!(", {} failed", job.tasks.failed);
                    message.push_str(&self.output.error_style.paint(Look::Bad, &failed));
                }
                bar.set_message(message);
                bar.set_prefix(format!("job {} {}", job.id, super::table::plain(&job.name)));
                Ok(())
            }
            (None, Show::Quiet) => Ok(()),
            (None, Show::Live | Show::Aside) => self.plain(job),
        }
    }

    fn plain(&mut self, job: &Job) -> Result<(), Error> {
        let (now, done) = (self.output.clock().mono(), job.tasks.finished);
        let Some((at, before)) = self.last else {
            self.last = Some((now, done));
            return Ok(());
        };
        if now.0.saturating_sub(at.0) < micros(PLAIN_EVERY) || done == before || job.is_final() {
            return Ok(());
        }
        self.last = Some((now, done));
        self.line(&format!(
            "job {} {}: {} done, {}",
            job.id,
            super::table::plain(&job.name),
            job.tasks.share(),
            job.tasks.text()
        ))
    }

    /// Takes the bar away.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        // Whoever closed standard error sees no more of it.
        let _ = io::stderr().flush();
    }
}

impl Drop for Progress {
    /// An error on the way leaves no half-drawn bar behind.
    fn drop(&mut self) {
        self.finish();
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr_with_hz(15));
    let template = "{spinner} {prefix} [{bar:30}] {pos}/{len}  {msg}  {elapsed}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
