//! Certificates for one test: an authority, and what it signs, by the `openssl` program.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// An authority in a folder.
pub struct Authority {
    folder: PathBuf,
}

/// What proves who somebody is: PEM files.
pub struct Identity {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// A new one in `folder`, which is made.
    pub fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let authority = Self { folder: folder.to_owned() };
        let subject = ["-subj", "/CN=authority"];
        let made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"];
        authority.openssl(&[&made[..], &subject, &["-keyout", "ca.key", "-out", "ca.pem"]].concat())?;
        Ok(authority)
    }

    /// Its own certificate.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// Signs for a server on the loopback, or for a client, of this name.
    pub fn sign(&self, name: &str) -> Result<Identity> {
        let (key, request, pem) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        let subject = format!("/CN={name}");
        let made = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", &subject];
        self.openssl(&[&made[..], &["-keyout", &key, "-out", &request]].concat())?;
        let extensions = self.folder.join(format!("{name}.ext"));
        fs::write(&extensions, "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n")?;
        let extensions = extensions.to_string_lossy().into_owned();
        let signed = ["x509", "-req", "-days", "1", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
        self.openssl(&[&signed[..], &["-in", &request, "-out", &pem, "-extfile", &extensions]].concat())?;
        Ok(Identity { certificate: self.folder.join(pem), key: self.folder.join(key) })
    }

    fn openssl(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new("openssl").current_dir(&self.folder).args(arguments).output();
        let output = output.context("could not start openssl")?;
        ensure!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}
