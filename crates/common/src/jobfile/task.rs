//! One entry of `tasks`, and `defaults`: its keys, and how it becomes a `TaskSpec`.

use std::{collections::BTreeMap, sync::LazyLock, time::Duration};

use muster_core::{
    container::{Container, Volume},
    run_as::{RunAs, Scratch},
    spec::{After, Array, Command, OnLost, OomRetries, Priority, Requires, RetryPolicy, Role, TaskSpec},
};

use super::{
    files::{Content, Folder},
    kind::{Rule, Shape},
    read::{Field, Reader, field, fill, shape},
    tree::Node,
    values::{Amount, Argv, Bytes, Cpus, OnDisconnect, Start},
};

/// Which keys there are, by where the table stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `[[tasks]]`: it has a `name`.
    Entry,
    /// `[tasks.extract]`: its key is its name.
    Named,
    /// `[defaults]`: what would make no sense in every task is left out.
    Defaults,
}

/// A task while it is read.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    pub(super) spec: TaskSpec,
    /// What the table itself asks for.
    own: Amounts,
    /// What `defaults` asks for; a task without a command does not take it.
    inherited: Amounts,
    alone: Alone,
    /// What `defaults` says; a task without a command does not take it.
    contained: Option<Container>,
}

/// What an attempt does whose agent hears of no controller.
#[derive(Clone, Copy, Debug, Default)]
struct Alone {
    on_disconnect: Option<OnDisconnect>,
    max_disconnect: Option<Duration>,
}

