//! Connections to etcd: a client for each endpoint, tried in turn, because the library does not go to another by itself.
//!
//! Knows nothing of what is kept there.

mod address;
mod error;

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, TlsOptions};
use tokio::time::{Instant, sleep, timeout};

pub use self::{
    address::{Address, BadAddress},
    error::Error,
};

/// A member that does not answer a ping for this long is gone; without pings a stopped one hangs every call for ever.
const PING_EVERY: Duration = Duration::from_secs(3);
const PING_WITHIN: Duration = Duration::from_secs(3);
/// One try at one member; etcd writes to its disk within it or is in trouble.
const TRY_WITHIN: Duration = Duration::from_secs(3);
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// After every member was tried in vain; doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How to get in, beyond the addresses.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Name and password.
    pub user: Option<(String, String)>,
    /// PEM: who may have signed the members' certificates.
    pub ca: Option<Vec<u8>>,
    /// PEM: our own certificate and its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// All members of one etcd cluster. Clients are made when they are needed, and made anew after an error.
pub struct Etcd {
    address: Address,
    options: ConnectOptions,
    members: Vec<Mutex<Option<Client>>>,
    /// The one that answered last.
    current: AtomicUsize,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Etcd {
    /// Connects to nothing yet.
    pub fn new(address: Address, access: &Access) -> Self {
        let mut options = ConnectOptions::new()
            .with_keep_alive(PING_EVERY, PING_WITHIN)
            .with_keep_alive_while_idle(true)
            .with_connect_timeout(CONNECT_WITHIN)
            .with_require_leader(true)
            .with_auto_token_refresh(true);
        if let Some((name, password)) = &access.user {
            options = options.with_user(name, password);
        }
        if address.is_tls() {
            let mut tls = TlsOptions::new();
            if let Some(ca) = &access.ca {
                tls = tls.ca_certificate(Certificate::from_pem(ca));
            }
            if let Some((certificate, key)) = &access.identity {
                tls = tls.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(tls);
        }
        let members = address.urls().iter().map(|_| Mutex::default()).collect();
        Self { address, options, members, current: AtomicUsize::new(0) }
    }

    /// Where it is, for people.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Does `work` with the first member that can, within a limit. Only for what may be done twice: a try that failed
    /// may have been done.
    ///
    /// # Errors
    /// No member could, or one refused.
    pub async fn call<T, W, F>(&self, within: Duration, work: W) -> Result<T, Error>
    where
        W: Fn(Client) -> F,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let end = Instant::now() + within;
        let mut pause = FIRST_PAUSE;
        loop {
            let mut away = None;
            for _ in 0..self.members.len() {
                match self.once(end, &work).await {
                    Err(Error::Away(why)) => away = Some(why),
                    done => return done,
                }
            }
            if Instant::now() + pause >= end {
                let why = away.unwrap_or_else(|| "it has no members".to_owned());
                return Err(Error::Away(format!("{} does not answer: {why}", self.address)));
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One try at the current member; a member that is away makes the next one current.
    async fn once<T, W, F>(&self, end: Instant, work: &W) -> Result<T, Error>
    where
        W: Fn(Client) -> F,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let at = self.current.load(Ordering::Relaxed) % self.members.len().max(1);
        let within = TRY_WITHIN.min(end.saturating_duration_since(Instant::now()));
        let tried = async {
            let client = self.client(at).await?;
            work(client).await
        };
        let outcome = match timeout(within, tried).await {
            Ok(outcome) => outcome.map_err(Error::from),
            Err(_) => Err(Error::Away(format!("no answer within {within:?}"))),
        };
        if matches!(outcome, Err(Error::Away(_))) {
            self.forget(at);
            let next = (at + 1) % self.members.len().max(1);
            // Somebody else may have moved on already.
            let _moved = self.current.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
        }
        outcome
    }

    async fn client(&self, at: usize) -> Result<Client, etcd_client::Error> {
        if let Some(client) = self.slot(at).and_then(|slot| lock(slot).clone()) {
            return Ok(client);
        }
        let url = self.address.urls().get(at).map(String::as_str).unwrap_or_default();
        let client = Client::connect([url], Some(self.options.clone())).await?;
        if let Some(slot) = self.slot(at) {
            *lock(slot) = Some(client.clone());
        }
        Ok(client)
    }

    fn forget(&self, at: usize) {
        if let Some(slot) = self.slot(at) {
            *lock(slot) = None;
        }
    }

    fn slot(&self, at: usize) -> Option<&Mutex<Option<Client>>> {
        self.members.get(at)
    }
}

fn lock(slot: &Mutex<Option<Client>>) -> std::sync::MutexGuard<'_, Option<Client>> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}
