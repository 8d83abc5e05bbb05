//! `ctl agent cordon`, `drain` and `resume`.

use std::time::Duration;

use muster_common::proto::v1::{self, tend_agents_request::Wish};

use super::{Which, request, wait};
use crate::{commands::Ctl, error::Error, exit::Exit, model::agent::Tended, remote::Client};

#[derive(Debug, clap::Args)]
pub(super) struct CordonArgs {
    #[command(flatten)]
    which: Which,
    /// Why, for everybody who asks
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct DrainArgs {
    #[command(flatten)]
    which: Which,
    /// Why, for everybody who asks
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// After this, end what still runs there and queue it again elsewhere (30s, 10m, 2h); without it: never
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    deadline: Option<Duration>,
    /// Return when nothing runs there any more
    #[arg(long)]
    wait: bool,
    /// Stop waiting after this; the drain goes on
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, requires = "wait")]
    timeout: Option<Duration>,
}

#[derive(Debug, clap::Args)]
pub(super) struct ResumeArgs {
    #[command(flatten)]
    which: Which,
}

pub(super) async fn cordon(ctl: &Ctl, args: CordonArgs) -> Result<Exit, Error> {
    let wish = Wish::Cordon(v1::CordonWish {});
    let request = v1::TendAgentsRequest { wish: Some(wish), ..request(&args.which, args.reason.as_deref()) };
    let (_, tended) = tend(ctl, request).await?;
    ctl.output.one(&tended.told("takes no new work; what runs there goes on"))?;
    Ok(Exit::OK)
}

pub(super) async fn resume(ctl: &Ctl, args: ResumeArgs) -> Result<Exit, Error> {
    let wish = Wish::Resume(v1::ResumeWish {});
    let request = v1::TendAgentsRequest { wish: Some(wish), ..request(&args.which, None) };
    let (_, tended) = tend(ctl, request).await?;
    ctl.output.one(&tended.told("takes work again"))?;
    Ok(Exit::OK)
}

pub(super) async fn drain(ctl: &Ctl, args: DrainArgs) -> Result<Exit, Error> {
    let within_ms = args.deadline.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
    let wish = Wish::Drain(v1::DrainWish { within_ms });
    let request = v1::TendAgentsRequest { wish: Some(wish), ..request(&args.which, args.reason.as_deref()) };
    let (mut client, tended) = tend(ctl, request).await?;
    if !args.wait {
        ctl.output.one(&tended.told("takes no new work and is being drained"))?;
        return Ok(Exit::OK);
    }
    let all: Vec<String> = tended.changed.iter().chain(&tended.same).cloned().collect();
    let empty = wait::until_empty(ctl, &mut client, &all);
    let exit = match args.timeout {
        Some(limit) => match tokio::time::timeout(limit, empty).await {
            Ok(done) => done.map(|()| Exit::OK)?,
            Err(_) => Exit::WAIT_TIMED_OUT,
        },
        None => empty.await.map(|()| Exit::OK)?,
    };
    let what = if exit == Exit::OK { "is drained: nothing runs there" } else { "is still being drained" };
    ctl.output.one(&tended.told(what))?;
    Ok(exit)
}

/// Says the wish; who is meant by it is the controller's to find out.
pub(super) async fn tend(ctl: &Ctl, request: v1::TendAgentsRequest) -> Result<(Client, Tended), Error> {
    let mut client = ctl.client().await?;
    let v1::TendAgentsReply { changed, same } = client.rpc.tend_agents(request).await?.into_inner();
    Ok((client, Tended { changed, same, what: String::new() }))
}
