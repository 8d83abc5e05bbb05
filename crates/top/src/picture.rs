//! What is on the screen: plain values, as of one moment.

/// Everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Picture {
    /// Who was asked, for the first line.
    pub about: String,
    /// The time of day of this picture.
    pub clock: String,
    /// What went wrong with the last look; then the rest is of the one before.
    pub problem: Option<String>,
    /// Of all agents.
    pub totals: Totals,
    /// Agents, as many as are known so far.
    pub agents: Vec<Agent>,
    /// Running tasks.
    pub tasks: Vec<Task>,
    /// Queues.
    pub queues: Vec<Queue>,
    /// Jobs that ended, newest first.
    pub ends: Vec<End>,
}

/// A part of a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Share {
    /// What is taken.
    pub used: f64,
    /// All there is.
    pub all: f64,
}

impl Share {
    /// From 0 to 1.
    pub fn part(self) -> f64 {
        if self.all > 0.0 { (self.used / self.all).clamp(0.0, 1.0) } else { 0.0 }
    }
}

/// All agents together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// Connected ones.
    pub connected: u64,
    /// Those of them that take no new work.
    pub cordoned: u64,
    /// Those that are not connected and not gone.
    pub silent: u64,
    /// Given up.
    pub lost: u64,
    /// Processors.
    pub cpus: Share,
    /// Bytes.
    pub memory: Share,
    /// GPUs.
    pub gpus: Share,
    /// Tasks that run, and tasks that wait.
    pub running: u64,
    /// See above.
    pub queued: u64,
}

/// One agent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Agent {
    /// Its name.
    pub name: String,
    /// One word.
    pub state: String,
    /// Processors that tasks take.
    pub cpus: Share,
    /// Bytes of memory that tasks take.
    pub memory: Share,
    /// Tasks.
    pub running: u32,
    /// The machine's load over a minute; none: it did not say.
    pub load: Option<f64>,
    /// Bytes of memory that the machine has free; none: it did not say.
    pub memory_free: Option<f64>,
    /// Bytes of its disk that are free; none: it did not say.
    pub disk_free: Option<f64>,
}

/// A task that runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Task {
    /// `17.scan[3]`
    pub name: String,
    /// Its job's name.
    pub job: String,
    /// Where it runs.
    pub agent: String,
    /// For how long, for people.
    pub runs: String,
}

/// A queue.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Queue {
    /// Its name, and whether it is paused.
    pub name: String,
    /// Tasks that run.
    pub running: u64,
    /// Tasks that wait.
    pub queued: u64,
}

/// A job that ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct End {
    /// `17 census`
    pub job: String,
    /// One word.
    pub state: String,
    /// How long ago, for people.
    pub ago: String,
}
