//! What all attempts of this agent share: folders, the table of live ones, and the way to the supervisor.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use muster_common::{clock::Clock, telemetry};
use muster_core::{container::Container, id::Token, run_as, state::End, time::Timestamp, usage::Unenforced};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::task::TaskTracker;
use tracing::{Span, warn};

use super::{
    Estate, ExecEvent, Links, Order,
    attempt::Attempt,
    confined::Confined,
    contained,
    control::{Control, Wish},
    env,
    launch::{self, Launch},
    offers::Offers,
    os, outcome,
    pool::Pool,
    quota::Quota,
    rules::Rules,
    scratch::{Folder, Scratch},
    transfer::fetch_inputs,
};
use crate::{
    cgroup::{Groups, Limits, unenforced},
    containers::{Engine, Folders, OWN_PIDS},
    logs::{Head, Mask, Spool},
};

/// A machine without room for another process gets so many tries, so far apart.
const SHORTAGE_TRIES: u32 = 5;
const SHORTAGE_PAUSE: Duration = Duration::from_millis(50);

/// Shared by everything in `exec`.
pub(super) struct Room {
    pub(super) clock: Clock,
    pub(super) base: env::Base,
    pub(super) rules: Rules,
    pub(super) links: Links,
    pub(super) scratch: Arc<Scratch>,
    pub(super) files: PathBuf,
    pub(super) events: mpsc::Sender<ExecEvent>,
    pub(super) live: Arc<Live>,
    pub(super) offers: Offers,
    pub(super) hunter: os::Hunter,
    pub(super) groups: Groups,
    /// What runs containers here.
    pub(super) containers: Option<Arc<Engine>>,
    /// What outlives us.
    pub(super) estate: Option<Estate>,
    pub(super) pool: Arc<Pool<Entry>>,
    pub(super) runtime: Handle,
    pub(super) tracker: TaskTracker,
}

/// What a starter's thread works on.
pub(super) type Entry = (Arc<Order>, Arc<Control>);

/// The attempts that are not over.
#[derive(Default)]
pub(super) struct Live(Mutex<HashMap<Token, Arc<Control>>>);

impl Live {
    fn lock(&self) -> MutexGuard<'_, HashMap<Token, Arc<Control>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: it is there already.
    pub(super) fn add(&self, token: Token) -> Option<Arc<Control>> {
        let control = Arc::new(Control::default());
        match self.lock().entry(token) {
            std::collections::hash_map::Entry::Occupied(_) => None,
            std::collections::hash_map::Entry::Vacant(place) => Some(Arc::clone(place.insert(control))),
        }
    }

    pub(super) fn get(&self, token: Token) -> Option<Arc<Control>> {
        self.lock().get(&token).cloned()
    }

    pub(super) fn contains(&self, token: Token) -> bool {
        self.lock().contains_key(&token)
    }

    fn remove(&self, token: Token) {
        self.lock().remove(&token);
    }
}

impl Room {
    pub(super) fn spool(&self, order: &Order) -> Spool {
        let (mask, limit) = self.mask(order);
        self.links.spools.attempt(head_of(order), limit, order.spec.log_rate).masking(mask)
    }

    /// Of an attempt of which an earlier keeper wrote some.
    #[cfg(unix)]
    pub(super) fn resume_spool(&self, order: &Order) -> Spool {
        let (mask, limit) = self.mask(order);
        let spool = self.links.spools.resume(head_of(order), limit, order.spec.log_rate);
        spool.masking(mask.map(Mask::after_a_gap))
    }

    /// What hides its secrets, and how much of its output may be kept.
    fn mask(&self, order: &Order) -> (Option<Mask>, Option<u64>) {
        let spec = &order.spec;
        let secret = spec.mask.iter().filter_map(|name| spec.env.get(name)).map(String::as_bytes);
        match Mask::of(secret) {
            Ok(mask) => (mask, spec.output_limit),
            Err(error) => {
                let Order { token, task, attempt, .. } = order;
                warn!(job = %task.job, %task, attempt, %token, %error, "nothing of an attempt's output is kept: its secrets cannot be looked for");
                (None, Some(0))
            }
        }
    }

    /// Looks at how much an attempt leaves in `folder`, or in its container's.
    pub(super) fn quota(&self, order: &Order, folder: Option<&Folder>) -> Quota {
        let limit = order.spec.scratch_size.or(self.rules.scratch_size);
        let inside = order.spec.container.as_ref().map(|_| Folders::of(&self.files, order.token).scratch);
        Quota::of(inside.or_else(|| folder.map(|folder| folder.path.clone())), limit, self.clock)
    }

    /// Where an attempt writes its result; in a container, in a folder that is seen there.
    pub(super) fn result_path(&self, order: &Order) -> PathBuf {
        match order.spec.container {
            Some(_) => Folders::of(&self.files, order.token).result(),
            None => self.files.join(format!("{}.result", order.token)),
        }
    }

    /// The folder in which an attempt of `order` works, which was given `scratch`.
    #[cfg(unix)]
    pub(super) fn works_in(&self, order: &Order, scratch: Option<&Folder>) -> PathBuf {
        match (&order.spec.container, &order.spec.cwd) {
            (Some(_), _) => Folders::of(&self.files, order.token).private,
            (None, Some(cwd)) => cwd.into(),
            (None, None) => scratch.map_or_else(|| self.files.clone(), |folder| folder.path.clone()),
        }
    }

    fn inputs_path(&self, token: Token) -> PathBuf {
        self.files.join(format!("{token}.inputs"))
    }

    pub(super) async fn discard_files(&self, order: &Order) {
        if order.spec.container.is_some() {
            outcome::discard(Folders::of(&self.files, order.token).private).await;
        } else {
            outcome::discard(self.result_path(order)).await;
        }
        if order.has_inputs {
            outcome::discard(self.inputs_path(order.token)).await;
        }
    }

