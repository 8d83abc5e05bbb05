//! What was written down during a run, read back without trust.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result};
use serde_json::Value;

/// One submission that a person was told is accepted.
#[derive(Clone, Debug)]
pub(crate) struct Acked {
    pub(crate) key: String,
    pub(crate) job: u64,
    pub(crate) began_us: u64,
    pub(crate) acked_us: u64,
    pub(crate) at_most_once: bool,
    /// How its last attempt must end, if not well: what its task does must be stopped.
    pub(crate) must: Option<String>,
    /// Of jobs that flood: bytes that are kept of each attempt's output, at most.
    pub(crate) log_limit: Option<u64>,
    /// Name, and the names that it waits for.
    pub(crate) tasks: Vec<(String, Vec<String>)>,
}

/// One attempt, as its process told it.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) key: String,
    pub(crate) name: String,
    pub(crate) job: u64,
    pub(crate) number: u64,
    pub(crate) token: u64,
    pub(crate) agent: String,
    pub(crate) cpus: u64,
    pub(crate) start_us: u64,
    /// The last sign of life.
    pub(crate) last_us: u64,
    /// Its exit code, if it came to its end.
    pub(crate) code: Option<i64>,
    /// Bytes that it says it wrote, all in all.
    pub(crate) wrote: Option<u64>,
    /// The kernel's lock of the task was held by another when it began.
    pub(crate) found_another: bool,
}

/// One read of all jobs.
#[derive(Clone, Debug)]
pub(crate) struct Poll {
    pub(crate) began_us: u64,
    pub(crate) ended_us: u64,
    pub(crate) jobs: BTreeMap<u64, String>,
}

/// One fault that was made.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) id: String,
    pub(crate) t_us: u64,
    pub(crate) text: String,
}

/// A piece of what an attempt wrote, or of what was not kept of it.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) text: String,
    pub(crate) cut: u64,
    /// Why it was cut, for people.
    pub(crate) why: String,
}

/// All of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) acked: Vec<Acked>,
    /// In the order of their starts.
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) polls: Vec<Poll>,
    /// Each job's last state.
    pub(crate) finals: BTreeMap<u64, String>,
    /// Of jobs that must not end well: how each attempt did.
    pub(crate) ends: BTreeMap<u64, Vec<String>>,
    /// What is kept of attempts that flooded: by job, task and number.
    pub(crate) logs: BTreeMap<(u64, String, u64), Vec<Piece>>,
    pub(crate) faults: Vec<Fault>,
    /// Thousandths of a processor by agent.
    pub(crate) capacity: BTreeMap<String, u64>,
    /// Lines that nobody could have written.
    pub(crate) odd: Vec<String>,
}

impl History {
    /// Reads the folder of a run.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let text = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))
        };
        let mut history = Self::default();
        history.witness(&text("witness/lines")?);
        history.people(&text("people.jsonl")?)?;
        history.polls(&text("polls.jsonl")?)?;
        history.finals = states(&text("final.jsonl")?)?;
        history.ends = ends(&text("ends.jsonl")?)?;
        // A run that was interrupted has none; what flooded is accused then.
        history.logs(&text("floods.jsonl").unwrap_or_default())?;
        for line in text("faults.jsonl")?.lines() {
            let line: Value = serde_json::from_str(line).context("faults.jsonl")?;
            let word = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            history.faults.push(Fault { id: word("fault"), t_us: number(&line, "t_us")?, text: word("text") });
        }
        let agents: Value = serde_json::from_str(&text("agents.json")?).context("agents.json")?;
        let agents = agents.as_object().context("agents.json is no object")?;
        history.capacity = agents.iter().map(|(name, cpus)| (name.clone(), cpus.as_u64().unwrap_or(0))).collect();
        Ok(history)
    }

    /// Lines of tasks: `WORD TIME KEY NAME JOB ATTEMPT TOKEN AGENT CPUS [CODE or BYTES]`.
    pub(crate) fn witness(&mut self, text: &str) {
        let mut open: BTreeMap<(String, String, u64), usize> = BTreeMap::new();
        let mut overlaps: BTreeSet<(String, String, u64)> = BTreeSet::new();
        for line in text.lines() {
            let Some(said) = Said::of(line) else {
                self.odd.push(format!("{line:?} is no line of a task"));
                continue;
            };
            let of = (said.key.clone(), said.name.clone(), said.token);
            match said.word {
                "overlap" => {
                    overlaps.insert(of);
                }
                "start" => {
                    let found_another = overlaps.contains(&of);
                    if open.insert(of, self.attempts.len()).is_some() {
                        self.odd.push(format!("{line:?}: this lease was begun before"));
                    }
                    self.attempts.push(said.begins(found_another));
                }
                "beat" | "end" | "wrote" => match open.get(&of).and_then(|at| self.attempts.get_mut(*at)) {
                    Some(attempt) => {
                        attempt.last_us = said.t_us;
                        attempt.code = said.code.or(attempt.code);
                        attempt.wrote = said.bytes.or(attempt.wrote);
                    }
                    None => self.odd.push(format!("{line:?} has no start before it")),
                },
                _ => self.odd.push(format!("{line:?} has an unknown word")),
            }
        }
        self.attempts.sort_by_key(|attempt| attempt.start_us);
    }

    /// Lines of people, one for each acknowledgement.
    pub(crate) fn people(&mut self, text: &str) -> Result<()> {
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).context("people.jsonl")?;
            let words = |value: &Value| -> Vec<String> {
                value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
            };
            let tasks = line["tasks"].as_array().context("people.jsonl: no tasks")?;
            let tasks =
                tasks.iter().map(|task| (task["name"].as_str().unwrap_or_default().to_owned(), words(&task["after"])));
            self.acked.push(Acked {
                key: line["key"].as_str().context("people.jsonl: no key")?.to_owned(),
                job: number(&line, "job")?,
                began_us: number(&line, "began_us")?,
                acked_us: number(&line, "acked_us")?,
                at_most_once: line["on_lost"] == "fail",
                log_limit: line["log_limit"].as_u64(),
                must: line["must"].as_str().map(str::to_owned),
                tasks: tasks.collect(),
            });
        }
        Ok(())
    }

    /// Lines of `ctl logs -o jsonl`, of one attempt after another.
    pub(crate) fn logs(&mut self, text: &str) -> Result<()> {
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).context("floods.jsonl")?;
            let word = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            let of = (number(&line, "job")?, word("task_name"), number(&line, "attempt")?);
            let (offset, cut) = (number(&line, "offset")?, number(&line, "cut_bytes")?);
            self.logs.entry(of).or_default().push(Piece { offset, text: word("text"), cut, why: word("cut_reason") });
        }
        Ok(())
    }

    /// Lines of the poller, one for each read.
    pub(crate) fn polls(&mut self, text: &str) -> Result<()> {
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).context("polls.jsonl")?;
            let jobs = line["jobs"].as_object().context("polls.jsonl: no jobs")?;
            let jobs = jobs.iter().filter_map(|(job, state)| Some((job.parse().ok()?, state.as_str()?.to_owned())));
            self.polls.push(Poll {
                began_us: number(&line, "began_us")?,
                ended_us: number(&line, "ended_us")?,
                jobs: jobs.collect(),
            });
        }
        Ok(())
    }
}

