//! Specs on the wire: what a person asks for.
//!
//! Shape is checked here, sense in `core::validate`. Durations travel in whole milliseconds, rounded
//! up so that a short time-out does not become none.

use std::{sync::Arc, time::Duration};

use muster_core::{
    container::{Container, Volume},
    id::JobId,
    requires::LabelRuleError,
    resources::{IoLimits, Request},
    spec::{After, Array, Command, JobSpec, On, OnLost, OomRetries, Priority, Requires, RetryPolicy, Role, TaskSpec},
    time::Timestamp,
};

use super::{Error, run_as, some_text, text, unknown_value};
use crate::proto::v1;

/// No duration in a spec is longer: a hundred years. Clocks overflow not far beyond.
pub const DURATION_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// No time in a spec is later: the end of the year 9999, past which people's formats fail.
pub const TIMESTAMP_MAX: Timestamp = Timestamp(253_402_300_799_999_999);

/// A job as the wire carries it.
pub fn job_to_proto(spec: &JobSpec) -> v1::JobSpec {
    v1::JobSpec {
        name: spec.name.clone(),
        labels: map(&spec.labels),
        metadata: map(&spec.metadata),
        queue: spec.queue.clone(),
        tasks: spec.tasks.iter().map(|task| task_to_proto(task)).collect(),
    }
}

/// A job as it is meant.
///
/// # Errors
/// A field says what cannot be.
pub fn job_from_proto(spec: v1::JobSpec) -> Result<JobSpec, Error> {
    let tasks = spec.tasks.into_iter().enumerate().map(|(n, task)| {
        let task = task_from_proto(task).map_err(|error| error.inside(format_args!("tasks[{n}]")))?;
        Ok(Arc::new(task))
    });
    Ok(JobSpec {
        tasks: tasks.collect::<Result<_, Error>>()?,
        name: spec.name,
        labels: spec.labels.into_iter().collect(),
        metadata: spec.metadata.into_iter().collect(),
        queue: spec.queue,
    })
}

/// An entry of `tasks` as the wire carries it.
pub fn task_to_proto(task: &TaskSpec) -> v1::TaskSpec {
    v1::TaskSpec {
        after: task.after.iter().map(after_to_proto).collect(),
        array: task.array.as_ref().map(array_to_proto),
        ..runnable_to_proto(task)
    }
}

/// The part of an entry that running one task of it needs: no dependencies, and no array, whose
/// items may be a million.
pub(super) fn runnable_to_proto(task: &TaskSpec) -> v1::TaskSpec {
    v1::TaskSpec {
        name: task.name.clone(),
        role: role_to_proto(task.role).into(),
        command: command_to_proto(&task.command),
        env: map(&task.env),
        cwd: task.cwd.clone(),
        stdin: task.stdin.clone(),
        request: Some(request_to_proto(&task.request)),
        requires: Some(requires_to_proto(&task.requires)),
        priority: task.priority.0,
        timeout_ms: task.timeout.map(millis),
        retry: Some(retry_to_proto(&task.retry)),
        start_at_us: task.start_at.map(|at| at.0),
        after: Vec::new(),
        array: None,
        on_lost: on_lost_to_proto(task.on_lost).into(),
        tags: task.tags.clone(),
        grace_ms: millis(task.grace),
        output_limit_bytes: task.output_limit,
        max_disconnect_ms: task.max_disconnect.map(millis),
        cpu_limit: task.cpu_limit,
        pids: task.pids,
        run_as: (!task.run_as.is_default()).then(|| run_as::to_proto(&task.run_as)),
        scratch: run_as::scratch_to_proto(task.scratch).into(),
        oom_retries: task.oom_retries.map(oom_retries_to_proto),
        container: task.container.as_ref().map(container_to_proto),
        log_rate_bytes: task.log_rate,
        scratch_size_bytes: task.scratch_size,
        mask: task.mask.clone(),
        io: (!task.io.is_empty()).then(|| io_to_proto(&task.io)),
    }
}

