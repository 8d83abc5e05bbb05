//! Whether this controller speaks TLS, and how it comes to its authority. Plain text is for this machine only, unless the
//! operator says otherwise in so many words.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail, ensure};
use muster_common::{clock::Clock, tls};
use muster_core::{
    event::{Answer, Event},
    identity::{Answer as Told, Change},
};
use rustls::pki_types::CertificateDer;

use crate::{
    config::Config,
    engine::Handle,
    identity::{Authority, Own, hosts},
};

/// Where people find the certificate that they give to `ctl --ca`.
const CA_FILE: &str = "ca.pem";

/// Refuses to speak plain text where others can listen.
pub(super) fn check(config: &Config) -> anyhow::Result<()> {
    let (listen, tls) = (config.listen, &config.tls);
    if tls.is_some() {
        ensure!(!config.insecure, "TLS and `insecure` contradict each other; leave one of them away");
        return Ok(());
    }
    if !listen.ip().is_loopback() && !config.insecure {
        bail!(
            "it is to listen on {listen}, where other machines can reach it, and would speak plain text: anybody on the \
             way could read and change everything. Say --tls (Muster makes its own certificates), or --insecure on a \
             network that you trust with that"
        );
    }
    if config.insecure && !listen.ip().is_loopback() {
        tracing::warn!(%listen, "insecure: plain text to other machines: whoever is on the way reads and changes what is said, access tokens included");
    }
    Ok(())
}

/// `http` or `https`.
pub(super) fn scheme(config: &Config) -> &'static str {
    if config.tls.is_some() { "https" } else { "http" }
}

/// Who this controller is; none: it speaks plain text. `advertised`: where others reach it.
pub(super) fn own(
    config: &Config,
    name: &str,
    advertised: &str,
    addr: SocketAddr,
    clock: Clock,
) -> anyhow::Result<Option<Arc<Own>>> {
    let Some(settings) = &config.tls else { return Ok(None) };
    let hosts = hosts(&settings.names, advertised, addr);
    let own = Arc::new(Own::new(name.to_owned(), hosts, settings.life, clock));
    if let Some((certificate, key)) = &settings.authority {
        own.take(Authority::of_files(certificate, key)?)?;
    }
    Ok(Some(own))
}

/// The authority of the installation from the one that decides: an earlier one, or a new one.
pub(super) async fn found(own: &Own, handle: &Handle) -> anyhow::Result<()> {
    if own.ready().is_some() {
        return Ok(());
    }
    let new = Authority::make(own.now()).context("an authority cannot be made")?;
    let answer = handle.ask(Event::Identity(Change::Found(new))).await;
    let record = match answer {
        Ok(Answer::Identity(Told::Authority(record))) => record,
        Ok(other) => bail!("the engine answered another question: {other:?}"),
        Err(error) => return Err(anyhow::Error::new(error).context("the authority cannot be kept in the store")),
    };
    own.take(Authority::of_record(&record)?).context("the authority in the store cannot be used")
}

/// Whether an error of [`found`] passes by itself: the store was away, or another leads now.
#[cfg(feature = "etcd")]
pub(super) fn passes(error: &anyhow::Error) -> bool {
    use crate::engine::Error;

    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(Error::Unavailable(_) | Error::Full(_))))
}

/// Leaves the authority's certificate in the data folder, for people: it is no secret.
pub(super) fn publish(own: &Own, folder: &Path) -> anyhow::Result<()> {
    let Some(ready) = own.ready() else { return Ok(()) };
    let path = folder.join(CA_FILE);
    write(&path, ready.authority.certificate()).with_context(|| format!("cannot write {}", path.display()))
}

/// Whole or not at all: several controllers may share the folder.
fn write(path: &Path, certificate: &CertificateDer<'_>) -> io::Result<()> {
    let text = tls::pem(certificate);
    if fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    let draft: PathBuf = path.with_extension(format!("{}.draft", std::process::id()));
    fs::write(&draft, text)?;
    fs::rename(&draft, path)
}
