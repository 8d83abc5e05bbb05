//! What all attempts of this agent share: folders, the table of live ones, and the way to the supervisor.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use muster_common::{clock::Clock, telemetry};
use muster_core::{id::Token, state::End, time::Timestamp};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::task::TaskTracker;
use tracing::{Span, warn};

use super::{
    Estate, ExecEvent, Links, Order,
    control::Control,
    env,
    offers::Offers,
    os, outcome,
    pool::Pool,
    quota::Quota,
    rules::Rules,
    scratch::{Folder, Scratch},
    transfer::fetch_inputs,
};
use crate::{
    cgroup::Groups,
    containers::{Engine, Folders},
    logs::{Head, Mask, Spool},
};

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

    pub(super) fn inputs_path(&self, token: Token) -> PathBuf {
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
