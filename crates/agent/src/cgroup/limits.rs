//! What an attempt is held to, and what the kernel counts of it.

use muster_core::spec::TaskSpec;

use super::disks::Io;

/// What an attempt is held to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes.
    pub(crate) memory: Option<u64>,
    /// Its share of processors where others want them too; 0: the least.
    pub(crate) weight_milli: u64,
    /// Thousandths of a processor that it never exceeds.
    pub(crate) cpu_milli: Option<u64>,
    /// Processes and threads.
    pub(crate) pids: Option<u64>,
    /// How fast it uses disks, and which.
    pub(crate) io: Option<Io>,
}

impl Limits {
    pub(crate) fn of(spec: &TaskSpec) -> Self {
        let request = &spec.request;
        Self {
            // A task that asks for no memory has no limit.
            memory: Some(request.memory).filter(|bytes| *bytes > 0),
            weight_milli: request.cpu_milli,
            cpu_milli: Some(request.cpu_milli).filter(|cpus| spec.cpu_limit && *cpus > 0),
            pids: spec.pids,
            io: Io::of(&spec.io),
        }
    }
}

/// What the kernel has counted of a cgroup since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) cpu_us: u64,
    /// Of `cpu_us`, in programs' own code and in the kernel; both 0: not told apart.
    pub(crate) user_us: u64,
    pub(crate) system_us: u64,
    /// Processes that were killed for want of memory.
    pub(crate) oom_kills: u64,
    /// Bytes in use at the highest, since the last [`super::slot::Slot::begin`] where that can be told.
    pub(crate) memory_peak: u64,
    /// Bytes in use.
    pub(crate) memory: u64,
}

/// 1024 for a processor, as the kernel's own default for one.
pub(super) fn shares(milli: u64) -> String {
    (milli.saturating_mul(1024) / 1000).clamp(2, 262_144).to_string()
}

/// 100 for a processor.
pub(super) fn weight(milli: u64) -> String {
    (milli / 10).clamp(1, 10_000).to_string()
}

#[cfg(test)]
mod tests {
    use muster_core::resources::Request;

    use super::*;

    #[test]
    fn a_task_is_held_to_the_memory_that_it_asks_for_and_to_processors_only_where_it_asks() {
        let request = Request { cpu_milli: 1500, memory: 7, ..Request::default() };
        let spec = TaskSpec { request, ..TaskSpec::default() };
        let limits = Limits { memory: Some(7), weight_milli: 1500, ..Limits::default() };
        assert_eq!(Limits::of(&spec), limits);
        let strict = TaskSpec { cpu_limit: true, pids: Some(3), ..spec };
        assert_eq!(Limits::of(&strict), Limits { cpu_milli: Some(1500), pids: Some(3), ..limits });
        assert_eq!(Limits::of(&TaskSpec::default()), Limits::default());
    }

    #[test]
    fn shares_follow_processors_within_what_the_kernel_takes() {
        assert_eq!([shares(0), shares(1000), shares(500), shares(u64::MAX)], ["2", "1024", "512", "262144"]);
        assert_eq!([weight(0), weight(1000), weight(500), weight(u64::MAX)], ["1", "100", "50", "10000"]);
    }
}
