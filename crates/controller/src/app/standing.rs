//! How this controller stands, as the service manager and people are told.

use std::time::Duration;

use muster_common::service::{Look, Service};
use muster_core::id::Term;
use tokio::{sync::watch, time::timeout};

use crate::engine::Handle;

/// An engine that does not answer within this time stands still. Turns take milliseconds; only the largest loading of a
/// store takes seconds, and callers are answered during that.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

/// What a controller does now.
#[derive(Clone, Debug)]
pub enum Standing {
    /// It waits for its store or its place; nobody is served.
    Waits(String),
    /// Another leads, at this address; calls are passed on.
    StandsBy(String),
    /// It decides.
    Leads(Handle),
}

impl Standing {
    /// Whether callers are served.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::StandsBy(_) | Self::Leads(_))
    }

    fn words(&self) -> String {
        match self {
            Self::Waits(why) => why.clone(),
            Self::StandsBy(leader) => format!("stands by; {leader} leads"),
            Self::Leads(handle) => {
                let Term(term) = handle.term();
                format!("leads, term {term}")
            }
        }
    }

    async fn look(&self) -> Look {
        let turns = match self {
            // There is no engine: that the runtime comes here is all there is to see.
            Self::Waits(_) | Self::StandsBy(_) => true,
            Self::Leads(handle) => timeout(ANSWERS_WITHIN, handle.turns()).await.is_ok(),
        };
        let words = self.words();
        Look { turns, status: if turns { words } else { format!("{words}; its engine does not answer") } }
    }
}

/// Says how it goes until it is dropped; ready as soon as callers are served. Cancel safe; never ends.
pub async fn tell(service: &Service, mut standing: watch::Receiver<Standing>) {
    let began = async {
        // Nobody is left who could change it: it ends.
        if standing.wait_for(Standing::is_ready).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    service.starting("looks for who leads", began).await;
    service.ready();
    let look = async || {
        let now = standing.borrow().clone();
        now.look().await
    };
    service.watch(look).await;
}
