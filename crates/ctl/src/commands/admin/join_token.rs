//! `ctl admin join-token`: lets an agent join.

use std::time::Duration;

use muster_common::proto::v1;
use serde::Serialize;

use super::Ctl;
use crate::{
    error::Error,
    exit::Exit,
    output::{Human, Page, style::Look, time},
    remote::by,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only the agent of this name may use it; it may replace one that joined before
    #[arg(long, value_name = "AGENT")]
    name: Option<String>,
    /// How long it may be used
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "1h")]
    ttl: Duration,
    /// How many agents may join with it
    #[arg(long, value_name = "N", default_value_t = 1)]
    uses: u32,
}

/// What was made.
#[derive(Clone, Debug, Serialize)]
struct Made {
    token: String,
    /// SHA-256 of the authority's certificate.
    pin: String,
    agent: Option<String>,
    uses: u32,
    expires: Option<String>,
    #[serde(skip)]
    left: String,
}

impl Human for Made {
    fn human(&self, page: &Page) -> String {
        let who =
            self.agent.as_deref().map_or_else(|| format!("{} agent(s)", self.uses), |name| format!("agent {name}"));
        let left = &self.left;
        let head = |text: &str| page.paint(Look::Head, text);
        format!(
            "{}\n\n{} {who}, within {left}; it is not shown again. On the machine:\n  muster-agent --controller \
             https://CONTROLLER:7717 --join TOKEN\n",
            self.token,
            head("for"),
        )
    }
}

pub(super) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let ttl_ms = u64::try_from(args.ttl.as_millis()).unwrap_or(u64::MAX);
    let agent = args.name.clone().unwrap_or_default();
    let request = v1::MakeJoinTokenRequest { agent, ttl_ms, uses: args.uses, by: by() };
    let reply = ctl.client().await?.admin.make_join_token(request).await?.into_inner();
    let expires = time::instant(reply.expires_us);
    let left = humantime::format_duration(args.ttl).to_string();
    ctl.output.one(&Made { token: reply.token, pin: reply.pin, agent: args.name, uses: args.uses, expires, left })?;
    Ok(Exit::OK)
}
