//! `ctl explain`: why work waits and what would unblock it.

use muster_common::proto::v1;

use super::Ctl;
use crate::{
    error::Error,
    exit::Exit,
    model::explain::{Explanations, more},
    output::{Format, style::Look},
    remote::selector,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A job, or tasks of one
    #[arg(value_name = "WORK")]
    work: String,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let request = v1::ExplainRequest { selector: selector(&args.work) };
    let reply = ctl.client().await?.rpc.explain(request).await?.into_inner();
    let explanations = Explanations::of(reply);
    ctl.output.items(&explanations, &explanations.explanations)?;
    if let Some(text) = more(explanations.untold).filter(|_| ctl.output.format == Format::Jsonl) {
        ctl.output.note(Look::Warn, &text);
    }
    Ok(Exit::OK)
}
