//! Spools that one process writes and another one ships: the keeper tells the agent what its files have.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, atomic::Ordering},
};

use muster_core::id::Token;
use tracing::warn;

use super::{Config, Entry, Head, Spools, frame::FILE_HEAD, size_of};

/// What one attempt's file has. It may be told again, and late.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Whose it is.
    pub head: Head,
    /// Bytes of whole records in the file.
    pub end: u64,
    /// Nothing is written any more.
    pub over: bool,
    /// Records that the disk did not take; only of one that is over.
    pub memory: Vec<u8>,
}

/// The writing side.
impl Spools {
    /// Opens the folder to write into it. What is there already takes room until it is shipped.
    pub fn to_write(config: &Config) -> io::Result<Self> {
        let spools = Self::empty(config)?;
        let files = std::fs::read_dir(&spools.shared.folder)?.flatten();
        let used = files.filter_map(|file| file.metadata().ok()).map(|file| file.len());
        spools.shared.used.store(used.sum(), Ordering::Relaxed);
        Ok(spools)
    }

    /// Waits until [`Spools::next_notice`] may have one. Cancel safe.
    pub async fn has_news(&self) {
        self.shared.news.notified().await;
    }

    /// What is new of one attempt. One that is over is not named again.
    pub fn next_notice(&self) -> Option<Notice> {
        let entry = self.shared.next_news()?;
        // Before the length: what a writer that is over wrote is then all there.
        let over = entry.is_over();
        let memory = if over { entry.memory().clone() } else { Vec::new() };
        if over {
            self.shared.board().entries.remove(&entry.head.token);
        }
        Some(Notice { head: entry.head, end: entry.end(), over, memory })
    }

    /// Whose files are not known to be complete to whoever ships. They are all told of again.
    pub fn begin_notices(&self) -> Vec<Token> {
        let entries: Vec<Arc<Entry>> = self.shared.board().entries.values().cloned().collect();
        entries.iter().for_each(|entry| self.shared.list(entry));
        entries.iter().map(|entry| entry.head.token).collect()
    }

    /// So much was shipped, and its files are gone.
    pub fn shipped(&self, bytes: u64) {
        self.shared.give_back(bytes);
    }
}

/// The shipping side.
impl Spools {
    /// Opens the folder to ship what is in it. The files of `written` are being written by another process, which says
    /// what they have; `on_forget` hears of bytes that were shipped and whose files are gone.
    pub fn to_ship(
        config: &Config,
        written: &BTreeSet<Token>,
        on_forget: impl Fn(u64) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let spools = Self::empty(config)?;
        spools.find_leftovers(|token| written.contains(&token))?;
        // A new one, so nobody set it before.
        let _was_empty = spools.shared.on_forget.set(Box::new(on_forget));
        Ok(spools)
    }

    /// The writer says what a file has.
    pub fn noticed(&self, notice: Notice) {
        let Notice { head, end, over, memory } = notice;
        let shared = &self.shared;
        let known = shared.board().entries.get(&head.token).cloned();
        let entry = known.unwrap_or_else(|| Arc::new(Entry::new(shared.path(head.token), head)));
        let before = entry.end.fetch_max(end, Ordering::AcqRel);
        shared.used.fetch_add(size_of(end).saturating_sub(size_of(before)), Ordering::Relaxed);
        if over && !entry.is_over() {
            *entry.memory() = memory;
            entry.over.store(true, Ordering::Release);
        }
        shared.list(&entry);
    }

    /// Whoever wrote is dead: what the files have is all there will be, but of `others`, of which somebody goes on to tell. A
    /// torn end is found when it is read. Nobody may begin to write anything before this returns.
    pub fn writer_died(&self, others: &BTreeSet<Token>) {
        let entries: Vec<Arc<Entry>> = self.shared.board().entries.values().cloned().collect();
        let is_over = |entry: &&Arc<Entry>| !entry.is_over() && !others.contains(&entry.head.token);
        for entry in entries.iter().filter(is_over) {
            let len = std::fs::metadata(&entry.path).map_or(0, |file| file.len().saturating_sub(FILE_HEAD as u64));
            let before = entry.end.fetch_max(len, Ordering::AcqRel);
            self.shared.used.fetch_add(size_of(len).saturating_sub(size_of(before)), Ordering::Relaxed);
            entry.over.store(true, Ordering::Release);
            self.shared.list(entry);
        }
        // Nobody came to tell of these.
        let is_known = |token| others.contains(&token) || self.shared.board().entries.contains_key(&token);
        if let Err(error) = self.find_leftovers(is_known) {
            warn!(%error, "output of a keeper that died waits for the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_is_just_being_made_is_its_writers_and_what_cannot_be_read_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let spool = folder.path().join("spool");
        fs::create_dir(&spool).expect("made");
        let names = ["7.log", "8.log", "9.log"].map(|name| spool.join(name));
        // Between its making and its head; of a newer build; and what nobody expects.
        fs::write(&names[0], "").expect("written");
        fs::write(&names[1], "a head of another form, with as many bytes as it takes").expect("written");
        fs::create_dir(&names[2]).expect("made");
        let written = [Token(7)].into();
        let config = Config::new(folder.path().to_owned());
        let spools = Spools::to_ship(&config, &written, |_| ()).expect("it can be used");
        spools.writer_died(&written);
        for name in names {
            assert!(name.exists(), "{} is gone", name.display());
        }
        assert!(spools.shared.board().entries.is_empty());
    }
}
