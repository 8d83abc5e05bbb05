//! The installation on one screen: who leads and who stands by, the store, the agents, the queues.

use muster_common::proto::v1;
use serde::Serialize;

use super::{
    agent::Agents,
    queue::{Queue, Queues},
    resources::{bytes, plural},
};
use crate::output::{
    Human, Page,
    style::Look,
    table::{Cell, Column, Table, plain},
    time,
};

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Status {
    /// Of the controller that leads.
    version: String,
    term: u64,
    controllers: Vec<Controller>,
    store: Store,
    agents: Count,
    queues: Vec<Queue>,
}

/// One controller.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Controller {
    name: String,
    address: String,
    leads: bool,
    version: String,
    since_at: Option<String>,
    #[serde(skip)]
    since_us: u64,
}

/// What is true after a crash.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Store {
    about: String,
    /// None: not known.
    bytes: Option<u64>,
    /// New submissions are refused past it. None: no limit but the disk.
    limit_bytes: Option<u64>,
    /// None: not known, or it did not answer.
    latency_ms: Option<f64>,
    problems: Vec<String>,
}

/// Agents by how they are.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Count {
    connected: usize,
    silent: usize,
    away: usize,
    stopped: usize,
    lost: usize,
    /// Connected, and given no new work.
    cordoned: usize,
    running_tasks: u64,
}

impl Status {
    /// From three answers of the same controller.
    pub(crate) fn of(status: v1::StatusReply, agents: v1::ListAgentsReply, queues: v1::ListQueuesReply) -> Self {
        let info = status.info.unwrap_or_default();
        let store = status.store.unwrap_or_default();
        let known = |n: u64| (n > 0).then_some(n);
        Self {
            version: info.version,
            term: info.term,
            controllers: status.members.into_iter().map(Controller::from).collect(),
            store: Store {
                about: store.about,
                bytes: known(store.bytes),
                limit_bytes: known(store.limit),
                latency_ms: known(store.latency_us).map(|us| time::seconds(us) * 1000.0),
                problems: store.problems,
            },
            agents: Agents::of(agents).count(),
            queues: Queues::of(queues).queues,
        }
    }

    /// Whether a person should see to something.
    pub(crate) fn has_problems(&self) -> bool {
        !self.store.problems.is_empty()
    }
}

impl From<v1::MemberView> for Controller {
    fn from(view: v1::MemberView) -> Self {
        Self {
            name: view.name,
            address: view.address,
            leads: view.leads,
            version: view.release,
            since_at: time::instant(view.since_us),
            since_us: view.since_us,
        }
    }
}

impl Count {
    /// One more agent in this state.
    pub(crate) fn add(&mut self, state: &str, cordoned: bool, running: u32) {
        self.cordoned += usize::from(cordoned && state == "connected");
        match state {
            "connected" => self.connected += 1,
            "silent" => self.silent += 1,
            "away" => self.away += 1,
            "stopped" => self.stopped += 1,
            _ => self.lost += 1,
        }
        self.running_tasks += u64::from(running);
    }
}

impl Human for Status {
    fn human(&self, page: &Page) -> String {
        let mut out = format!("controllers (version {}, term {})\n", plain(&self.version), self.term);
        let mut table =
            Table::new([Column::Text("NAME"), Column::Key("ADDRESS"), Column::Key("ROLE"), Column::Number("UP")]);
        for controller in &self.controllers {
            let (role, look) = if controller.leads { ("leads", Look::Good) } else { ("stands by", Look::Plain) };
            table.row([
                Cell::from(controller.name.as_str()),
                controller.address.as_str().into(),
                Cell::looking(role, look),
                time::age(controller.since_us, page.now).into(),
            ]);
        }
        out.push_str(&page.table(&table));
        let store = &self.store;
        out.push_str(&format!("\nstore: {}", plain(&store.about)));
        if let Some(held) = store.bytes {
            out.push_str(&format!(", {}", bytes(held)));
        }
        if let Some(limit) = store.limit_bytes {
            out.push_str(&format!(" of {}", bytes(limit)));
        }
        if let Some(ms) = store.latency_ms {
            out.push_str(&format!(", answers in {ms:.1} ms"));
        }
        out.push('\n');
        for problem in &store.problems {
            out.push_str(&page.paint(Look::Bad, &format!("  problem: {}", plain(problem))));
            out.push('\n');
        }
        let Count { connected, silent, away, stopped, lost, cordoned, running_tasks } = self.agents;
        let tasks = format!("{running_tasks} task{}", plural(running_tasks != 1));
        let held = if cordoned > 0 { format!(" ({cordoned} of them cordoned)") } else { String::new() };
        let more = [(away, "away"), (stopped, "stopped")];
        let more: String = more.into_iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!(", {n} {word}")).collect();
        out.push_str(&format!(
            "agents: {connected} connected{held}, {silent} silent{more}, {lost} lost; {tasks} on them\n\n"
        ));
        out.push_str(&Queues { queues: self.queues.clone() }.human(page));
        out
    }
}
