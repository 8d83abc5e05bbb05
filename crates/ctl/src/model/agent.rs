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
    /// What tasks may take of it.
    capacity: Resources,
    used: Resources,
    running: u32,
    prefetched: u32,
    last_seen_at: Option<String>,
    /// `away` only: until when what goes on there is waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept_until: Option<String>,
    /// It takes no new work because a person wishes so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cordon: Option<Cordon>,
    /// It takes no new work because it is about to stop.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    stops: bool,
    /// Why it takes no new work by its own judgement.
    #[serde(skip_serializing_if = "Option::is_none")]
    unfit: Option<String>,
    /// What it offers, where a person lets tasks take less.
    #[serde(skip_serializing_if = "Option::is_none")]
    offered: Option<Resources>,
    #[serde(skip_serializing_if = "Facts::is_empty")]
    facts: Facts,
    /// How the machine is, as it last said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) now: Option<Load>,
    #[serde(skip)]
    last_seen_us: u64,
}

/// A person's wish that an agent takes no new work.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Cordon {
    by: String,
    reason: String,
    since_at: Option<String>,
    /// It is to be empty, too.
    drain: bool,
    /// When what still runs there is ended and queued again; none: never.
    deadline_at: Option<String>,
}

/// What is known of a machine beside what it offers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Facts {
    kernel: Option<String>,
    distribution: Option<String>,
    processors: u32,
    numa: Vec<String>,
    memory_bytes: u64,
    disk_bytes: u64,
    gpus: Vec<Gpu>,
    /// What attempts are held to there.
    enforced: Vec<Enforced>,
}

/// By what attempts are held to one kind of limit, or why they are not.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Enforced {
    what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why_not: Option<String>,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Gpu {
    index: u32,
    name: String,
    uuid: String,
    memory_bytes: u64,
}

/// How a machine is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Load {
    pub(crate) load: f64,
    pub(crate) memory_free_bytes: u64,
    pub(crate) disk_free_bytes: u64,
}

