//! Files of other systems that are recognised, so that the answer is what to do and not forty unknown keys.

use super::{
    place::Raw,
    tree::{Node, Value},
};

/// A TaskOrchestrator configuration: `jobs.<name>.handler`, `jobs.<name>.tasks[].dependencies`.
pub(super) fn recognise(root: &Node) -> Option<Raw> {
    let entry = root.entries().iter().find(|entry| entry.key == "jobs")?;
    if root.get("tasks").is_some() {
        return None;
    }
    let jobs: Vec<&str> = match &entry.node.value {
        Value::Table(jobs) => jobs.iter().filter(|job| is_job(&job.node)).map(|job| job.key.as_str()).collect(),
        _ => Vec::new(),
    };
    let first = *jobs.first()?;
    let message = format!(
        "this is a TaskOrchestrator file (`jobs.<name>.tasks[].dependencies`), which Muster cannot run as it is. \
         Write one job file for each of its {} job(s): `name = {first:?}` at the top; each task becomes a `[[tasks]]` \
         with a `name` (the last part of the old one) and the command it runs as `run` or `shell`; each list of \
         `dependencies` becomes `after`, with the same short names; what `handler` did before and after the tasks \
         becomes a task with `role = \"setup\"` and one with `role = \"teardown\"`.",
        jobs.len()
    );
    Some(Raw { at: entry.at, path: "jobs".to_owned(), message })
}

fn is_job(node: &Node) -> bool {
    node.get("handler").is_some() || matches!(node.get("tasks").map(|tasks| &tasks.value), Some(Value::List(_)))
}
