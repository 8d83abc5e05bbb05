//! Named lanes: their limits, and what is in them.

use std::sync::Arc;

use super::Cluster;
use crate::{
    event::{Answer, Refusal},
    record::{Key, Queue},
    state::State,
};

/// One queue as `ctl queue list` shows it.
#[derive(Clone, Debug)]
pub struct QueueStatus {
    /// Its limits.
    pub queue: Arc<Queue>,
    /// Leases.
    pub running: u64,
    /// Unfinished tasks without one.
    pub waiting: u64,
}

/// A queue and its counts. A queue that nobody set has no limits and is not stored.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) queue: Arc<Queue>,
    stored: bool,
    pub(super) running: u64,
    pub(super) waiting: u64,
}

impl Lane {
    pub(super) fn new(name: &str) -> Self {
        let queue = Arc::new(Queue { name: name.to_owned(), ..Queue::default() });
        Self { queue, stored: false, running: 0, waiting: 0 }
    }

    pub(super) fn set(&mut self, queue: Arc<Queue>) {
        self.queue = queue;
        self.stored = true;
    }

    pub(super) fn stored(&self) -> Option<Arc<Queue>> {
        self.stored.then(|| Arc::clone(&self.queue))
    }

    /// Counts `n` tasks in one state, at their submission or at a restart.
    pub(super) fn add(&mut self, state: State, n: u64) {
        if let Some(count) = self.count(state) {
            *count = count.saturating_add(n);
        }
    }

    /// `n` tasks went from one state to another.
    pub(super) fn shift(&mut self, from: State, to: State, n: u64) {
        if let Some(count) = self.count(from) {
            *count = count.saturating_sub(n);
        }
        self.add(to, n);
    }

    /// `n` tasks in one state are forgotten.
    pub(super) fn remove(&mut self, state: State, n: u64) {
        if let Some(count) = self.count(state) {
            *count = count.saturating_sub(n);
        }
    }

    fn count(&mut self, state: State) -> Option<&mut u64> {
        match state {
            State::Running => Some(&mut self.running),
            State::Scheduled | State::Waiting | State::Queued | State::Retrying => Some(&mut self.waiting),
            State::Succeeded | State::Failed | State::Cancelled | State::Skipped => None,
        }
    }

    /// How many more leases it allows.
    pub(super) fn room(&self) -> u64 {
        match self.queue.max_running {
            _ if self.queue.paused => 0,
            Some(max) => max.saturating_sub(self.running),
            None => u64::MAX,
        }
    }
}

impl Cluster {
    /// Every queue, by name.
    pub fn queues(&self) -> Vec<QueueStatus> {
        self.queues
            .values()
            .map(|lane| QueueStatus { queue: Arc::clone(&lane.queue), running: lane.running, waiting: lane.waiting })
            .collect()
    }

    pub(super) fn lane(&mut self, name: &Arc<str>) -> &mut Lane {
        self.queues.entry(Arc::clone(name)).or_insert_with(|| Lane::new(name))
    }

    pub(super) fn set_queue(&mut self, queue: Queue) -> Result<Answer, Refusal> {
        if queue.name.is_empty() {
            return Err(Refusal::Conflict("a queue needs a name".to_owned()));
        }
        let name: Arc<str> = Arc::from(queue.name.as_str());
        self.lane(&name).set(Arc::new(queue));
        self.changed(Key::Queue(name));
        Ok(Answer::Done)
    }
}
