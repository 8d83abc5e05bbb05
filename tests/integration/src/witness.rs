//! What tasks themselves say of when they ran. Shares no code and no clock with the product: tasks append lines to one
//! file, and hold a kernel lock for as long as any process of theirs lives.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

/// The file that tasks write to, and their locks.
pub struct Witness {
    folder: PathBuf,
}

/// What happened to one task, in the order of the file.
#[derive(Debug, Default)]
pub struct History {
    /// Each attempt that began: its number and its token.
    pub starts: Vec<(u32, u64)>,
    /// The attempts that came to their last line.
    pub ends: Vec<u32>,
    /// The line of its first start.
    pub first_start: usize,
    /// The line of its last end.
    pub last_end: usize,
}

impl Witness {
    /// A witness with its file in this folder.
    pub fn new(folder: &Path) -> Result<Self> {
        let folder = folder.join("witness");
        fs::create_dir_all(&folder).with_context(|| format!("could not make {}", folder.display()))?;
        fs::write(folder.join("lines"), "").context("could not make the witness file")?;
        Ok(Self { folder })
    }

    /// A shell text that runs `work` under this witness. The lock is held by the shell and by all that it starts.
    pub fn around(&self, work: &str) -> String {
        let folder = self.folder.display();
        let say = |word: &str| format!("echo \"{word} $MUSTER_TASK $MUSTER_ATTEMPT $MUSTER_TOKEN\" >>{folder}/lines");
        let (start, end, overlap) = (say("start"), say("end"), say("overlap"));
        format!("exec 9>>{folder}/lock.$MUSTER_TASK; flock -n 9 || {overlap}; {start}; {work}; {end}")
    }

    /// How many lines there are.
    pub fn lines(&self) -> Result<usize> {
        Ok(self.text()?.lines().count())
    }

    /// How many tasks are in the middle of an attempt, as far as they say.
    pub fn under_way(&self) -> Result<usize> {
        Ok(self.histories()?.values().filter(|history| history.starts.len() > history.ends.len()).count())
    }

    fn text(&self) -> Result<String> {
        fs::read_to_string(self.folder.join("lines")).context("could not read the witness file")
    }

    /// The history of every task that ever started. An overlap, or a line that no task could have written, is an error.
    pub fn histories(&self) -> Result<BTreeMap<u32, History>> {
        let mut all: BTreeMap<u32, History> = BTreeMap::new();
        let text = self.text()?;
        for (number, line) in text.lines().enumerate() {
            let words: Vec<_> = line.split(' ').collect();
            let [word, task, attempt, token] = words[..] else {
                bail!("line {number} of the witness is torn: {line:?}")
            };
            let parsed = (task.parse(), attempt.parse(), token.parse());
            let (Ok(task), Ok(attempt), Ok(token)) = parsed else {
                bail!("line {number} of the witness is odd: {line:?}")
            };
            let history = all.entry(task).or_default();
            match word {
                "start" => {
                    history.start(number, attempt, token).with_context(|| format!("task {task}, line {number}"))?
                }
                "end" => {
                    history.ends.push(attempt);
                    history.last_end = number;
                }
                "overlap" => bail!("task {task}: attempt {attempt} began while another attempt's process lived"),
                _ => bail!("line {number} of the witness is odd: {line:?}"),
            }
        }
        Ok(all)
    }
}

impl History {
    fn start(&mut self, line: usize, attempt: u32, token: u64) -> Result<()> {
        match self.starts.last() {
            None => self.first_start = line,
            Some((before, old)) => {
                ensure!(attempt > *before, "attempt {attempt} began after attempt {before}");
                ensure!(token > *old, "token {token} was given after token {old}");
            }
        }
        self.starts.push((attempt, token));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &str) -> Result<BTreeMap<u32, History>> {
        let folder = tempfile::tempdir()?;
        let witness = Witness::new(folder.path())?;
        fs::write(witness.folder.join("lines"), lines)?;
        witness.histories()
    }

    #[test]
    fn a_second_attempt_after_the_first_is_history() -> Result<()> {
        let all = of("start 3 1 10\nstart 4 1 11\nend 4 1 11\nstart 3 2 12\nend 3 2 12\n")?;
        assert_eq!(all[&3].starts, [(1, 10), (2, 12)]);
        assert_eq!((all[&3].first_start, all[&3].last_end), (0, 4));
        assert_eq!(all[&4].ends, [1]);
        Ok(())
    }

    #[test]
    fn what_may_not_happen_is_an_error() {
        for (lines, expected) in [
            ("start 3 1 10\noverlap 3 2 11\n", "while another"),
            ("start 3 1 10\nstart 3 1 11\n", "began after"),
            ("start 3 1 10\nstart 3 2 10\n", "was given after"),
            ("start 3 1\n", "torn"),
            ("begin 3 1 10\n", "odd"),
        ] {
            let error = format!("{:#}", of(lines).expect_err(lines));
            assert!(error.contains(expected), "{lines:?}: {error}");
        }
    }
}