impl Facts {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl From<v1::Facts> for Facts {
    fn from(facts: v1::Facts) -> Self {
        let gpu =
            |gpu: v1::Gpu| Gpu { index: gpu.index, name: gpu.name, uuid: gpu.uuid, memory_bytes: gpu.memory_bytes };
        Self {
            kernel: some(&facts.kernel),
            distribution: some(&facts.distribution),
            processors: facts.processors,
            numa: facts.numa,
            memory_bytes: facts.memory_bytes,
            disk_bytes: facts.disk_bytes,
            gpus: facts.gpus.into_iter().map(gpu).collect(),
            enforced: facts.enforced.into_iter().map(Enforced::from).collect(),
        }
    }
}

impl From<v1::Enforced> for Enforced {
    fn from(one: v1::Enforced) -> Self {
        Self { by: some(&one.by), why_not: some(&one.why_not), what: one.what }
    }
}

impl From<v1::Load> for Load {
    #[expect(clippy::cast_precision_loss, reason = "a load of 2^53 thousandths is none")]
    fn from(load: v1::Load) -> Self {
        let v1::Load { load_milli, memory_free, disk_free } = load;
        Self { load: load_milli as f64 / 1000.0, memory_free_bytes: memory_free, disk_free_bytes: disk_free }
    }
}

impl From<v1::Cordon> for Cordon {
    fn from(cordon: v1::Cordon) -> Self {
        Self {
            by: cordon.by,
            reason: cordon.reason,
            since_at: time::instant(cordon.at_us),
            drain: cordon.drain,
            deadline_at: time::instant(cordon.deadline_us),
        }
    }
}

impl From<v1::AgentView> for Agent {
    fn from(view: v1::AgentView) -> Self {
        let offer = view.offer.unwrap_or_default();
        // An older controller does not say it: then nothing is limited.
        let limited = view.limits.is_some() && view.capacity != offer.capacity;
        Self {
            id: view.id,
            name: offer.name,
            state: view.state,
            os: offer.os,
            arch: offer.arch,
            host: some(&offer.host),
            version: some(&offer.version),
            labels: offer.labels.into_iter().collect(),
            capacity: view.capacity.or_else(|| offer.capacity.clone()).into(),
            offered: limited.then(|| offer.capacity.into()),
            cordon: view.cordon.map(Cordon::from),
            stops: view.stops,
            unfit: some(&offer.unfit),
            facts: offer.facts.unwrap_or_default().into(),
            now: view.load.map(Load::from),
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
    /// How it is, in one word: what a person wishes goes before what it would be without.
    pub(crate) fn word(&self) -> &str {
        let empty = self.running == 0 && self.prefetched == 0;
        match &self.cordon {
            _ if self.state != "connected" => &self.state,
            _ if self.stops => "stopping",
            None if self.unfit.is_some() => "unfit",
            Some(cordon) if cordon.drain && empty => "drained",
            Some(cordon) if cordon.drain => "draining",
            Some(_) => "cordoned",
            None => &self.state,
        }
    }

    /// Of one that a person wants no new work for: who, why, and until when what runs may go on.
    pub(crate) fn held(&self) -> Option<String> {
        let cordon = self.cordon.as_ref()?;
        let what = if cordon.drain { "drained" } else { "cordoned" };
        let by = if cordon.by.is_empty() { "somebody" } else { &cordon.by };
        let why = if cordon.reason.is_empty() { String::new() } else { format!(": {}", plain(&cordon.reason)) };
        let end = match &cordon.deadline_at {
            Some(at) if self.running > 0 => format!("; what still runs there at {at} is ended and queued again"),
            _ => String::new(),
        };
        Some(format!("agent {} is {what} by {}{why}{end}", plain(&self.name), plain(by)))
    }

    /// Of one that takes no new work by its own judgement: why.
    fn cannot(&self) -> Option<String> {
        let why = self.unfit.as_ref().filter(|_| self.state == "connected")?;
        Some(format!("agent {} takes no new work: {}", plain(&self.name), plain(why)))
    }

    /// Whether attempts are held to their limits there, in a word.
    fn limits(&self) -> String {
        let (held, free): (Vec<_>, Vec<_>) = self.facts.enforced.iter().partition(|one| one.by.is_some());
        match (held.is_empty(), free.is_empty()) {
            (true, true) => "-".to_owned(),
            (false, true) => "all".to_owned(),
            (true, false) => "none".to_owned(),
            (false, false) => {
                format!("no {}", plain(&free.iter().map(|one| one.what.as_str()).collect::<Vec<_>>().join(", ")))
            }
        }
    }

    /// How its machine is, as columns.
    fn machine(&self) -> [Cell; 5] {
        let dash = || Cell::from("-");
        let size = |n: u64| if n == 0 { dash() } else { bytes(n).into() };
        let (load, memory, disk) = match &self.now {
            Some(now) => (format!("{:.2}", now.load).into(), size(now.memory_free_bytes), size(now.disk_free_bytes)),
            None => (dash(), dash(), dash()),
        };
        let parts = [&self.facts.distribution, &self.facts.kernel];
        let system = parts.into_iter().flatten().map(String::as_str).collect::<Vec<_>>().join(", ");
        [load, memory, disk, self.limits().into(), system.into()]
    }

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
    /// Whether people want to see how the machines are.
    #[serde(skip)]
    pub(crate) wide: bool,
}

impl Human for Agents {
    fn human(&self, page: &Page) -> String {
        use Column::{Key, Number, Text};
        if self.agents.is_empty() {
            return "no agents; start one with `muster-agent`\n".to_owned();
        }
        let mut columns = vec![
            Number("AGENT"),
            Key("NAME"),
            Key("STATE"),
            Key("SYSTEM"),
            Number("RUNNING"),
            Number("CPUS"),
            Number("MEMORY"),
            Number("GPUS"),
            Number("SEEN"),
        ];
        if self.wide {
            columns.extend([
                Number("LOAD"),
                Number("FREE MEMORY"),
                Number("FREE DISK"),
                Key("LIMITS"),
                Text("RELEASE"),
            ]);
        }
        columns.push(Text("LABELS"));
        let mut table = Table::new(columns);
        for agent in &self.agents {
            let (used, all) = (&agent.used, &agent.capacity);
            let labels = agent.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>();
            let mut row = vec![
                Cell::from(agent.id.to_string()),
                agent.name.as_str().into(),
                Cell::state(agent.word()),
                format!("{}/{}", agent.os, agent.arch).into(),
                agent.running.to_string().into(),
                format!("{}/{}", used.cpus, all.cpus).into(),
                format!("{}/{}", bytes(used.memory_bytes), bytes(all.memory_bytes)).into(),
                format!("{}/{}", used.gpus, all.gpus).into(),
                time::age(agent.last_seen_us, page.now).into(),
            ];
            if self.wide {
                row.extend(agent.machine());
            }
            row.push(labels.join(",").into());
            table.row(row);
        }
        let notes = self
            .agents
            .iter()
            .flat_map(|agent| [agent.away(), agent.held(), agent.cannot()])
            .flatten()
            .map(|note| format!("{note}\n"));
        page.table(&table) + &notes.collect::<String>()
    }
}

impl Agents {
    /// How many there are in each state.
    pub(crate) fn count(&self) -> Count {
        let mut count = Count::default();
        self.agents.iter().for_each(|agent| count.add(&agent.state, agent.cordon.is_some(), agent.running));
        count
    }

    /// All agents of an answer.
    pub(crate) fn of(reply: v1::ListAgentsReply) -> Self {
        Self { agents: reply.agents.into_iter().map(Agent::from).collect(), wide: false }
    }
}

/// Agents with all that is known of them.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Shown {
    pub(crate) agents: Vec<Agent>,
}

impl Human for Shown {
    fn human(&self, page: &Page) -> String {
        self.agents.iter().map(|agent| agent.text(page)).collect::<Vec<_>>().join("\n")
    }
}

impl Agent {
    fn text(&self, page: &Page) -> String {
        let mut lines: Vec<(&str, String)> = vec![("name", self.name.clone()), ("state", self.word().to_owned())];
        let mut line =
            |name, text: Option<String>| lines.extend(text.filter(|text| !text.is_empty()).map(|text| (name, text)));
        line("", self.held());
        line("", self.away());
        line("", self.cannot());
        line("host", self.host.clone());
        line("system", Some(format!("{}/{}", self.os, self.arch)));
        line("release", self.facts.distribution.clone());
        line("kernel", self.facts.kernel.clone());
        line("agent", self.version.clone());
        line("gives", Some(self.capacity.text()));
        line("offers", self.offered.as_ref().map(Resources::text));
        line("taken", Some(self.used.text()));
        line("running", Some(self.running.to_string()));
        line("sent ahead", (self.prefetched > 0).then(|| self.prefetched.to_string()));
        line("processors", (self.facts.processors > 0).then(|| self.facts.processors.to_string()));
        line("numa", Some(self.facts.numa.join(" ")));
        line("memory", self.size(self.facts.memory_bytes, self.now.as_ref().map(|now| now.memory_free_bytes)));
        line("disk", self.size(self.facts.disk_bytes, self.now.as_ref().map(|now| now.disk_free_bytes)));
        line("load", self.now.as_ref().map(|now| format!("{:.2}", now.load)));
        for gpu in &self.facts.gpus {
            line("gpu", Some(format!("{}: {}, {}, {}", gpu.index, gpu.name, bytes(gpu.memory_bytes), gpu.uuid)));
        }
        for one in &self.facts.enforced {
            let why_not = one.why_not.as_ref().map(|why| format!("not enforced: {why}"));
            let told = one.by.clone().or(why_not).unwrap_or_default();
            line("limits", Some(format!("{}: {told}", one.what)));
        }
        line("seen", Some(time::age(self.last_seen_us, page.now)));
        for (key, value) in &self.labels {
            line("label", Some(format!("{key}={value}")));
        }
        // Most of it an agent says of itself, whoever it is.
        lines.iter().map(|(name, text)| format!("{name:<11}{}\n", plain(text))).collect()
    }

