//! Orders for a message: those that share their spec say it once.

use std::sync::Arc;

use muster_common::{proto::v1, wire::spec::task_to_proto};
use prost::Message as _;

use super::message::ENOUGH;
use crate::exec::Order;

/// Gathers orders; those that share their spec share its place.
#[derive(Default)]
pub(crate) struct Orders {
    leases: v1::Leases,
    last: Option<Arc<Order>>,
    /// Of all specs, as they are sent.
    bytes: usize,
    without_stdin: bool,
}

impl Orders {
    /// Those of attempts that were begun already, with which nobody asks again what they are fed; in parts that are far below
    /// what a message may hold, if they may be several.
    pub(crate) fn begun<'a>(all: impl Iterator<Item = &'a Arc<Order>>, in_parts: bool) -> Vec<v1::Leases> {
        let begin = || Self { without_stdin: true, ..Self::default() };
        let (mut parts, mut part) = (Vec::new(), begin());
        for order in all {
            if in_parts && part.are_enough() {
                parts.extend(std::mem::replace(&mut part, begin()).finish());
            }
            part.add(order);
        }
        parts.extend(part.finish());
        parts
    }

    /// Whether more of them should go with the next message.
    pub(crate) fn are_enough(&self) -> bool {
        self.bytes >= ENOUGH
    }

    /// The place of `order`.
    pub(crate) fn add(&mut self, order: &Arc<Order>) -> u32 {
        let shares = |last: &Arc<Order>| {
            // Those that came one by one share nothing in memory.
            (Arc::ptr_eq(&last.spec, &order.spec) || last.spec == order.spec)
                && last.task.job == order.task.job
                && (&last.job_name, &last.queue, &last.trace_parent)
                    == (&order.job_name, &order.queue, &order.trace_parent)
                && (last.group, last.has_inputs) == (order.group, order.has_inputs)
        };
        if !self.last.as_ref().is_some_and(shares) {
            let mut task = task_to_proto(&order.spec);
            if self.without_stdin {
                task.stdin = None;
            }
            let spec = v1::LeaseSpec {
                job: order.task.job.0,
                group: order.group,
                job_name: order.job_name.to_string(),
                queue: order.queue.to_string(),
                task: Some(task),
                trace_parent: order.trace_parent.to_string(),
                has_inputs: order.has_inputs,
            };
            self.bytes += spec.encoded_len();
            self.leases.specs.push(spec);
            self.last = Some(Arc::clone(order));
        }
        let element = order.element.as_ref();
        self.leases.leases.push(v1::Lease {
            token: order.token.0,
            job: order.task.job.0,
            task: order.task.index,
            attempt: order.attempt,
            spec: place(self.leases.specs.len()),
            array_index: element.map(|(index, _)| *index),
            array_item: element.and_then(|(_, item)| item.as_deref().map(str::to_owned)),
            // It stands in the spec, which is the order's own then.
            memory_bytes: None,
        });
        place(self.leases.leases.len())
    }

    /// All of them; none: there are none.
    pub(crate) fn finish(self) -> Option<v1::Leases> {
        (!self.leases.leases.is_empty()).then_some(self.leases)
    }
}

/// Of the last of so many.
fn place(count: usize) -> u32 {
    u32::try_from(count.saturating_sub(1)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use muster_core::{
        id::{JobId, TaskId, Token},
        spec::{Command, TaskSpec},
    };

    use super::*;
    use crate::link::down;

    fn order(token: u64, spec: &Arc<TaskSpec>) -> Arc<Order> {
        Arc::new(Order {
            token: Token(token),
            task: TaskId::new(JobId(4), 2),
            attempt: 3,
            spec: Arc::clone(spec),
            group: 1,
            job_name: "census".into(),
            queue: "night".into(),
            trace_parent: "00-aa-bb-01".into(),
            element: Some((-7, Some("x".into()))),
            has_inputs: true,
        })
    }

    #[test]
    fn orders_come_back_as_they_were_and_share_what_they_shared() {
        let spec = Arc::new(TaskSpec { name: "t".into(), stdin: Some(vec![0, 255]), ..TaskSpec::default() });
        let other = Arc::new(TaskSpec { name: "u".into(), ..TaskSpec::default() });
        let given = [order(1, &spec), order(2, &spec), order(3, &other)];
        let mut orders = Orders::default();
        assert_eq!(given.iter().map(|order| orders.add(order)).collect::<Vec<_>>(), [0, 1, 2]);
        let sent = orders.finish().expect("there are some").encode_to_vec();
        let sent = v1::Leases::decode(&*sent).expect("whole");
        assert_eq!(sent.specs.len(), 2);
        let read: Vec<_> = down::orders(sent).map(|order| order.expect("it is whole")).collect();
        assert_eq!(read, given);
        let begun = Orders::begun(given.iter(), true);
        let [said] = &begun[..] else { panic!("{begun:?}") };
        assert!(down::orders(said.clone()).all(|order| order.is_ok_and(|order| order.spec.stdin.is_none())));
        assert_eq!(Orders::default().finish(), None);
    }

    #[test]
    fn more_than_a_message_should_hold_is_said_in_parts_and_what_is_the_same_is_said_once() {
        let long = |n: u64| TaskSpec { name: format!("{n}"), ..with_script("x".repeat(3 << 20)) };
        let all: Vec<_> = (0..9).map(|n| order(n, &Arc::new(long(n)))).collect();
        let parts = Orders::begun(all.iter(), true);
        assert!(parts.iter().all(|part| part.encoded_len() < 2 * ENOUGH), "a part is as long as two");
        let tokens = parts.iter().flat_map(|part| part.leases.iter().map(|lease| lease.token));
        assert!(parts.len() > 3 && tokens.eq(0..9));
        assert_eq!(Orders::begun(all.iter(), false).len(), 1);
        let same: Vec<_> = (0..9).map(|n| order(n, &Arc::new(long(0)))).collect();
        let [part] = &Orders::begun(same.iter(), true)[..] else { panic!("one is enough") };
        assert_eq!((part.specs.len(), part.leases.len()), (1, 9));
        assert!(Orders::begun([].into_iter(), true).is_empty());
    }

    fn with_script(text: String) -> TaskSpec {
        TaskSpec { command: Command::Shell(text), ..TaskSpec::default() }
    }
}
