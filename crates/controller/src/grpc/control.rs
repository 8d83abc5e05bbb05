//! One agent's control stream: heartbeats and reports in, leases and acknowledgements out.
//!
//! What comes in never waits for what goes out: an agent that does not read must not stop its own heartbeats (D1, D2).

use std::{sync::Arc, time::Duration};

use muster_common::{
    proto::{
        PROTOCOL,
        v1::{self, agent_down::Message as Down, agent_up::Message as Up},
    },
    wire::link,
};
use muster_core::{
    access::Caller,
    event::{Answer, Event, Lease, Report, What},
    id::{AgentId, JobId, SessionId, TaskId, Term, Token},
    state::End,
    time::{Timestamp, micros},
};
use prost::Message as _;
use tokio::{sync::mpsc, time::timeout};
use tonic::{Status, Streaming};

use crate::{
    dispatch::{Knows, Outgoing, Sessions},
    engine::Handle,
    grpc::{
        Parts,
        agents::Back,
        identity::check_name,
        jobs::unexpected,
        load::Loads,
        machine::Speaker,
        status::{of_engine, of_field},
    },
};

/// How long an agent has for its first message.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// A message of leases ends when it has grown to this.
const LEASES_BYTES: usize = 1 << 20;
/// What a lease takes beside its item.
const LEASE_BYTES: usize = 48;
const UID_MAX: usize = 256;

/// A connection that is attached; detached when it ends, however it ends.
struct Session {
    handle: Handle,
    sessions: Sessions,
    agent: AgentId,
    id: SessionId,
    loads: Loads,
    speaker: Speaker,
    left: bool,
}

pub(super) async fn run(
    parts: Parts,
    speaker: Speaker,
    caller: Arc<Caller>,
    mut up: Streaming<v1::AgentUp>,
    back: Back<v1::AgentDown>,
) -> Result<(), Status> {
    // What is done once is kept in boxes, which go when it is over: ten thousand of these futures wait for years.
    let (hello, protocol) = Box::pin(hello(&mut up)).await?;
    speaker.check_hello(&hello)?;
    let (id, outgoing) = parts.sessions.open();
    let knows = Knows { terminals: hello.terminals };
    let attached = Box::pin(attach(&parts, &caller, id, hello, protocol)).await;
    let (agent, welcome) = match attached {
        Ok(attached) => attached,
        Err(status) => {
            parts.sessions.close(id);
            return Err(status);
        }
    };
    let (handle, sessions, loads) = (parts.handle.clone(), parts.sessions.clone(), parts.loads.clone());
    let mut session = Session { handle, sessions, agent, id, loads, speaker: speaker.clone(), left: false };
    parts.sessions.name(id, agent, knows);
    parts.twins.look(agent, &parts.view.load(), &parts.sessions);
    let patience = parts.handle.lease_ttl();
    let result = async {
        Box::pin(send(&back, patience, Down::Welcome(welcome))).await?;
        let writer = write(&parts.handle, outgoing, &back);
        let work = async {
            tokio::select! {
                result = session.read(&mut up) => result,
                result = writer => result,
            }
        };
        // Inside: whoever is sent away is detached like anybody else.
        speaker.allowed(work).await
    }
    .await;
    tracing::info!(%agent, session = %id, "agent disconnected");
    Box::pin(session.end()).await;
    result
}

