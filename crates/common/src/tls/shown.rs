//! The certificate that this process shows, changed without a restart: new connections show the new one, open ones stay.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwapOption;
use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::{Error, provider};

/// Clones are made with `Arc`.
#[derive(Default)]
pub struct Shown {
    current: ArcSwapOption<CertifiedKey>,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.current.load().is_some() { "Shown(one)" } else { "Shown(none)" })
    }
}

impl Shown {
    /// Shows this one from now on: the certificate and those above it, and its key.
    ///
    /// # Errors
    /// The key is of no known kind, or does not belong to the certificate.
    pub fn set(&self, chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<(), Error> {
        let key = CertifiedKey::from_der(chain, key, &provider())?;
        self.current.store(Some(Arc::new(key)));
        Ok(())
    }

    /// The certificate that is shown now, DER.
    pub fn certificate(&self) -> Option<CertificateDer<'static>> {
        self.current.load().as_ref().and_then(|current| current.cert.first().cloned())
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }

    fn has_certs(&self) -> bool {
        self.current.load().is_some()
    }
}
