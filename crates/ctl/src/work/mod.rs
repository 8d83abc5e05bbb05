//! What is handed in: a job file, or a command line made into one; checked before anything is sent.

mod findings;

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use muster_common::{
    jobfile::{self, Format},
    proto::v1,
    wire,
};
use serde_json::{Map, Value, json};

pub(crate) use self::findings::{machine, show};
use crate::{
    error::Error,
    exit::Exit,
    output::{Output, style::Look},
    remote::find::Place,
};

/// A job file (`-`: standard input), or a command after `--`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["file", "command"]))]
pub(crate) struct WorkArgs {
    /// A job file: .toml, .yaml or .json; `-` reads standard input
    #[arg(value_name = "JOBFILE")]
    file: Option<PathBuf>,
    /// A command and its arguments, run as a job of one task
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
    /// What is on standard input
    #[arg(long, value_enum, value_name = "FORMAT", requires = "file")]
    format: Option<FileFormat>,
    /// Call the job this
    #[arg(long)]
    name: Option<String>,
    /// Put the job in this queue
    #[arg(long)]
    queue: Option<String>,
    /// Give the job a label: key=value
    #[arg(long, value_name = "LABEL", value_parser = pair)]
    label: Vec<(String, String)>,
    #[command(flatten)]
    task: TaskArgs,
}

/// What a command's task is given; a job file says it itself.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "For CMD")]
struct TaskArgs {
    /// A variable of its environment: NAME=VALUE, or NAME for the value it has here
    #[arg(long, value_name = "VAR", requires = "command", conflicts_with = "file", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Give it what comes on standard input (up to 1 MiB); without this it reads nothing
    #[arg(long, requires = "command", conflicts_with = "file")]
    stdin: bool,
    /// Its working folder on the agent
    #[arg(long, value_name = "DIR", requires = "command", conflicts_with = "file")]
    cwd: Option<String>,
    /// Run it in a container of this image
    #[arg(long, value_name = "IMAGE", requires = "command", conflicts_with = "file")]
    image: Option<String>,
    /// Processors it takes: 2, 0.5
    #[arg(long, value_name = "N", requires = "command", conflicts_with = "file")]
    #[arg(value_parser = processors, allow_negative_numbers = true)]
    cpus: Option<f64>,
    /// Memory it takes: 512MiB, 4GiB
    #[arg(long, value_name = "SIZE", requires = "command", conflicts_with = "file")]
    memory: Option<String>,
    /// GPUs it takes
    #[arg(long, value_name = "N", requires = "command", conflicts_with = "file")]
    gpus: Option<u32>,
    /// Bytes that it may read from disks in a second: 50MB
    #[arg(long, value_name = "SIZE", requires = "command", conflicts_with = "file")]
    io_read: Option<String>,
    /// Bytes that it may write to disks in a second: 50MB
    #[arg(long, value_name = "SIZE", requires = "command", conflicts_with = "file")]
    io_write: Option<String>,
    /// How often it may read from disks in a second
    #[arg(long, value_name = "N", requires = "command", conflicts_with = "file")]
    io_read_ops: Option<u64>,
    /// How often it may write to disks in a second
    #[arg(long, value_name = "N", requires = "command", conflicts_with = "file")]
    io_write_ops: Option<u64>,
    /// Give it a scratch folder of its own, in which at most so much may lie: 1GB
    #[arg(long, value_name = "SIZE", requires = "command", conflicts_with = "file")]
    scratch_size: Option<String>,
    /// Bytes of its output that are kept in a second: 1MB
    #[arg(long, value_name = "SIZE", requires = "command", conflicts_with = "file")]
    log_rate: Option<String>,
    /// A variable of --env whose value its output must not show (may be repeated)
    #[arg(long, value_name = "NAME", requires = "command", conflicts_with = "file")]
    mask: Vec<String>,
    /// Stop it after this: 30s, 5m
    #[arg(long, value_name = "TIME", requires = "command", conflicts_with = "file")]
    timeout: Option<String>,
    /// Try again this often when it fails
    #[arg(long, value_name = "N", requires = "command", conflicts_with = "file")]
    retries: Option<u32>,
    /// After one that needed more memory, try again with twice as much, this often
    #[arg(long, value_name = "N", requires = "command", conflicts_with = "file")]
    oom_retries: Option<u32>,
    /// Run it as this user of the agent's machine
    #[arg(long, value_name = "USER", requires = "command", conflicts_with = "file")]
    run_as: Option<String>,
    /// low, normal, high, critical, or a number
    #[arg(long, value_name = "PRIORITY", requires = "command", conflicts_with = "file")]
    priority: Option<String>,
}

/// What a job file may be written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FileFormat {
    Toml,
    Yaml,
    Json,
}