/// The agent's hello, and the protocol that is spoken from here on.
async fn hello(up: &mut Streaming<v1::AgentUp>) -> Result<(v1::Hello, u32), Status> {
    let first = timeout(HELLO_WITHIN, up.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no hello came; an agent sends it first"))??;
    let Some(v1::AgentUp { message: Some(Up::Hello(hello)) }) = first else {
        return Err(Status::invalid_argument("the first message of an agent must be its hello"));
    };
    let protocol = agree((hello.oldest_protocol, hello.protocol), PROTOCOL).map_err(Status::failed_precondition)?;
    if hello.uid.is_empty() || hello.uid.len() > UID_MAX {
        return Err(of_field("hello.uid", format!("must have 1 to {UID_MAX} bytes")));
    }
    Ok((hello, protocol))
}

/// The newest protocol that an agent which understands `oldest` to `newest` shares with a controller of `known`, which
/// understands the one before as well, so that one after another can be upgraded, in whatever order.
fn agree((oldest, newest): (u32, u32), known: u32) -> Result<u32, String> {
    let before = known.saturating_sub(1).max(1);
    // An agent that does not say which is the oldest speaks one only.
    let oldest = if oldest == 0 { newest } else { oldest };
    if newest >= before && oldest <= known && oldest <= newest {
        return Ok(newest.min(known));
    }
    let range = |from: u32, to: u32| if from < to { format!("{from} to {to}") } else { to.to_string() };
    let older = if newest > known { "controller" } else { "agent" };
    let (spoken, understood) = (range(oldest, newest), range(before, known));
    Err(format!("the agent speaks protocol {spoken} and this controller {understood}; upgrade the {older}"))
}

async fn attach(
    parts: &Parts,
    caller: &Arc<Caller>,
    session: SessionId,
    hello: v1::Hello,
    protocol: u32,
) -> Result<(AgentId, v1::Welcome), Status> {
    let offer = hello.offer.ok_or_else(|| of_field("hello.offer", "is missing"))?;
    check_name("hello.offer.name", &offer.name)?;
    let term = parts.handle.term();
    if hello.term > term.0 {
        tracing::warn!(uid = %hello.uid, agent_term = hello.term, %term, "an agent has seen a later term: is this store an old copy?");
    }
    let event = Event::Attach {
        uid: Arc::from(hello.uid),
        offer: link::offer_from_proto(offer),
        session,
        holding: hello.holding.into_iter().map(Token).collect(),
    };
    match parts.handle.ask(event.by(caller)).await.map_err(of_engine)? {
        Answer::Attached { agent, drop } => {
            tracing::info!(%agent, %session, "agent connected");
            let welcome = v1::Welcome {
                agent: agent.0,
                session: session.0,
                term: parts.handle.term().0,
                protocol,
                lease_ttl_ms: micros(parts.handle.lease_ttl()) / 1000,
                heartbeat_ms: micros(parts.handle.heartbeat()) / 1000,
                drop: drop.into_iter().map(|token| token.0).collect(),
            };
            Ok((agent, welcome))
        }
        other => Err(unexpected(&other)),
    }
}

impl Session {
    async fn read(&mut self, up: &mut Streaming<v1::AgentUp>) -> Result<(), Status> {
        let (agent, session) = (self.agent, self.id);
        while let Some(message) = up.message().await? {
            let told = match message.message {
                Some(Up::Heartbeat(beat)) => {
                    if let Some(load) = beat.load {
                        self.loads.set(agent, session, load);
                    }
                    Box::pin(self.handle.tell(Event::Heartbeat { agent, session, stamp: beat.stamp_us })).await
                }
                Some(Up::Reports(reports)) => Box::pin(self.handle.tell_all(self.reports(reports))).await,
                Some(Up::Offer(offer)) => {
                    self.speaker.check_name(&offer.name)?;
                    check_name("offer.name", &offer.name)?;
                    let offer = link::offer_from_proto(offer);
                    Box::pin(self.handle.tell(Event::Offer { agent, session, offer })).await
                }
                Some(Up::Draining(_)) => Box::pin(self.handle.tell(Event::Drain { agent, session })).await,
                Some(Up::Goodbye(_)) => {
                    self.left = true;
                    Box::pin(self.handle.tell(Event::Leave { agent, session })).await
                }
                Some(Up::Hello(_)) => {
                    return Err(Status::invalid_argument("a hello is sent once, at the beginning; connect again"));
                }
                // What a newer agent may say beside this, this controller needs not know.
                None => Ok(()),
            };
            told.map_err(of_engine)?;
        }
        Ok(())
    }

    fn reports(&self, reports: v1::Reports) -> Vec<Event> {
        let (agent, session) = (self.agent, self.id);
        let readable = reports.reports.into_iter().filter_map(|report| readable(agent, report));
        readable.map(|report| Event::Report { agent, session, report }).collect()
    }

    async fn end(self) {
        self.sessions.close(self.id);
        self.loads.forget(self.agent, self.id);
        if !self.left {
            // An engine that has stopped needs not know.
            let _ = self.handle.tell(Event::Detach { agent: self.agent, session: self.id }).await;
        }
    }
}

/// One that cannot be read costs only itself: refused, it would come again with each connection, and all behind it too. An
/// attempt of which it says that it ended is over, and how is not known; what else it says we do without.
fn readable(agent: AgentId, report: v1::Report) -> Option<Report> {
    let (seq, token, task) = (report.seq, Token(report.token), TaskId::new(JobId(report.job), report.task));
    let times = match &report.what {
        Some(v1::report::What::Ended(ended)) => Some((Timestamp(ended.started_us), Timestamp(ended.ended_us))),
        _ => None,
    };
    let error = match link::report_from_proto(report) {
        Ok(report) => return Some(report),
        Err(error) => error,
    };
    tracing::warn!(%agent, %token, %task, %error, "an agent reports what this build cannot read; is it newer?");
    let (started, ended) = times?;
    let why = format!("the controller cannot read how it ended, perhaps it is older than the agent: {error}");
    let (end, why) = (End::Lost, Some(why.into()));
    Some(Report { seq, token, task, what: What::Ended { end, why, started, ended, result: None, usage: None } })
}

async fn write(
    handle: &Handle,
    mut outgoing: mpsc::Receiver<Outgoing>,
    back: &Back<v1::AgentDown>,
) -> Result<(), Status> {
    let patience = handle.lease_ttl();
    while let Some(message) = outgoing.recv().await {
        let term = handle.term();
        match message {
            Outgoing::Leases(leases) => {
                for leases in split(term, &leases) {
                    send(back, patience, Down::Leases(leases)).await?;
                }
            }
            Outgoing::Stop(token) => {
                send(back, patience, Down::Stop(v1::Stop { token: token.0, term: term.0 })).await?
            }
            Outgoing::Exec(order) => send(back, patience, Down::Exec(order)).await?,
            Outgoing::Acknowledge(up_to) => send(back, patience, Down::ReportsAck(v1::ReportsAck { up_to })).await?,
            Outgoing::HeartbeatAck(stamp_us) => {
                send(back, patience, Down::HeartbeatAck(v1::HeartbeatAck { stamp_us, term: term.0 })).await?;
            }
            Outgoing::Disconnect => break,
        }
    }
    Err(Status::aborted(
        "the controller closed this connection, or a newer one of this agent replaced it; connect again",
    ))
}

async fn send(back: &Back<v1::AgentDown>, patience: Duration, message: Down) -> Result<(), Status> {
    let sent = timeout(patience, back.send(Ok(v1::AgentDown { message: Some(message) }))).await;
    match sent {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Status::cancelled("the agent went away")),
        Err(_) => Err(Status::aborted("the agent does not read what is sent to it; connect again")),
    }
}

