//! The store of a cluster: etcd, written by the controller that leads.
//!
//! Every transaction asks that our leader key is the one that we made (C2), and that the last commit is the one that we
//! know. So a transaction may be sent again after an error: it is done once, or found done, or another controller leads.

mod fill;
mod identity;
mod load;
mod pack;
mod upkeep;
mod write;

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use muster_core::id::Term;
use tokio::sync::Mutex;

pub use self::identity::authority;
use self::pack::Limits;
use crate::{
    etcd::{self, Etcd},
    store::{Authority, Batch, Error, Gauge, Loaded, Outcome, Records, Store},
};

/// Whose transactions etcd accepts.
#[derive(Clone, Debug)]
pub struct Fence {
    /// The key of the leader.
    pub key: String,
    /// Its create-revision while we lead.
    pub revision: i64,
    /// Whether we still may.
    pub authority: Authority,
}

/// The state of a cluster, for one leadership.
#[derive(Debug)]
pub struct EtcdStore {
    etcd: Arc<Etcd>,
    fence: Fence,
    state: Mutex<State>,
    /// Bytes past which new submissions are refused.
    budget: u64,
    gauge: ArcSwap<Gauge>,
}

/// What the next transaction builds on.
#[derive(Debug, Default)]
struct State {
    /// The mod-revision of `head`: 0 before anything was written, none before the first loading and after an unknown
    /// outcome.
    head: Option<i64>,
    /// How many commits this leadership has tried; names them.
    tried: u64,
    /// Keys whose values lie in parts, and in how many.
    parts: BTreeMap<String, u32>,
    limits: Limits,
}

impl EtcdStore {
    /// The store behind `etcd` as long as `fence` holds. Past `budget` bytes of it, new submissions are refused.
    pub fn new(etcd: Arc<Etcd>, fence: Fence, budget: u64) -> Self {
        let gauge = ArcSwap::from_pointee(Gauge { limit: budget, ..Gauge::default() });
        Self { etcd, fence, state: Mutex::default(), budget, gauge }
    }

    fn prefixed(&self, key: &str) -> String {
        format!("{}{key}", self.etcd.address().prefix())
    }

    fn remote(&self, error: etcd::Error) -> Error {
        let may_pass = matches!(error, etcd::Error::Away(_) | etcd::Error::NoSpace);
        Error::Remote { url: self.etcd.address().to_string(), may_pass, source: error.into() }
    }
}

#[async_trait]
impl Store for EtcdStore {
    async fn load(&self) -> Result<Loaded, Error> {
        let mut state = self.state.lock().await;
        state.head = None;
        self.take_up(&mut state).await
    }

    async fn commit(&self, _term: Term, batch: Batch) -> Outcome {
        let mut state = self.state.lock().await;
        let Some(head) = state.head else { return Outcome::Unknown("the store is not loaded".to_owned()) };
        let committed = self.write(&mut state, head, batch).await;
        if committed != Outcome::Committed {
            // C3: loading tells.
            state.head = None;
        }
        committed
    }

    async fn snapshot(&self) -> Result<Records, Error> {
        self.copy_out().await
    }

    fn holds(&self) -> bool {
        self.fence.authority.holds()
    }

    fn gauge(&self) -> Gauge {
        Gauge::clone(&self.gauge.load())
    }

    async fn close(&self) {}
}