impl Alone {
    /// For how long it goes on, if it does.
    fn goes_on_for(self) -> Option<Duration> {
        match self.on_disconnect {
            Some(OnDisconnect::Stop) => None,
            Some(OnDisconnect::Continue) => Some(self.max_disconnect.unwrap_or(ALONE)),
            None => self.max_disconnect,
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Amounts {
    cpus: Option<u64>,
    memory: Option<u64>,
    gpus: Option<u64>,
    named: BTreeMap<String, u64>,
}

const RULES: &[Rule] = &[Rule::Apart("run", "shell"), Rule::Apart("stdin", "stdin_file")];
/// For how long an attempt goes on alone that does not say.
const ALONE: Duration = Duration::from_secs(3600);
/// What one task takes that does not say.
const ONE_CPU: u64 = 1000;

impl Form {
    fn fields(self) -> &'static [Field<Draft>] {
        static ENTRY: LazyLock<Vec<Field<Draft>>> = LazyLock::new(|| fields(Form::Entry));
        static NAMED: LazyLock<Vec<Field<Draft>>> = LazyLock::new(|| fields(Form::Named));
        static DEFAULTS: LazyLock<Vec<Field<Draft>>> = LazyLock::new(|| fields(Form::Defaults));
        match self {
            Form::Entry => &ENTRY,
            Form::Named => &NAMED,
            Form::Defaults => &DEFAULTS,
        }
    }

    pub(super) fn shape(self) -> Shape {
        let name = match self {
            Form::Entry => "task",
            Form::Named => "named_task",
            Form::Defaults => "defaults",
        };
        shape(name, self.fields(), RULES)
    }
}

impl Draft {
    /// A task that has what `defaults` says.
    pub(super) fn from_defaults(defaults: &Self) -> Self {
        Self {
            inherited: defaults.own.clone(),
            own: Amounts::default(),
            spec: defaults.spec.clone(),
            alone: defaults.alone,
            contained: defaults.spec.container.clone(),
        }
    }

    /// Reads the keys of `node` over what is there.
    pub(super) fn fill(&mut self, reader: &mut Reader<'_>, node: &Node, form: Form) {
        fill(self, reader, node, form.fields(), RULES);
    }

    /// The whole task; a relative or missing `cwd` is the submitter's.
    pub(super) fn finish(mut self, reader: &Reader<'_>) -> TaskSpec {
        let is_command = self.spec.command != Command::Empty;
        let mut amounts = if is_command { self.inherited } else { Amounts::default() };
        amounts.named.append(&mut self.own.named);
        let request = &mut self.spec.request;
        let cpus = if is_command { ONE_CPU } else { 0 };
        request.cpu_milli = self.own.cpus.or(amounts.cpus).unwrap_or(cpus);
        request.memory = self.own.memory.or(amounts.memory).unwrap_or(0);
        request.gpus = self.own.gpus.or(amounts.gpus).unwrap_or(0);
        request.named = amounts.named;
        if !is_command && self.spec.container == self.contained {
            self.spec.container = None;
        }
        // The submitter's folder is not in the image.
        if self.spec.cwd.is_none() && is_command && self.spec.container.is_none() && self.spec.scratch == Scratch::None
        {
            self.spec.cwd = reader.context.cwd.to_str().filter(|cwd| !cwd.is_empty()).map(str::to_owned);
        }
        self.spec.max_disconnect = self.alone.goes_on_for();
        self.spec
    }
}

fn fields(form: Form) -> Vec<Field<Draft>> {
    let mut fields = Vec::new();
    if form == Form::Entry {
        let doc = "Unique in the job: letters, digits, `_`, `-`; not only digits.";
        fields.push(field("name", |d: &mut Draft, v: String| d.spec.name = v, doc).required());
    }
    fields.extend(process());
    fields.extend(placement());
    fields.extend(course());
    fields.extend(contained());
    if form != Form::Defaults {
        fields.extend(structure());
    }
    fields
}

/// What is run.
fn process() -> Vec<Field<Draft>> {
    vec![
        field(
            "run",
            |d: &mut Draft, v: Argv| d.spec.command = Command::Argv(v.0),
            "A program and its arguments, passed on as they are: no shell, no expansion.",
        ),
        field(
            "shell",
            |d: &mut Draft, v: String| d.spec.command = Command::Shell(v),
            "A script for the machine's shell: `/bin/sh -c`, or `cmd /C` on Windows. Without `run` and `shell` a task is a join point, which needs no process.",
        ),
        field(
            "env",
            |d: &mut Draft, v: BTreeMap<String, String>| d.spec.env.extend(v),
            "Variables, added to the clean environment that the agent makes. Added to those of `defaults`.",
        ),
        field(
            "mask",
            |d: &mut Draft, v: Vec<String>| d.spec.mask = v,
            "Variables of `env` whose values, of 4 to 8192 bytes, are secret: in what the task writes, `***` stands in their \
             place before it is kept or leaves the machine.",
        ),
        field(
            "cwd",
            |d: &mut Draft, v: Folder| d.spec.cwd = Some(v.0),
            "The working folder; a relative one starts at the submitter's folder, which is also the default.",
        ),
        field(
            "stdin",
            |d: &mut Draft, v: String| d.spec.stdin = Some(v.into_bytes()),
            "What the process reads on stdin. Without it stdin is empty.",
        ),
        field(
            "stdin_file",
            |d: &mut Draft, v: Content| d.spec.stdin = Some(v.0),
            "The same from a file, read at submission; relative to the job file.",
        ),
        field("run_as", |d: &mut Draft, v: RunAs| d.spec.run_as = v, "As whom the process runs. As the agent's file says, or the agent itself, if it is not given.").or("the agent's user"),
        field(
            "scratch",
            |d: &mut Draft, v: Scratch| d.spec.scratch = v,
            "Whether one attempt gets an empty folder to itself: its working folder unless `cwd` says otherwise, named \
             by `MUSTER_SCRATCH` and `TMPDIR`. `\"private\"` goes with the attempt; `\"keep_on_failure\"` stays when it \
             fails.",
        )
        .or("\"none\""),
        field(
            "scratch_size",
            |d: &mut Draft, v: Bytes| d.spec.scratch_size = Some(v.0),
            "How much may lie in the scratch folder of one attempt; one that leaves more there ends as `scratch_full`. The \
             agent's limit, if it is not given.",
        ),
        field(
            "output_limit",
            |d: &mut Draft, v: Bytes| d.spec.output_limit = Some(v.0),
            "How much output of one attempt is kept: the head, and of it up to 64 KiB for the end; what lies between is \
             cut and said. The agent's limit, if it is not given.",
        ),
        field(
            "log_rate",
            |d: &mut Draft, v: Bytes| d.spec.log_rate = Some(v.0),
            "How much output of one attempt is kept in a second, after a first burst of four seconds' worth; more is cut and \
             said, and never holds the task up. The agent's, if it is not given; never more than the agent's most.",
        ),
    ]
}

/// What it runs in.
fn contained() -> Vec<Field<Draft>> {
    vec![
        field(
            "image",
            |d: &mut Draft, v: String| d.spec.container.get_or_insert_default().image = v,
            "The image of a container in which the task runs; `cwd` is a folder in it then, and the image's own by \
             default. On the machine itself, if it is not given.",
        ),
        field(
            "volumes",
            |d: &mut Draft, v: Vec<Volume>| d.spec.container.get_or_insert_default().volumes = v,
            "What of the agent's machine is seen in the container, as far as the agent allows it.",
        ),
    ]
}

/// Where it can run.
fn placement() -> Vec<Field<Draft>> {
    vec![
        field(
            "cpus",
            |d: &mut Draft, v: Cpus| d.own.cpus = Some(v.0),
            "Processors that one task takes; 0 for a join point.",
        )
        .or("1"),
        field(
            "memory",
            |d: &mut Draft, v: Bytes| d.own.memory = Some(v.0),
            "Memory that one task takes, and the most that it gets: a task that needs more ends as `oom`. One that \
             says nothing has no limit.",
        )
        .or("0"),
        field(
            "cpu_limit",
            |d: &mut Draft, v: bool| d.spec.cpu_limit = v,
            "Whether one task gets no more than `cpus`, even where processors are idle. Otherwise `cpus` is its share \
             when others want them too.",
        )
        .or("false"),
        field(
            "pids",
            |d: &mut Draft, v: Amount| d.spec.pids = Some(v.0),
            "How many processes and threads one task may have at a time, at least 1. No limit, if it is not given.",
        ),
        field(
            "io_read",
            |d: &mut Draft, v: Bytes| d.spec.io.read = Some(v.0),
            "How many bytes one task may read from disks in a second. No limit, if it is not given.",
        ),
        field(
            "io_write",
            |d: &mut Draft, v: Bytes| d.spec.io.write = Some(v.0),
            "How many bytes one task may write to disks in a second. No limit, if it is not given.",
        ),
        field(
            "io_read_ops",
            |d: &mut Draft, v: Amount| d.spec.io.read_ops = Some(v.0),
            "How often one task may read from disks in a second. No limit, if it is not given.",
        ),
        field(
            "io_write_ops",
            |d: &mut Draft, v: Amount| d.spec.io.write_ops = Some(v.0),
            "How often one task may write to disks in a second. No limit, if it is not given.",
        ),
        field("gpus", |d: &mut Draft, v: Amount| d.own.gpus = Some(v.0), "GPUs that one task takes.").or("0"),
        field(
            "resources",
            |d: &mut Draft, v: BTreeMap<String, Amount>| d.own.named.extend(v.into_iter().map(|(name, n)| (name, n.0))),
            "Anything else that agents count, by name: `{ licences = 1 }`. Added to those of `defaults`.",
        ),
        field("requires", |d: &mut Draft, v: Requires| d.spec.requires = v, "What the agent must be."),
        field("priority", |d: &mut Draft, v: Priority| d.spec.priority = v, "Higher runs first.").or("\"normal\""),
    ]
}

/// When it runs, and what follows.
fn course() -> Vec<Field<Draft>> {
    vec![
        field("start_at", |d: &mut Draft, v: Start| d.spec.start_at = Some(v.0), "Not before this."),
        field("timeout", |d: &mut Draft, v: Duration| d.spec.timeout = Some(v), "How long one attempt may run. No limit, if it is not given."),
        field("grace", |d: &mut Draft, v: Duration| d.spec.grace = v, "Between SIGTERM and SIGKILL, on a time-out and on cancel.").or("\"10s\""),
        field("retries", |d: &mut Draft, v: RetryPolicy| d.spec.retry = v, "What follows a failed attempt.").or("0"),
        field("oom_retries", |d: &mut Draft, v: OomRetries| d.spec.oom_retries = Some(v), "What follows an attempt that needed more memory than `memory`: at once another one with more, which uses none of `retries`.").or("0"),
        field("on_lost", |d: &mut Draft, v: OnLost| d.spec.on_lost = v, "What follows the loss of the agent: another attempt, which uses none of `retries`, or failure (at most once).").or("\"retry\""),
        field("on_disconnect", |d: &mut Draft, v: OnDisconnect| d.alone.on_disconnect = Some(v), "What follows when agent and controller do not hear of one another for the time of a lease: the attempt is stopped, or goes on for `max_disconnect`. Nobody else gets the task before it must have ended.").or("\"stop\""),
        field("max_disconnect", |d: &mut Draft, v: Duration| d.alone.max_disconnect = Some(v), "How long an attempt goes on alone; says `continue` by itself, unless `on_disconnect` says otherwise.").or("\"1h\""),
        field("tags", |d: &mut Draft, v: Vec<String>| d.spec.tags = v, "Words for people and filters."),
    ]
}

/// Its place among the others.
fn structure() -> Vec<Field<Draft>> {
    vec![
        field("after", |d: &mut Draft, v: Vec<After>| d.spec.after = v, "What must have ended as it should before this starts."),
        field("array", |d: &mut Draft, v: Array| d.spec.array = Some(v), "Many tasks of this one entry, each with `MUSTER_INDEX`, and `MUSTER_ITEM` if there are items."),
        field("role", |d: &mut Draft, v: Role| d.spec.role = v, "A setup runs before all work, which starts only if it succeeded; a teardown after all work, whatever happened.").or("\"work\""),
    ]
}
