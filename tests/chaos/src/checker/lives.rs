//! Rules about attempts: one at a time, numbers that only grow, capacity, and a success that really ended.

use std::collections::BTreeMap;

use super::{History, Violation, history::Attempt};

/// The attempts of each task, in the order of their starts.
fn by_task(history: &History) -> BTreeMap<(&str, &str), Vec<&Attempt>> {
    let mut tasks: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for attempt in &history.attempts {
        tasks.entry((attempt.key.as_str(), attempt.name.as_str())).or_default().push(attempt);
    }
    tasks
}

/// No two attempts of a task at one time; numbers and tokens only grow; once is once where that was asked for.
pub(super) fn one_at_a_time(history: &History, found: &mut Vec<Violation>) {
    let once: BTreeMap<&str, bool> =
        history.acked.iter().map(|acked| (acked.key.as_str(), acked.at_most_once)).collect();
    for ((key, name), attempts) in by_task(history) {
        let mut say = |kind, text: String| found.push(Violation { kind, text: format!("{key}.{name}: {text}") });
        for found in attempts.iter().filter(|attempt| attempt.found_another) {
            say(
                "overlap",
                format!("attempt {} on {} began while another held the task's lock", found.number, found.agent),
            );
        }
        let mut live_until: Option<&Attempt> = None;
        for attempt in &attempts {
            if let Some(before) = live_until {
                let (new, old) = (attempt, before);
                if old.last_us >= new.start_us {
                    let ms = (old.last_us - new.start_us) / 1_000;
                    let text = format!(
                        "attempt {} on {} lived {ms} ms after attempt {} began on {}",
                        old.number, old.agent, new.number, new.agent
                    );
                    say("overlap", text);
                }
                if new.number <= old.number || new.token <= old.token {
                    let text = format!(
                        "attempt {} (token {}) began after attempt {} (token {})",
                        new.number, new.token, old.number, old.token
                    );
                    say("backwards", text);
                }
            }
            if live_until.is_none_or(|before| attempt.last_us >= before.last_us) {
                live_until = Some(attempt);
            }
        }
        if attempts.len() > 1 && once.get(key).copied().unwrap_or(false) {
            say("twice", format!("started {} times, at most once was asked for", attempts.len()));
        }
    }
}

/// What ran on an agent at one time never took more than it offers.
pub(super) fn capacity(history: &History, found: &mut Vec<Violation>) {
    let mut changes: BTreeMap<&str, Vec<(u64, i64)>> = BTreeMap::new();
    for attempt in &history.attempts {
        let cpus = i64::try_from(attempt.cpus).unwrap_or(i64::MAX);
        let list = changes.entry(attempt.agent.as_str()).or_default();
        list.push((attempt.start_us, cpus));
        list.push((attempt.last_us, -cpus));
    }
    for (agent, mut list) in changes {
        let Some(offered) = history.capacity.get(agent) else {
            found.push(Violation { kind: "capacity", text: format!("something ran on {agent}, which nobody started") });
            continue;
        };
        // An end at the time of a start comes first.
        list.sort_unstable();
        let mut taken = 0;
        let mut worst = (0, 0);
        for (t_us, cpus) in list {
            taken += cpus;
            worst = worst.max((taken, t_us));
        }
        if worst.0 > i64::try_from(*offered).unwrap_or(i64::MAX) {
            let text = format!("{agent} ran {} of {offered} thousandths of a processor at {} us", worst.0, worst.1);
            found.push(Violation { kind: "capacity", text });
        }
    }
}

/// A job that succeeded has, for each task, a last attempt that came to a good end.
pub(super) fn last_word(history: &History, found: &mut Vec<Violation>) {
    let tasks = by_task(history);
    for acked in &history.acked {
        if history.finals.get(&acked.job).is_none_or(|state| state != "succeeded") {
            continue;
        }
        for (name, _) in &acked.tasks {
            let last = tasks.get(&(acked.key.as_str(), name.as_str())).and_then(|attempts| attempts.last());
            if last.is_none_or(|last| last.code != Some(0)) {
                let what = last.map_or("never started".to_owned(), |last| format!("ended with {:?}", last.code));
                let text = format!("job {} succeeded, and the last attempt of its {name} {what}", acked.job);
                found.push(Violation { kind: "untrue", text });
            }
        }
    }
}
