//! What one task may ask for, apart from what it waits for.

use std::{collections::BTreeMap, time::Duration};

use super::{
    At, MAX_ARGV, MAX_ENV, MAX_STDIN, MAX_WORD, segment,
    text::{self, MAX_KEY, fits, no_nul},
};
use crate::{
    container::{Container, check_image},
    resources::{IoLimits, Request},
    run_as::Scratch,
    spec::{Array, Command, LabelRule, OomRetries, Priority, Requires, RetryPolicy, TaskSpec},
};

/// The longest duration: far beyond any work, and far from where sums of times overflow.
const MAX_DURATION: Duration = Duration::from_secs(100 * 366 * 86_400);
/// The most of any resource: every JSON reader keeps such a number exactly (2^53 - 1).
const MAX_AMOUNT: u64 = (1 << 53) - 1;
/// Bytes: less holds no program, not even while it is loaded.
const MEMORY_MIN: u64 = 1 << 20;
/// The most processors, in thousandths.
const MAX_CPU_MILLI: u64 = 1_000_000_000;
/// A shorter value stands in output by chance.
const MASK_MIN: usize = 4;
/// So much of the output may have to wait until it is known whether it is a value.
const MASK_MAX: usize = 8192;
/// Bytes in a second: room for what tells that something was left out.
const LOG_RATE_MIN: u64 = 1000;
const MAX_RETRIES: u32 = 1_000_000;
const MAX_TAGS: usize = 100;
/// Exit codes and label rules of one task.
const MAX_LISTED: usize = 256;

pub(super) fn check(task: &TaskSpec, at: &mut At<'_>) {
    at.expect("name", text::task_name(&task.name));
    command(&task.command, at);
    env(&task.env, at);
    if let Some(cwd) = &task.cwd {
        let verdict = if cwd.is_empty() { Err("is empty; give a folder".to_owned()) } else { fits(cwd, MAX_WORD) };
        at.expect("cwd", verdict);
    }
    if let Some(size) = task.stdin.as_ref().map(Vec::len).filter(|size| *size > MAX_STDIN) {
        at.add(
            "stdin",
            format!("has {size} bytes; at most {MAX_STDIN} are accepted: keep more in a file that the task opens"),
        );
    }
    mask(task, at);
    room(task, at);
    request(&task.request, at);
    at.expect(
        "pids",
        if task.pids == Some(0) { Err("is 0; a task has at least one process".to_owned()) } else { Ok(()) },
    );
    io(&task.io, at);
    if task.cpu_limit && task.request.cpu_milli == 0 && task.command != Command::Empty {
        at.add("cpu_limit", "limits to `cpus`, which is 0; give more, or leave it out");
    }
    super::run_as::check(&task.run_as, at);
    if let Some(ladder) = &task.oom_retries {
        oom_retries(ladder, task.request.memory, at);
    }
    requires(&task.requires, at);
    if let Some(container) = &task.container {
        contained(task, container, at);
    }
    if !Priority::RANGE.contains(&task.priority.0) {
        let (low, high) = (Priority::RANGE.start(), Priority::RANGE.end());
        at.add("priority", format!("{} is outside {low} to {high}", task.priority.0));
    }
    times(task, at);
    retry(&task.retry, at);
    if let Some(range) = &task.array {
        array(range, at);
    }
    tags(&task.tags, at);
}

/// Rules that do not hold for what an older build accepted.
pub(super) fn check_new(task: &TaskSpec, at: &mut At<'_>) {
    let bytes = task.request.memory;
    if (1..MEMORY_MIN).contains(&bytes) {
        at.add(
            "memory",
            format!("{bytes} bytes are less than 1 MiB, in which nothing starts; if that is MiB, write \"{bytes}MiB\""),
        );
    }
}

fn command(command: &Command, at: &mut At<'_>) {
    match command {
        Command::Empty => {}
        Command::Argv(words) => argv(words, at),
        Command::Shell(script) if script.trim().is_empty() => {
            at.add("shell", "is empty; give a script, or leave `shell` out to make a join point");
        }
        Command::Shell(script) => at.expect("shell", fits(script, MAX_WORD)),
    }
}

fn contained(task: &TaskSpec, container: &Container, at: &mut At<'_>) {
    if container.image.is_empty() && !container.volumes.is_empty() {
        at.add("volumes", "are seen in a container only; give an `image`, too");
    } else {
        at.expect("image", check_image(&container.image));
    }
    if task.command == Command::Empty {
        at.add("image", "runs nothing; say what with `run` or `shell`");
    }
    if task.cwd.as_ref().is_some_and(|cwd| !cwd.is_empty() && !cwd.starts_with('/')) {
        at.add("cwd", "is a folder in the container, which is named from its root");
    }
    if !task.run_as.is_default() {
        at.add("run_as", "does not go with `image`: the image says as whom its processes run");
    }
    if task.scratch != Scratch::None {
        at.add("scratch", "does not go with `image`: a container has a scratch folder of its own");
    }
    if container.volumes.len() > MAX_LISTED {
        at.add("volumes", format!("has {} entries; at most {MAX_LISTED} are accepted", container.volumes.len()));
    }
    for (index, volume) in container.volumes.iter().enumerate() {
        at.expect(format_args!("volumes[{index}]"), volume.check());
    }
}

