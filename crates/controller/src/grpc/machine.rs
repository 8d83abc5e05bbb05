//! For whom an agent's call may speak: with TLS, for the agent that its certificate names, as long as that is not revoked.

use std::time::Duration;

use muster_common::{proto::v1, tls::Who};
use muster_core::id::AgentId;
use tonic::{Request, Status};

use crate::{
    grpc::{Parts, quiet::Quiet},
    view::{Snapshot, View},
};

/// How often it is looked whether an open call may go on; a revoked agent is cut off within five seconds.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What an agent does wrong again and again is told once a minute.
static QUIET: Quiet = Quiet::new();

/// Who speaks over a call of an agent. Without TLS: anybody, for anybody.
#[derive(Clone, Debug)]
pub(super) struct Speaker {
    who: Option<Machine>,
    view: View,
}

#[derive(Clone, Debug)]
struct Machine {
    name: String,
    uid: String,
    generation: u64,
}

impl Speaker {
    /// Who makes this call.
    ///
    /// # Errors
    /// With TLS: it showed no certificate of an agent, or one that is not accepted any more.
    pub(super) fn of<T>(parts: &Parts, request: &Request<T>) -> Result<Self, Status> {
        let view = parts.view.clone();
        if parts.own.is_none() {
            return Ok(Self { who: None, view });
        }
        let Some(Who::Agent { name, uid, generation }) = request.extensions().get::<Who>().cloned() else {
            return Err(Status::unauthenticated(
                "an agent shows its certificate here; let it join with a token of `ctl admin join-token`",
            ));
        };
        let machine = Machine { name, uid, generation };
        machine.check(&view.load())?;
        Ok(Self { who: Some(machine), view })
    }

    /// The name in its certificate and the number of its data folder; none: without TLS.
    pub(super) fn identity(&self) -> Option<Who> {
        let Machine { name, uid, generation } = self.who.clone()?;
        Some(Who::Agent { name, uid, generation })
    }

    /// Whether it may say this hello.
    ///
    /// # Errors
    /// It says that it is somebody else.
    pub(super) fn check_hello(&self, hello: &v1::Hello) -> Result<(), Status> {
        let Some(machine) = &self.who else { return Ok(()) };
        let name = hello.offer.as_ref().map(|offer| offer.name.as_str()).unwrap_or_default();
        if machine.uid == hello.uid && machine.name == name {
            return Ok(());
        }
        let own = &machine.name;
        QUIET.tell("hello", || {
            tracing::warn!(
                certificate = own,
                name,
                uid = hello.uid,
                "an agent says that it is another one; it is refused"
            );
        });
        Err(Status::permission_denied(format!(
            "the certificate is of agent `{own}` with its data folder, and the hello of `{name}`; join again for another name"
        )))
    }

    /// Whether what it offers may go by this name.
    ///
    /// # Errors
    /// It is another one's.
    pub(super) fn check_name(&self, name: &str) -> Result<(), Status> {
        match &self.who {
            Some(machine) if machine.name != name => {
                let own = &machine.name;
                let text = format!("the certificate is of agent `{own}`, and the offer of `{name}`; it is refused");
                Err(Status::permission_denied(text))
            }
            _ => Ok(()),
        }
    }

    /// Whether it may speak for the agent with this number.
    ///
    /// # Errors
    /// It is another one.
    pub(super) fn check_agent(&self, snapshot: &Snapshot, agent: AgentId) -> Result<(), Status> {
        let Some(machine) = &self.who else { return Ok(()) };
        match snapshot.agents.get(&agent) {
            Some(record) if *record.uid == *machine.uid => Ok(()),
            _ => {
                let name = &machine.name;
                QUIET.tell("agent", || {
                    tracing::warn!(certificate = name, %agent, "an agent speaks for another one; it is refused");
                });
                Err(Status::permission_denied(format!("agent {agent} is not `{name}`, whose certificate this is")))
            }
        }
    }

    /// Does `work` for as long as it may speak.
    pub(super) async fn allowed<T>(&self, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        tokio::select! {
            result = work => result,
            dismissed = self.dismissed() => Err(dismissed),
        }
    }

    /// Waits until it may speak no more, and says why; without TLS for ever. Cancel safe.
    async fn dismissed(&self) -> Status {
        let Some(machine) = &self.who else { return std::future::pending().await };
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Err(status) = machine.check(&self.view.load()) {
                return status;
            }
        }
    }
}

impl Machine {
    fn check(&self, snapshot: &Snapshot) -> Result<(), Status> {
        let name = &self.name;
        match snapshot.machines.get(self.name.as_str()) {
            None => Err(Status::permission_denied(format!("agent `{name}` has not joined this installation"))),
            Some(known) if known.revoked => Err(Status::permission_denied(format!(
                "agent `{name}` is revoked; it may join again with a new token of `ctl admin join-token`"
            ))),
            Some(known) if *known.uid != *self.uid || known.generation != self.generation => {
                Err(Status::permission_denied(format!(
                    "agent `{name}` has joined anew since this certificate was signed; it is worth nothing any more"
                )))
            }
            Some(_) => Ok(()),
        }
    }
}