/// Leases in messages of about a megabyte, each spec once a message.
fn split(term: Term, leases: &[Lease]) -> Vec<v1::Leases> {
    let mut messages = Vec::new();
    let (mut message, mut bytes) = (empty(term), 0);
    let mut spec_of = None;
    let mut places = std::collections::BTreeMap::new();
    for lease in leases {
        if bytes >= LEASES_BYTES {
            messages.push(std::mem::replace(&mut message, empty(term)));
            (bytes, spec_of) = (0, None);
            places.clear();
        }
        let key = (lease.task.job, lease.group, lease.has_inputs);
        // Neighbours mostly share their spec.
        let place = match spec_of {
            Some((known, place)) if known == key => place,
            _ => *places.entry(key).or_insert_with(|| {
                let spec = link::lease_spec_to_proto(lease);
                bytes += spec.encoded_len();
                message.specs.push(spec);
                u32::try_from(message.specs.len() - 1).unwrap_or(u32::MAX)
            }),
        };
        spec_of = Some((key, place));
        let lease = link::lease_to_proto(lease, place);
        bytes += LEASE_BYTES + lease.array_item.as_ref().map_or(0, String::len);
        message.leases.push(lease);
    }
    messages.push(message);
    messages
}

fn empty(term: Term) -> v1::Leases {
    v1::Leases { term: term.0, specs: Vec::new(), leases: Vec::new() }
}