fn argv(words: &[String], at: &mut At<'_>) {
    match words.first() {
        None => at.add("run", "is empty; give a program and its arguments, or leave `run` out to make a join point"),
        Some(program) if program.is_empty() => at.add("run[0]", "is empty; the first word names the program"),
        Some(_) => {}
    }
    for (index, word) in words.iter().enumerate() {
        at.expect(format_args!("run[{index}]"), fits(word, MAX_WORD));
    }
    let size: usize = words.iter().map(|word| word.len() + 1).sum();
    if size > MAX_ARGV {
        at.add("run", format!("has {size} bytes; at most {MAX_ARGV} are accepted: give long lists in a file"));
    }
}

fn env(env: &BTreeMap<String, String>, at: &mut At<'_>) {
    let mut size = 0;
    for (key, value) in env {
        size += key.len() + value.len() + 2;
        let verdict = match key.as_str() {
            "" => Err("is empty; a variable needs a name".to_owned()),
            key if key.contains(['=', '\0']) => Err("a variable's name holds neither `=` nor a zero byte".to_owned()),
            key if key.starts_with("MUSTER_") => Err("names that start with MUSTER_ are set by the agent".to_owned()),
            _ => no_nul(value),
        };
        at.expect(format_args!("env{}", segment(key)), verdict);
    }
    if size > MAX_ENV {
        at.add("env", format!("takes {size} bytes; at most {MAX_ENV} are accepted: keep more in a file"));
    }
}

fn request(request: &Request, at: &mut At<'_>) {
    if request.cpu_milli > MAX_CPU_MILLI {
        at.add("cpus", format!("{} is more than {}", request.cpu_milli / 1000, MAX_CPU_MILLI / 1000));
    }
    for (key, amount) in [("memory", request.memory), ("gpus", request.gpus)] {
        if amount > MAX_AMOUNT {
            at.add(key, format!("{amount} is more than {MAX_AMOUNT}"));
        }
    }
    for (key, amount) in &request.named {
        let path = format!("resources{}", segment(key));
        if matches!(key.as_str(), "cpus" | "memory" | "gpus") {
            at.add(&path, format!("write `{key}` beside `resources`, not in it"));
        } else if let Err(message) = text::name(key) {
            at.add(&path, message);
        } else if *amount > MAX_AMOUNT {
            at.add(&path, format!("{amount} is more than {MAX_AMOUNT}"));
        }
    }
}

fn requires(requires: &Requires, at: &mut At<'_>) {
    for (key, value) in [("requires.os", &requires.os), ("requires.arch", &requires.arch)] {
        if let Some(value) = value {
            at.expect(key, text::name(value));
        }
    }
    if requires.labels.len() > MAX_LISTED {
        at.add("requires.labels", format!("has {} rules; at most {MAX_LISTED} are accepted", requires.labels.len()));
    }
    for (index, rule) in requires.labels.iter().enumerate() {
        let path = format!("requires.labels[{index}]");
        let (key, values) = match rule {
            LabelRule::Has(key) | LabelRule::Lacks(key) => (key, None),
            LabelRule::Is(key, _) | LabelRule::IsNot(key, _) => (key, None),
            LabelRule::In(key, values) | LabelRule::NotIn(key, values) => (key, Some(values)),
        };
        at.expect(&path, text::label_key(key));
        if values.is_some_and(Vec::is_empty) {
            at.add(&path, "compares with no value; give at least one in the brackets");
        }
    }
}

fn times(task: &TaskSpec, at: &mut At<'_>) {
    if task.timeout.is_some_and(|timeout| timeout < Duration::from_millis(1)) {
        at.add("timeout", "is zero; give at least 1ms, or leave it out for no limit");
    }
    let limited = [
        ("timeout", task.timeout.unwrap_or_default()),
        ("grace", task.grace),
        ("max_disconnect", task.max_disconnect.unwrap_or_default()),
        ("retries.delay", task.retry.delay),
        ("retries.cap", task.retry.cap),
    ];
    for (key, duration) in limited {
        if duration > MAX_DURATION {
            at.add(key, "is longer than 100 years");
        }
    }
    if task.start_at.is_some_and(|start| start.is_never()) {
        at.add("start_at", "lies at the beginning of 1970; give a time, or leave it out to start at once");
    }
}

