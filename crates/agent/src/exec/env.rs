//! The environment of a task: clean, the same on every agent, and telling the task who it is.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    process::Command,
    sync::Arc,
};

use super::{Order, os};

/// The variable that every process of every attempt carries: which agent started it.
pub(crate) const INSTANCE: &str = "MUSTER_AGENT_INSTANCE";
/// Variables that only Muster sets.
const RESERVED: &str = "MUSTER_";

/// What is the same for all tasks of this agent.
pub(crate) struct Base {
    variables: Vec<(OsString, OsString)>,
    agent: Arc<str>,
    instance: Arc<str>,
}

/// Files of one attempt that its environment names.
pub(crate) struct Files<'a> {
    pub(crate) result: &'a Path,
    pub(crate) inputs: Option<&'a Path>,
}

impl Base {
    pub(crate) fn new(path: Option<&OsStr>, agent: Arc<str>, instance: Arc<str>) -> Self {
        Self { variables: os::base_environment(path), agent, instance }
    }

    /// The `PATH` that a task of `order` sees.
    pub(crate) fn path<'a>(&'a self, order: &'a Order) -> &'a OsStr {
        let own = order.spec.env.get("PATH").map(OsStr::new);
        let base = || self.variables.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str());
        own.or_else(base).unwrap_or_default()
    }

    /// Makes the environment of `command` the one of `order`, and nothing else. Or says which
    /// variable cannot be.
    pub(crate) fn apply(&self, command: &mut Command, order: &Order, files: &Files<'_>) -> Result<(), String> {
        command.env_clear();
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        if !order.trace_parent.is_empty() {
            command.env("TRACEPARENT", &*order.trace_parent);
        }
        for (name, value) in &order.spec.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(format!(
                    "the environment variable `{}` has a name or value that cannot be",
                    name.escape_debug()
                ));
            }
            if !name.starts_with(RESERVED) {
                command.env(name, value);
            }
        }
        self.who_it_is(command, order);
        command.env("MUSTER_RESULT", files.result);
        if let Some(inputs) = files.inputs {
            command.env("MUSTER_INPUTS", inputs);
        }
        Ok(())
    }

    fn who_it_is(&self, command: &mut Command, order: &Order) {
        command
            .env(INSTANCE, &*self.instance)
            .env("MUSTER_AGENT", &*self.agent)
            .env("MUSTER_TOKEN", order.token.0.to_string())
            .env("MUSTER_JOB", order.task.job.0.to_string())
            .env("MUSTER_JOB_NAME", &*order.job_name)
            .env("MUSTER_TASK", order.task.index.to_string())
            .env("MUSTER_TASK_NAME", &order.spec.name)
            .env("MUSTER_ATTEMPT", order.attempt.to_string())
            .env("MUSTER_QUEUE", &*order.queue);
        if let Some((index, item)) = &order.element {
            command.env("MUSTER_INDEX", index.to_string());
            if let Some(item) = item {
                command.env("MUSTER_ITEM", &**item);
            }
        }
    }
}
