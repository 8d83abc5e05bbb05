//! What all parts of a run share: the end of it, which anybody may ask for, and the diary of faults.

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::json;

use crate::now;

/// Asked for by a person, or by a part that cannot go on.
#[derive(Default)]
pub(crate) struct Stop {
    asked: Mutex<bool>,
    woken: Condvar,
}

impl Stop {
    pub(crate) fn ask(&self) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.woken.notify_all();
    }

    pub(crate) fn is_asked(&self) -> bool {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits so long, or until the end is asked for; whether it is.
    pub(crate) fn rest(&self, long: Duration) -> bool {
        let until = Instant::now() + long;
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        while !*asked {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            asked = self.woken.wait_timeout(asked, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *asked
    }
}

/// What was done to the cluster, and when: read by the checker and by people.
pub(crate) struct Diary(Mutex<File>);

impl Diary {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        File::create(path)
            .map(|file| Self(Mutex::new(file)))
            .with_context(|| format!("could not make {}", path.display()))
    }

    /// `id`: of the fault, like X1.
    pub(crate) fn note(&self, id: &str, text: &str) {
        let line = json!({ "t_us": now::us(), "fault": id, "text": text });
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Without it the run is still checked; the disk's trouble shows elsewhere.
        let _written = writeln!(file, "{line}");
    }
}
