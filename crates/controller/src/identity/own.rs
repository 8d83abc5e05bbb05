//! This controller's own certificate: signed by itself in the authority's name, and again before it ends.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use muster_common::{
    clock::Clock,
    tls::{self, ALPN, Shown, Trust},
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Authority, Error};

/// A controller can sign for itself at any time, so that its own certificate need not last.
const LIFE_MAX: Duration = Duration::from_secs(24 * 3600);
/// After a try that failed.
const AGAIN: Duration = Duration::from_secs(10);

/// Who this controller is. Until the authority is known, nobody can be answered.
#[derive(Debug)]
pub struct Own {
    name: String,
    hosts: Vec<String>,
    life: Duration,
    clock: Clock,
    shown: Arc<Shown>,
    ready: watch::Sender<Option<Arc<Ready>>>,
}

/// What is there once the authority is known.
#[derive(Debug)]
pub struct Ready {
    /// In whose name certificates are signed.
    pub authority: Authority,
    /// For those who connect here.
    pub server: Arc<ServerConfig>,
    /// For connections to other controllers.
    pub client: Arc<ClientConfig>,
}

impl Own {
    /// A controller of this name, reached under `hosts`, that signs for `life`.
    pub fn new(name: String, hosts: Vec<String>, life: Duration, clock: Clock) -> Self {
        Self { name, hosts, life, clock, shown: Arc::default(), ready: watch::Sender::new(None) }
    }

    /// Takes up the authority, and signs a certificate for itself.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn take(&self, authority: Authority) -> Result<(), Error> {
        self.sign(&authority)?;
        let provider = tls::provider();
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate().clone()).map_err(tls::Error::from)?;
        // People have no certificates: theirs are tokens.
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|error| tls::Error::Certificate(error.to_string()))?;
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(tls::Error::from)?;
        let mut server =
            server.with_client_cert_verifier(verifier).with_cert_resolver(Arc::clone(&self.shown) as Arc<_>);
        server.alpn_protocols = vec![ALPN.to_vec()];
        // A resumed connection would show a certificate that nobody looks at again.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        let trust = Trust::Authority(vec![authority.certificate().clone()]);
        let client = tls::client(&trust, Some(Arc::clone(&self.shown) as Arc<_>))?;
        tracing::info!(pin = authority.pin(), name = self.name, "this controller speaks TLS");
        let ready = Ready { authority, server: Arc::new(server), client: Arc::new(client) };
        self.ready.send_replace(Some(Arc::new(ready)));
        Ok(())
    }

    /// What is there, if the authority is known.
    pub fn ready(&self) -> Option<Arc<Ready>> {
        self.ready.borrow().clone()
    }

    /// What is there, once the authority is known. Cancel safe.
    pub async fn when_ready(&self) -> Arc<Ready> {
        let mut changes = self.ready.subscribe();
        loop {
            if let Some(ready) = changes.borrow_and_update().clone() {
                return ready;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// How long certificates of agents last.
    pub fn life(&self) -> Duration {
        self.life
    }

    /// The time, as certificates tell it.
    pub fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(self.clock.wall().0)
    }

    /// Signs again before the end, until cancelled.
    pub async fn keep(self: Arc<Self>, cancel: CancellationToken) {
        let work = async {
            let ready = self.when_ready().await;
            loop {
                tokio::time::sleep(self.renew_in()).await;
                match self.sign(&ready.authority) {
                    Ok(()) => tracing::info!(name = self.name, "this controller has a new certificate"),
                    Err(error) => {
                        let error = format!("{:#}", anyhow::Error::new(error));
                        tracing::error!(error, "this controller's certificate cannot be renewed");
                        tokio::time::sleep(AGAIN).await;
                    }
                }
            }
        };
        cancel.run_until_cancelled(work).await;
    }

    fn renew_in(&self) -> Duration {
        let validity = self.shown.certificate().and_then(|certificate| tls::validity(&certificate));
        validity.map_or(AGAIN, |validity| validity.renew_in(self.now()))
    }

    fn own_life(&self) -> Duration {
        self.life.min(LIFE_MAX)
    }

    fn sign(&self, authority: &Authority) -> Result<(), Error> {
        let (certificate, key) = authority.sign_controller(&self.name, &self.hosts, self.now(), self.own_life())?;
        // With the authority's: who joins knows it by its pin only.
        self.shown.set(vec![certificate, authority.certificate().clone()], key)?;
        Ok(())
    }
}
