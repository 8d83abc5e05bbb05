//! What a short text means: durations, sizes, times, ranges, dependencies. `ctl`'s flags take the same words.

use std::time::Duration;

use muster_core::{
    id::JobId,
    spec::{After, Array, On, Priority},
    time::Timestamp,
};

use super::near::nearest;

/// The texts that `duration` takes (ECMA 262).
pub(super) const DURATION: &str = "^( *[0-9]+(\\.[0-9]+)?(ms|s|m|h|d|w))+ *$";
/// The texts that `size` takes.
pub(super) const SIZE: &str = "^[0-9]+(\\.[0-9]+)? *(B|kB|KB|MB|GB|TB|PB|KiB|MiB|GiB|TiB|PiB)$";
/// The texts that `array` takes.
pub(super) const ARRAY: &str = "^[0-9]+(-[0-9]+(:[0-9]+)?)?$";
/// The texts that `volumes` takes.
pub(super) const VOLUME: &str = "^/[^:]*:/[^:]*(:r[ow])?$";
/// The texts that `start_at` takes.
pub(super) const START: &str = "^(\\+.+|[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ].+)$";

const UNITS_OF_TIME: [(&str, u64); 6] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000), ("w", 604_800_000)];

const UNITS_OF_SIZE: [(&str, u64); 12] = [
    ("B", 1),
    ("kB", 1000),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("PB", 1_000_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
];

/// The ends of a dependency by name.
pub(super) const ON: [(&str, On); 3] = [("success", On::Success), ("failure", On::Failure), ("any", On::Any)];

/// The priorities by name.
pub(super) const PRIORITIES: [(&str, Priority); 5] = [
    ("low", Priority::LOW),
    ("normal", Priority::NORMAL),
    ("medium", Priority::NORMAL),
    ("high", Priority::HIGH),
    ("critical", Priority::CRITICAL),
];

/// The one of `table` called `word`.
pub(super) fn word<T: Copy>(word: &str, table: &[(&'static str, T)]) -> Result<T, String> {
    if let Some((_, value)) = table.iter().find(|(name, _)| *name == word) {
        return Ok(*value);
    }
    let names = || table.iter().map(|(name, _)| *name);
    let all = names().collect::<Vec<_>>().join(", ");
    let near = nearest(word, names()).map_or(String::new(), |near| format!("; did you mean {near:?}?"));
    Err(format!("{word:?} is none of {all}{near}"))
}

/// `90s`, `1h30m`, `1.5h`: numbers with units ms, s, m, h, d, w.
pub fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no duration; write \"90s\", \"1h30m\" or \"500ms\" (units: ms, s, m, h, d, w)");
    if text.trim_start().starts_with('-') {
        return Err(format!("{text:?} is negative; a duration is not"));
    }
    let mut rest = text.trim_matches(' ');
    let mut total: u64 = 0;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let (amount, behind) = rest.split_at(end);
        let length = behind.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(length);
        let (_, factor) = UNITS_OF_TIME.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
        let part = scaled(amount, *factor).ok_or_else(bad)?;
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(|| format!("{text:?} is too long"))?;
        rest = behind.trim_start_matches(' ');
    }
    Ok(Duration::from_millis(total))
}

/// A number of seconds.
pub(super) fn seconds(seconds: f64) -> Result<Duration, String> {
    if seconds < 0.0 {
        return Err(format!("{seconds} is negative; a duration is not"));
    }
    // Milliseconds is what travels: a finer time would silently become another.
    milli(seconds)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{seconds} is no number of seconds, in steps of 0.001"))
}

/// `512MiB`, `2GB`: bytes with a unit.
pub fn size(text: &str) -> Result<u64, String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (amount, unit) = text.split_at(end);
    let unit = unit.trim_start_matches(' ');
    if text.starts_with('-') {
        return Err(format!("{text:?} is negative; a size is not"));
    }
    if let (Some(letter @ ("k" | "K" | "M" | "G" | "T" | "P")), false) = (Some(unit), amount.is_empty()) {
        return Err(format!(
            "{text:?} is ambiguous; write {letter}B for powers of 1000 or {}iB for powers of 1024",
            letter.to_uppercase()
        ));
    }
    let factor = UNITS_OF_SIZE.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    match factor.and_then(|factor| scaled(amount, factor)) {
        Some(Some(bytes)) => Ok(bytes),
        Some(None) => Err(format!("{text:?} is too large")),
        None => Err(format!("{text:?} is no size; write \"512MiB\", \"2GB\" or a number of bytes")),
    }
}

