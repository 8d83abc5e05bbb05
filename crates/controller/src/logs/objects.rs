//! All objects as they lie there, for who copies an installation.

use bytes::Bytes;
use futures::TryStreamExt as _;
use object_store::{ObjectStoreExt as _, path::Path};

use super::{Error, LogStore, shelf::failed};

impl LogStore {
    /// The paths of all logs and results that are stored, in order.
    ///
    /// # Errors
    /// They cannot be listed.
    pub async fn objects(&self) -> Result<Vec<String>, Error> {
        let mut all = Vec::new();
        for root in ["logs", "results"].map(Path::from) {
            let mut found = self.shared.shelf.objects.list(Some(&root));
            while let Some(object) = found.try_next().await.map_err(|source| failed(&root, source))? {
                all.push(object.location.to_string());
            }
        }
        all.sort();
        Ok(all)
    }

    /// One of them; none: it is gone.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn object(&self, path: &str) -> Result<Option<Bytes>, Error> {
        let path = Path::from(path);
        let got = match self.shared.shelf.objects.get(&path).await {
            Ok(got) => got.bytes().await,
            Err(error) => Err(error),
        };
        match got {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(failed(&path, source)),
        }
    }
}
