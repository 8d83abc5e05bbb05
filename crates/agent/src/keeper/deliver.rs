//! What the keeper needs of the network, which only the agent has: inputs that it fetched, results that it delivers.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures::future::BoxFuture;
use muster_core::id::{TaskId, Token};
use tokio::sync::{Notify, oneshot};

use super::message::Delivered;
use crate::exec::{Inputs, Order, Results, TransferError};

/// Results that an agent should deliver. They wait for one, however long that takes: the attempt is over.
#[derive(Default)]
pub(super) struct Deliveries {
    waiting: Mutex<BTreeMap<Token, Waiting>>,
    news: Notify,
}

struct Waiting {
    task: TaskId,
    is_told: bool,
    answer: oneshot::Sender<Result<u64, TransferError>>,
}

impl Deliveries {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Token, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until [`Deliveries::new_ones`] has one. Cancel safe.
    pub(super) async fn has_news(&self) {
        self.news.notified().await;
    }

    /// Those that were not asked for before.
    pub(super) fn new_ones(&self) -> Vec<(Token, TaskId)> {
        let mut waiting = self.lock();
        let new = waiting.iter_mut().filter(|(_, waiting)| !waiting.is_told);
        let tell = |(token, waiting): (&Token, &mut Waiting)| {
            waiting.is_told = true;
            (*token, waiting.task)
        };
        new.map(tell).collect()
    }

    /// All of them: the agent is another one.
    pub(super) fn waiting(&self) -> Vec<(Token, TaskId)> {
        let mut waiting = self.lock();
        waiting.values_mut().for_each(|waiting| waiting.is_told = true);
        waiting.iter().map(|(token, waiting)| (*token, waiting.task)).collect()
    }

    pub(super) fn answer(&self, delivered: Delivered) {
        let Delivered { token, bytes, error } = delivered;
        if let Some(waiting) = self.lock().remove(&Token(token)) {
            let answer = if error.is_empty() { Ok(bytes) } else { Err(TransferError(error)) };
            let _nobody_waits = waiting.answer.send(answer);
        }
    }
}

impl Results for Deliveries {
    fn put<'a>(&'a self, token: Token, task: TaskId, _from: &'a Path) -> BoxFuture<'a, Result<u64, TransferError>> {
        Box::pin(async move {
            let (answer, hears) = oneshot::channel();
            self.lock().insert(token, Waiting { task, is_told: false, answer });
            self.news.notify_one();
            hears.await.unwrap_or_else(|_| Err(TransferError("the keeper ends".into())))
        })
    }
}

/// The agent put them into their place before it gave the order.
pub(super) struct Fetched;

impl Inputs for Fetched {
    fn fetch<'a>(&'a self, _order: &'a Order, to: &'a Path) -> BoxFuture<'a, Result<(), TransferError>> {
        let there = to.exists();
        Box::pin(std::future::ready(if there { Ok(()) } else { Err(TransferError("they are gone".into())) }))
    }
}
