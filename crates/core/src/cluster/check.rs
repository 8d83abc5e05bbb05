//! The invariants of the cluster as predicates: asked by tests and by the simulation after every step.

use std::collections::{BTreeMap, BTreeSet};

use super::{Cluster, Entry};
use crate::{
    agent::Place,
    id::{TaskId, Token},
    resources::Request,
    spec::Role,
    state::{State, Tally},
    time::Now,
};

/// Everything that is wrong; empty when all invariants hold. Costs as much as all tasks: not for
/// production paths.
pub fn check(cluster: &Cluster, now: Now) -> Vec<String> {
    let mut found = Vec::new();
    for entry in cluster.jobs.values() {
        counts(entry, &mut found);
        phases(cluster, entry, &mut found);
    }
    leases(cluster, &mut found);
    capacity(cluster, &mut found);
    queues(cluster, &mut found);
    reasons(cluster, now, &mut found);
    found
}

/// Tallies are what the tasks say.
fn counts(entry: &Entry, found: &mut Vec<String>) {
    let job = entry.job.id;
    let mut whole = Tally::default();
    for group in &entry.groups {
        let mut tally = Tally::default();
        for (_, count, state) in entry.runs(group.first, group.end()) {
            tally.add(state, count);
        }
        if tally != group.tally {
            found.push(format!("job {job}, `{}`: counted {tally:?}, kept {:?}", group.spec.name, group.tally));
        }
        whole.merge(&tally);
    }
    if whole != entry.tally {
        found.push(format!("job {job}: counted {whole:?}, kept {:?}", entry.tally));
    }
    if entry.is_finished() == entry.finished.is_never() {
        found.push(format!("job {job}: finished at {}, with {whole:?}", entry.finished));
    }
}

/// Tasks that wait stand where their group stands, and what could start does (D1).
fn phases(cluster: &Cluster, entry: &Entry, found: &mut Vec<String>) {
    for group in &entry.groups {
        for (first, _, state) in entry.runs(group.first, group.end()) {
            if matches!(state, State::Waiting | State::Scheduled | State::Queued) && state != group.phase {
                found.push(format!("D1: {} is {state} in a group that is {}", entry.task_id(first), group.phase));
            }
            let started = matches!(state, State::Queued | State::Running | State::Retrying);
            let open = group.edges.iter().any(|edge| cluster.said(entry, *edge) == super::deps::Said::Open);
            if state == State::Queued && open {
                found.push(format!("D1: {} is {state} before its dependencies ended", entry.task_id(first)));
            }
            if started && group.spec.role == Role::Teardown && state == State::Queued && entry.open_work > 0 {
                found.push(format!("D1: teardown {} is {state} before the work ended", entry.task_id(first)));
            }
        }
    }
}

/// T3, T4: every running task has one live attempt, its lease is held once, by the agent it names,
/// and no lease is held for anything else.
fn leases(cluster: &Cluster, found: &mut Vec<String>) {
    let mut live: BTreeMap<Token, TaskId> = BTreeMap::new();
    for entry in cluster.jobs.values() {
        for (first, count, state) in entry.runs(0, entry.total()) {
            for index in first..first + count {
                let attempt = entry.touched(index).and_then(|task| task.live());
                match (state == State::Running, attempt) {
                    (true, Some(attempt)) => {
                        if live.insert(attempt.token, entry.task_id(index)).is_some() {
                            found.push(format!("T4: {} shares token {}", entry.task_id(index), attempt.token));
                        }
                        let held =
                            cluster.agents.get(&attempt.agent).and_then(|agent| agent.holdings.get(&attempt.token));
                        if held.is_none_or(|holding| holding.task != entry.task_id(index)) {
                            found.push(format!("T3: {} runs, but its agent does not hold it", entry.task_id(index)));
                        }
                    }
                    (true, None) => found.push(format!("T3: {} runs without an attempt", entry.task_id(index))),
                    (false, Some(_)) => {
                        found.push(format!("T3: {} is {state} with a live attempt", entry.task_id(index)))
                    }
                    (false, None) => {}
                }
            }
        }
    }
    for agent in cluster.agents.values() {
        for (token, holding) in &agent.holdings {
            if holding.place != Place::Stuck && live.get(token) != Some(&holding.task) {
                found.push(format!("T3: agent {} holds {token}, which is not live", agent.record.id));
            }
        }
    }
    if live.keys().next_back().is_some_and(|token| token.0 >= cluster.meta.token_ceiling) {
        found.push("T4: a token at or above the stored ceiling was given".to_owned());
    }
}

/// S3: what runs on an agent fits into it.
fn capacity(cluster: &Cluster, found: &mut Vec<String>) {
    for agent in cluster.agents.values() {
        let mut used = Request::default();
        agent.holdings.values().filter(|h| h.place != Place::Ahead).for_each(|h| used.give(&h.demand.request()));
        if used.cpu_milli != agent.used().cpu_milli || used.memory != agent.used().memory {
            found.push(format!("S3: agent {} uses {used:?}, kept {:?}", agent.record.id, agent.used()));
        }
        if !used.fits(agent.capacity()) && !agent.is_overfull() {
            found.push(format!("S3: agent {} uses {used:?} of {:?}", agent.record.id, agent.capacity()));
        }
    }
}

/// S3: queues hold what their jobs say, and never more leases than allowed.
fn queues(cluster: &Cluster, found: &mut Vec<String>) {
    for (name, lane) in &cluster.queues {
        let mut tally = Tally::default();
        cluster.jobs.values().filter(|entry| entry.queue == *name).for_each(|entry| tally.merge(&entry.tally));
        let running = u64::from(tally.get(State::Running));
        let waiting = u64::from(tally.total() - tally.finished()) - running;
        if (running, waiting) != (lane.running, lane.waiting) {
            found.push(format!(
                "S3: queue `{name}` runs {running} and holds {waiting}, kept {} and {}",
                lane.running, lane.waiting
            ));
        }
    }
}

/// S2: every task that waits has a reason, and every queued task stands in line exactly once.
fn reasons(cluster: &Cluster, now: Now, found: &mut Vec<String>) {
    let mut queued = BTreeSet::new();
    for (job, entry) in &cluster.jobs {
        for explanation in cluster.explain(now, crate::event::Target::Job(*job)).unwrap_or_default().answers {
            if !explanation.state.is_final() && explanation.reasons.is_empty() {
                found.push(format!("S2: {} is {} for no reason", explanation.task, explanation.state));
            }
        }
        for (first, count, state) in entry.runs(0, entry.total()) {
            if state == State::Queued {
                queued.extend((first..first + count).map(|index| entry.task_id(index)));
            }
        }
    }
    let mut line = BTreeSet::new();
    for span in cluster.ready.spans() {
        for index in span.first..span.first + span.count {
            if !line.insert(TaskId::new(span.job, index)) {
                found.push(format!("S2: {}.{index} stands in line twice", span.job));
            }
        }
    }
    if let Some(task) = queued.symmetric_difference(&line).next() {
        found.push(format!("S2: {task} is queued and not in line, or in line and not queued"));
    }
}
