//! A job of one command, for `ctl run -- CMD…`.

use std::{collections::BTreeMap, sync::Arc};

use muster_core::{
    resources::Request,
    spec::{Command, DEFAULT_QUEUE, JobSpec, TaskSpec},
};

/// What a command line says besides the command.
#[derive(Clone, Debug)]
pub struct CommandOptions {
    /// The job's name; none: the program's.
    pub name: Option<String>,
    /// The queue.
    pub queue: String,
    /// The job's labels.
    pub labels: BTreeMap<String, String>,
    /// Everything about the task but its command. An empty name is made from the program's.
    pub task: TaskSpec,
}

impl Default for CommandOptions {
    /// One processor, the default queue, no limits: what a task in a job file has that says nothing.
    fn default() -> Self {
        let request = Request { cpu_milli: 1000, ..Request::default() };
        Self {
            name: None,
            queue: DEFAULT_QUEUE.to_owned(),
            labels: BTreeMap::new(),
            task: TaskSpec { request, ..TaskSpec::default() },
        }
    }
}

/// The job that runs `argv` once (or once for each element of `options.task.array`). It is not checked:
/// `muster_core::validate::check` says what is wrong with it.
pub fn command_job(argv: Vec<String>, options: CommandOptions) -> JobSpec {
    let CommandOptions { name, queue, labels, mut task } = options;
    if task.name.is_empty() {
        task.name = name_of(argv.first().map_or("", String::as_str));
    }
    let name = name.unwrap_or_else(|| task.name.clone());
    task.command = Command::Argv(argv);
    JobSpec { name, labels, metadata: BTreeMap::new(), queue, tasks: vec![Arc::new(task)] }
}

/// A task's name for `program`: its file name, as far as a name can hold it.
fn name_of(program: &str) -> String {
    const LONG: usize = 40;
    let file = program.rsplit(['/', '\\']).next().unwrap_or(program);
    let stem = file.strip_suffix(".exe").unwrap_or(file);
    let letter = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    let name: String = stem.chars().map(letter).take(LONG).collect();
    let name = name.trim_matches('-');
    match name.bytes().all(|b| b.is_ascii_digit()) {
        true if name.is_empty() => "command".to_owned(),
        true => format!("command-{name}"),
        false => name.to_owned(),
    }
}