/// An entry of `tasks` as it is meant.
///
/// # Errors
/// A field says what cannot be.
pub fn task_from_proto(task: v1::TaskSpec) -> Result<TaskSpec, Error> {
    let after = task.after.into_iter().enumerate();
    let after = after.map(|(n, after)| after_from_proto(after).map_err(|e| e.inside(format_args!("after[{n}]"))));
    Ok(TaskSpec {
        role: role_from_proto(task.role)?,
        command: command_from_proto(task.command),
        request: request_from_proto(task.request.unwrap_or_default()),
        requires: requires_from_proto(task.requires.unwrap_or_default())?,
        priority: Priority(task.priority),
        timeout: task.timeout_ms.map(|ms| duration(ms, "timeout_ms")).transpose()?,
        retry: task.retry.map_or_else(|| Ok(RetryPolicy::default()), retry_from_proto)?,
        start_at: task.start_at_us.map(|us| timestamp(us, "start_at_us")).transpose()?,
        after: after.collect::<Result<_, Error>>()?,
        array: task.array.map(array_from_proto),
        on_lost: on_lost_from_proto(task.on_lost)?,
        grace: duration(task.grace_ms, "grace_ms")?,
        max_disconnect: task.max_disconnect_ms.map(|ms| duration(ms, "max_disconnect_ms")).transpose()?,
        name: task.name,
        env: task.env.into_iter().collect(),
        cwd: task.cwd,
        stdin: task.stdin,
        tags: task.tags,
        output_limit: task.output_limit_bytes,
        cpu_limit: task.cpu_limit,
        pids: task.pids,
        run_as: task.run_as.map(run_as::from_proto).unwrap_or_default(),
        scratch: run_as::scratch_from_proto(task.scratch)?,
        oom_retries: task.oom_retries.map(oom_retries_from_proto),
        container: task.container.map(container_from_proto),
        log_rate: task.log_rate_bytes,
        scratch_size: task.scratch_size_bytes,
        mask: task.mask,
        io: task.io.map(io_from_proto).unwrap_or_default(),
    })
}

/// Resources as the wire carries them.
pub fn request_to_proto(request: &Request) -> v1::Request {
    v1::Request {
        cpu_milli: request.cpu_milli,
        memory_bytes: request.memory,
        gpus: request.gpus,
        named: request.named.iter().map(|(name, n)| (name.clone(), *n)).collect(),
    }
}

/// Resources as they are meant.
pub fn request_from_proto(request: v1::Request) -> Request {
    Request {
        cpu_milli: request.cpu_milli,
        memory: request.memory_bytes,
        gpus: request.gpus,
        named: request.named.into_iter().collect(),
    }
}

fn io_to_proto(io: &IoLimits) -> v1::IoLimits {
    v1::IoLimits { read_bytes: io.read, write_bytes: io.write, read_ops: io.read_ops, write_ops: io.write_ops }
}

fn io_from_proto(io: v1::IoLimits) -> IoLimits {
    IoLimits { read: io.read_bytes, write: io.write_bytes, read_ops: io.read_ops, write_ops: io.write_ops }
}

fn container_to_proto(container: &Container) -> v1::Container {
    let volumes = container.volumes.iter().map(|volume| v1::Volume {
        source: volume.source.clone(),
        target: volume.target.clone(),
        read_only: volume.read_only,
    });
    v1::Container { image: container.image.clone(), volumes: volumes.collect() }
}

fn container_from_proto(container: v1::Container) -> Container {
    let volumes = container.volumes.into_iter().map(|volume| Volume {
        source: volume.source,
        target: volume.target,
        read_only: volume.read_only,
    });
    Container { image: container.image, volumes: volumes.collect() }
}

fn requires_to_proto(requires: &Requires) -> v1::Requires {
    v1::Requires {
        os: requires.os.clone(),
        arch: requires.arch.clone(),
        labels: requires.labels.iter().map(ToString::to_string).collect(),
    }
}

fn requires_from_proto(requires: v1::Requires) -> Result<Requires, Error> {
    let rules = requires.labels.iter().enumerate().map(|(n, rule)| {
        let refuse = |error: LabelRuleError| Error::field(format!("requires.labels[{n}]"), error.to_string());
        rule.parse().map_err(refuse)
    });
    Ok(Requires { labels: rules.collect::<Result<_, Error>>()?, os: requires.os, arch: requires.arch })
}

fn command_to_proto(command: &Command) -> Option<v1::task_spec::Command> {
    match command {
        Command::Empty => None,
        Command::Argv(args) => Some(v1::task_spec::Command::Argv(v1::Argv { args: args.clone() })),
        Command::Shell(text) => Some(v1::task_spec::Command::Shell(text.clone())),
    }
}

fn command_from_proto(command: Option<v1::task_spec::Command>) -> Command {
    match command {
        None => Command::Empty,
        Some(v1::task_spec::Command::Argv(argv)) => Command::Argv(argv.args),
        Some(v1::task_spec::Command::Shell(text)) => Command::Shell(text),
    }
}

fn retry_to_proto(retry: &RetryPolicy) -> v1::Retry {
    v1::Retry {
        max: retry.max,
        delay_ms: millis(retry.delay),
        factor_milli: retry.factor_milli,
        cap_ms: millis(retry.cap),
        jitter_milli: retry.jitter_milli,
        exit_codes: retry.exit_codes.clone(),
    }
}

