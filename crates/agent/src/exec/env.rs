//! The environment of a task: clean, the same on every agent, and telling the task who it is.

use std::{
    ffi::{OsStr, OsString},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Order, os};
use crate::host::Slots;

/// The variable that every process of every attempt carries: which agent started it.
pub(crate) const INSTANCE: &str = "MUSTER_AGENT_INSTANCE";
/// Variables that only Muster sets.
const RESERVED: &str = "MUSTER_";

/// What is the same for all tasks of this agent.
pub(crate) struct Base {
    variables: Vec<(OsString, OsString)>,
    agent: Arc<str>,
    instance: Arc<str>,
    /// Which GPUs each attempt has.
    pub(super) gpus: Gpus,
}

/// Which GPUs each attempt has.
#[derive(Default)]
pub(super) struct Gpus(Mutex<Slots>);

impl Gpus {
    pub(super) fn lock(&self) -> MutexGuard<'_, Slots> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Files of one attempt that its environment names.
pub(crate) struct Files<'a> {
    pub(crate) result: &'a Path,
    pub(crate) inputs: Option<&'a Path>,
    /// What the process sees itself a part of; empty: nothing.
    pub(crate) trace_parent: &'a str,
    /// A folder that it asked for.
    pub(crate) scratch: Option<&'a Path>,
    /// As whom it runs, if not as the agent.
    pub(crate) who: Option<&'a os::Who>,
}

impl Files<'_> {
    /// Variables that are not what they are for all tasks.
    fn instead(&self) -> Vec<(&'static str, &OsStr)> {
        let mut instead = self.who.map(os::Who::variables).unwrap_or_default();
        instead.extend(self.scratch.map(|folder| ("TMPDIR", folder.as_os_str())));
        instead
    }
}

impl Base {
    pub(crate) fn new(path: Option<&OsStr>, pass: &[String], agent: Arc<str>, instance: Arc<str>) -> Self {
        let mut variables = os::base_environment(path);
        let passed = pass.iter().filter(|name| !name.starts_with(RESERVED)).filter_map(|name| {
            let value = std::env::var_os(name)?;
            Some((OsString::from(name), value))
        });
        for (name, value) in passed {
            variables.retain(|(known, _)| *known != name);
            variables.push((name, value));
        }
        Self { variables, agent, instance, gpus: Gpus::default() }
    }

    /// The `PATH` that a task of `order` sees.
    pub(crate) fn path<'a>(&'a self, order: &'a Order) -> &'a OsStr {
        let own = order.spec.env.get("PATH").map(OsStr::new);
        let base = || self.variables.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str());
        own.or_else(base).unwrap_or_default()
    }

    /// Makes the environment of `program` the one of `order`, and nothing else. Or says which
    /// variable cannot be. Names no variable twice.
    pub(crate) fn apply(&self, program: &mut os::Program, order: &Order, files: &Files<'_>) -> Result<(), String> {
        let own = &order.spec.env;
        let instead = files.instead();
        for (name, value) in &self.variables {
            let is_other = |name: &str| own.contains_key(name) || instead.iter().any(|(known, _)| *known == name);
            if !name.to_str().is_some_and(is_other) {
                program.variable(name, value);
            }
        }
        for (name, value) in instead.into_iter().filter(|(name, _)| !own.contains_key(*name)) {
            program.variable(OsStr::new(name), value);
        }
        self.given(program, order, files)
    }

    /// The environment of a container of `order`: what an image has of its own is not touched.
    pub(crate) fn inside(&self, order: &Order, files: &Files<'_>, scratch: &Path) -> Result<Vec<OsString>, String> {
        let mut program = os::Program::new(Path::new(""), OsStr::new(""));
        self.given(&mut program, order, files)?;
        program.variable(OsStr::new("MUSTER_SCRATCH"), scratch.as_os_str());
        Ok(program.variables())
    }

    /// By this a process is known as one of `order`, whatever it has beside.
    pub(crate) fn mark(&self, program: &mut os::Program, order: &Order) {
        program.variable(OsStr::new(INSTANCE), OsStr::new(&*self.instance));
        program.number("MUSTER_TOKEN", order.token);
    }

    /// What `order` asks for, and who it is.
    fn given(&self, program: &mut os::Program, order: &Order, files: &Files<'_>) -> Result<(), String> {
        let own = &order.spec.env;
        for (name, value) in own {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                let name = name.escape_debug();
                return Err(format!("the environment variable `{name}` has a name or value that cannot be"));
            }
            let ours = order.spec.request.gpus > 0 && (name == "CUDA_VISIBLE_DEVICES" || name == "CUDA_DEVICE_ORDER");
            if !name.starts_with(RESERVED) && !ours {
                program.variable(OsStr::new(name), OsStr::new(value));
            }
        }
        if !files.trace_parent.is_empty() && !own.contains_key("TRACEPARENT") {
            program.variable(OsStr::new("TRACEPARENT"), OsStr::new(files.trace_parent));
        }
        self.give_gpus(program, order)?;
        self.who_it_is(program, order);
        program.variable(OsStr::new("MUSTER_RESULT"), files.result.as_os_str());
        if let Some(inputs) = files.inputs {
            program.variable(OsStr::new("MUSTER_INPUTS"), inputs.as_os_str());
        }
        if let Some(scratch) = files.scratch {
            program.variable(OsStr::new("MUSTER_SCRATCH"), scratch.as_os_str());
        }
        Ok(())
    }

    /// Where this machine has GPUs: the task sees those that it was given and no others.
    fn give_gpus(&self, program: &mut os::Program, order: &Order) -> Result<(), String> {
        let (own, count) = (&order.spec.env, order.spec.request.gpus);
        let mut gpus = self.gpus.lock();
        if gpus.is_empty() && count == 0 {
            return Ok(());
        }
        let given = gpus.take(order.token, count);
        drop(gpus);
        let given = given.ok_or_else(|| format!("{count} GPUs are asked for, and fewer are free on this machine"))?;
        let list = given.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        if count > 0 {
            // The indices are those of the bus; without this CUDA counts from the fastest.
            program.variable(OsStr::new("CUDA_DEVICE_ORDER"), OsStr::new("PCI_BUS_ID"));
        }
        if count > 0 || !own.contains_key("CUDA_VISIBLE_DEVICES") {
            program.variable(OsStr::new("CUDA_VISIBLE_DEVICES"), OsStr::new(&list));
        }
        program.variable(OsStr::new("MUSTER_GPUS"), OsStr::new(&list));
        Ok(())
    }

    fn who_it_is(&self, program: &mut os::Program, order: &Order) {
        let texts = [
            (INSTANCE, &*self.instance),
            ("MUSTER_AGENT", &*self.agent),
            ("MUSTER_JOB_NAME", &*order.job_name),
            ("MUSTER_TASK_NAME", &*order.spec.name),
            ("MUSTER_QUEUE", &*order.queue),
        ];
        for (name, value) in texts {
            program.variable(OsStr::new(name), OsStr::new(value));
        }
        program.number("MUSTER_TOKEN", order.token);
        program.number("MUSTER_JOB", order.task.job);
        program.number("MUSTER_TASK", order.task.index);
        program.number("MUSTER_ATTEMPT", order.attempt);
        if let Some((index, item)) = &order.element {
            program.number("MUSTER_INDEX", index);
            if let Some(item) = item {
                program.variable(OsStr::new("MUSTER_ITEM"), OsStr::new(&**item));
            }
        }
    }
}
