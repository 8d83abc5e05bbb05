//! Offers, reports and leases survive the wire; a lease that is not understood costs only itself.

use std::sync::Arc;

use muster_core::{
    event::{self, Report, What},
    id::{JobId, TaskId, Token},
    record::{Job, RESULT_INLINE_MAX},
    spec::{After, Array, Command, JobSpec, On, TaskSpec},
    time::Timestamp,
};
use proptest::{option, prelude::*};

use super::{super::link::*, arcs, ends, offers, results, times, usages, why};
use crate::proto::v1;

fn job(id: u64) -> Arc<Job> {
    let scan = TaskSpec {
        name: "scan".to_owned(),
        command: Command::Argv(vec!["wc".to_owned()]),
        array: Some(Array::Items(Arc::new(["a".to_owned(), "b".to_owned()]))),
        after: vec![After { job: None, job_name: None, task: Some("list".to_owned()), on: On::Success }],
        ..TaskSpec::default()
    };
    let range = Some(Array::Range { first: 10, count: 3, step: -5 });
    let count = TaskSpec { name: "count".to_owned(), array: range, ..TaskSpec::default() };
    let list = TaskSpec { name: "list".to_owned(), ..TaskSpec::default() };
    let tasks = [list, scan, count].map(Arc::new).to_vec();
    let spec = JobSpec { name: "census".to_owned(), queue: "night".to_owned(), tasks, ..JobSpec::default() };
    Arc::new(Job {
        id: JobId(id),
        spec: Arc::new(spec),
        submitted: Timestamp(1),
        key: "".into(),
        by: "".into(),
        trace_parent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
    })
}

fn lease(job: &Arc<Job>, index: u32, group: u32, offset: u32) -> event::Lease {
    let task = TaskId::new(job.id, index);
    let token = Token(100 + u64::from(index));
    event::Lease { token, task, attempt: 2, group, offset, job: Arc::clone(job), has_inputs: group == 1, memory: None }
}

#[test]
fn an_agent_learns_what_it_runs_but_neither_dependencies_nor_items() {
    let job = job(7);
    let sent = [(0, 0, 0), (2, 1, 1), (5, 2, 2)].map(|(index, group, offset)| lease(&job, index, group, offset));
    let elements = [(None, None), (Some(1), Some("b")), (Some(0), None)];
    for (sent, element) in sent.iter().zip(elements) {
        let wire = lease_to_proto(sent, 3);
        assert_eq!(
            (wire.token, wire.job, wire.task, wire.attempt, wire.spec),
            (sent.token.0, 7, sent.task.index, 2, 3)
        );
        assert_eq!((wire.array_index, wire.array_item.as_deref()), element);
        let got = lease_spec_from_proto(lease_spec_to_proto(sent)).unwrap();
        let whole = TaskSpec::clone(&job.spec.tasks[usize::try_from(sent.group).unwrap()]);
        let expected = LeaseSpec {
            job: job.id,
            group: sent.group,
            job_name: "census".to_owned(),
            queue: "night".to_owned(),
            task: TaskSpec { after: Vec::new(), array: None, ..whole },
            trace_parent: job.trace_parent.to_string(),
            has_inputs: sent.group == 1,
        };
        assert_eq!(got, expected);
    }
}

#[test]
fn a_lease_that_this_build_cannot_run_is_refused_with_its_place() {
    let mut spec = lease_spec_to_proto(&lease(&job(7), 0, 0, 0));
    spec.task.as_mut().unwrap().role = 9;
    let error = lease_spec_from_proto(spec).unwrap_err().to_string();
    assert_eq!(error, "task.role: 9 is not known to this build; it knows work, setup and teardown");
    // A group that the spec does not have: the engine never makes one, and it must not panic.
    let spec = lease_spec_to_proto(&lease(&job(7), 0, 99, 0));
    assert_eq!(lease_spec_from_proto(spec).unwrap_err().to_string(), "task: is missing");
}

#[test]
fn a_report_that_cannot_be_is_refused_with_its_place() {
    let report = |what| v1::Report { what, ..v1::Report::default() };
    let payload = |len, stored_bytes| Some(v1::ResultPayload { json: vec![b'1'; len], stored_bytes });
    let end = || Some(v1::End { kind: v1::EndKind::Succeeded.into(), ..v1::End::default() });
    let ended = |end, result| Some(v1::report::What::Ended(v1::Ended { end, result, ..v1::Ended::default() }));
    let table = [
        (report(None), "what: is missing"),
        (report(ended(None, None)), "end: is missing"),
        (report(ended(Some(v1::End::default()), None)), "end.kind: 0 is not known to this build; it knows 1 to 10"),
        (
            report(ended(end(), payload(RESULT_INLINE_MAX + 1, 0))),
            "result.json: 65537 bytes; more than 65536 go by PutResult",
        ),
        (
            report(ended(end(), payload(1, 70_000))),
            "result.stored_bytes: a result is either inline or stored, this one is both",
        ),
    ];
    for (report, expected) in table {
        assert_eq!(report_from_proto(report).unwrap_err().to_string(), expected);
    }
    assert!(report_from_proto(report(ended(end(), payload(RESULT_INLINE_MAX, 0)))).is_ok());
}

fn reports() -> impl Strategy<Value = Report> {
    let ended = (ends(), why(), times(), times(), option::of(results()), usages());
    let what = prop_oneof![
        times().prop_map(|at| What::Started { at }),
        ended.prop_map(|(end, why, started, ended, result, usage)| What::Ended {
            end,
            why,
            started,
            ended,
            result,
            usage,
        }),
        arcs().prop_map(|why| What::Returned { why }),
    ];
    (any::<u64>(), any::<u64>(), any::<u64>(), any::<u32>(), what).prop_map(|(seq, token, job, index, what)| Report {
        seq,
        token: Token(token),
        task: TaskId::new(JobId(job), index),
        what,
    })
}

proptest! {
    #[test]
    fn a_report_survives_the_wire(report in reports()) {
        prop_assert_eq!(report_from_proto(report_to_proto(&report)).unwrap(), report);
    }

    #[test]
    fn an_offer_survives_the_wire(offer in offers()) {
        prop_assert_eq!(offer_from_proto(offer_to_proto(&offer)), offer);
    }
}
