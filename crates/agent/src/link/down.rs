//! Messages from the controller become inputs of the supervisor. What cannot be is refused here.

use std::{sync::Arc, time::Duration};

use muster_common::{
    proto::v1::{self, agent_down::Message},
    wire::link::{LeaseSpec, lease_spec_from_proto},
};
use muster_core::{
    id::{AgentId, JobId, SessionId, TaskId, Term, Token},
    spec::TaskSpec,
    time::Mono,
};

use crate::{
    exec::{
        Order,
        beside::{Asked, Size, Terminal},
    },
    supervisor::{Input, Unusable, Visit, Welcome},
};

/// A lease shorter than this would expire between two heartbeats.
const LEASE_TTL_MIN: Duration = Duration::from_millis(100);

/// What a message means; none: it is of a kind that this build does not know.
pub(super) fn input(message: v1::AgentDown) -> Option<Input> {
    Some(match message.message? {
        Message::Welcome(welcome) => Input::Welcome(Welcome {
            agent: AgentId(welcome.agent),
            session: SessionId(welcome.session),
            term: Term(welcome.term),
            lease_ttl: Duration::from_millis(welcome.lease_ttl_ms).max(LEASE_TTL_MIN),
            heartbeat: Duration::from_millis(welcome.heartbeat_ms),
            drop: welcome.drop.into_iter().map(Token).collect(),
        }),
        Message::HeartbeatAck(ack) => Input::HeartbeatAcked { term: Term(ack.term), stamp: Mono(ack.stamp_us) },
        Message::Leases(message) => leases(message),
        Message::Stop(stop) => Input::Stop { term: Term(stop.term), token: Token(stop.token) },
        Message::Exec(order) => {
            let terminal = order
                .terminal
                .map(|terminal| Terminal { name: terminal.name, size: size(terminal.size.unwrap_or_default()) });
            let asked = Asked { command: order.command, terminal };
            Input::Visit(Arc::new(Visit { id: order.id, token: Token(order.token), asked }))
        }
        Message::ReportsAck(ack) => Input::ReportsAcked { up_to: ack.up_to },
    })
}

/// Of a terminal. No terminal is larger than can be said.
pub(crate) fn size(size: v1::TerminalSize) -> Size {
    let most = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    Size { columns: most(size.columns), rows: most(size.rows) }
}

/// What the leases of one entry share, each part made once.
struct Shared {
    job: JobId,
    group: u32,
    job_name: Arc<str>,
    queue: Arc<str>,
    task: Arc<TaskSpec>,
    trace_parent: Arc<str>,
    has_inputs: bool,
}

impl From<LeaseSpec> for Shared {
    fn from(spec: LeaseSpec) -> Self {
        Self {
            job: spec.job,
            group: spec.group,
            job_name: spec.job_name.into(),
            queue: spec.queue.into(),
            task: Arc::new(spec.task),
            trace_parent: spec.trace_parent.into(),
            has_inputs: spec.has_inputs,
        }
    }
}

fn leases(message: v1::Leases) -> Input {
    let term = Term(message.term);
    let (mut usable, mut unusable) = (Vec::with_capacity(message.leases.len()), Vec::new());
    for order in orders(message) {
        match order {
            Ok(order) => usable.push(order),
            Err(why) => unusable.push(why),
        }
    }
    Input::Leases { term, orders: usable, unusable }
}

/// What each lease asks for, in their order. One that cannot be understood costs only itself.
pub(crate) fn orders(message: v1::Leases) -> impl Iterator<Item = Result<Arc<Order>, Unusable>> {
    let specs: Vec<_> = message
        .specs
        .into_iter()
        .map(|spec| lease_spec_from_proto(spec).map(Shared::from).map_err(|error| error.to_string()))
        .collect();
    message.leases.into_iter().map(move |lease| match shared(&specs, &lease) {
        Ok(shared) => Ok(Arc::new(order(&lease, shared))),
        Err(why) => {
            let (token, task) = (Token(lease.token), TaskId::new(JobId(lease.job), lease.task));
            let why = format!("the agent cannot read the task, perhaps it is older than the controller: {why}");
            Err(Unusable { token, task, why: why.into() })
        }
    })
}

