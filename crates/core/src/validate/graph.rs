//! What the tasks of a job wait for: names that exist, roles that agree, and no circle.

use std::collections::BTreeMap;

use super::{
    MAX_AFTER, Problems,
    text::{self, distance, shown},
};
use crate::spec::{After, JobSpec, On, Role, TaskSpec};

/// Names compared in search of the nearest, over the whole spec: keeps a file of a hundred thousand
/// misspelt names from costing its square.
const COMPARISONS: usize = 200_000;
/// Names of a circle that are written out.
const SHOWN: usize = 100;

/// Adds what is wrong with the names of the tasks and with their dependencies.
pub(super) fn check(spec: &JobSpec, problems: &mut Problems) {
    let mut graph =
        Graph { spec, places: BTreeMap::new(), edges: vec![Vec::new(); spec.tasks.len()], budget: COMPARISONS };
    for (index, task) in spec.tasks.iter().enumerate() {
        if let Some(first) = graph.places.get(task.name.as_str()) {
            let message =
                format!("`{}` is the name of tasks[{first}] too; names are unique in a job", shown(&task.name));
            problems.add(format_args!("tasks[{index}].name"), message);
        } else if !task.name.is_empty() {
            graph.places.insert(&task.name, index);
        }
    }
    for (index, task) in spec.tasks.iter().enumerate() {
        graph.after(index, task, problems);
    }
    graph.circles(problems);
}

/// One dependency inside the job: the task that is waited for, and the place in `after`.
#[derive(Clone, Copy)]
struct Edge {
    to: usize,
    place: usize,
}

struct Graph<'a> {
    spec: &'a JobSpec,
    places: BTreeMap<&'a str, usize>,
    edges: Vec<Vec<Edge>>,
    budget: usize,
}

impl<'a> Graph<'a> {
    fn after(&mut self, index: usize, task: &'a TaskSpec, problems: &mut Problems) {
        if task.after.len() > MAX_AFTER {
            let message = format!(
                "has {} entries; at most {MAX_AFTER} are accepted: put empty tasks between that join some each",
                task.after.len()
            );
            problems.add(format_args!("tasks[{index}].after"), message);
        }
        let mut seen = BTreeMap::new();
        for (place, after) in task.after.iter().enumerate() {
            let path = format_args!("tasks[{index}].after[{place}]");
            let key = (after.job, after.job_name.as_deref(), after.task.as_deref());
            if let Some(first) = seen.insert(key, place) {
                problems.add(path, format!("says again what after[{first}] says; keep one of them"));
            } else if let Err(message) = self.target(index, task, after) {
                problems.add(path, message);
            } else if let Some(&to) = after.task.as_deref().filter(|_| is_local(after)).and_then(|t| self.places.get(t))
            {
                self.edges[index].push(Edge { to, place });
            }
        }
    }

    fn target(&mut self, index: usize, task: &TaskSpec, after: &After) -> Result<(), String> {
        if !is_local(after) {
            return another_job(task, after);
        }
        let Some(name) = after.task.as_deref() else {
            return Err("names neither a task nor a job".to_owned());
        };
        let Some(&to) = self.places.get(name) else {
            let hint = self.nearest(name).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
            return Err(format!("no task of this job is called `{}`{hint}", shown(name)));
        };
        if to == index {
            return Err(format!("`{}` waits for itself", shown(name)));
        }
        roles(task, &self.spec.tasks[to], after.on)
    }

