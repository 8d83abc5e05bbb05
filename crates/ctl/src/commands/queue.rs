//! `ctl queue`: the named lanes, their limits, and changing one.

use muster_common::proto::v1;

use super::Ctl;
use crate::{error::Error, exit::Exit, model::queue::Queues};

#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the queues
    List,
    /// Change a queue, or make one
    Set(SetArgs),
}

/// What is not named stays as it is.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
struct SetArgs {
    /// The queue
    #[arg(value_name = "QUEUE")]
    name: String,
    /// How many tasks may run at once; `none`: any number
    #[arg(long, value_name = "N", group = "change", value_parser = limit)]
    max_running: Option<Limit>,
    /// How many tasks may wait before submissions are refused; `none`: any number
    #[arg(long, value_name = "N", group = "change", value_parser = limit)]
    max_waiting: Option<Limit>,
    /// Start nothing of this queue until it is resumed; what runs goes on
    #[arg(long, group = "change", conflicts_with = "resume")]
    pause: bool,
    /// Start work again
    #[arg(long, group = "change")]
    resume: bool,
}

/// A number, or none at all.
#[derive(Clone, Copy, Debug)]
struct Limit(Option<u64>);

fn limit(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit(None)),
        number => number.parse().map(|n| Limit(Some(n))).map_err(|_| "a whole number or `none`".to_owned()),
    }
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let mut client = ctl.client().await?;
    let mut queues = client.rpc.list_queues(v1::ListQueuesRequest {}).await?.into_inner();
    if let Command::Set(change) = args.command {
        let old = queues.queues.iter().filter_map(|view| view.queue.as_ref()).find(|queue| queue.name == change.name);
        let queue = Some(changed(old.cloned(), &change));
        client.rpc.set_queue(v1::SetQueueRequest { queue }).await?;
        queues = client.rpc.list_queues(v1::ListQueuesRequest {}).await?.into_inner();
        queues.queues.retain(|view| view.queue.as_ref().is_some_and(|queue| queue.name == change.name));
    }
    let queues = Queues::of(queues);
    ctl.output.items(&queues, &queues.queues)?;
    Ok(Exit::OK)
}

fn changed(old: Option<v1::QueueRecord>, change: &SetArgs) -> v1::QueueRecord {
    let mut queue = old.unwrap_or_default();
    queue.name.clone_from(&change.name);
    if let Some(Limit(limit)) = change.max_running {
        queue.max_running = limit;
    }
    if let Some(Limit(limit)) = change.max_waiting {
        queue.max_waiting = limit;
    }
    if change.pause || change.resume {
        queue.paused = change.pause;
    }
    queue
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_stays_as_it_is() {
        let old = v1::QueueRecord { name: "gpu".into(), max_running: Some(3), paused: true, ..Default::default() };
        let change = SetArgs {
            name: "gpu".into(),
            max_running: None,
            max_waiting: Some(Limit(Some(9))),
            pause: false,
            resume: false,
        };
        let new = changed(Some(old.clone()), &change);
        assert_eq!((new.max_running, new.max_waiting, new.paused), (Some(3), Some(9), true));
        let change = SetArgs { max_running: Some(Limit(None)), max_waiting: None, resume: true, ..change };
        let new = changed(Some(old), &change);
        assert_eq!((new.max_running, new.max_waiting, new.paused), (None, None, false));
    }
}
