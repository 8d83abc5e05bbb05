//! The agent's hand on its keeper: takes orders without waiting, and is told when all is over.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use muster_common::clock::Clock;
use muster_core::{id::Token, time::Mono};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{book::Book, join::Joined, message::Delivered, pump::Pump};
use crate::exec::{ExecEvent, KillReason, Links, Order, TransferError};

/// Events that may wait for the supervisor; then the keeper waits to tell more.
const EVENTS: usize = 4096;

/// What is to be said or done; in order.
pub(super) enum Command {
    Start(Arc<Order>),
    Offer(Arc<Order>, Mono),
    Claim(Token),
    Withdraw(Token),
    Kill(Token, KillReason, Duration),
    Hold(Option<(Mono, Duration)>),
    Forget(Vec<Token>),
    Shipped(u64),
    Delivered(Delivered),
    Fetched(Token, Result<(), TransferError>),
    Settled,
    Gpus(Vec<u32>),
    Leave,
    Stop,
}

/// What waits for the pump. Bounded by its users: some entries for each lease that is held, and one for each file shipped.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Vec<Command>>,
    bell: Notify,
}

impl Queue {
    /// Puts it behind all that waits; but the newest word about leases is said first, and none that is older.
    pub(super) fn push(&self, command: Command) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match (&command, waiting.first_mut()) {
            (Command::Hold(_), Some(first @ Command::Hold(_))) => *first = command,
            (Command::Hold(_), _) => waiting.insert(0, command),
            _ => waiting.push(command),
        }
    }

    pub(super) fn take(&self) -> Vec<Command> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// When leases were renewed: what waits to be said of it, or what was `said` last.
    pub(super) fn newest(&self, said: Option<(Mono, Duration)>) -> Option<(Mono, Duration)> {
        match self.waiting.lock().unwrap_or_else(PoisonError::into_inner).first() {
            Some(Command::Hold(hold)) => hold.or(said),
            _ => said,
        }
    }
}

impl Queue {
    pub(super) fn ring(&self) {
        self.bell.notify_one();
    }

    /// Cancel safe.
    pub(super) async fn rings(&self) {
        self.bell.notified().await;
    }

    /// Waits until the agent wants to end; nothing of what waits is taken. Cancel safe.
    pub(super) async fn is_left(&self) {
        let last = |command: &Command| matches!(command, Command::Leave | Command::Stop);
        while !self.waiting.lock().unwrap_or_else(PoisonError::into_inner).iter().any(last) {
            self.rings().await;
        }
        self.ring();
    }
}

/// The handle; cheap to clone.
#[derive(Clone)]
pub struct Client {
    queue: Arc<Queue>,
    held: Arc<Mutex<Option<(Mono, Duration)>>>,
    ended: watch::Receiver<bool>,
}

impl Client {
    /// Goes on with a keeper. Events wait for room in the channel.
    pub fn start(joined: Joined, links: Links, clock: Clock, on: Wire) -> (Self, mpsc::Receiver<ExecEvent>) {
        let (events, inbox) = mpsc::channel(EVENTS);
        let (ended_in, ended) = watch::channel(false);
        let queue = on.0;
        let mut book = Book::default();
        book.adopt(&joined.alive);
        let files = joined.config.setup.data.join("run").join("files");
        let pump = Pump {
            queue: Arc::clone(&queue),
            book,
            events,
            links,
            clock,
            files,
            fetching: BTreeMap::new(),
            hold: joined.renewed,
            gpus: Vec::new(),
            is_settled: false,
            unsettled: Vec::new(),
            unforgotten: BTreeSet::new(),
            tracker: TaskTracker::new(),
            stop: CancellationToken::new(),
            is_leaving: None,
            retiring: false,
            retire_at: Mono(0),
            joined,
        };
        tokio::spawn(async move {
            pump.run().await;
            ended_in.send_replace(true);
        });
        (Self { queue, held: Arc::default(), ended }, inbox)
    }

    /// See [`crate::exec::Exec::start`].
    pub fn start_order(&self, order: Arc<Order>) {
        self.queue.push(Command::Start(order));
    }

    /// See [`crate::exec::Exec::kill`].
    pub fn kill(&self, token: Token, reason: KillReason, grace: Duration) {
        self.queue.push(Command::Kill(token, reason, grace));
    }

    /// See [`crate::exec::Exec::offer`].
    pub fn offer(&self, order: Arc<Order>, until: Mono) {
        self.queue.push(Command::Offer(order, until));
    }

    /// See [`crate::exec::Exec::claim`].
    pub fn claim(&self, token: Token) {
        self.queue.push(Command::Claim(token));
    }

    /// See [`crate::exec::Exec::withdraw`].
    pub fn withdraw(&self, token: Token) {
        self.queue.push(Command::Withdraw(token));
    }

    /// A1: when leases were last renewed, and for how long that holds; none: nothing is held by one. The keeper ends what
    /// outlives its lease when we do not.
    pub fn hold(&self, renewed: Option<(Mono, Duration)>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if *held != renewed {
            *held = renewed;
            drop(held);
            self.queue.push(Command::Hold(renewed));
        }
    }

    /// The ends of these are remembered here: the keeper need not any more.
    pub fn forget(&self, tokens: Vec<Token>) {
        self.queue.push(Command::Forget(tokens));
    }

    /// What became of all that an earlier keeper had is remembered here.
    pub fn settled(&self) {
        self.queue.push(Command::Settled);
        self.flush();
    }

    /// See [`crate::exec::Exec::offer_gpus`].
    pub fn offer_gpus(&self, all: &[u32]) {
        self.queue.push(Command::Gpus(all.to_vec()));
        self.flush();
    }

    /// Says what was ordered since the last time.
    pub fn flush(&self) {
        self.queue.ring();
    }

    /// Leaves the keeper to itself, with what runs.
    pub async fn leave(&self) {
        self.finish(Command::Leave).await;
    }

    /// Ends the keeper. The supervisor has ended what ran; this waits for the last of it.
    pub async fn stop(&self) {
        self.finish(Command::Stop).await;
    }

    async fn finish(&self, command: Command) {
        self.queue.push(command);
        self.flush();
        let mut ended = self.ended.clone();
        let _is_over = ended.wait_for(|ended| *ended).await;
    }
}

/// The way to a client that is made later.
#[derive(Clone, Default)]
pub struct Wire(Arc<Queue>);

impl Wire {
    /// So many bytes of output were shipped, and their files are gone.
    pub fn shipped(&self, bytes: u64) {
        self.0.push(Command::Shipped(bytes));
        self.0.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_leases_only_the_newest_word_waits_and_it_is_said_first() {
        let queue = Queue::default();
        let at = |from: u64| Some((Mono(from), Duration::from_secs(15)));
        assert_eq!((queue.newest(None), queue.newest(at(0))), (None, at(0)));
        for command in [Command::Settled, Command::Hold(at(1)), Command::Claim(Token(3)), Command::Hold(at(2))] {
            queue.push(command);
        }
        assert_eq!((queue.newest(None), queue.newest(at(0))), (at(2), at(2)));
        let taken = queue.take();
        assert!(matches!(taken[..], [Command::Hold(hold), Command::Settled, Command::Claim(_)] if hold == at(2)));
        assert_eq!(queue.newest(at(2)), at(2));
    }
}
