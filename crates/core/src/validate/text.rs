//! What texts may look like: names, label keys, and what a process can be given.

use std::borrow::Cow;

/// The longest name; it stands in keys of the store and in file names.
pub(super) const MAX_NAME: usize = 128;
/// The longest key of a label, and the longest tag.
pub(super) const MAX_KEY: usize = 256;

/// A queue's name, or a resource's: letters, digits, `_`, `.`, `-`.
pub(super) fn name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("is empty; give a name of letters, digits, `_`, `.` and `-`".to_owned());
    }
    if name.len() > MAX_NAME {
        return Err(format!("has {} bytes; a name has at most {MAX_NAME}", name.len()));
    }
    if let Some(odd) = name.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '.' | '-')) {
        return Err(format!("`{name}` holds {odd:?}; a name has only letters, digits, `_`, `.` and `-`"));
    }
    if name.starts_with(['-', '.']) {
        return Err(format!("`{name}` must start with a letter, a digit or `_`"));
    }
    Ok(())
}

/// A job's name: one that is not mistaken for a job's number, nor for `17.extract`.
pub(super) fn job_name(job: &str) -> Result<(), String> {
    name(job)?;
    let head = job.split('.').next().unwrap_or(job);
    if head.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("`{job}` reads as a job's number; put a letter in front"));
    }
    Ok(())
}

/// A task's name: `17.extract`, `17.extract[3]` and `extract:failure` must have one meaning.
pub(super) fn task_name(task: &str) -> Result<(), String> {
    name(task)?;
    if task.contains('.') {
        return Err(format!("`{task}` holds a dot, which stands between a job and its task; use `_` or `-`"));
    }
    if task.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("`{task}` reads as a task's number; put a letter in front"));
    }
    Ok(())
}

/// The key of a label: one that `key=value` and `key in (a, b)` can name.
pub(super) fn label_key(key: &str) -> Result<(), String> {
    if key.is_empty() {
        return Err("is empty; a label needs a key".to_owned());
    }
    if key.len() > MAX_KEY {
        return Err(format!("has a key of {} bytes; at most {MAX_KEY} are accepted", key.len()));
    }
    match key.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '.' | '-' | '/')) {
        Some(odd) => Err(format!("the key `{key}` holds {odd:?}; a key has only letters, digits, `_`, `.`, `-`, `/`")),
        None => Ok(()),
    }
}

/// A text that can be handed to a process: C ends it at the first zero byte.
pub(super) fn no_nul(text: &str) -> Result<(), String> {
    match text.as_bytes().contains(&0) {
        true => Err("holds a zero byte, which no process can be given".to_owned()),
        false => Ok(()),
    }
}

/// `no_nul`, and at most `max` bytes.
pub(super) fn fits(text: &str, max: usize) -> Result<(), String> {
    match text.len() > max {
        true => Err(format!("has {} bytes; at most {max} are accepted", text.len())),
        false => no_nul(text),
    }
}

/// `key` as a part of a path: `.key`, or `["odd key"]` where that would not be readable.
pub fn segment(key: &str) -> String {
    let plain = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'$'));
    if plain { format!(".{key}") } else { format!("[{key:?}]") }
}

/// `text` for a message: cut where it would fill the screen.
pub(super) fn shown(text: &str) -> Cow<'_, str> {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// How many letters must change to make `b` of `a`, if at most `limit` (Wagner and Fischer 1974).
pub(super) fn distance(a: &str, b: &str, limit: usize) -> Option<usize> {
    if a.len().abs_diff(b.len()) > limit {
        return None;
    }
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().filter(|d| *d <= limit)
}
