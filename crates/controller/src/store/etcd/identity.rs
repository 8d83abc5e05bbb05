//! The authority as a controller finds it that does not lead: read only, at whatever revision there is.

use std::{sync::Arc, time::Duration};

use muster_common::wire::record;
use muster_core::{
    identity::{Authority, Name, Piece},
    record::{Key, Piece as Any},
};

use crate::etcd::{self, Etcd};

/// Who asks looks again anyway.
const WITHIN: Duration = Duration::from_secs(5);

/// The authority of the installation, if there is one yet.
///
/// # Errors
/// etcd is away, or holds something else under that name.
pub async fn authority(etcd: &Etcd) -> Result<Option<Arc<Authority>>, etcd::Error> {
    let key = Key::Identity(Name::Authority);
    let name = format!("{}{}", etcd.address().prefix(), record::key_bytes(&key));
    let get = |client: etcd_client::Client| {
        let name = name.clone();
        async move { client.kv_client().get(name, None).await }
    };
    let found = etcd.call(WITHIN, get).await?;
    let Some(value) = found.kvs().first() else { return Ok(None) };
    match record::decode(&key, value.value()) {
        Ok(Any::Identity(Piece::Authority(authority))) => Ok(Some(authority)),
        Ok(_) => Err(etcd::Error::Refused("the record of the authority holds something else".to_owned())),
        Err(error) => Err(etcd::Error::Refused(error.to_string())),
    }
}