    /// The name most like `name`, while the budget lasts.
    fn nearest(&mut self, name: &str) -> Option<&'a str> {
        const FAR: usize = 3;
        let limit = (name.len() / 3).clamp(1, FAR);
        self.budget = self.budget.checked_sub(self.places.len())?;
        let near = self.places.keys().filter_map(|other| Some((distance(name, other, limit)?, *other)));
        near.min().map(|(_, other)| other)
    }

    /// One problem for each knot of tasks that wait for one another, found depth first; each task
    /// and each dependency is looked at once.
    fn circles(&self, problems: &mut Problems) {
        let mut marks = vec![Mark::New; self.edges.len()];
        let mut told = vec![false; self.edges.len()];
        let mut way: Vec<(usize, usize)> = Vec::new();
        for start in 0..self.edges.len() {
            if marks[start] != Mark::New {
                continue;
            }
            marks[start] = Mark::OnWay;
            way.push((start, 0));
            while let Some((at, next)) = way.last_mut() {
                let from = *at;
                let Some(edge) = self.edges[from].get(*next).copied() else {
                    marks[from] = Mark::Done;
                    way.pop();
                    continue;
                };
                *next += 1;
                match marks[edge.to] {
                    Mark::New => {
                        marks[edge.to] = Mark::OnWay;
                        way.push((edge.to, 0));
                    }
                    Mark::OnWay => self.circle(&way, from, edge, &mut told, problems),
                    Mark::Done => {}
                }
            }
        }
    }

    /// `edge` leads from the end of `way` back into it.
    fn circle(&self, way: &[(usize, usize)], from: usize, edge: Edge, told: &mut [bool], problems: &mut Problems) {
        // Stops at the first task that was told of: what lies between is then one knot with it, and
        // is marked too, so that no task is walked over twice.
        let mut members = Vec::new();
        let mut known = false;
        for &(task, _) in way.iter().rev() {
            known |= std::mem::replace(&mut told[task], true);
            members.push(self.spec.tasks[task].name.as_str());
            if known || task == edge.to {
                break;
            }
        }
        if known {
            return;
        }
        members.reverse();
        let more = members.len().saturating_sub(SHOWN);
        members.truncate(SHOWN);
        let rest = if more > 0 { format!(" -> ({more} more)") } else { String::new() };
        let message = format!(
            "these tasks wait for one another and would never start: {}{rest} -> {}",
            members.join(" -> "),
            self.spec.tasks[edge.to].name
        );
        problems.add(format_args!("tasks[{from}].after[{}]", edge.place), message);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    New,
    OnWay,
    Done,
}

fn is_local(after: &After) -> bool {
    after.job.is_none() && after.job_name.is_none()
}

fn another_job(task: &TaskSpec, after: &After) -> Result<(), String> {
    if after.job.is_some_and(|job| job.0 == 0) {
        return Err("job 0 does not exist; jobs are counted from 1".to_owned());
    }
    if let Some(name) = &after.job_name {
        text::job_name(name).map_err(|message| format!("the job's name {message}"))?;
    }
    if let Some(name) = &after.task {
        text::task_name(name).map_err(|message| format!("the task's name {message}"))?;
    }
    match task.role {
        Role::Teardown => Err(format!(
            "`{}` is a teardown, which runs whatever happened; only work waits for other jobs",
            shown(&task.name)
        )),
        Role::Work | Role::Setup => Ok(()),
    }
}

/// Setup comes before all work and teardown after it, whatever happened: an `after` that says otherwise cannot be kept.
fn roles(task: &TaskSpec, target: &TaskSpec, on: On) -> Result<(), String> {
    let (name, other) = (shown(&task.name), shown(&target.name));
    match (task.role, target.role) {
        (Role::Work, Role::Work) | (Role::Setup, Role::Setup) | (Role::Teardown, Role::Teardown) => Ok(()),
        (Role::Work, Role::Setup) => match on {
            On::Success | On::Any => Ok(()),
            On::Failure => {
                Err(format!("work starts only when setup succeeded, so `{name}` would never run when `{other}` fails"))
            }
        },
        (Role::Setup, Role::Work | Role::Teardown) => Err(format!(
            "`{name}` is a setup and comes before all work; it can wait for other setups only, not for `{other}`"
        )),
        (Role::Work, Role::Teardown) => {
            Err(format!("`{other}` is a teardown and comes after all work; only a teardown can wait for it"))
        }
        (Role::Teardown, Role::Work | Role::Setup) => Err(format!(
            "`{name}` is a teardown: it runs after all work, whatever happened, and cannot wait for `{other}`"
        )),
    }
}