fn retry(retry: &RetryPolicy, at: &mut At<'_>) {
    if retry.max > MAX_RETRIES {
        at.add("retries.max", format!("{} is more than {MAX_RETRIES}", retry.max));
    }
    if !(1000..=1_000_000).contains(&retry.factor_milli) {
        let factor = f64::from(retry.factor_milli) / 1000.0;
        at.add("retries.factor", format!("{factor} is outside 1 to 1000"));
    }
    if retry.jitter_milli > 1000 {
        at.add("retries.jitter", format!("{} is outside 0 to 1", f64::from(retry.jitter_milli) / 1000.0));
    }
    if retry.cap < retry.delay {
        let (cap, delay) = (retry.cap, retry.delay);
        at.add("retries.cap", format!("{cap:?} is shorter than the first delay of {delay:?}"));
    }
    if retry.exit_codes.len() > MAX_LISTED {
        at.add(
            "retries.exit_codes",
            format!("has {} codes; at most {MAX_LISTED} are accepted", retry.exit_codes.len()),
        );
    }
    if let Some(index) = retry.exit_codes.iter().position(|code| *code == 0) {
        at.add(format_args!("retries.exit_codes[{index}]"), "0 means success, which is never retried");
    }
}

/// What is masked must be there, and be told apart from ordinary words.
fn mask(task: &TaskSpec, at: &mut At<'_>) {
    if task.mask.len() > MAX_LISTED {
        at.add("mask", format!("has {} entries; at most {MAX_LISTED} are accepted", task.mask.len()));
    }
    for (index, name) in task.mask.iter().enumerate() {
        let verdict = match task.env.get(name).map(String::len) {
            None => Err(format!("names {name:?}, which is no variable of `env`")),
            Some(size) if size < MASK_MIN => Err(format!(
                "names {name:?}, whose value has {size} bytes; it needs at least {MASK_MIN}, or `***` would stand where it \
                 was not meant"
            )),
            Some(size) if size > MASK_MAX => {
                Err(format!("names {name:?}, whose value has {size} bytes; at most {MASK_MAX} are looked for"))
            }
            Some(_) => Ok(()),
        };
        at.expect(format_args!("mask[{index}]"), verdict);
    }
}

/// How much it may leave on its machine.
fn room(task: &TaskSpec, at: &mut At<'_>) {
    for (key, amount, least) in [("log_rate", task.log_rate, LOG_RATE_MIN), ("scratch_size", task.scratch_size, 1)] {
        let Some(amount) = amount else { continue };
        if amount < least {
            at.add(key, format!("{amount} is less than {least}; leave it out for what the agent allows"));
        } else if amount > MAX_AMOUNT {
            at.add(key, format!("{amount} is more than {MAX_AMOUNT}"));
        }
    }
    if task.scratch_size.is_some() && task.scratch == Scratch::None && task.container.is_none() {
        at.add("scratch_size", "needs `scratch = \"private\"`: it is the size of that folder");
    }
}

fn io(io: &IoLimits, at: &mut At<'_>) {
    for (key, amount) in io.by_key() {
        let Some(amount) = amount else { continue };
        let (least, what) = if key.ends_with("ops") { (1, "once") } else { (IoLimits::BYTES_MIN, "a page") };
        if amount < least {
            at.add(key, format!("{amount} is less than {least}, {what} in a second; leave it out for no limit"));
        } else if amount > MAX_AMOUNT {
            at.add(key, format!("{amount} is more than {MAX_AMOUNT}"));
        }
    }
}

fn oom_retries(ladder: &OomRetries, memory: u64, at: &mut At<'_>) {
    if memory == 0 {
        at.add("oom_retries", "needs `memory`, of which the next attempt gets more");
    }
    if ladder.max > OomRetries::MAX {
        at.add("oom_retries.max", format!("{} is more than {}", ladder.max, OomRetries::MAX));
    }
    if !(1001..=1_000_000).contains(&ladder.factor_milli) {
        let factor = f64::from(ladder.factor_milli) / 1000.0;
        at.add("oom_retries.factor", format!("{factor} is outside 1.001 to 1000"));
    }
    if let Some(cap) = ladder.cap.filter(|cap| *cap <= memory || *cap > MAX_AMOUNT) {
        at.add("oom_retries.cap", format!("{cap} is not between `memory` ({memory}) and {MAX_AMOUNT}"));
    }
}

fn array(array: &Array, at: &mut At<'_>) {
    match array {
        Array::Range { count: 0, .. } => at.add("array", "is empty; an array has at least one task"),
        Array::Range { step: 0, .. } => at.add("array.step", "is 0; give the distance from one index to the next"),
        Array::Range { first, count, step } => {
            let last = step.checked_mul(i64::from(*count) - 1).and_then(|way| first.checked_add(way));
            if last.is_none() {
                at.add("array", "has a last index beyond 64 bits");
            }
        }
        Array::Items(items) if items.is_empty() => at.add("array", "is empty; an array has at least one task"),
        Array::Items(items) => {
            for (index, item) in items.iter().enumerate() {
                at.expect(format_args!("array.items[{index}]"), fits(item, MAX_WORD));
            }
        }
    }
}

fn tags(tags: &[String], at: &mut At<'_>) {
    if tags.len() > MAX_TAGS {
        at.add("tags", format!("has {} entries; at most {MAX_TAGS} are accepted", tags.len()));
    }
    for (index, tag) in tags.iter().enumerate() {
        let verdict = if tag.is_empty() { Err("is empty; give a word".to_owned()) } else { fits(tag, MAX_KEY) };
        at.expect(format_args!("tags[{index}]"), verdict);
    }
}
