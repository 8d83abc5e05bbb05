//! Starts one attempt: its folder, what holds it to its limits, its process. Where one of them fails, none is left of the others.

use std::{path::Path, sync::Arc, time::Duration};

use muster_common::telemetry;
use muster_core::{container::Container, run_as, state::End, usage::Unenforced};
use tracing::Span;

use super::{
    Order,
    attempt::Attempt,
    confined::Confined,
    contained,
    control::{Control, Wish},
    env,
    launch::{self, Launch},
    os,
    room::{Entry, Room, span_of},
    scratch::Folder,
};
use crate::{
    cgroup::{Limits, unenforced},
    containers::{Folders, OWN_PIDS},
};

/// A machine without room for another process gets so many tries, so far apart.
const SHORTAGE_TRIES: u32 = 5;
const SHORTAGE_PAUSE: Duration = Duration::from_millis(50);

impl Room {
    /// Starts the process; on a thread of the pool. Returns what the thread is to start next, if it saw the end.
    pub(super) fn launch(self: &Arc<Self>, order: Arc<Order>, control: Arc<Control>) -> Option<Entry> {
        let room = Arc::clone(self);
        let span = span_of(&order);
        let (end, why) = match control.wish() {
            Some(Wish { reason, .. }) => (reason.end(), reason.text().into()),
            None => match self.spawn(&order, &span) {
                Ok((fresh, confined, scratch)) => {
                    let (started, began) = (self.clock.wall(), self.clock.mono());
                    let deposit = None;
                    let attempt = Attempt { room, order, control, confined, scratch, started, began, span, deposit };
                    return attempt.begin(fresh, self.pool.is_idle());
                }
                Err(why) => (End::NotStarted, why),
            },
        };
        self.track(async move { room.never_ran(&order, end, Some(why)).await });
        None
    }

    fn spawn(&self, order: &Order, span: &Span) -> Result<(os::Fresh, Confined, Option<Folder>), String> {
        if let (Some(_), Some(user)) = (&order.spec.container, &self.rules.user) {
            return Err(format!("this agent runs tasks as `{user}`, and containers are run as its image says by root"));
        }
        let who = os::Who::of(&order.spec.run_as, &self.rules)?;
        let folder = self.folder(order, who.as_ref())?;
        match self.spawn_in(order, span, who.as_ref(), folder.as_ref().map(|folder| &*folder.path)) {
            Ok((fresh, confined)) => Ok((fresh, confined, folder)),
            Err(why) => {
                let _none_was_made = std::fs::remove_file(self.result_path(order));
                if let Some(folder) = folder {
                    self.scratch.put_back(folder);
                }
                Err(why)
            }
        }
    }

    /// A folder of its own, if it needs one.
    fn folder(&self, order: &Order, who: Option<&os::Who>) -> Result<Option<Folder>, String> {
        let is_asked = order.spec.scratch != run_as::Scratch::None;
        // A container's own folder has one.
        if order.spec.container.is_some() || order.spec.cwd.is_some() && !is_asked {
            return Ok(None);
        }
        let unmade = |error| format!("no scratch folder could be made: {error}");
        let is_private = is_asked || who.is_some_and(os::Who::is_other);
        let folder = self.scratch.take(is_private, self.clock.wall()).map_err(unmade)?;
        let given = || {
            os::close_folder(&folder.path)?;
            who.map_or(Ok(()), |who| who.give(&folder.path))
        };
        match if is_private { given() } else { Ok(()) } {
            Ok(()) => Ok(Some(folder)),
            Err(error) => {
                self.scratch.put_back(folder);
                Err(unmade(error))
            }
        }
    }

    fn spawn_in(
        &self,
        order: &Order,
        span: &Span,
        who: Option<&os::Who>,
        folder: Option<&Path>,
    ) -> Result<(os::Fresh, Confined), String> {
        let result = self.result_path(order);
        let inputs = order.has_inputs.then(|| self.inputs_path(order.token));
        let own = span.in_scope(telemetry::trace_parent_of_current_span);
        let trace_parent = if own.is_empty() { &*order.trace_parent } else { &own };
        let scratch = folder.filter(|_| order.spec.scratch != run_as::Scratch::None);
        let files = env::Files { result: &result, inputs: inputs.as_deref(), trace_parent, scratch, who };
        let (launch, confined) = match &order.spec.container {
            Some(container) => self.contain(order, container, &files)?,
            None => {
                let launch = launch::prepare(order, &self.base, &files, folder.unwrap_or(&self.files))?;
                if let Some(who) = who.filter(|who| who.is_other()) {
                    give_files(who, &result, inputs.as_deref())
                        .map_err(|error| format!("its files could not be made its own: {error}"))?;
                }
                let confined = self.confine(order, launch.folder())?;
                (launch, confined)
            }
        };
        self.spawn_confined(order, &launch, who, confined)
    }

