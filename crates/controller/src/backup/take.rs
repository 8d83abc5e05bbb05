//! Takes a backup: all records at one commit, then what tasks left behind them, as the bytes of a file.

use std::sync::Arc;

use bytes::Bytes;
use muster_common::{clock::Clock, proto::v1, wire::record};
use tokio::sync::mpsc;

use super::{Error, Writer};
use crate::{logs::LogStore, store::Store};

/// Bytes that are sent at once.
const PART: usize = 64 << 10;

/// What may be copied. Clones share it.
#[derive(Clone)]
pub struct Source {
    store: Arc<dyn Store>,
    about: String,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("about", &self.about).finish_non_exhaustive()
    }
}

impl Source {
    /// The records of `store`, which is called so.
    pub fn new(store: Arc<dyn Store>, about: String) -> Self {
        Self { store, about }
    }

    /// Sends the bytes of a backup, with everything in `objects` if there is that. Work goes on meanwhile; who reads
    /// slowly holds up nobody else.
    ///
    /// # Errors
    /// The store refuses, or nobody takes the bytes.
    pub async fn send(&self, clock: Clock, objects: Option<&LogStore>, to: &mpsc::Sender<Bytes>) -> Result<(), Error> {
        let records = self.store.snapshot().await?;
        let header = v1::BackupHeader {
            version: record::VERSION,
            installation: self.about.clone(),
            term: records.term.0,
            taken_us: clock.wall().0,
            records: records.all.len() as u64,
            record_bytes: records.bytes(),
            written_by: record::WRITTEN_BY.to_owned(),
            with_objects: objects.is_some(),
        };
        let mut writer = Writer::new(&header);
        let io = |source| Error::Io { doing: "compress", path: "the backup".into(), source };
        let mut written = 0;
        for (key, value) in &records.all {
            writer.record(key, value).map_err(io)?;
            written += value.len();
            if written >= PART {
                written = 0;
                send(to, writer.take()).await?;
            }
        }
        if let Some(logs) = objects {
            for path in logs.objects().await? {
                // One that is gone meanwhile belonged to a job that is deleted.
                let Some(data) = logs.object(&path).await? else { continue };
                writer.object(&path, &[], true).map_err(io)?;
                for part in data.chunks(PART) {
                    writer.object(&path, part, false).map_err(io)?;
                    send(to, writer.take()).await?;
                }
            }
        }
        send(to, writer.finish().map_err(io)?).await
    }
}

async fn send(to: &mpsc::Sender<Bytes>, bytes: Vec<u8>) -> Result<(), Error> {
    if bytes.is_empty() {
        return Ok(());
    }
    to.send(bytes.into()).await.map_err(|_| Error::Gone)
}
