//! How long work takes: counted over the finished tasks of one job, or of all, away from the runtime's threads.

use std::{cmp::Reverse, collections::BinaryHeap, ops::Range, sync::Arc};

use muster_common::{proto::v1, wire::work};
use muster_core::{
    access::Reach,
    state::{CHUNK_TASKS, State, Tally, Task},
};
use tonic::Status;

use crate::{
    grpc::{
        layout::{Layout, known},
        select::{Found, resolve},
        tasks::view,
    },
    view::{JobView, Snapshot},
};

/// Slowest tasks that are shown at most.
const SLOWEST_MAX: usize = 1000;

/// What is measured of finished tasks.
#[derive(Default)]
struct Measured {
    jobs: u64,
    tally: Tally,
    times: Vec<u64>,
    /// The slowest of them: how long, which job (by its place in `looked_at`), which task.
    slowest: BinaryHeap<Reverse<(u64, usize, u32)>>,
    looked_at: Vec<Arc<JobView>>,
}

pub(super) async fn stats(
    snapshot: Arc<Snapshot>,
    reach: &Reach,
    request: v1::StatsRequest,
) -> Result<v1::StatsReply, Status> {
    let all = request.selector.as_ref().is_none_or(|selector| selector.text.trim().is_empty());
    let found = if all { None } else { Some(resolve(&snapshot, reach, request.selector)?) };
    let reach = reach.clone();
    let keep = (request.slowest as usize).min(SLOWEST_MAX);
    let scan = move || {
        let mut measured = Measured::default();
        match &found {
            Some(found) => measured.add(found, keep),
            None => snapshot.newest_first(None).filter(|job| reach.covers(&job.job.spec.queue)).for_each(|job| {
                measured.add(&Found { job: Arc::clone(job), tasks: None, text: String::new() }, keep);
            }),
        }
        measured.reply(&snapshot)
    };
    tokio::task::spawn_blocking(scan).await.map_err(|_| Status::internal("the statistics were cut short"))
}

impl Measured {
    fn add(&mut self, found: &Found, keep: usize) {
        self.jobs += 1;
        let tasks = found.range();
        match &found.tasks {
            None => self.tally.merge(&found.job.summary.tally),
            Some(tasks) => self.tally.merge(&tally(&found.job, tasks.clone())),
        }
        let place = self.looked_at.len();
        let measured = self.times.len();
        for (n, chunk) in found.job.chunks.range(tasks.start / CHUNK_TASKS..) {
            let first = n.saturating_mul(CHUNK_TASKS);
            if first >= tasks.end {
                break;
            }
            for (index, task) in (first..).zip(&chunk.tasks).filter(|(index, _)| tasks.contains(index)) {
                let Some(took) = run_time(task) else { continue };
                self.times.push(took);
                if keep > 0 {
                    self.slowest.push(Reverse((took, place, index)));
                    if self.slowest.len() > keep {
                        self.slowest.pop();
                    }
                }
            }
        }
        if keep > 0 && self.times.len() > measured {
            self.looked_at.push(Arc::clone(&found.job));
        }
    }

    fn reply(mut self, snapshot: &Snapshot) -> v1::StatsReply {
        let measured = self.times.len() as u64;
        let total_us = self.times.iter().fold(0_u64, |sum, took| sum.saturating_add(*took));
        let slowest = std::mem::take(&mut self.slowest).into_sorted_vec().into_iter();
        let slowest = slowest.filter_map(|Reverse((_, place, index))| {
            let job = self.looked_at.get(place)?;
            Some(view(snapshot, job, &Layout::new(&job.job), index))
        });
        v1::StatsReply {
            slowest: slowest.collect(),
            tally: Some(work::tally_to_proto(&self.tally)),
            jobs: self.jobs,
            measured,
            mean_us: total_us.checked_div(measured).unwrap_or(0),
            p50_us: quantile(&mut self.times, 50),
            p99_us: quantile(&mut self.times, 99),
            total_us,
        }
    }
}

/// How long the process of a finished task ran; none: it had none, or is not finished.
fn run_time(task: &Task) -> Option<u64> {
    let attempt = task.attempt.as_ref().filter(|_| task.state.is_final())?;
    let measured = !attempt.started.is_never() && !attempt.ended.is_never();
    measured.then(|| attempt.ended.0.saturating_sub(attempt.started.0))
}

/// The smallest time that `percent` of all are not above (nearest rank).
fn quantile(times: &mut [u64], percent: usize) -> u64 {
    let rank = (times.len() * percent).div_ceil(100).saturating_sub(1);
    if times.is_empty() { 0 } else { *times.select_nth_unstable(rank).1 }
}

fn tally(job: &JobView, tasks: Range<u32>) -> Tally {
    let layout = Layout::new(&job.job);
    let mut tally = Tally::default();
    for index in tasks {
        let state = match known(job, index) {
            Some(task) => task.state,
            None => layout.group_of(index).map_or(State::Waiting, |group| job.phase(group.index)),
        };
        tally.add(state, 1);
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_nearest_rank() {
        let mut times: Vec<u64> = (1..=200).rev().collect();
        assert_eq!((quantile(&mut times, 50), quantile(&mut times, 99)), (100, 198));
        assert_eq!((quantile(&mut [7], 50), quantile(&mut [7], 99), quantile(&mut [], 99)), (7, 7, 0));
    }
}