    fn spawn_confined(
        &self,
        order: &Order,
        launch: &Launch,
        who: Option<&os::Who>,
        mut confined: Confined,
    ) -> Result<(os::Fresh, Confined), String> {
        let _context = self.runtime.enter();
        // What runs a container was told of the cgroups that it has.
        let (mut tries, mut had_any) = (1, order.spec.container.is_some());
        loop {
            match os::spawn(&launch.program, launch.feeds, confined.confines(who)) {
                Ok(fresh) => return Ok((fresh, confined)),
                Err(error) if os::is_shortage(&error) && tries < SHORTAGE_TRIES => {
                    std::thread::sleep(SHORTAGE_PAUSE * tries);
                    tries += 1;
                }
                Err(error) => {
                    confined.give_up();
                    // What an earlier attempt left in its cgroups; others have nothing of it.
                    if !os::is_busy(&error) || std::mem::replace(&mut had_any, true) {
                        return Err(launch.explain(&error, order.spec.request.memory));
                    }
                    confined = self.confine(order, launch.folder())?;
                }
            }
        }
    }

    /// Makes ready what runs `order` in a container, and what holds it.
    fn contain(
        &self,
        order: &Order,
        container: &Container,
        files: &env::Files<'_>,
    ) -> Result<(Launch, Confined), String> {
        let folders = Folders::of(&self.files, order.token);
        folders.make().map_err(|error| format!("no folder could be made for its container: {error}"))?;
        let inputs = files.inputs.map(|file| folders.take_in(file)).transpose();
        let inputs = inputs.map_err(|error| format!("its inputs could not be put into its container: {error}"))?;
        let files = env::Files { inputs: inputs.as_deref(), ..*files };
        let mut confined = self.confine(order, &folders.private)?;
        let given = (&self.base, &files);
        match contained::prepare(self.containers.as_ref(), order, container, given, (&folders, &mut confined)) {
            Ok(launch) => Ok((launch, confined)),
            Err(why) => {
                confined.hand_back();
                Err(why)
            }
        }
    }

    /// Makes ready what `order` is held by, which works in `folder`, on the thread that starts it. `Err`: it could not be
    /// held to what it asks for, and must be; for people.
    fn confine(&self, order: &Order, folder: &Path) -> Result<Confined, String> {
        let (mut limits, is_contained) = (Limits::of(&order.spec), order.spec.container.is_some());
        if is_contained {
            limits.pids = limits.pids.map(|pids| pids.saturating_add(OWN_PIDS));
        }
        let diskless = self.groups.find_disks(&mut limits, folder);
        let place = self.groups.prepare(&limits);
        let missing = if place.is_some() { self.groups.unenforced().and(diskless) } else { Unenforced::ALL_OF_THEM };
        // Better than nothing, but not what was asked for: each process is held to it, not all of them together.
        // An engine does not start under it.
        let stands_in = missing.has(Unenforced::MEMORY) && self.groups.is_wanted() && !is_contained;
        let data_limit = limits.memory.filter(|_| stands_in);
        let confined = Confined { place, data_limit, unenforced: unenforced(&limits, missing) };
        let missed = confined.missed();
        let why = match (&confined.place, missed.has(Unenforced::IO)) {
            _ if !self.groups.is_demanded() => return Ok(confined),
            (None, _) => {
                "no cgroup could be made for it on this agent (its log says why), and here it must run in one \
                          (`enforce = \"required\"`)"
                    .to_owned()
            }
            (Some(_), true) => {
                "it asks for limits of disks, which cannot be enforced in its folder on this agent, and here they must \
                 be (`enforce = \"required\"`): give it a `cwd` on a disk, or leave them out"
                    .to_owned()
            }
            (Some(_), false) if missed == Unenforced::default() => return Ok(confined),
            (Some(_), false) => {
                let list = missed.keys().collect::<Vec<_>>().join(", ");
                format!(
                    "it cannot be held to its limits ({list}) on this agent, and here it must be (`enforce = \"required\"`)"
                )
            }
        };
        confined.hand_back();
        Err(why)
    }
}

/// Lets another user write its result and read its inputs: it may make no files where they are.
fn give_files(who: &os::Who, result: &Path, inputs: Option<&Path>) -> std::io::Result<()> {
    std::fs::File::create_new(result)?;
    who.give(result)?;
    inputs.map_or(Ok(()), |inputs| who.give(inputs))
}