impl From<FileFormat> for Format {
    fn from(format: FileFormat) -> Self {
        match format {
            FileFormat::Toml => Self::Toml,
            FileFormat::Yaml => Self::Yaml,
            FileFormat::Json => Self::Json,
        }
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write key=value".to_owned()),
    }
}

fn processors(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite());
    number.ok_or_else(|| format!("`{text}` is no number of processors; write 2 or 0.5"))
}

fn variable(text: &str) -> Result<(String, String), String> {
    if text.contains('=') {
        return pair(text).map_err(|_| "write NAME=VALUE, or NAME alone".to_owned());
    }
    match std::env::var(text) {
        Ok(value) => Ok((text.to_owned(), value)),
        Err(_) => Err(format!("{text} has no value here; write {text}=VALUE")),
    }
}

/// A checked job.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) spec: v1::JobSpec,
    /// It was typed after `--`: its output is what the person wants to see.
    pub(crate) is_command: bool,
    /// Whether the job is exactly one task.
    pub(crate) is_single: bool,
}

/// Where the work will run, as far as that changes what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    /// On this machine: tasks start in the folder that the person stands in.
    Here,
    /// On agents that do not know the person's folders.
    Anywhere,
}

impl Where {
    /// A controller on the loopback is one that a person runs for themselves.
    pub(crate) fn of(place: &Place) -> Self {
        let address = place.url.split_once("://").map_or(place.url.as_str(), |(_, address)| address);
        let is_local = ["127.", "localhost", "[::1]"].iter().any(|host| address.starts_with(host));
        if is_local { Self::Here } else { Self::Anywhere }
    }

    fn folder(self) -> PathBuf {
        match self {
            Self::Here => std::env::current_dir().unwrap_or_default(),
            Self::Anywhere => PathBuf::new(),
        }
    }
}

impl WorkArgs {
    /// The job, or every problem printed and the exit code for bad input.
    pub(crate) fn read(&self, output: Output, place: Where) -> Result<Work, Error> {
        let source = match &self.file {
            Some(path) => Source::read(path, self.format)?,
            None => Source::of_command(self.document()?),
        };
        let parsed = source.parse(output, place)?;
        let mut spec = parsed.spec;
        if self.file.is_some() {
            if let Some(name) = &self.name {
                spec.name.clone_from(name);
            }
            if let Some(queue) = &self.queue {
                spec.queue.clone_from(queue);
            }
            spec.labels.extend(self.label.iter().cloned());
        }
        if self.task.stdin {
            let input = own_stdin()?;
            spec.tasks.iter_mut().for_each(|task| Arc::make_mut(task).stdin = Some(input.clone()));
        }
        refuse(&muster_core::validate::check(&spec))?;
        let is_single = spec.task_count() == 1;
        Ok(Work { spec: wire::spec::job_to_proto(&spec), is_command: self.file.is_none(), is_single })
    }

    /// The job file that the command line stands for.
    fn document(&self) -> Result<String, Error> {
        let program = Path::new(&self.command[0]).file_stem().unwrap_or_default().to_string_lossy();
        let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
        let name: String = program.chars().map(plain).take(60).collect();
        let mut task = Map::new();
        task.insert("name".into(), json!("main"));
        task.insert("run".into(), json!(self.command));
        let env: Map<_, _> = self.task.env.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        let fields: [(&str, Option<Value>); 19] = [
            ("cwd", self.task.cwd.as_ref().map(|dir| json!(dir))),
            ("env", (!env.is_empty()).then_some(Value::Object(env))),
            ("image", self.task.image.as_ref().map(|image| json!(image))),
            ("cpus", self.task.cpus.map(|n| json!(n))),
            ("memory", self.task.memory.as_deref().map(number_or_text)),
            ("gpus", self.task.gpus.map(|n| json!(n))),
            ("io_read", self.task.io_read.as_deref().map(number_or_text)),
            ("io_write", self.task.io_write.as_deref().map(number_or_text)),
            ("io_read_ops", self.task.io_read_ops.map(|n| json!(n))),
            ("io_write_ops", self.task.io_write_ops.map(|n| json!(n))),
            ("scratch", self.task.scratch_size.as_ref().map(|_| json!("private"))),
            ("scratch_size", self.task.scratch_size.as_deref().map(number_or_text)),
            ("log_rate", self.task.log_rate.as_deref().map(number_or_text)),
            ("mask", (!self.task.mask.is_empty()).then(|| json!(self.task.mask))),
            ("timeout", self.task.timeout.as_ref().map(|text| json!(text))),
            ("retries", self.task.retries.map(|n| json!({ "max": n }))),
            ("oom_retries", self.task.oom_retries.map(|n| json!(n))),
            ("run_as", self.task.run_as.as_ref().map(|user| json!(user))),
            ("priority", self.task.priority.as_deref().map(number_or_text)),
        ];
        task.extend(fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        let labels: Map<_, _> = self.label.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        let mut job = json!({
            "name": self.name.clone().unwrap_or(if name.is_empty() { "command".to_owned() } else { name }),
            "labels": labels,
            "tasks": [task],
        });
        if let Some(queue) = &self.queue {
            job["queue"] = json!(queue);
        }
        serde_json::to_string(&job).map_err(|error| Error::new(Exit::FAULT, format!("cannot write the job: {error}")))
    }
}

/// As a job file would have it: a number of bytes or a priority is a number there, and everything else a text.
fn number_or_text(text: &str) -> Value {
    text.parse::<i64>().map_or_else(|_| json!(text), |number| json!(number))
}

/// A job file's text, read as far as a job file may go: a device or a pipe may never end.
fn text_of(from: impl io::Read) -> io::Result<String> {
    let mut text = String::new();
    let read = from.take(jobfile::MAX_FILE as u64 + 1).read_to_string(&mut text)?;
    if read > jobfile::MAX_FILE {
        return Err(io::Error::other(format!("it is longer than the {} bytes that are read", jobfile::MAX_FILE)));
    }
    Ok(text)
}

/// What CMD is to read.
fn own_stdin() -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    // One more than is accepted, so that the refusal comes from the one place that knows the limit.
    io::stdin()
        .lock()
        .take(muster_core::validate::MAX_STDIN as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::new(Exit::USAGE, format!("cannot read standard input for CMD: {error}")))?;
    Ok(bytes)
}

