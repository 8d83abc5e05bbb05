//! Clients that submit, people who cancel and retry, and one who sees to the machines: cordons, drains and limits come
//! and go, and at the end all is given back.

use std::{sync::Arc, time::Duration};

use muster_core::{
    access::{self, Reach, Who},
    event::{Event, Submission, Target, Which},
    fleet::{Limits, Selection, Tending, Wish},
    id::JobId,
    record::Queue,
};

use crate::{
    controller::Caller,
    world::{Coming, World},
};

/// Between two looks whether everything is given back.
const AGAIN_US: u64 = 5_000_000;

/// Somebody whose reach ends before any job of this world.
const STRANGER: &str = "stranger";

/// A caller of this name.
fn somebody(name: &str, reach: Reach) -> Arc<access::Caller> {
    let who = Who::Token { id: name.into(), name: name.into() };
    Arc::new(access::Caller { who, peer: "".into(), reach })
}

impl World {
    /// A client that was not answered calls again with the same key.
    pub(crate) fn call(&mut self, job: usize) {
        let Some((spec, known)) = self.jobs.get(job) else { return };
        let (again, spec) = (known.is_some(), Arc::clone(spec));
        if !again || self.rng.chance(20) {
            let submission = Submission {
                spec,
                key: Arc::from(format!("key-{job}")),
                by: Arc::from("client"),
                trace_parent: Arc::from(""),
            };
            let event = Event::Submit(submission).by(&somebody("client", Reach::All));
            self.event(event, Caller::Client(job as u64));
        }
        if !again {
            let wait = self.rng.within(1_000_000, 3_000_000);
            self.after(wait, Coming::Call { job });
        }
    }

    pub(crate) fn person(&mut self) {
        let known: Vec<JobId> = self.jobs.iter().filter_map(|(_, job)| *job).collect();
        let Some(job) = self.rng.pick(&known).copied() else { return };
        if self.rng.chance(20) {
            // Somebody who may touch another queue only: nothing of it may be seen, ever.
            let by: Arc<str> = Arc::from(STRANGER);
            let event = Event::Cancel { target: Target::Job(job), by, reason: Arc::from(""), teardown_too: true };
            self.note(|| format!("stranger: {event:?}"));
            let event = event.by(&somebody(STRANGER, Reach::of([Arc::from("elsewhere")])));
            return self.event(event, Caller::Nobody);
        }
        let event = match self.rng.within(0, 4) {
            0 => Event::Cancel {
                target: Target::Job(job),
                by: Arc::from("person"),
                reason: Arc::from(""),
                teardown_too: self.rng.chance(50),
            },
            1 => Event::Cancel {
                target: Target::Tasks { job, first: 0, count: 1 },
                by: Arc::from("person"),
                reason: Arc::from(""),
                teardown_too: false,
            },
            2 => Event::Retry { target: Target::Job(job), which: Which::Failed },
            3 => Event::Retry { target: Target::Job(job), which: Which::All },
            _ => Event::SetQueue(Queue {
                name: "narrow".to_owned(),
                max_running: Some(self.rng.within(1, 3)),
                ..Queue::default()
            }),
        };
        match event {
            Event::Retry { .. } => self.witness.reopened(job),
            Event::Cancel { .. } => self.witness.cancels(job),
            _ => {}
        }
        self.note(|| format!("person: {event:?}"));
        self.event(event.by(&somebody("person", Reach::All)), Caller::Nobody);
    }

    pub(crate) fn operator(&mut self) {
        if self.is_healed() {
            // Nobody may lead at the moment; then the wish is said again.
            for agent in 0..self.agents.len() {
                self.tend(agent, Wish::Resume);
                self.tend(agent, Wish::Unlimit);
            }
            return self.after(AGAIN_US, Coming::Operator);
        }
        let agent = usize::try_from(self.rng.within(0, self.agents.len() as u64 - 1)).unwrap_or(0);
        let within = Some(Duration::from_micros(self.rng.within(0, 20_000_000)));
        let wish = match self.rng.within(0, 6) {
            0 => Wish::Cordon,
            1 | 2 => Wish::Drain { within },
            3 => Wish::Drain { within: None },
            4 => Wish::Limit(Limits { cpu_milli: Some(self.rng.within(0, 3) * 1000), ..Limits::default() }),
            5 => Wish::Unlimit,
            _ => Wish::Resume,
        };
        self.note(|| format!("operator: {wish:?} of agent {agent}"));
        self.tend(agent, wish);
    }

    fn tend(&mut self, agent: usize, wish: Wish) {
        let Some(machine) = self.agents.get(agent) else { return };
        let agents = Selection { names: vec![machine.uid.to_string()], labels: Vec::new() };
        let tending = Tending { agents, wish, by: Arc::from("operator"), reason: Arc::from("") };
        self.event(Event::Tend(tending).by(&somebody("operator", Reach::All)), Caller::Nobody);
    }
}
