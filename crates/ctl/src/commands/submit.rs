//! `ctl submit`: hand in a job and print its number.

use super::{Ctl, wait};
use crate::{
    error::Error,
    exit::Exit,
    live::{Live, Outcome},
    output::{progress::Show, style::Look},
    remote::submit::submit,
    work::{self, Where},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    work: work::WorkArgs,
    /// Follow the job to its end
    #[arg(long)]
    wait: bool,
    /// A second submission with this key makes no second job: it names the first
    #[arg(long, value_name = "TEXT")]
    key: Option<String>,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let place = ctl.place()?;
    let work = args.work.read(ctl.output, Where::of(&place))?;
    let client = ctl.connect(place).await?;
    let mut submitted = submit(&client, work.spec, args.key.as_deref()).await?;
    for warning in &submitted.warnings {
        ctl.output.note(Look::Warn, &format!("warning: {warning}"));
    }
    if submitted.duplicate {
        ctl.output.note(Look::Dim, &format!("the key was used before: job {} is that one", submitted.job));
    }
    if !args.wait {
        ctl.output.one(&submitted)?;
        return Ok(Exit::OK);
    }
    if !ctl.output.is_machine() {
        // At once: whoever reads the number need not wait for the end.
        ctl.output.one(&submitted)?;
    }
    let mut live = Live::new(client, ctl.output, submitted.job, Show::Aside);
    let Outcome::Ended(job) = live.follow().await? else { return Err(live.detached()) };
    live.tell_end(&job)?;
    let exit = wait::exit_of(&job);
    if ctl.output.is_machine() {
        submitted.ended = Some(*job);
        ctl.output.one(&submitted)?;
    }
    Ok(exit)
}