fn retry_from_proto(retry: v1::Retry) -> Result<RetryPolicy, Error> {
    Ok(RetryPolicy {
        max: retry.max,
        delay: duration(retry.delay_ms, "retry.delay_ms")?,
        factor_milli: retry.factor_milli,
        cap: duration(retry.cap_ms, "retry.cap_ms")?,
        jitter_milli: retry.jitter_milli,
        exit_codes: retry.exit_codes,
    })
}

fn oom_retries_to_proto(ladder: OomRetries) -> v1::OomRetries {
    v1::OomRetries { max: ladder.max, factor_milli: ladder.factor_milli, cap_bytes: ladder.cap }
}

fn oom_retries_from_proto(ladder: v1::OomRetries) -> OomRetries {
    OomRetries { max: ladder.max, factor_milli: ladder.factor_milli, cap: ladder.cap_bytes }
}

fn after_to_proto(after: &After) -> v1::After {
    v1::After {
        job: after.job.map_or(0, |job| job.0),
        task: text(after.task.as_deref()),
        on: on_to_proto(after.on).into(),
        job_name: text(after.job_name.as_deref()),
    }
}

fn after_from_proto(after: v1::After) -> Result<After, Error> {
    Ok(After {
        job: (after.job != 0).then_some(JobId(after.job)),
        job_name: some_text(&after.job_name),
        task: some_text(&after.task),
        on: on_from_proto(after.on)?,
    })
}

fn array_to_proto(array: &Array) -> v1::task_spec::Array {
    match array {
        Array::Range { first, count, step } => {
            v1::task_spec::Array::Range(v1::RangeArray { first: *first, count: *count, step: *step })
        }
        Array::Items(items) => v1::task_spec::Array::Items(v1::ItemsArray { items: items.to_vec() }),
    }
}

fn array_from_proto(array: v1::task_spec::Array) -> Array {
    match array {
        v1::task_spec::Array::Range(v1::RangeArray { first, count, step }) => Array::Range { first, count, step },
        v1::task_spec::Array::Items(items) => Array::Items(items.items.into()),
    }
}

fn role_to_proto(role: Role) -> v1::Role {
    match role {
        Role::Work => v1::Role::Work,
        Role::Setup => v1::Role::Setup,
        Role::Teardown => v1::Role::Teardown,
    }
}

fn role_from_proto(role: i32) -> Result<Role, Error> {
    match v1::Role::try_from(role) {
        Ok(v1::Role::Work) => Ok(Role::Work),
        Ok(v1::Role::Setup) => Ok(Role::Setup),
        Ok(v1::Role::Teardown) => Ok(Role::Teardown),
        Err(_) => Err(unknown_value("role", role, "work, setup and teardown")),
    }
}

fn on_lost_to_proto(on_lost: OnLost) -> v1::OnLost {
    match on_lost {
        OnLost::Retry => v1::OnLost::Retry,
        OnLost::Fail => v1::OnLost::Fail,
    }
}

fn on_lost_from_proto(on_lost: i32) -> Result<OnLost, Error> {
    match v1::OnLost::try_from(on_lost) {
        Ok(v1::OnLost::Retry) => Ok(OnLost::Retry),
        Ok(v1::OnLost::Fail) => Ok(OnLost::Fail),
        Err(_) => Err(unknown_value("on_lost", on_lost, "retry and fail")),
    }
}

fn on_to_proto(on: On) -> v1::On {
    match on {
        On::Success => v1::On::Success,
        On::Failure => v1::On::Failure,
        On::Any => v1::On::Any,
    }
}

fn on_from_proto(on: i32) -> Result<On, Error> {
    match v1::On::try_from(on) {
        Ok(v1::On::Success) => Ok(On::Success),
        Ok(v1::On::Failure) => Ok(On::Failure),
        Ok(v1::On::Any) => Ok(On::Any),
        Err(_) => Err(unknown_value("on", on, "success, failure and any")),
    }
}

fn map<C>(pairs: &std::collections::BTreeMap<String, String>) -> C
where
    C: FromIterator<(String, String)>,
{
    pairs.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Whole milliseconds, rounded up, at most [`DURATION_MAX`].
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.min(DURATION_MAX).as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

fn duration(ms: u64, path: &str) -> Result<Duration, Error> {
    let duration = Duration::from_millis(ms);
    if duration > DURATION_MAX {
        return Err(Error::field(path, format!("{ms} is too long; at most {} (100 years)", millis(DURATION_MAX))));
    }
    Ok(duration)
}

fn timestamp(us: u64, path: &str) -> Result<Timestamp, Error> {
    if us > TIMESTAMP_MAX.0 {
        return Err(Error::field(path, format!("{us} is too late; at most {} (the year 9999)", TIMESTAMP_MAX.0)));
    }
    Ok(Timestamp(us))
}
