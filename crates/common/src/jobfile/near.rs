//! The valid word that a person most likely meant.

use strsim::osa_distance;

/// Words of other systems for what Muster calls otherwise.
const MEANT: &[(&str, &str)] = &[
    ("cmd", "run"),
    ("command", "run"),
    ("args", "run"),
    ("argv", "run"),
    ("exec", "run"),
    ("script", "shell"),
    ("bash", "shell"),
    ("depends", "after"),
    ("depends_on", "after"),
    ("dependencies", "after"),
    ("needs", "after"),
    ("upstream", "after"),
    ("environment", "env"),
    ("workdir", "cwd"),
    ("working_dir", "cwd"),
    ("working_directory", "cwd"),
    ("dir", "cwd"),
    ("cores", "cpus"),
    ("mem", "memory"),
    ("ram", "memory"),
    ("matrix", "array"),
    ("constraints", "requires"),
    ("selector", "requires"),
    ("time_limit", "timeout"),
    ("timeout_seconds", "timeout"),
    ("retry", "retries"),
    ("max_retries", "retries"),
    ("max_attempts", "retries"),
    ("backoff", "factor"),
    ("not_before", "start_at"),
    ("scheduled_at", "start_at"),
    ("id", "name"),
    ("title", "name"),
    ("steps", "tasks"),
    ("count", "max"),
    ("attempts", "max"),
    ("when", "on"),
    ("start", "from"),
    ("first", "from"),
    ("end", "to"),
    ("last", "to"),
    ("file", "lines"),
    ("values", "items"),
    ("list", "items"),
];

/// What `word` is called here, if it is another system's word for one of `words`.
pub(super) fn meant<'a>(word: &str, mut words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (_, ours) = MEANT.iter().find(|(theirs, _)| *theirs == word)?;
    words.find(|word| word == ours)
}

/// The one of `words` that is least changes away from `word`, if that is few enough to be a slip.
pub(super) fn nearest<'a>(word: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const LONG: usize = 64;
    if word.len() > LONG {
        return None;
    }
    let word = word.to_ascii_lowercase();
    let limit = (word.len() / 3).clamp(1, 3);
    let near = words.map(|other| (osa_distance(&word, other), other));
    near.filter(|(distance, _)| *distance <= limit).min().map(|(_, other)| other)
}
