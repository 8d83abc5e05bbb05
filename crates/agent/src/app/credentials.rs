//! The agent's certificate and key on its disk: one file that is there whole or not at all, and that only its user reads.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, anyhow};
use muster_common::tls::{self, Shown, Trust, Validity};
use rcgen::{CertificateParams, KeyPair};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::{exec::os, link::Signed};

const FILE: &str = "identity.pem";
/// The key of a join that is under way: asked again with the same key, a controller whose answer was lost answers again.
const JOINING: &str = "joining.pem";
/// Before the hash of the token that was joined with.
const JOINED: &str = "# joined with ";

/// A key and a request for it to be signed.
pub(super) struct Request {
    key: KeyPair,
    pub(super) der: Vec<u8>,
}

impl Request {
    fn of(key: KeyPair) -> anyhow::Result<Self> {
        let der = CertificateParams::default().serialize_request(&key)?.der().to_vec();
        Ok(Self { key, der })
    }

    /// With a key of its own.
    pub(super) fn new() -> anyhow::Result<Self> {
        Self::of(KeyPair::generate()?)
    }

    /// For a join: the key is on disk before anybody sees the request.
    pub(super) fn to_join(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join(JOINING);
        if let Ok(text) = fs::read_to_string(&path)
            && let Ok(key) = KeyPair::from_pem(&text)
        {
            return Self::of(key);
        }
        let key = KeyPair::generate()?;
        write(&path, &key.serialize_pem()).with_context(|| format!("cannot write {}", path.display()))?;
        Self::of(key)
    }
}

/// What this agent shows, and whom it believes.
#[derive(Clone, Debug)]
pub(super) struct Credentials {
    path: PathBuf,
    shown: Arc<Shown>,
    authority: CertificateDer<'static>,
    /// SHA-256 of the secret of the token that it joined with.
    pub(super) joined: String,
}

impl Credentials {
    /// What an earlier instance kept; none: it has not joined.
    ///
    /// # Errors
    /// There is something else in its place.
    pub(super) fn load(folder: &Path) -> anyhow::Result<Option<Self>> {
        let path = folder.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let found = Self::read(path.clone(), &text);
        found.map(Some).with_context(|| {
            format!("{} holds no certificate with its key; take it away, and join again with --join", path.display())
        })
    }

    fn read(path: PathBuf, text: &str) -> anyhow::Result<Self> {
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes())?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>()?;
        let [own, authority] = &certificates[..] else { return Err(anyhow!("it holds no two certificates")) };
        let shown = Arc::new(Shown::default());
        shown.set(vec![own.clone()], key)?;
        let joined = text.lines().find_map(|line| line.strip_prefix(JOINED)).unwrap_or_default();
        Ok(Self { path, shown, authority: authority.clone(), joined: joined.trim().to_owned() })
    }

    /// Keeps what was signed for a join.
    pub(super) fn join(folder: &Path, request: &Request, signed: &Signed, joined: &str) -> anyhow::Result<Self> {
        let path = folder.join(FILE);
        let text = text(request, signed, joined);
        let credentials = Self::read(path.clone(), &text).context("the controller signed nonsense")?;
        write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
        // Its key stands in the other file now.
        let _gone = fs::remove_file(folder.join(JOINING));
        Ok(credentials)
    }

    /// Keeps the next certificate, and shows it from now on.
    pub(super) fn renew(&self, request: &Request, signed: &Signed) -> anyhow::Result<()> {
        let text = text(request, signed, &self.joined);
        let new = Self::read(self.path.clone(), &text).context("the controller signed nonsense")?;
        anyhow::ensure!(new.authority == self.authority, "the controller has another authority now; join again");
        write(&self.path, &text).with_context(|| format!("cannot write {}", self.path.display()))?;
        let own = CertificateDer::from(signed.certificate.clone());
        self.shown.set(vec![own], PrivateKeyDer::from_pem_slice(request.key.serialize_pem().as_bytes())?)?;
        Ok(())
    }

    /// How connections are secured, whatever certificate is shown by then.
    pub(super) fn client(&self) -> Result<Arc<ClientConfig>, tls::Error> {
        let trust = Trust::Authority(vec![self.authority.clone()]);
        tls::client(&trust, Some(Arc::clone(&self.shown) as Arc<_>)).map(Arc::new)
    }

    /// From when until when the present certificate holds.
    pub(super) fn validity(&self) -> Option<Validity> {
        tls::validity(&self.shown.certificate()?)
    }
}

fn text(request: &Request, signed: &Signed, joined: &str) -> String {
    let (key, own, authority) =
        (request.key.serialize_pem(), tls::pem(&signed.certificate), tls::pem(&signed.authority));
    format!("{JOINED}{joined}\n{key}{own}{authority}")
}

/// Whole or not at all, on disk, and for nobody else to read.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    let draft = path.with_extension("draft");
    // Left by a crash, perhaps with other rights.
    let _gone = fs::remove_file(&draft);
    let mut file = private(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    drop(file);
    fs::rename(&draft, path)
}

fn private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    os::for_us_alone(options.create_new(true).write(true)).open(path)
}
