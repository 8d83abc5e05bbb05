//! Attempts that want one processor share it as they asked for processors, though nothing else holds them.

use std::time::Duration;

use muster_agent::exec::{ExecEvent, KillReason};
use muster_core::{resources::Request, spec::TaskSpec, state::End};

use super::strict;
use crate::{
    bench::{shell, wait_for},
    skip::here,
};

/// Ticks of a processor, a hundred of which are a second on every Linux.
const WARM: u64 = 10;
const MEASURED: u64 = 300;

/// The last processor that this process may use, as the kernel writes it.
fn processor() -> String {
    let list = allowed("self").expect("told");
    list.rsplit([',', '-']).next().expect("at least one").to_owned()
}

fn allowed(pid: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).map(|list| list.trim().to_owned())
}

/// What the first process of an attempt took of processors so far.
fn taken(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name may hold spaces: `utime` and `stime` are counted from behind it.
    let fields: Vec<_> = stat.rsplit(')').next()?.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

#[tokio::test]
async fn who_asks_for_three_times_the_processors_gets_three_times_the_one_that_both_want() {
    let Some(mut bench) = strict(here!()).await else { return };
    let processor = processor();
    let burns = format!("exec taskset -c {processor} sh -c 'while :; do :; done'");
    let (mut tokens, mut pids) = (Vec::new(), Vec::new());
    for cpu_milli in [1000, 3000] {
        let request = Request { cpu_milli, ..Request::default() };
        tokens.push(bench.start(TaskSpec { request, ..shell(&burns) }));
        let ExecEvent::Started { identity, .. } = bench.event().await else { panic!("not started") };
        pids.push(identity.pid);
    }
    let both = || Some([taken(pids[0])?, taken(pids[1])?]);
    // Only what they took against each other is compared, however busy this machine is beside them.
    let before = wait_for("both to burn one processor", || {
        let is_pinned = |pid: &u32| allowed(&pid.to_string()).is_some_and(|list| list == processor);
        pids.iter().all(is_pinned).then(both).flatten().filter(|ticks| ticks.iter().all(|ticks| *ticks >= WARM))
    })
    .await;
    let [one, three] = wait_for("both to have burned enough", || {
        let now = both().expect("both go on");
        let ticks = [now[0] - before[0], now[1] - before[1]];
        (ticks[0] + ticks[1] >= MEASURED).then_some(ticks)
    })
    .await;
    assert!(one * 2 <= three && three * 2 <= one * 9, "{one} ticks for 1 cpu, {three} for 3");
    for token in tokens {
        bench.exec.kill(token, KillReason::Cancelled, Duration::ZERO);
        assert_eq!(bench.over().await.end, End::Cancelled);
    }
}