    /// How much of something there is, and how much of it is free.
    fn size(&self, all: u64, free: Option<u64>) -> Option<String> {
        let free = free.filter(|free| *free > 0).map(|free| format!(", {} free", bytes(free)));
        (all > 0).then(|| bytes(all) + free.as_deref().unwrap_or_default())
    }
}

impl Agent {
    /// As `ctl top` shows it.
    #[expect(clippy::cast_precision_loss, reason = "a bar and a short number")]
    pub(crate) fn on_screen(&self) -> muster_top::Agent {
        let free = |n: Option<u64>| n.filter(|n| *n > 0).map(|n| n as f64);
        let memory = (self.used.memory_bytes as f64, self.capacity.memory_bytes as f64);
        muster_top::Agent {
            name: self.name.clone(),
            state: self.word().to_owned(),
            cpus: muster_top::Share { used: self.used.cpus, all: self.capacity.cpus },
            memory: muster_top::Share { used: memory.0, all: memory.1 },
            running: self.running,
            load: self.now.as_ref().map(|now| now.load),
            memory_free: free(self.now.as_ref().map(|now| now.memory_free_bytes)),
            disk_free: free(self.now.as_ref().map(|now| now.disk_free_bytes)),
        }
    }
}

/// What became of a wish for agents.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Tended {
    pub(crate) changed: Vec<String>,
    /// They were so already.
    pub(crate) same: Vec<String>,
    #[serde(skip)]
    pub(crate) what: String,
}

impl Tended {
    /// The same with what is to be said of each.
    pub(crate) fn told(self, what: &str) -> Self {
        Self { what: what.to_owned(), ..self }
    }
}

impl Human for Tended {
    fn human(&self, _page: &Page) -> String {
        let line = |name: &String| format!("agent {} {}\n", plain(name), self.what);
        let same = |name: &String| format!("agent {} {} (nothing changed)\n", plain(name), self.what);
        self.changed.iter().map(line).chain(self.same.iter().map(same)).collect()
    }
}
