//! Rules about jobs: nothing acknowledged is lost, one job for one key, final is final, order holds.

use std::collections::BTreeMap;

use super::{History, Violation};

/// States that a job leaves only when a person asks; nobody asks in these runs.
const FINAL: [&str; 4] = ["succeeded", "failed", "cancelled", "skipped"];

fn is_final(state: &str) -> bool {
    FINAL.contains(&state)
}

/// Every acknowledged job came to the end that its tasks allow.
pub(super) fn ends(history: &History, found: &mut Vec<Violation>) {
    for acked in &history.acked {
        let (key, job) = (&acked.key, acked.job);
        let text = match history.finals.get(&job).map(String::as_str) {
            None => format!("job {job} ({key}) was acknowledged and is not there"),
            Some(state) if !is_final(state) => format!("job {job} ({key}) was acknowledged and is {state} at the end"),
            Some("failed") if acked.must.is_some() => continue,
            Some(state) if acked.must.is_some() => format!("job {job} ({key}) is {state}, and must have been stopped"),
            Some("succeeded") => continue,
            // Its machine was lost and it asked for no second attempt.
            Some("failed") if acked.at_most_once => continue,
            Some(state) => format!("job {job} ({key}) is {state}, and nothing that happened explains it"),
        };
        found.push(Violation { kind: "lost", text });
    }
}

/// What had to be stopped was stopped for that reason and for no other; what else ended an attempt was that it was lost.
pub(super) fn stopped(history: &History, found: &mut Vec<Violation>) {
    for acked in &history.acked {
        let Some(must) = &acked.must else { continue };
        let Some((last, before)) = history.ends.get(&acked.job).and_then(|ends| ends.split_last()) else { continue };
        if last != must || before.iter().any(|end| end != "lost") {
            let text = format!("job {} ({}) had to end as {must}: {before:?}, then {last}", acked.job, acked.key);
            found.push(Violation { kind: "blame", text });
        }
    }
}

/// Nothing of a job lives when it was seen as over.
pub(super) fn survivors(history: &History, found: &mut Vec<Violation>) {
    let mut over: BTreeMap<u64, u64> = BTreeMap::new();
    for poll in &history.polls {
        for job in poll.jobs.iter().filter(|(_, state)| is_final(state)).map(|(job, _)| *job) {
            over.entry(job).or_insert(poll.ended_us);
        }
    }
    for attempt in &history.attempts {
        if let Some(seen_us) =
            over.get(&attempt.job).filter(|seen_us| (attempt.start_us..attempt.last_us).contains(*seen_us))
        {
            let (job, name, ms) = (attempt.job, &attempt.name, (attempt.last_us - seen_us) / 1_000);
            let text = format!("{job}.{name} on {} lived {ms} ms after its job was seen as over", attempt.agent);
            found.push(Violation { kind: "survivor", text });
        }
    }
}

/// A state that was seen as final is never seen as another, and what was acknowledged is always seen.
pub(super) fn finals(history: &History, found: &mut Vec<Violation>) {
    let mut ended: BTreeMap<u64, (&str, u64)> = BTreeMap::new();
    for poll in &history.polls {
        for (job, state) in &poll.jobs {
            match ended.get(job) {
                Some((before, _)) if before != state => {
                    let text = format!("job {job} was {before} and is {state} at {} us", poll.ended_us);
                    found.push(Violation { kind: "final-changed", text });
                }
                Some(_) => {}
                None if is_final(state) => {
                    ended.insert(*job, (state, poll.ended_us));
                }
                None => {}
            }
        }
        let known = history.acked.iter().filter(|acked| acked.acked_us < poll.began_us);
        for gone in known.filter(|acked| !poll.jobs.contains_key(&acked.job)) {
            let text = format!("job {} was acknowledged and is not listed at {} us", gone.job, poll.ended_us);
            found.push(Violation { kind: "lost", text });
        }
    }
    for (job, (before, _)) in &ended {
        match history.finals.get(job) {
            Some(now) if now == before => {}
            now => {
                let text = format!("job {job} was {before} and is {} at the end", now.map_or("gone", String::as_str));
                found.push(Violation { kind: "final-changed", text });
            }
        }
    }
    for late in &history.attempts {
        if let Some((state, seen_us)) = ended.get(&late.job).filter(|(_, seen_us)| late.start_us > *seen_us) {
            let (job, name) = (late.job, &late.name);
            let text = format!("{job}.{name} started at {} us; its job was {state} at {seen_us} us", late.start_us);
            found.push(Violation { kind: "final-changed", text });
        }
    }
}

