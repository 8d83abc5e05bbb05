//! How a keeper begins: with what its safe has for it, which is nothing for the first one.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use prost::Message as _;

use super::{
    desk::Desk,
    message::{Gpus, Hold},
};
use crate::{
    exec::{Estate, deposit::Kept, guard, os},
    safe::{COMMON, Entry, Heritage, take_over},
};

/// More threads than read what tasks write.
const CHAMBERS: usize = 4;

/// What is kept that belongs to no attempt.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Common {
    #[prost(message, optional, tag = "1")]
    pub(super) hold: Option<Hold>,
    #[prost(message, optional, tag = "2")]
    pub(super) gpus: Option<Gpus>,
}

/// See the module.
pub(super) struct Heir {
    pub(super) estate: Estate,
    pub(super) kept: Vec<Kept>,
    common: Common,
    generation: u32,
    /// Held for as long as we live.
    lock: Option<File>,
}

impl Heir {
    /// Must be called inside a runtime, once.
    pub(super) fn begin() -> io::Result<Self> {
        let line = io::stdin().as_fd().try_clone_to_owned()?;
        // Nobody whom we start may find it.
        nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
        let Heritage { safe, cookie, generation, entries, lock } = take_over(line)?;
        let (common, attempts): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(|entry| entry.key == COMMON);
        let (mut sluice, mut noted) = (None, Common::default());
        for entry in common {
            noted = Common::decode(&*entry.note).unwrap_or_default();
            sluice = Some(os::Sluice::of(entry.files.into_iter().flatten().map(File::from)));
        }
        let sluice = match sluice {
            Some(sluice) => sluice,
            None => {
                let sluice = os::Sluice::new(CHAMBERS)?;
                let files = sluice.files()?.into_iter().map(OwnedFd::from).collect();
                safe.put(COMMON, 0, Vec::new(), files);
                sluice
            }
        };
        let mut kept = Vec::new();
        for entry in attempts {
            let key = entry.key;
            match Kept::read(entry) {
                Some(found) => kept.push(found),
                // It is ended as a stray.
                None => safe.take_out(key),
            }
        }
        let (slots, folders) = Estate::spares(&kept);
        let (sluice, is_heir) = (Arc::new(sluice), generation > 0);
        let estate = Estate { safe, cookie, sluice, is_heir, slots, folders };
        Ok(Self { estate, kept, common: noted, generation, lock })
    }

    /// Lets everything go on that goes on, and ends the rest.
    pub(super) fn take_up(self, mut desk: Desk) -> Desk {
        desk.inherit(&self.estate, self.generation, &self.kept, self.common, self.lock);
        let exec = desk.exec().clone();
        exec.adopt(self.kept);
        if self.estate.is_heir {
            exec.end_strays(guard::SWEEP_LIMIT);
        }
        desk
    }
}