fn refuse(problems: &[muster_core::validate::Problem]) -> Result<(), Error> {
    if problems.is_empty() {
        return Ok(());
    }
    let error = Error::new(Exit::USAGE, "the job is not as it should be; nothing was submitted");
    Err(problems.iter().fold(error, |error, problem| error.detail(problem.to_string())))
}

/// A job file's text and where it is from.
#[derive(Debug)]
pub(crate) struct Source {
    /// As people see it; none: a command line.
    pub(crate) name: Option<String>,
    pub(crate) text: String,
    format: Format,
    /// Where the files are that it names.
    folder: PathBuf,
}

impl Source {
    /// Reads a file, or standard input for `-`.
    pub(crate) fn read(path: &Path, format: Option<FileFormat>) -> Result<Self, Error> {
        let name = path.display().to_string();
        let unreadable = |error: io::Error| {
            Error::new(Exit::USAGE, format!("cannot read the job file {name}: {error}")).next("check its path")
        };
        if path == Path::new("-") {
            let text = text_of(io::stdin().lock()).map_err(unreadable)?;
            let format = format.map_or(Format::Toml, Format::from);
            let folder = std::env::current_dir().unwrap_or_default();
            return Ok(Self { name: Some("standard input".to_owned()), text, format, folder });
        }
        let text = fs::File::open(path).and_then(text_of).map_err(unreadable)?;
        let format = match format {
            Some(format) => format.into(),
            None => Format::of_path(path).ok_or_else(|| {
                Error::new(Exit::USAGE, format!("{name} is no job file by its name"))
                    .next("call it .toml, .yaml, .yml or .json, or say --format")
            })?,
        };
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        Ok(Self { name: Some(name), text, format, folder })
    }

    fn of_command(text: String) -> Self {
        Self { name: None, text, format: Format::Json, folder: PathBuf::new() }
    }

    /// Warnings printed; or every problem printed and the exit code for bad input.
    fn parse(&self, output: Output, place: Where) -> Result<jobfile::Parsed, Error> {
        match self.check(output, place) {
            Ok(parsed) => {
                parsed.warnings.iter().for_each(|finding| show(output, self, Look::Warn, finding));
                Ok(parsed)
            }
            Err(findings) => {
                findings.iter().for_each(|finding| show(output, self, Look::Bad, finding));
                output.note(Look::Plain, "nothing was submitted");
                Err(Error::Quiet(Exit::USAGE))
            }
        }
    }

    /// What the file says, or every problem with it.
    pub(crate) fn check(&self, output: Output, place: Where) -> Result<jobfile::Parsed, Vec<jobfile::Finding>> {
        let now = output.clock().wall();
        let context = jobfile::Context { cwd: place.folder(), dir: self.folder.clone(), now };
        jobfile::parse(&self.text, self.format, &context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_flags_are_numbers_and_all_else_stays_a_text() {
        let said = ["100000000", "-5", "512MiB", "high", "", "1.5"].map(number_or_text);
        assert_eq!(said, [json!(100_000_000), json!(-5), json!("512MiB"), json!("high"), json!(""), json!("1.5")]);
    }

    #[test]
    fn what_is_no_number_of_processors_is_told_what_is_one() {
        assert_eq!(processors("0.5"), Ok(0.5));
        for text in ["x", "nan", "inf", ""] {
            assert_eq!(processors(text), Err(format!("`{text}` is no number of processors; write 2 or 0.5")));
        }
    }
}