#[cfg(test)]
mod tests {
    use muster_core::{
        id::{JobId, TaskId},
        record::Job,
        spec::{Array, JobSpec, TaskSpec},
        time::Timestamp,
    };

    use super::*;

    fn leases(count: u32, item: usize) -> Vec<Lease> {
        let items: Vec<_> = (0..count).map(|_| "x".repeat(item)).collect();
        let array = Some(Array::Items(items.into()));
        let tasks = vec![Arc::new(TaskSpec { name: "scan".to_owned(), array, ..TaskSpec::default() })];
        let spec = Arc::new(JobSpec { tasks, ..JobSpec::default() });
        let none = || Arc::from("");
        let (by, key, trace_parent) = (none(), none(), none());
        let job = Arc::new(Job { id: JobId(1), spec, submitted: Timestamp(1), key, by, trace_parent });
        let lease = |n: u32| Lease {
            token: Token(n.into()),
            task: TaskId::new(JobId(1), n),
            attempt: 1,
            group: 0,
            offset: n,
            job: Arc::clone(&job),
            has_inputs: false,
            memory: None,
        };
        (0..count).map(lease).collect()
    }

    #[test]
    fn the_newest_protocol_that_both_know_is_spoken_and_others_say_which_side_is_older() {
        /// Oldest and newest of the agent, known, what comes of it.
        type Row = ((u32, u32), u32, Result<u32, &'static str>);
        let table: &[Row] = &[
            ((0, 0), 1, Err("upgrade the agent")),
            ((0, 1), 1, Ok(1)),
            ((0, 2), 1, Err("speaks protocol 2 and this controller 1; upgrade the controller")),
            ((1, 2), 1, Ok(1)),
            ((0, 5), 7, Err("speaks protocol 5 and this controller 6 to 7; upgrade the agent")),
            ((4, 5), 7, Err("speaks protocol 4 to 5 and this controller 6 to 7; upgrade the agent")),
            ((0, 6), 7, Ok(6)),
            ((5, 6), 7, Ok(6)),
            ((0, 7), 7, Ok(7)),
            ((6, 7), 7, Ok(7)),
            ((7, 8), 7, Ok(7)),
            ((0, 8), 7, Err("upgrade the controller")),
            ((8, 9), 7, Err("speaks protocol 8 to 9 and this controller 6 to 7; upgrade the controller")),
            ((9, 7), 7, Err("upgrade the agent")),
            ((0, u32::MAX), 7, Err("upgrade the controller")),
        ];
        for (spoken, known, wanted) in table {
            let agreed = agree(*spoken, *known);
            match wanted {
                Ok(protocol) => assert_eq!(agreed, Ok(*protocol), "{spoken:?} of {known}"),
                Err(part) => assert!(agreed.as_ref().is_err_and(|why| why.contains(part)), "{spoken:?}: {agreed:?}"),
            }
        }
    }

    #[test]
    fn leases_of_one_group_share_one_spec() {
        let messages = split(Term(3), &leases(500, 5));
        assert_eq!(messages.len(), 1);
        assert_eq!((messages[0].term, messages[0].specs.len(), messages[0].leases.len()), (3, 1, 500));
    }

    #[test]
    fn large_leases_are_split_and_each_message_stands_alone() {
        let all = leases(100, 100_000);
        let messages = split(Term(3), &all);
        assert!(messages.len() >= 9, "{}", messages.len());
        assert!(messages.iter().all(|message| message.specs.len() == 1 && message.encoded_len() < 2 * LEASES_BYTES));
        let tokens: Vec<_> = messages.iter().flat_map(|message| &message.leases).map(|lease| lease.token).collect();
        assert_eq!(tokens, (0..100).collect::<Vec<u64>>());
    }
}
