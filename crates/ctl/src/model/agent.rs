//! Agents.

use std::collections::BTreeMap;

use muster_common::proto::v1;
use serde::Serialize;

use super::{
    resources::{Resources, bytes},
    some,
    status::Count,
};
use crate::output::{
    Human, Page,
    table::{Cell, Column, Table, plain},
    time,
};

/// One agent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Agent {
    id: u64,
    pub(crate) name: String,
    /// `connected`, `silent`, `away`, `stopped` or `lost`.
    pub(crate) state: String,
    os: String,
    arch: String,
    host: Option<String>,
    version: Option<String>,
    labels: BTreeMap<String, String>,
    capacity: Resources,
    used: Resources,
    running: u32,
    prefetched: u32,
    last_seen_at: Option<String>,
    /// `away` only: until when what goes on there is waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_until: Option<String>,
    #[serde(skip)]
    last_seen_us: u64,
}

impl From<v1::AgentView> for Agent {
    fn from(view: v1::AgentView) -> Self {
        let offer = view.offer.unwrap_or_default();
        Self {
            id: view.id,
            name: offer.name,
            state: view.state,
            os: offer.os,
            arch: offer.arch,
            host: some(&offer.host),
            version: some(&offer.version),
            labels: offer.labels.into_iter().collect(),
            capacity: offer.capacity.into(),
            used: view.used.into(),
            running: view.running,
            prefetched: view.prefetched,
            last_seen_at: time::instant(view.last_seen_us),
            kept_until: time::instant(view.kept_until_us),
            last_seen_us: view.last_seen_us,
        }
    }
}

impl Agent {
    /// Of one that is away: until when what goes on there is kept for it.
    pub(crate) fn away(&self) -> Option<String> {
        let until = self.kept_until.as_ref()?;
        Some(format!("agent {} is away; what may go on there is kept for it until {until}", plain(&self.name)))
    }
}

/// All agents.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Agents {
    pub(crate) agents: Vec<Agent>,
}

impl Human for Agents {
    fn human(&self, page: &Page) -> String {
        use Column::{Key, Number, Text};
        if self.agents.is_empty() {
            return "no agents; start one with `muster-agent`\n".to_owned();
        }
        let columns = [
            Number("AGENT"),
            Text("NAME"),
            Key("STATE"),
            Key("SYSTEM"),
            Number("RUNNING"),
            Number("CPUS"),
            Number("MEMORY"),
            Number("GPUS"),
            Number("SEEN"),
            Text("LABELS"),
        ];
        let mut table = Table::new(columns);
        for agent in &self.agents {
            let (used, all) = (&agent.used, &agent.capacity);
            let labels = agent.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>();
            table.row([
                Cell::from(agent.id.to_string()),
                agent.name.as_str().into(),
                Cell::state(&agent.state),
                format!("{}/{}", agent.os, agent.arch).into(),
                agent.running.to_string().into(),
                format!("{}/{}", used.cpus, all.cpus).into(),
                format!("{}/{}", bytes(used.memory_bytes), bytes(all.memory_bytes)).into(),
                format!("{}/{}", used.gpus, all.gpus).into(),
                time::age(agent.last_seen_us, page.now).into(),
                labels.join(",").into(),
            ]);
        }
        let notes = self.agents.iter().filter_map(Agent::away).map(|note| format!("{note}\n"));
        page.table(&table) + &notes.collect::<String>()
    }
}

impl Agents {
    /// How many there are in each state.
    pub(crate) fn count(&self) -> Count {
        let mut count = Count::default();
        self.agents.iter().for_each(|agent| count.add(&agent.state, agent.running));
        count
    }

    /// All agents of an answer.
    pub(crate) fn of(reply: v1::ListAgentsReply) -> Self {
        Self { agents: reply.agents.into_iter().map(Agent::from).collect() }
    }
}
