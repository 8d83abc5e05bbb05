//! Whether this agent speaks TLS, how it joins, and how it gets its next certificate in time.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, bail, ensure};
use muster_common::{
    clock::Clock,
    tls::{self, JoinToken},
};
use rustls::ClientConfig;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::credentials::{Credentials, Request};
use crate::{
    config::Config,
    link::{self, Address, JoinError, Joiner},
};

/// Between two tries to join.
const JOIN_PAUSE: Duration = Duration::from_secs(2);
/// Between two tries to renew: a part of the time that is left for it, within these bounds.
const RENEW_PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// Who this agent is to others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Who<'a> {
    pub(super) name: &'a str,
    pub(super) uid: &'a str,
}

/// What a link with TLS needs.
#[derive(Clone, Debug)]
pub(super) struct Secured {
    pub(super) tls: Arc<ClientConfig>,
    credentials: Credentials,
    addresses: Vec<Address>,
    clock: Clock,
}

/// Refuses plain text to other machines, unless somebody asked for it. True: TLS is spoken.
fn speaks_tls(config: &Config, addresses: &[Address]) -> anyhow::Result<bool> {
    let secure = addresses.iter().filter(|address| address.is_secure()).count();
    if secure > 0 {
        ensure!(
            secure == addresses.len(),
            "all controllers are named with https://, or none: all speak TLS, or none does"
        );
        return Ok(true);
    }
    if let Some(address) = addresses.iter().find(|address| !address.is_loopback() && !config.insecure) {
        bail!(
            "{address} is another machine, and plain text can be read and changed on the way: name it with https:// and \
             join with --join TOKEN, or say --insecure on a network that you trust"
        );
    }
    Ok(false)
}

/// How this agent secures its connections; none: it speaks plain text. Joins first if it must, for as long as no
/// controller answers.
///
/// # Errors
/// In words for people.
pub(super) async fn take(
    config: &Config,
    addresses: &[Address],
    who: Who<'_>,
    clock: Clock,
) -> anyhow::Result<Option<Secured>> {
    if !speaks_tls(config, addresses)? {
        return Ok(None);
    }
    let folder = &config.data_dir;
    let kept = Credentials::load(folder)?;
    let joined = |token: &JoinToken| tls::hash(token.secret.as_bytes());
    let credentials = match (kept, &config.join) {
        // The token that it was started with for the first time stands in its unit file for ever.
        (Some(kept), Some(token)) if kept.joined != joined(token) => join(folder, addresses, who, token).await?,
        (Some(kept), _) => kept,
        (None, Some(token)) => join(folder, addresses, who, token).await?,
        (None, None) => bail!(
            "this agent has no certificate yet; let it join with --join TOKEN, which `ctl admin join-token` makes"
        ),
    };
    if credentials.validity().is_some_and(|validity| validity.is_over(now(clock))) {
        warn!("the agent's certificate has expired; it joins again with --join and a new token");
    }
    let tls = credentials.client()?;
    Ok(Some(Secured { tls, credentials, addresses: addresses.to_vec(), clock }))
}

async fn join(folder: &Path, addresses: &[Address], who: Who<'_>, token: &JoinToken) -> anyhow::Result<Credentials> {
    let request = Request::to_join(folder)?;
    let joiner = Joiner { token, name: who.name, uid: who.uid };
    let mut told = false;
    for address in addresses.iter().cycle() {
        match link::enrol(address, &joiner, request.der.clone()).await {
            Ok(signed) => {
                let joined = tls::hash(token.secret.as_bytes());
                let credentials = Credentials::join(folder, &request, &signed, &joined)?;
                info!(name = who.name, "the agent has joined");
                return Ok(credentials);
            }
            Err(JoinError::Refused(why)) => return Err(anyhow::anyhow!(why)).context("the agent may not join"),
            Err(JoinError::Away(why)) if !told => {
                told = true;
                warn!(%address, why, "no controller lets us join yet; trying on");
            }
            Err(JoinError::Away(why)) => tracing::debug!(%address, why, "still no controller lets us join"),
        }
        sleep(JOIN_PAUSE).await;
    }
    bail!("no controller is named")
}

impl Secured {
    /// Gets the next certificate whenever two thirds of the present one's life are over; what runs is not touched.
    pub(super) async fn keep(self, stop: CancellationToken) {
        stop.run_until_cancelled(async {
            loop {
                let Some(validity) = self.credentials.validity() else { return };
                sleep(validity.renew_in(now(self.clock))).await;
                let pause = (validity.life() / 20).clamp(RENEW_PAUSE.0, RENEW_PAUSE.1);
                let mut told = false;
                while let Err(error) = self.renew().await {
                    if !told {
                        told = true;
                        warn!(error = format!("{error:#}"), "the agent's certificate is not renewed yet; trying on");
                    }
                    sleep(pause).await;
                }
                info!("the agent has a new certificate");
            }
        })
        .await;
    }

    async fn renew(&self) -> anyhow::Result<()> {
        let request = Request::new()?;
        let mut failed = anyhow::anyhow!("no controller is named");
        for address in &self.addresses {
            match link::renew(address, Arc::clone(&self.tls), request.der.clone()).await {
                Ok(signed) => return self.credentials.renew(&request, &signed),
                Err(error) => failed = error.into(),
            }
        }
        Err(failed)
    }
}

fn now(clock: Clock) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(clock.wall().0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(insecure: bool, addresses: &[&str]) -> Result<bool, String> {
        let addresses: Vec<Address> = addresses.iter().map(|text| text.parse().expect("an address")).collect();
        let config = Config { insecure, ..Config::default() };
        speaks_tls(&config, &addresses).map_err(|error| error.to_string())
    }

    #[test]
    fn plain_text_goes_to_this_machine_or_where_somebody_insists() {
        assert_eq!(check(false, &["http://127.0.0.1:1", "localhost:2", "[::1]:3"]), Ok(false));
        assert_eq!(check(true, &["http://10.0.0.1:1"]), Ok(false));
        assert_eq!(check(false, &["https://10.0.0.1:1", "https://127.0.0.1:1"]), Ok(true));
        let error = check(false, &["127.0.0.1:1", "http://10.0.0.1:1"]).expect_err("refused");
        assert!(
            error.contains("http://10.0.0.1:1") && error.contains("--insecure") && error.contains("--join"),
            "{error}"
        );
        assert!(check(false, &["https://10.0.0.1:1", "http://127.0.0.1:1"]).expect_err("refused").contains("or none"));
    }
}