    pub(super) async fn put_scratch(&self, folder: Folder) {
        if folder.is_clean() {
            self.scratch.put_empty(folder);
        } else {
            let scratch = Arc::clone(&self.scratch);
            let _done = tokio::task::spawn_blocking(move || scratch.clear(&folder.path)).await;
        }
    }

    /// Keeps what a failed attempt left in its folder. Returns what people should know of that.
    pub(super) async fn keep_scratch(&self, order: &Order, folder: Folder) -> Option<String> {
        let scratch = Arc::clone(&self.scratch);
        let name = format!("{}.{}", order.task, order.attempt);
        let kept = tokio::task::spawn_blocking(move || {
            let kept = scratch.keep(&folder.path, &name);
            if !matches!(kept, Ok(Some(_))) {
                scratch.clear(&folder.path);
            }
            kept
        });
        match kept.await.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            Ok(None) => None,
            Ok(Some(path)) => Some(format!("its scratch folder is kept in {}", path.display())),
            Err(error) => Some(format!("its scratch folder could not be kept: {error}")),
        }
    }

    /// Nobody listens when the supervisor is gone; then nobody needs to.
    pub(super) async fn tell(&self, event: ExecEvent) {
        let _nobody_listens = self.events.send(event).await;
    }

    /// The last word on an attempt.
    pub(super) async fn over(&self, event: ExecEvent) {
        self.live.remove(event.token());
        // A3: what survives keeps its GPUs.
        if !matches!(event, ExecEvent::Ended { end: End::KillFailed, .. }) {
            self.base.gpus.lock().free(event.token());
        }
        self.tell(event).await;
    }

    /// From a thread that should not wait.
    pub(super) fn tell_at_once(self: &Arc<Self>, event: ExecEvent) {
        if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
            let room = Arc::clone(self);
            self.track(async move { room.tell(event).await });
        }
    }

    /// The last word on an attempt of `ended`, from a thread that should not wait, and the offered order that this thread
    /// begins in its place, if any: `word` makes the one event that tells of both.
    pub(super) fn over_at_once(
        self: &Arc<Self>,
        ended: &Order,
        word: impl FnOnce(Option<Token>) -> ExecEvent,
    ) -> Option<Entry> {
        self.live.remove(ended.token);
        self.base.gpus.lock().free(ended.token);
        // Without room for the event, what is told of the next one could come before it.
        let Ok(place) = self.events.try_reserve() else {
            self.tell_at_once(word(None));
            return None;
        };
        let now = self.clock.mono();
        // Who waits for a thread came first.
        let next = self.pool.is_idle().then(|| self.offers.begin(&ended.spec.request, now, &self.live)).flatten();
        place.send(word(next.as_ref().map(|(order, _)| order.token)));
        next
    }

    /// The last word on an attempt that never had a process.
    pub(super) async fn never_ran(&self, order: &Order, end: End, why: Option<String>) {
        if order.has_inputs || order.spec.container.is_some() {
            self.discard_files(order).await;
        }
        let (token, never) = (order.token, Timestamp(0));
        let ended = self.clock.wall();
        let why = why.map(Into::into);
        self.over(ExecEvent::Ended { token, end, why, started: never, ended, result: None, usage: None, next: None })
            .await;
    }

    /// A join point: over as soon as it is begun.
    pub(super) async fn acknowledge(&self, order: &Order) {
        let (token, now) = (order.token, self.clock.wall());
        let (end, why, result) = (End::Succeeded, None, None);
        self.over(ExecEvent::Ended { token, end, why, started: now, ended: now, result, usage: None, next: None })
            .await;
    }

    /// Gets the inputs of `order`, then has it started.
    pub(super) async fn fetch_then_start(self: Arc<Self>, order: Arc<Order>, control: Arc<Control>) {
        let path = self.inputs_path(order.token);
        let failure = tokio::select! {
            biased;
            () = control.changed() => None,
            fetched = fetch_inputs(&*self.links.inputs, &order, &path) => fetched.err(),
        };
        match failure {
            // A wish to end is seen there.
            None => self.enqueue(order, control),
            Some(error) => {
                let why = format!("the results of its dependencies could not be fetched: {error}");
                self.never_ran(&order, End::NotStarted, Some(why)).await;
            }
        }
    }

    pub(super) fn enqueue(self: &Arc<Self>, order: Arc<Order>, control: Arc<Control>) {
        if let Err((order, _)) = self.pool.push((order, control)) {
            let room = Arc::clone(self);
            self.track(async move { room.never_ran(&order, End::Lost, Some("the agent is stopping".into())).await });
        }
    }

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

    pub(super) fn track(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn_on(work, &self.runtime);
    }
}

/// Whose output it is.
pub(super) fn head_of(order: &Order) -> Head {
    Head { token: order.token, task: order.task, attempt: order.attempt }
}

/// The attempt's part of its job's trace; nothing is made of it when spans go nowhere.
pub(super) fn span_of(order: &Order) -> Span {
    let span = tracing::debug_span!(
        "attempt",
        job = %order.task.job,
        task = %order.task,
        name = &*order.spec.name,
        attempt = order.attempt,
        end = tracing::field::Empty
    );
    telemetry::set_parent(&span, &order.trace_parent);
    span
}

/// Lets another user write its result and read its inputs: it may make no files where they are.
fn give_files(who: &os::Who, result: &Path, inputs: Option<&Path>) -> std::io::Result<()> {
    std::fs::File::create_new(result)?;
    who.give(result)?;
    inputs.map_or(Ok(()), |inputs| who.give(inputs))
}
