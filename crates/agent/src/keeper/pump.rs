//! Speaks with the keeper for the agent: many orders in one message, and everything that the network is needed for.
//!
//! Inputs are fetched before an order goes down, and results delivered. When the keeper is gone, it goes on with another
//! ([`super::rejoin`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use muster_common::clock::Clock;
use muster_core::{
    id::{JobId, TaskId, Token},
    state::End,
    time::{Mono, Timestamp},
};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, warn};

use super::{
    book::Book,
    client::{Command, Queue},
    draft::Draft,
    join::Joined,
    message::{self, Delivered, Event, Gpus, Heard, Hold, Kill, Offer, Tokens, Up, Word},
};
use crate::{
    containers::Folders,
    exec::{ExecEvent, KillReason, Links, Order, TransferError, fetch_inputs},
};

/// Between two tries to have a keeper again.
pub(super) const RETRY: Duration = Duration::from_secs(1);
/// For the keeper to end when everything was ended before.
const STOP_LIMIT: Duration = Duration::from_secs(35);

/// The one that speaks.
pub(super) struct Pump {
    pub(super) queue: Arc<Queue>,
    pub(super) joined: Joined,
    pub(super) book: Book,
    pub(super) events: mpsc::Sender<ExecEvent>,
    pub(super) links: Links,
    pub(super) clock: Clock,
    pub(super) files: PathBuf,
    /// Orders whose inputs are on their way.
    pub(super) fetching: BTreeMap<Token, (Arc<Order>, CancellationToken)>,
    pub(super) hold: Option<(Mono, Duration)>,
    /// Those of the machine, as the keeper was told last.
    pub(super) gpus: Vec<u32>,
    /// What this agent began with is remembered.
    pub(super) is_settled: bool,
    /// What a keeper that died had; its ends are not remembered yet.
    pub(super) unsettled: Vec<Token>,
    /// What has ended and is not remembered yet: a keeper that told of it has work until then.
    pub(super) unforgotten: BTreeSet<Token>,
    pub(super) tracker: TaskTracker,
    pub(super) stop: CancellationToken,
    pub(super) is_leaving: Option<Leaving>,
    /// The keeper was asked to end, and has not answered.
    pub(super) retiring: bool,
    /// It is not asked again before.
    pub(super) retire_at: Mono,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaving {
    Alone,
    WithKeeper,
}

impl Pump {
    pub(super) async fn run(mut self) {
        self.end_unreadable();
        let words = std::mem::take(&mut self.joined.words);
        self.hear(words).await;
        while self.is_leaving.is_none() {
            if !self.retiring {
                self.obey().await;
                if self.is_leaving.is_some() {
                    break;
                }
                // After what was ordered, which a new keeper is for, and what the old one waits to hear.
                self.replace_if_idle();
            }
            let queue = Arc::clone(&self.queue);
            let holds = match self.joined.line.send() {
                Ok(()) => tokio::select! {
                    () = queue.rings(), if !self.retiring => continue,
                    moved = self.joined.line.moves() => moved.unwrap_or(false),
                },
                Err(_) => false,
            };
            if !holds {
                // Ends that it told before it died count.
                let _lives = tokio::time::timeout(RETRY, self.joined.line.rest()).await;
            }
            let is_sane = self.listen().await;
            if !(holds && is_sane) && self.is_leaving.is_none() && !self.reconnect().await {
                break;
            }
        }
        self.stop.cancel();
        self.tracker.close();
        let limit = if self.is_leaving == Some(Leaving::WithKeeper) { STOP_LIMIT } else { STOP_LIMIT / 10 };
        if tokio::time::timeout(limit, self.end()).await.is_err() {
            warn!("the keeper did not end in time; it ends when nothing runs any more");
        }
    }

    /// The last words, and if the keeper is to end, its end.
    async fn end(&mut self) {
        let line = &mut self.joined.line;
        let is_end = self.is_leaving == Some(Leaving::WithKeeper);
        while (is_end || line.waiting() > 0) && line.moves().await.is_ok_and(|holds| holds) {
            // Of what it says now, only what was written last is of use.
            while let Ok(Some(up)) = line.take::<Up>() {
                for event in up.words.into_iter().filter_map(|heard| heard.event) {
                    if let Event::Spooled(spooled) = event {
                        self.links.spools.noticed(spooled.notice());
                    }
                }
            }
        }
        if let (true, Some(child)) = (is_end, &mut self.joined.child) {
            let _status = child.wait().await;
        }
    }

