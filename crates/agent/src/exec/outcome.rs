//! Reads what a successful task wrote to `MUSTER_RESULT`, and finds a place for it.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use muster_core::record::{RESULT_INLINE_MAX, TaskResult};
use serde::de::IgnoredAny;

use super::{Order, Results, os};

/// The largest result; more belongs into files of the task's own.
const RESULT_MAX: u64 = 64 * 1024 * 1024;
/// How deep lists and objects may lie in one another: common readers of JSON go to 127, and those who come after find
/// results in lists and objects of more.
const DEPTH_MAX: usize = 100;
/// Tries at an upload, and the wait between them.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);
/// `EX_DATAERR` of `sysexits.h`: how a task ends whose work succeeded and whose result is no result.
pub(crate) const BAD_RESULT: i32 = 65;

/// The result of `order` if it wrote one. `Err` is for people.
pub(crate) async fn collect(order: &Order, path: &Path, store: &dyn Results) -> Result<Option<TaskResult>, String> {
    // Nearly no task writes one: this must cost no more than one look.
    let kind = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("the result cannot be read: {error}")),
        Ok(kind) => kind,
    };
    if !kind.is_file() {
        return Err("the result is not a file: write it to the path in MUSTER_RESULT".into());
    }
    if kind.len() == 0 && os::is_others(&kind) {
        // It was made for a task that may make no files here, and left so.
        return Ok(None);
    }
    if kind.len() > RESULT_MAX {
        return Err(format!("the result has {} bytes; at most {RESULT_MAX} are kept", kind.len()));
    }
    keep(order, path, store).await.map(Some)
}

/// Whether the task wrote anything there.
pub(crate) fn is_there(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

async fn keep(order: &Order, path: &Path, store: &dyn Results) -> Result<TaskResult, String> {
    let file = path.to_owned();
    let read = tokio::task::spawn_blocking(move || read_json(&file)).await;
    let json = read.unwrap_or_else(|_| Err("the result could not be read: the reader broke".into()))?;
    if json.len() <= RESULT_INLINE_MAX {
        return Ok(TaskResult::Inline(json.into()));
    }
    let len = json.len() as u64;
    drop(json);
    let mut tries = 1;
    loop {
        match store.put(order.token, order.task, path).await {
            Ok(kept) if kept == len => return Ok(TaskResult::Stored(len)),
            Ok(kept) => return Err(format!("the result has {len} bytes and only {kept} were kept")),
            Err(error) if tries == TRIES => return Err(format!("the result could not be delivered: {error}")),
            Err(_) => tokio::time::sleep(PAUSE * tries).await,
        }
        tries += 1;
    }
}

fn read_json(path: &Path) -> Result<Vec<u8>, String> {
    let json = std::fs::read(path).map_err(|error| format!("the result cannot be read: {error}"))?;
    if let Err(error) = serde_json::from_slice::<IgnoredAny>(&json) {
        return Err(format!("the result is not JSON: {error}"));
    }
    let depth = depth(&json);
    if depth > DEPTH_MAX {
        return Err(format!("the result is nested {depth} deep; at most {DEPTH_MAX} can be read by everybody"));
    }
    Ok(json)
}

/// How many lists and objects of a JSON text lie in one another at most.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut most, mut in_string, mut is_escaped) = (0_usize, 0, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                most = most.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    most
}

/// Removes a file that an attempt may have left, whatever it made of it.
pub(crate) async fn discard(path: PathBuf) {
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(_) => {
            // A folder, of any size.
            let _gone = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(&path)).await;
        }
    }
}
