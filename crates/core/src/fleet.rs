//! What a person wants of agents: that they take no new work, are to be empty, or give less than they offer.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{record::Offer, resources::Request, spec::LabelRule, time::Timestamp};

/// A person's wish that an agent takes no new work. It stays until a person takes it back, whatever becomes of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cordon {
    /// When.
    pub at: Timestamp,
    /// Who.
    pub by: Arc<str>,
    /// Why; may be empty.
    pub reason: Arc<str>,
    /// Whether the agent is to be empty, too.
    pub drain: bool,
    /// When what still runs there is ended and queued again; never: it may take as long as it takes.
    pub deadline: Timestamp,
}

impl Cordon {
    /// Who wishes it and why, for people: `drained by ops: new kernel`.
    pub fn text(&self) -> String {
        let what = if self.drain { "drained" } else { "cordoned" };
        let by = if self.by.is_empty() { "somebody" } else { &self.by };
        let why = if self.reason.is_empty() { String::new() } else { format!(": {}", self.reason) };
        format!("{what} by {by}{why}")
    }
}

/// What tasks may take of an agent at most, where a person says less than it offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Thousandths of processors.
    pub cpu_milli: Option<u64>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Whole GPUs.
    pub gpus: Option<u64>,
}

impl Limits {
    /// What is left of an offer. Never more than it: only the machine knows what it has.
    pub fn of(&self, offered: &Request) -> Request {
        let least = |limit: Option<u64>, there: u64| limit.map_or(there, |limit| limit.min(there));
        Request {
            cpu_milli: least(self.cpu_milli, offered.cpu_milli),
            memory: least(self.memory, offered.memory),
            gpus: least(self.gpus, offered.gpus),
            named: offered.named.clone(),
        }
    }

    /// Whether nothing is limited.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// These, and where they say nothing what was before.
    #[must_use]
    pub fn over(self, before: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.or(before.cpu_milli),
            memory: self.memory.or(before.memory),
            gpus: self.gpus.or(before.gpus),
        }
    }
}

/// Which agents a person means: those of these names, or all whose labels fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Each must be an agent's.
    pub names: Vec<String>,
    /// All must hold. Without names and labels nobody is meant.
    pub labels: Vec<LabelRule>,
}

impl Selection {
    /// Whether an agent that offers this is meant.
    pub fn covers(&self, offer: &Offer) -> bool {
        let by_name = self.names.contains(&offer.name);
        by_name || (!self.labels.is_empty() && self.labels.iter().all(|rule| rule.holds(&offer.labels)))
    }
}

impl std::fmt::Display for Selection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let labels = self.labels.iter().map(|rule| format!("label {rule}"));
        let all: Vec<String> = self.names.iter().cloned().chain(labels).collect();
        f.write_str(&all.join(", "))
    }
}

/// What is wished of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Take no new work; what runs goes on.
    Cordon,
    /// The same, until nothing runs there.
    Drain {
        /// After this what still runs is ended; none: never.
        within: Option<std::time::Duration>,
    },
    /// Take work again.
    Resume,
    /// Give at most this; what it does not name stays.
    Limit(Limits),
    /// Give what is offered.
    Unlimit,
}

impl Wish {
    /// The word of the audit log.
    pub fn action(self) -> &'static str {
        match self {
            Self::Cordon => "agent.cordon",
            Self::Drain { .. } => "agent.drain",
            Self::Resume => "agent.resume",
            Self::Limit(_) | Self::Unlimit => "agent.set",
        }
    }
}

/// A wish with all that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tending {
    /// Of whom.
    pub agents: Selection,
    /// What.
    pub wish: Wish,
    /// Who.
    pub by: Arc<str>,
    /// Why; may be empty.
    pub reason: Arc<str>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_takes_from_an_offer_and_never_adds_to_it() {
        let offered = Request { cpu_milli: 4000, memory: 8 << 30, gpus: 2, named: [("licence".to_owned(), 3)].into() };
        let limits = Limits { cpu_milli: Some(1000), memory: Some(16 << 30), gpus: None };
        let left = limits.of(&offered);
        assert_eq!((left.cpu_milli, left.memory, left.gpus), (1000, 8 << 30, 2));
        assert_eq!(left.named, offered.named);
        assert_eq!(Limits::default().of(&offered), offered);
        let more = Limits { gpus: Some(0), ..Limits::default() }.over(limits);
        assert_eq!((more.cpu_milli, more.memory, more.gpus), (Some(1000), Some(16 << 30), Some(0)));
    }

    #[test]
    fn agents_are_meant_by_name_or_by_all_labels_and_an_empty_selection_means_nobody() {
        let zone = |value: &str| format!("zone={value}").parse::<LabelRule>().unwrap();
        let offer =
            Offer { name: "n1".to_owned(), labels: [("zone".to_owned(), "a".to_owned())].into(), ..Offer::default() };
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let table = [
            (names(&[]), vec![], false),
            (names(&["n1"]), vec![], true),
            (names(&["n2"]), vec![], false),
            (names(&[]), vec![zone("a")], true),
            (names(&[]), vec![zone("b")], false),
            (names(&[]), vec![zone("a"), "rack".parse().unwrap()], false),
            (names(&["n1"]), vec![zone("b")], true),
        ];
        for (names, labels, meant) in table {
            let selection = Selection { names, labels };
            assert_eq!(selection.covers(&offer), meant, "{selection}");
        }
    }
}
