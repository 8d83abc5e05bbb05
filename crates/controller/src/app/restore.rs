//! A backup into etcd, for a program that is no controller.

use std::path::Path;

use muster_common::clock::Clock;

use crate::{backup::Restored, config::Config};

/// Makes an installation of the backup in the etcd that `config` names; logs and large results go into its data
/// folder, if that is named (`with_data`).
///
/// # Errors
/// In words for people; nothing was changed, or an unfinished copy is left that no controller takes up. A build without
/// the feature `etcd` says so.
#[cfg(feature = "etcd")]
pub async fn into_etcd(path: &Path, config: &Config, with_data: bool, clock: Clock) -> anyhow::Result<Restored> {
    use std::sync::Arc;

    use anyhow::Context as _;

    use super::{cluster, elect};
    use crate::{
        backup,
        etcd::{Address, Etcd},
        leader::Candidate,
    };

    /// How it is called while it leads: nobody can be forwarded there.
    const OWN: &str = "http://restore.invalid";

    let cluster = &config.cluster;
    let address: Address = cluster.store.as_deref().unwrap_or_default().parse()?;
    let etcd = Arc::new(Etcd::new(address, &cluster::access(cluster)?));
    let name = "ctl admin restore".to_owned();
    let candidate = Candidate::new(Arc::clone(&etcd), clock, OWN.to_owned(), name, cluster.session_ttl);
    let leadership = elect::elect(&candidate, OWN, cluster.session_ttl).await?;
    let store = elect::store(&etcd, &leadership, cluster.budget);
    let data = with_data.then_some(config.data_dir.as_path());
    let restored = backup::into_etcd(path, &store, data, clock).await;
    leadership.resign().await;
    restored.with_context(|| format!("{} was not restored", path.display()))
}

/// The same, in a build that cannot.
///
/// # Errors
/// Always.
#[cfg(not(feature = "etcd"))]
#[expect(clippy::unused_async, reason = "the same call in every build")]
pub async fn into_etcd(_: &Path, _: &Config, _: bool, _: Clock) -> anyhow::Result<Restored> {
    anyhow::bail!(
        "this program was built without its client of etcd, so it cannot restore into etcd; \
         take one that was built by `cargo build --release -p muster-ctl --features etcd`"
    )
}