/// Lines of `ctl list -o jsonl`: each job's state.
pub(crate) fn states(text: &str) -> Result<BTreeMap<u64, String>> {
    let one = |line: &str| {
        let line: Value = serde_json::from_str(line).context("a job's line is no JSON")?;
        Ok((number(&line, "id")?, line["state"].as_str().context("a job without a state")?.to_owned()))
    };
    text.lines().map(one).collect()
}

/// What `ctl show --tasks` said of jobs that must not end well, one in a line: how each attempt of theirs did.
pub(crate) fn ends(text: &str) -> Result<BTreeMap<u64, Vec<String>>> {
    let one = |line: &str| {
        let line: Value = serde_json::from_str(line).context("ends.jsonl")?;
        let attempts = line["tasks"].as_array().into_iter().flatten().filter_map(|task| task["attempts"].as_array());
        let word = |attempt: &Value| attempt["end"]["kind"].as_str().unwrap_or("none").to_owned();
        Ok((number(&line["job"], "id")?, attempts.flatten().map(word).collect()))
    };
    text.lines().map(one).collect()
}

fn number(line: &Value, key: &str) -> Result<u64> {
    line[key].as_u64().with_context(|| format!("no number `{key}` in {line}"))
}

/// One line of a task.
struct Said<'a> {
    word: &'a str,
    t_us: u64,
    key: String,
    name: String,
    job: u64,
    number: u64,
    token: u64,
    agent: String,
    cpus: u64,
    code: Option<i64>,
    bytes: Option<u64>,
}

impl<'a> Said<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let words: Vec<_> = line.split(' ').collect();
        let [word, t_us, key, name, job, number, token, agent, cpus, rest @ ..] = words.as_slice() else { return None };
        let (code, bytes) = match (*word, rest) {
            ("end", [code]) => (Some(code.parse().ok()?), None),
            ("wrote", [bytes]) => (None, Some(bytes.parse().ok()?)),
            ("end" | "wrote", _) | (_, [_, ..]) => return None,
            (_, []) => (None, None),
        };
        Some(Self {
            word,
            t_us: t_us.parse().ok()?,
            key: (*key).to_owned(),
            name: (*name).to_owned(),
            job: job.parse().ok()?,
            number: number.parse().ok()?,
            token: token.parse().ok()?,
            agent: (*agent).to_owned(),
            cpus: cpus.parse().ok()?,
            code,
            bytes,
        })
    }

    fn begins(self, found_another: bool) -> Attempt {
        let Self { t_us, key, name, job, number, token, agent, cpus, .. } = self;
        let (start_us, last_us, code, wrote) = (t_us, t_us, None, None);
        Attempt { key, name, job, number, token, agent, cpus, start_us, last_us, code, wrote, found_another }
    }
}
