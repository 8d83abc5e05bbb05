//! Results too large for the store.

use futures::{StreamExt, stream::BoxStream};
use muster_core::id::{TaskId, Token};
use object_store::{ObjectStoreExt, WriteMultipart, path::Path};

use crate::logs::{
    Error, LogStore,
    shelf::{failed, result_path},
};

/// No result is larger than this.
pub const RESULT_MAX: u64 = 64 << 20;
/// Parts of a result that are written at one time.
const PARTS_AT_ONCE: usize = 2;

/// A result that is being stored. It is there when [`ResultWriter::finish`] says so, and not at all before.
#[derive(Debug)]
pub struct ResultWriter {
    upload: WriteMultipart,
    path: Path,
    bytes: u64,
}

impl LogStore {
    /// Begins to store the result that an attempt left.
    ///
    /// # Errors
    /// The object store refuses.
    pub async fn put_result(&self, task: TaskId, token: Token) -> Result<ResultWriter, Error> {
        let path = result_path(task.job, task.index, token.0);
        let upload = self.shared.shelf.objects.put_multipart(&path).await.map_err(|source| failed(&path, source))?;
        Ok(ResultWriter { upload: WriteMultipart::new(upload), path, bytes: 0 })
    }

    /// The result that an attempt left, in parts.
    ///
    /// # Errors
    /// There is none, or the object store cannot be read.
    pub async fn get_result(
        &self,
        task: TaskId,
        token: Token,
    ) -> Result<BoxStream<'static, Result<bytes::Bytes, Error>>, Error> {
        let path = result_path(task.job, task.index, token.0);
        let found = self.shared.shelf.objects.get(&path).await.map_err(|source| failed(&path, source))?;
        Ok(found.into_stream().map(move |part| part.map_err(|source| failed(&path, source))).boxed())
    }
}

impl ResultWriter {
    /// Adds a part.
    ///
    /// # Errors
    /// The whole is too large, or the object store refuses.
    pub async fn write(&mut self, part: &[u8]) -> Result<(), Error> {
        self.bytes = self.bytes.saturating_add(part.len() as u64);
        if self.bytes > RESULT_MAX {
            return Err(Error::ResultTooLarge);
        }
        let waited = self.upload.wait_for_capacity(PARTS_AT_ONCE).await;
        waited.map_err(|source| failed(&self.path, source))?;
        self.upload.write(part);
        Ok(())
    }

    /// Makes it durable; how large it is.
    ///
    /// # Errors
    /// The object store refuses.
    pub async fn finish(self) -> Result<u64, Error> {
        self.upload.finish().await.map_err(|source| failed(&self.path, source))?;
        Ok(self.bytes)
    }

    /// Gives up; nothing is left.
    pub async fn abort(self) {
        if let Err(error) = self.upload.abort().await {
            tracing::warn!(%error, path = %self.path, "an unfinished result is left in the object store");
        }
    }
}