    /// Says all that was ordered.
    async fn obey(&mut self) {
        let mut draft = Draft::default();
        for command in self.queue.take() {
            self.put_if_enough(&mut draft);
            match command {
                Command::Start(order) if order.has_inputs => self.fetch(order),
                Command::Start(order) => self.say_start(order, &mut draft),
                Command::Offer(order, until) => {
                    let place = draft.orders.add(&order);
                    draft.say(Word::Offer(Offer { order: place, until_us: until.0 }));
                    self.book.offer(order, until);
                }
                Command::Claim(token) => {
                    self.book.claim(token);
                    draft.say(Word::Claim(token.0));
                }
                Command::Withdraw(token) => {
                    self.book.withdraw(token);
                    draft.say(Word::Withdraw(token.0));
                }
                Command::Kill(token, reason, grace) => {
                    if !self.kill_unfetched(token, reason).await {
                        self.book.kill(token, reason, self.clock.mono().after(grace));
                        draft.say(Word::Kill(Kill::new(token, reason, grace)));
                    }
                }
                Command::Hold(hold) => {
                    self.hold = hold;
                    draft.say(Word::Hold(Hold::new(hold)));
                }
                Command::Forget(tokens) => self.say_forget(&tokens, &mut draft),
                Command::Shipped(bytes) => draft.say(Word::Shipped(bytes)),
                Command::Delivered(delivered) => draft.say(Word::Delivered(delivered)),
                Command::Fetched(token, outcome) => self.fetched(token, outcome, &mut draft).await,
                Command::Settled => {
                    self.is_settled = true;
                    self.say_settled(&mut draft);
                }
                Command::Gpus(all) => {
                    self.gpus.clone_from(&all);
                    draft.say(Word::Gpus(Gpus { all }));
                }
                Command::Leave => self.is_leaving = Some(Leaving::Alone),
                Command::Stop => {
                    self.is_leaving = Some(Leaving::WithKeeper);
                    draft.say(Word::Farewell(true));
                }
            }
        }
        if !draft.words.is_empty() {
            self.joined.line.put(&draft.finish());
        }
    }

    pub(super) fn put_if_enough(&mut self, draft: &mut Draft) {
        if draft.is_enough() {
            self.joined.line.put(&std::mem::take(draft).finish());
        }
    }

    pub(super) fn say_start(&mut self, order: Arc<Order>, draft: &mut Draft) {
        let place = draft.orders.add(&order);
        draft.say(Word::Start(place));
        self.book.start(order);
    }

    fn say_forget(&mut self, tokens: &[Token], draft: &mut Draft) {
        tokens.iter().for_each(|token| _ = self.unforgotten.remove(token));
        draft.say(Word::Forget(Tokens { tokens: tokens.iter().map(|token| token.0).collect() }));
        if !self.unsettled.is_empty() {
            self.unsettled.retain(|token| !tokens.contains(token));
            self.say_settled(draft);
        }
    }

    /// Once all is remembered: what this agent began with, and what a keeper that died had.
    pub(super) fn say_settled(&self, draft: &mut Draft) {
        if self.is_settled && self.unsettled.is_empty() {
            draft.say(Word::Settled(true));
        }
    }

    /// Has the keeper end what nobody here can watch over.
    pub(super) fn end_unreadable(&mut self) {
        let mut draft = Draft::default();
        for token in std::mem::take(&mut self.joined.unreadable) {
            draft.say(Word::Kill(Kill::new(token, KillReason::Dropped, Duration::ZERO)));
        }
        if !draft.words.is_empty() {
            self.joined.line.put(&draft.finish());
        }
    }

    /// Gets the inputs of `order` into their place; then it is started.
    fn fetch(&mut self, order: Arc<Order>) {
        let (token, stop) = (order.token, self.stop.child_token());
        self.fetching.insert(token, (Arc::clone(&order), stop.clone()));
        let (inputs, queue) = (Arc::clone(&self.links.inputs), Arc::clone(&self.queue));
        let path = self.files.join(format!("{token}.inputs"));
        self.tracker.spawn(async move {
            let fetched = tokio::select! {
                () = stop.cancelled() => return,
                fetched = fetch_inputs(&*inputs, &order, &path) => fetched,
            };
            queue.push(Command::Fetched(token, fetched));
            queue.ring();
        });
    }

