//! Where segments lie in the object store, and how they come there and back.
//!
//! `logs/<job>/<number of the segment>`, `results/<job>/<task>/<token>`; numbers padded so that their order holds.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use muster_core::id::JobId;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, path::Path};

use crate::logs::{
    Error,
    job::Stored,
    segment::{Damage, Footer, Run, Segment, TRAILER, read_footer, read_trailer, tombstone},
};

/// How much of an object's end is read at first: the index of some thousand runs.
const INDEX_GUESS: u64 = 64 * 1024;

/// The object store, by our names. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    pub(super) objects: Arc<dyn ObjectStore>,
}

/// An index, or why there is none.
pub(super) type Index = Result<Footer, Damage>;

impl Shelf {
    /// All segments that are there, by job.
    pub(super) async fn list(&self) -> Result<BTreeMap<JobId, Vec<(u32, Stored)>>, Error> {
        let root = Path::from("logs");
        let mut jobs = BTreeMap::<JobId, Vec<_>>::new();
        let mut all = self.objects.list(Some(&root));
        while let Some(object) = all.try_next().await.map_err(|source| failed(&root, source))? {
            match parse(&object.location) {
                Some((job, seq)) => {
                    jobs.entry(job).or_default().push((seq, Stored { size: object.size, removed: false }));
                }
                None => tracing::warn!(path = %object.location, "a foreign object among the logs is left alone"),
            }
        }
        Ok(jobs)
    }

    /// Every job that has a stored result.
    pub(super) async fn jobs_with_results(&self) -> Result<Vec<JobId>, Error> {
        let root = Path::from("results");
        let found = self.objects.list_with_delimiter(Some(&root)).await.map_err(|source| failed(&root, source))?;
        let job = |path: &Path| path.filename()?.parse().ok().map(JobId);
        Ok(found.common_prefixes.iter().filter_map(job).collect())
    }

    /// Stores a segment; how large it became.
    pub(super) async fn put(&self, job: JobId, segment: &Segment) -> Result<u64, Error> {
        let path = segment_path(job, segment.seq);
        let payload = PutPayload::from_iter([Bytes::copy_from_slice(&segment.body), Bytes::from(segment.tail())]);
        let size = payload.content_length() as u64;
        self.objects.put(&path, payload).await.map_err(|source| failed(&path, source))?;
        Ok(size)
    }

    /// Deletes a segment's body and keeps who wrote how much; how large the rest is.
    pub(super) async fn remove_body(&self, job: JobId, seq: u32, runs: Vec<Run>, why: &str) -> Result<u64, Error> {
        let path = segment_path(job, seq);
        let payload = PutPayload::from(tombstone(runs, why));
        let size = payload.content_length() as u64;
        self.objects.put(&path, payload).await.map_err(|source| failed(&path, source))?;
        Ok(size)
    }

    /// A segment's index. Damage is for the caller to tell of: the rest of the logs is still good.
    pub(super) async fn index(&self, job: JobId, seq: u32, size: u64) -> Result<Index, Error> {
        let path = segment_path(job, seq);
        let from = size.saturating_sub(INDEX_GUESS);
        let end = self.range(&path, from..size).await?;
        let Some(trailer_at) = end.len().checked_sub(TRAILER) else { return Ok(Err(Damage::Foreign)) };
        let (len, crc) = match read_trailer(end.get(trailer_at..).unwrap_or_default()) {
            Ok(found) => found,
            Err(damage) => return Ok(Err(damage)),
        };
        if let Some(at) = trailer_at.checked_sub(len) {
            return Ok(read_footer(end.get(at..trailer_at).unwrap_or_default(), crc));
        }
        let stop = size - TRAILER as u64;
        let Some(start) = stop.checked_sub(len as u64) else { return Ok(Err(Damage::Foreign)) };
        Ok(read_footer(&self.range(&path, start..stop).await?, crc))
    }

    /// A part of a segment's body.
    pub(super) async fn body(&self, job: JobId, seq: u32, part: Range<u32>) -> Result<Bytes, Error> {
        self.range(&segment_path(job, seq), u64::from(part.start)..u64::from(part.end)).await
    }

    /// Deletes everything of a job.
    pub(super) async fn delete_job(&self, job: JobId) -> Result<(), Error> {
        for root in [job_path("logs", job), job_path("results", job)] {
            let found = self.objects.list(Some(&root)).map_ok(|object| object.location).boxed();
            let deleted = self.objects.delete_stream(found);
            deleted.try_for_each(|_| async { Ok(()) }).await.map_err(|source| failed(&root, source))?;
        }
        Ok(())
    }

    /// Deletes one segment.
    pub(super) async fn delete(&self, job: JobId, seq: u32) -> Result<(), Error> {
        let path = segment_path(job, seq);
        self.objects.delete(&path).await.map_err(|source| failed(&path, source))
    }

    async fn range(&self, path: &Path, range: Range<u64>) -> Result<Bytes, Error> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        self.objects.get_range(path, range).await.map_err(|source| failed(path, source))
    }
}

pub(super) fn failed(path: &Path, source: object_store::Error) -> Error {
    Error::Store { path: path.to_string(), source }
}

fn job_path(root: &str, job: JobId) -> Path {
    Path::from_iter([root.to_owned(), format!("{:020}", job.0)])
}

fn segment_path(job: JobId, seq: u32) -> Path {
    Path::from_iter(["logs".to_owned(), format!("{:020}", job.0), format!("{seq:010}")])
}

/// Where a large result lies. The token is part of it, so that an attempt that lost its lease cannot put its
/// result in the place of its successor's (T4).
pub(super) fn result_path(job: JobId, task: u32, token: u64) -> Path {
    Path::from_iter(["results".to_owned(), format!("{:020}", job.0), format!("{task:010}"), format!("{token:020}")])
}

fn parse(path: &Path) -> Option<(JobId, u32)> {
    let mut parts = path.parts().skip(1);
    let job = parts.next()?.as_ref().parse().ok().map(JobId)?;
    let seq = parts.next()?.as_ref().parse().ok()?;
    parts.next().is_none().then_some((job, seq))
}