/// `amount * factor`, whole: outer `None` for what is no number (or not whole), inner for what does not fit.
fn scaled(amount: &str, factor: u64) -> Option<Option<u64>> {
    let (whole, part) = amount.split_once('.').unwrap_or((amount, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 18 {
        return None;
    }
    let tens = 10u128.pow(u32::try_from(part.len()).ok()?);
    let below = part.parse::<u128>().ok()?.checked_mul(u128::from(factor))?;
    let Ok(whole) = whole.parse::<u64>() else {
        return Some(None);
    };
    // A part of a byte or of a millisecond: rounded down, which "0.1 MiB" needs.
    let below = u64::try_from(below / tens).ok()?;
    Some(whole.checked_mul(factor).and_then(|bytes| bytes.checked_add(below)))
}

/// Thousandths of `value`, if it has no finer part and is not negative.
pub(super) fn milli(value: f64) -> Option<u64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let scaled = value * 1000.0;
    let whole = scaled.round();
    let is_whole = (scaled - whole).abs() <= 1e-6 * scaled.abs().max(1.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 2^53, and whole")]
    ((0.0..EXACT).contains(&whole) && is_whole).then_some(whole as u64)
}

pub(super) fn cpu_milli(value: f64) -> Result<u64, String> {
    if value < 0.0 {
        return Err(format!("{value} is negative; a number of processors is not"));
    }
    milli(value).ok_or_else(|| format!("{value} is no number of processors, in steps of 0.001"))
}

/// `high`, `-5`: a word or a number.
pub fn priority(text: &str) -> Result<Priority, String> {
    match text.parse() {
        Ok(number) => Ok(Priority(number)),
        Err(_) => word(text, &PRIORITIES).map_err(|message| format!("{message} (or give a number)")),
    }
}

/// `0-999`, `0-99:2`, or `1000` for 0 to 999.
pub fn array(text: &str) -> Result<Array, String> {
    let bad = || format!("{text:?} is no range; write \"0-999\", or \"0-99:2\" for every second one");
    let number = |text: &str| match text.bytes().all(|b| b.is_ascii_digit()) {
        true => text.parse::<i64>().map_err(|_| bad()),
        false => Err(bad()),
    };
    let (range, step) = text.split_once(':').unwrap_or((text, "1"));
    let Some((from, to)) = range.split_once('-') else {
        return if text.contains(':') { Err(bad()) } else { count(number(text)?) };
    };
    span(number(from)?, number(to)?, number(step)?)
}

/// 0 to `n` - 1.
pub(super) fn count(n: i64) -> Result<Array, String> {
    match u32::try_from(n) {
        Ok(0) => Err("makes an array of no task; give at least 1".to_owned()),
        Ok(count) => Ok(Array::Range { first: 0, count, step: 1 }),
        Err(_) => Err(format!("makes an array of {n} tasks; give 1 to 10000000")),
    }
}

/// `from`, `from + step`, and so on as far as `to`.
pub(super) fn span(from: i64, to: i64, step: i64) -> Result<Array, String> {
    if step == 0 {
        return Err("has the step 0; give the distance from one index to the next".to_owned());
    }
    let (from_wide, to_wide, step_wide) = (i128::from(from), i128::from(to), i128::from(step));
    let steps = (to_wide - from_wide).checked_div(step_wide).filter(|_| (to > from) == (step > 0) || to == from);
    let Some(steps) = steps else {
        return Err(format!("makes an array of no task: steps of {step} do not lead from {from} to {to}"));
    };
    match u32::try_from(steps + 1) {
        Ok(count) => Ok(Array::Range { first: from, count, step }),
        Err(_) => Err(format!("makes an array of {} tasks; at most 10000000 are accepted", steps + 1)),
    }
}

/// `extract`, `extract:failure`, `17`, `17.merge`, `nightly.merge:any`.
pub fn after(text: &str) -> Result<After, String> {
    let (target, on) = match text.rsplit_once(':') {
        Some((target, on)) => (target, word(on, &ON)?),
        None => (text, On::Success),
    };
    if target.is_empty() {
        return Err("names no task; write \"name\", \"name:failure\" or \"17.name\"".to_owned());
    }
    if target.contains('[') {
        return Err(format!(
            "{target:?} is one element of an array; a dependency is on the whole task: leave out `[…]`"
        ));
    }
    if is_number(target) {
        return Ok(After { job: Some(job_number(target)?), job_name: None, task: None, on });
    }
    let Some((job, task)) = target.rsplit_once('.') else {
        return Ok(After { job: None, job_name: None, task: Some(target.to_owned()), on });
    };
    let after = After { job: None, job_name: None, task: Some(task.to_owned()), on };
    if is_number(job) {
        return Ok(After { job: Some(job_number(job)?), ..after });
    }
    Ok(After { job_name: Some(job.to_owned()), ..after })
}

pub(super) fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

pub(super) fn job_number(text: &str) -> Result<JobId, String> {
    text.parse().map(JobId).map_err(|_| format!("{text} is no job's number"))
}

/// RFC 3339 with a zone, or `+10m` from `now`.
pub fn start_at(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Some(wait) = text.strip_prefix('+') {
        return Ok(now.after(duration(wait)?));
    }
    let time = chrono::DateTime::parse_from_rfc3339(text).map_err(|_| {
        let has_date = chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%dT%H:%M:%S%.f").is_ok();
        let why = if has_date { "has no zone" } else { "is no time" };
        format!(
            "{text:?} {why}; write \"2030-01-31T06:00:00+01:00\", \"…Z\" for UTC, or \"+10m\" for ten minutes from now"
        )
    })?;
    let micros = u64::try_from(time.timestamp_micros()).map_err(|_| format!("{text:?} lies before 1970"))?;
    Ok(Timestamp(micros))
}