    async fn fetched(&mut self, token: Token, outcome: Result<(), TransferError>, draft: &mut Draft) {
        let Some((order, _)) = self.fetching.remove(&token) else { return };
        match outcome {
            Ok(()) => self.say_start(order, draft),
            Err(error) => {
                let why = format!("the results of its dependencies could not be fetched: {error}");
                self.never_ran(token, End::NotStarted, &why).await;
            }
        }
    }

    /// Whether it was one whose inputs are on their way.
    async fn kill_unfetched(&mut self, token: Token, reason: KillReason) -> bool {
        let Some((_, stop)) = self.fetching.remove(&token) else { return false };
        stop.cancel();
        self.never_ran(token, reason.end(), reason.text()).await;
        true
    }

    async fn never_ran(&mut self, token: Token, end: End, why: &str) {
        let _half_a_file = std::fs::remove_file(self.files.join(format!("{token}.inputs")));
        let (started, ended) = (Timestamp(0), self.clock.wall());
        let why = Some(why.into());
        self.tell(ExecEvent::Ended { token, end, why, started, ended, result: None, usage: None, next: None }).await;
    }

    /// Nobody listens when the agent's loop has ended; then nobody needs to.
    pub(super) async fn tell(&mut self, event: ExecEvent) {
        self.book.event(&event);
        if matches!(event, ExecEvent::Ended { .. }) {
            self.unforgotten.insert(event.token());
        }
        let _nobody_listens = self.events.send(event).await;
    }

    /// Takes what the keeper said. Whether it made sense.
    async fn listen(&mut self) -> bool {
        loop {
            match self.joined.line.take::<Up>() {
                Ok(Some(up)) => self.hear(up.words).await,
                Ok(None) => return true,
                Err(error) => {
                    error!(%error, "what the keeper says cannot be read");
                    return false;
                }
            }
        }
    }

    pub(super) async fn hear(&mut self, words: Vec<Heard>) {
        for event in words.into_iter().filter_map(|heard| heard.event) {
            match event {
                Event::Started(started) => {
                    let (token, at) = (Token(started.token), Timestamp(started.at_us));
                    if let Some(process) = started.process {
                        self.tell(ExecEvent::Started { token, at, identity: process.identity() }).await;
                    }
                }
                Event::Ended(ended) => match message::ended(ended, self.clock.wall()) {
                    Some(event) => self.tell(event).await,
                    None => error!("the keeper tells of an end that cannot be read"),
                },
                Event::Withdrawn(token) => self.tell(ExecEvent::Withdrawn { token: Token(token) }).await,
                Event::Spooled(spooled) => self.links.spools.noticed(spooled.notice()),
                Event::Deliver(deliver) => self.deliver(deliver),
                Event::Retired(_) => {}
                Event::Busy(_) => {
                    self.retiring = false;
                    self.retire_at = self.clock.mono().after(RETRY);
                }
            }
        }
    }

    fn deliver(&self, deliver: message::Deliver) {
        let (token, task) = (Token(deliver.token), TaskId::new(JobId(deliver.job), deliver.task));
        let (results, queue, stop) = (Arc::clone(&self.links.results), Arc::clone(&self.queue), self.stop.clone());
        let plain = self.files.join(format!("{token}.result"));
        // One in a container has it in a folder of its own.
        let path = if plain.exists() { plain } else { Folders::of(&self.files, token).result() };
        self.tracker.spawn(async move {
            let put = tokio::select! {
                () = stop.cancelled() => return,
                put = results.put(token, task, &path) => put,
            };
            let (bytes, error) = put.map_or_else(|error| (0, error.0), |bytes| (bytes, String::new()));
            queue.push(Command::Delivered(Delivered { token: token.0, bytes, error }));
            queue.ring();
        });
    }

    /// A keeper of another program or with other settings is replaced as soon as it has nothing to do.
    fn replace_if_idle(&mut self) {
        let is_idle = self.book.is_empty() && self.fetching.is_empty() && self.unforgotten.is_empty();
        if self.joined.is_other && is_idle && self.clock.mono() >= self.retire_at {
            self.retiring = true;
            let mut draft = Draft::default();
            draft.say(Word::Retire(true));
            self.joined.line.put(&draft.finish());
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
