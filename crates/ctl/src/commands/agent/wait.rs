//! Until agents that are being drained are empty.

use std::time::Duration;

use muster_common::proto::v1;

use crate::{commands::Ctl, error::Error, exit::Exit, output::style::Look, remote::Client};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Waits until nothing runs on any of them, and says on standard error how far it is whenever that changes.
pub(super) async fn until_empty(ctl: &Ctl, client: &mut Client, names: &[String]) -> Result<(), Error> {
    let mut told = u64::MAX;
    loop {
        let request = v1::ListAgentsRequest { names: names.to_vec(), ..v1::ListAgentsRequest::default() };
        let mut agents = client.rpc.list_agents(request).await?.into_inner().agents;
        // An older controller knows no names.
        agents.retain(|agent| agent.offer.as_ref().is_some_and(|offer| names.contains(&offer.name)));
        if let Some(name) = taken_back(&agents) {
            let text = format!("somebody took the drain of agent `{name}` back; it takes work again");
            return Err(Error::new(Exit::REFUSED, text).next("`ctl audit` shows who"));
        }
        let held: u64 = agents.iter().map(|agent| u64::from(agent.running) + u64::from(agent.prefetched)).sum();
        if held == 0 {
            return Ok(());
        }
        if held != told {
            ctl.output.note(Look::Dim, &format!("{held} still there"));
            told = held;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// One that is there and takes work again.
fn taken_back(agents: &[v1::AgentView]) -> Option<String> {
    let back = |agent: &&v1::AgentView| agent.state == "connected" && !agent.cordon.as_ref().is_some_and(|c| c.drain);
    agents.iter().find(back).and_then(|agent| agent.offer.as_ref()).map(|offer| offer.name.clone())
}
