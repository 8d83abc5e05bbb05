//! What clients ask for: jobs of every kind that the core knows, small enough that thousands of worlds
//! run in a minute.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use muster_core::{
    resources::Request,
    spec::{After, Array, Command, JobSpec, On, OnLost, OomRetries, Priority, RetryPolicy, Role, TaskSpec},
    time::Timestamp,
};

use crate::rng::Rng;

/// What a task that needs more memory than it thinks asks for.
const HUNGRY: u64 = 100 << 20;
/// What one needs that asks for too little memory. Every machine has a little more.
pub const SATED: u64 = 4 * HUNGRY;

/// A job of one to five entries.
pub fn job(rng: &mut Rng, number: usize, now: Timestamp) -> JobSpec {
    let entries = rng.within(1, 5);
    let mut tasks: Vec<TaskSpec> = Vec::new();
    for n in 0..entries {
        let mut task = task(rng, format!("t{n}"), now);
        for other in &tasks {
            if other.role == Role::Work && rng.chance(35) {
                let on = *rng.pick(&[On::Success, On::Success, On::Failure, On::Any]).unwrap_or(&On::Any);
                task.after.push(After { job: None, job_name: None, task: Some(other.name.clone()), on });
            }
        }
        if task.after.is_empty() && rng.chance(10) {
            task.role = if rng.chance(50) { Role::Setup } else { Role::Teardown };
        }
        tasks.push(task);
    }
    JobSpec {
        name: format!("job-{number}"),
        labels: BTreeMap::new(),
        metadata: BTreeMap::new(),
        queue: if rng.chance(30) { "narrow".to_owned() } else { "default".to_owned() },
        tasks: tasks.into_iter().map(Arc::new).collect(),
    }
}

fn task(rng: &mut Rng, name: String, now: Timestamp) -> TaskSpec {
    let empty = rng.chance(15);
    let count = u32::try_from(rng.within(2, 9)).unwrap_or(2);
    let max = u32::try_from(rng.within(0, 2)).unwrap_or(0);
    let mut task = TaskSpec {
        name,
        command: if empty { Command::Empty } else { Command::Argv(vec!["work".to_owned()]) },
        request: Request { cpu_milli: if empty { 0 } else { rng.within(1, 3) * 500 }, ..Request::default() },
        priority: *rng
            .pick(&[Priority::NORMAL, Priority::NORMAL, Priority::HIGH, Priority::LOW])
            .unwrap_or(&Priority::LOW),
        retry: RetryPolicy { max, delay: Duration::from_millis(500), ..RetryPolicy::default() },
        start_at: rng.chance(8).then(|| now.after(Duration::from_millis(rng.within(1, 20_000)))),
        array: rng.chance(30).then_some(Array::Range { first: 0, count, step: 1 }),
        on_lost: if rng.chance(25) { OnLost::Fail } else { OnLost::Retry },
        max_disconnect: rng.chance(25).then(|| Duration::from_millis(rng.within(1, 60_000))),
        grace: Duration::from_secs(1),
        ..TaskSpec::default()
    };
    if task.priority == Priority::LOW && !empty {
        task.request.memory = HUNGRY;
        task.oom_retries = Some(OomRetries { max: 2, factor_milli: 2000, cap: None });
    }
    task
}
