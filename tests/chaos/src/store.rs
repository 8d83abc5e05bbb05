//! etcd as its own clients see it, past all proxies: who leads, a compaction, a file that is full, and room again.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow};
use etcd_client::{
    AlarmAction, AlarmOptions, AlarmType, Client, CompactionOptions, ConnectOptions, DeleteOptions, GetOptions,
};
use tokio::time::timeout;

use crate::{
    cast::{CONTROLLERS, ETCDS, Node},
    ground::Ground,
    wires::Wire,
};

const CALL_WITHIN: Duration = Duration::from_secs(2);
const LEADER: &str = "/muster/v1/leader";
/// What fills etcd; nobody else's.
const BALLAST: &str = "/ballast/";
/// One value: below what etcd takes in one request.
const BALLAST_BYTES: usize = 1 << 20;

/// The way to etcd from the client's network.
pub(crate) struct Store {
    ground: Arc<Ground>,
}

/// What a full etcd said on the way there.
pub(crate) enum Filled {
    /// It takes nothing more.
    Full,
    /// It still took values when enough had been sent.
    NotYet,
}

impl Store {
    pub(crate) fn new(ground: Arc<Ground>) -> Self {
        Self { ground }
    }

    /// Does `work` in the client's network, with a client of the members that answer.
    fn with<T: Send, F: Future<Output = Result<T>>>(
        &self,
        members: &[usize],
        work: impl FnOnce(Client) -> F + Send,
    ) -> Result<T> {
        self.ground.inside(&Node::Client.name(), || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut last = anyhow!("no member was asked");
                for member in members {
                    let url = format!("http://{}:2379", Node::Etcd(*member).address());
                    let options = ConnectOptions::new().with_connect_timeout(CALL_WITHIN).with_timeout(CALL_WITHIN);
                    let reached = async {
                        let mut client = Client::connect([url], Some(options)).await?;
                        // Is anybody there, and part of a quorum?
                        client.get("ready", None).await?;
                        Ok::<_, etcd_client::Error>(client)
                    };
                    match timeout(CALL_WITHIN, reached).await {
                        Ok(Ok(client)) => return work(client).await,
                        Ok(Err(error)) => last = anyhow!(error),
                        Err(_) => last = anyhow!("{} does not answer", Node::Etcd(*member).name()),
                    }
                }
                Err(last).context("etcd does not answer")
            })
        })
    }

    fn any() -> Vec<usize> {
        (0..ETCDS).collect()
    }

    /// Whether it answers.
    pub(crate) fn answers(&self) -> Result<()> {
        self.with(&Self::any(), |_| async { Ok(()) })
    }

    /// Which controller leads, by etcd's own word.
    pub(crate) fn leader(&self) -> Result<Option<usize>> {
        self.with(&Self::any(), |mut client| async move {
            let found = client.get(LEADER, None).await?;
            let record = found.kvs().first().map(|pair| String::from_utf8_lossy(pair.value()).into_owned());
            Ok(record.and_then(|record| {
                (0..CONTROLLERS).find(|n| {
                    let (ip, port) = Wire::Forward(*n).begin();
                    record.contains(&format!("{ip}:{port}"))
                })
            }))
        })
    }

    /// Which member leads etcd itself.
    pub(crate) fn etcd_leader(&self) -> Result<Option<usize>> {
        for member in 0..ETCDS {
            let is_leader = self.with(&[member], |mut client| async move {
                let status = client.status().await?;
                Ok(status.header().is_some_and(|header| header.member_id() == status.leader()))
            });
            if is_leader.unwrap_or(false) {
                return Ok(Some(member));
            }
        }
        Ok(None)
    }

    /// Forgets all history up to now.
    pub(crate) fn compact(&self) -> Result<()> {
        self.with(&Self::any(), |mut client| async move {
            let now = client.get("ready", None).await?.header().map_or(0, |header| header.revision());
            client.compact(now, Some(CompactionOptions::new())).await?;
            Ok(())
        })
    }

    /// Writes until etcd takes no more, at most so many values.
    pub(crate) fn fill(&self, values: u64) -> Result<Filled> {
        self.with(&Self::any(), |mut client| async move {
            let value = vec![b'x'; BALLAST_BYTES];
            for n in 0..values {
                match client.put(format!("{BALLAST}{n:04}"), value.clone(), None).await {
                    Ok(_) => {}
                    Err(error) if error.to_string().contains("space exceeded") => return Ok(Filled::Full),
                    Err(error) => return Err(anyhow!(error).context("etcd could not be filled")),
                }
            }
            Ok(Filled::NotYet)
        })
    }

    /// Whether anything lies in the way of new writes: the ballast's first value is there.
    pub(crate) fn has_ballast(&self) -> Result<bool> {
        self.with(&Self::any(), |mut client| async move {
            let options = GetOptions::new().with_prefix().with_count_only();
            Ok(client.get(BALLAST, Some(options)).await?.count() > 0)
        })
    }

    /// Takes the ballast away, and does what an operator does then: compact, defragment, disarm.
    pub(crate) fn free(&self) -> Result<()> {
        self.with(&Self::any(), |mut client| async move {
            client.delete(BALLAST, Some(DeleteOptions::new().with_prefix())).await?;
            let now = client.get("ready", None).await?.header().map_or(0, |header| header.revision());
            match client.compact(now, Some(CompactionOptions::new().with_physical())).await {
                // X11 was here first.
                Err(error) if error.to_string().contains("has been compacted") => Ok(()),
                done => done.map(|_| ()).map_err(anyhow::Error::new),
            }
        })?;
        for member in Self::any() {
            self.with(&[member], |mut client| async move {
                client.defragment().await?;
                Ok(())
            })?;
        }
        self.with(&Self::any(), |mut client| async move {
            let alarms = client.alarm(AlarmAction::Get, AlarmType::None, None).await?;
            for alarm in alarms.alarms() {
                let mut options = AlarmOptions::new();
                options.with_member(alarm.member_id());
                client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(options)).await?;
            }
            Ok(())
        })
    }
}