fn shared<'a>(specs: &'a [Result<Shared, String>], lease: &v1::Lease) -> Result<&'a Shared, String> {
    let place = usize::try_from(lease.spec).map_err(|error| error.to_string())?;
    match specs.get(place) {
        Some(Ok(shared)) if shared.job.0 == lease.job => Ok(shared),
        Some(Ok(shared)) => Err(format!("a lease of job {} refers to a task of job {}", lease.job, shared.job)),
        Some(Err(error)) => Err(format!("specs[{place}]: {error}")),
        None => Err(format!("the lease refers to spec {place} of {}", specs.len())),
    }
}

/// What the leases share, unless this one is for more memory.
fn spec(lease: &v1::Lease, shared: &Shared) -> Arc<TaskSpec> {
    let Some(memory) = lease.memory_bytes else { return Arc::clone(&shared.task) };
    let mut task = (*shared.task).clone();
    task.request.memory = memory;
    Arc::new(task)
}

fn order(lease: &v1::Lease, shared: &Shared) -> Order {
    Order {
        token: Token(lease.token),
        task: TaskId::new(JobId(lease.job), lease.task),
        attempt: lease.attempt,
        spec: spec(lease, shared),
        group: shared.group,
        job_name: shared.job_name.clone(),
        queue: shared.queue.clone(),
        trace_parent: shared.trace_parent.clone(),
        element: lease.array_index.map(|index| (index, lease.array_item.as_deref().map(Arc::from))),
        has_inputs: shared.has_inputs,
    }
}

#[cfg(test)]
mod tests {
    use muster_common::wire::spec::task_to_proto;

    use super::*;

    fn lease(token: u64, spec: u32) -> v1::Lease {
        v1::Lease {
            token,
            job: 4,
            task: 2,
            attempt: 1,
            spec,
            array_index: Some(-3),
            array_item: Some("x".into()),
            memory_bytes: None,
        }
    }

    fn spec(job: u64) -> v1::LeaseSpec {
        let task = Some(task_to_proto(&TaskSpec { name: "t".to_owned(), ..TaskSpec::default() }));
        v1::LeaseSpec { job, job_name: "census".into(), task, has_inputs: true, ..Default::default() }
    }

    #[test]
    fn the_leases_of_one_message_share_their_spec() {
        let message = v1::Leases { term: 7, specs: vec![spec(4)], leases: vec![lease(1, 0), lease(2, 0)] };
        let Input::Leases { term, orders, unusable } = leases(message) else { panic!("leases") };
        assert_eq!((term, unusable.len()), (Term(7), 0));
        let [one, two] = &orders[..] else { panic!("two orders: {orders:?}") };
        assert!(Arc::ptr_eq(&one.spec, &two.spec));
        assert_eq!(one.element, Some((-3, Some("x".into()))));
        assert_eq!((&*one.job_name, one.has_inputs, two.token), ("census", true, Token(2)));
    }

    #[test]
    fn a_lease_for_more_memory_is_alone_in_it() {
        let more = v1::Lease { memory_bytes: Some(77), ..lease(2, 0) };
        let message = v1::Leases { term: 7, specs: vec![spec(4)], leases: vec![lease(1, 0), more] };
        let Input::Leases { orders, .. } = leases(message) else { panic!("leases") };
        assert_eq!(orders.iter().map(|order| order.spec.request.memory).collect::<Vec<_>>(), [0, 77]);
    }

    #[test]
    fn a_lease_that_cannot_be_read_costs_only_itself() {
        let unreadable = v1::LeaseSpec { job: 4, ..Default::default() };
        let specs = vec![spec(4), unreadable, spec(5)];
        let leased = (0..4).map(|place| lease(u64::from(place) + 1, place)).collect();
        let message = v1::Leases { term: 7, specs, leases: leased };
        let Input::Leases { orders, unusable, .. } = leases(message) else { panic!("leases") };
        assert_eq!(orders.iter().map(|order| order.token).collect::<Vec<_>>(), [Token(1)]);
        let whys: Vec<_> = unusable.iter().map(|lease| (lease.token.0, &*lease.why)).collect();
        assert_eq!(whys.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [2, 3, 4]);
        assert!(whys[0].1.contains("specs[1]"), "{whys:?}");
        assert!(whys[1].1.contains("refers to a task of job 5"), "{whys:?}");
        assert!(whys[2].1.contains("spec 3 of 3"), "{whys:?}");
    }

    #[test]
    fn a_message_without_meaning_is_none() {
        assert!(input(v1::AgentDown { message: None }).is_none());
    }
}