/// One key is one job, for people and for tasks.
pub(super) fn keys(history: &History, found: &mut Vec<Violation>) {
    let mut jobs: BTreeMap<&str, u64> = BTreeMap::new();
    let mut owners: BTreeMap<u64, &str> = BTreeMap::new();
    let told = history.acked.iter().map(|acked| (acked.key.as_str(), acked.job));
    let ran = history.attempts.iter().map(|attempt| (attempt.key.as_str(), attempt.job));
    for (key, job) in told.chain(ran) {
        let first = *jobs.entry(key).or_insert(job);
        if first != job {
            found.push(Violation { kind: "key", text: format!("key {key} is job {first} and job {job}") });
        }
        let owner = *owners.entry(job).or_insert(key);
        if owner != key {
            found.push(Violation { kind: "key", text: format!("job {job} is of key {owner} and of key {key}") });
        }
    }
}

/// Every start comes after a good end of everything that the task waits for.
pub(super) fn order(history: &History, found: &mut Vec<Violation>) {
    let mut good: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for attempt in history.attempts.iter().filter(|attempt| attempt.code == Some(0)) {
        let first = good.entry((&attempt.key, &attempt.name)).or_insert(attempt.last_us);
        *first = (*first).min(attempt.last_us);
    }
    let acked: BTreeMap<&str, _> = history.acked.iter().map(|acked| (acked.key.as_str(), acked)).collect();
    for attempt in &history.attempts {
        let tasks = acked.get(attempt.key.as_str()).map(|acked| acked.tasks.as_slice()).unwrap_or_default();
        let after = tasks.iter().find(|(name, _)| *name == attempt.name).map(|(_, after)| after.as_slice());
        for dependency in after.unwrap_or_default() {
            let ended = good.get(&(attempt.key.as_str(), dependency.as_str()));
            if ended.is_none_or(|ended| *ended > attempt.start_us) {
                let (job, name) = (attempt.job, &attempt.name);
                let text =
                    format!("{job}.{name} started at {} us, before {dependency} had succeeded", attempt.start_us);
                found.push(Violation { kind: "order", text });
            }
        }
    }
}

/// A program of ours that ended by itself, and no fault explains it; agents that did not come back in time.
pub(super) fn fallen(history: &History, found: &mut Vec<Violation>) {
    for kind in ["fallen", "herd"] {
        let of = history.faults.iter().filter(|fault| fault.id == kind);
        found.extend(of.map(|fault| Violation { kind, text: fault.text.clone() }));
    }
}

/// After each end of a leader: how long until something that was handed in later had started.
pub(super) fn handovers(history: &History) -> Vec<u64> {
    let began: BTreeMap<&str, u64> = history.acked.iter().map(|acked| (acked.key.as_str(), acked.began_us)).collect();
    let kills = history.faults.iter().filter(|fault| fault.id == "X1");
    let until = |kill_us: u64| {
        let later = |key: &str| began.get(key).is_some_and(|began| *began > kill_us);
        let first = history.attempts.iter().find(|attempt| attempt.start_us > kill_us && later(&attempt.key));
        first.map(|attempt| attempt.start_us - kill_us)
    };
    kills.filter_map(|kill| until(kill.t_us)).collect()
}
