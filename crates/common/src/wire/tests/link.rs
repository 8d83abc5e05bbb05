//! Offers, reports and leases survive the wire; a lease that is not understood costs only itself.

use std::sync::Arc;

use muster_core::{
    event::{self, Report, What},
    id::{JobId, TaskId, Term, Token},
    record::{Job, RESULT_INLINE_MAX},
    spec::{After, Array, Command, JobSpec, On, TaskSpec},
    time::Timestamp,
};
use proptest::{option, prelude::*};

use super::{super::link::*, arcs, ends, offers, results, times, why};
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
    event::Lease { token, task, attempt: 2, group, offset, job: Arc::clone(job), has_inputs: group == 1 }
}

#[test]
fn an_agent_learns_what_it_runs_and_each_spec_goes_once() {
    let (seven, eight) = (job(7), job(8));
    let sent = [
        lease(&seven, 1, 1, 0),
        lease(&seven, 2, 1, 1),
        lease(&eight, 0, 0, 0),
        lease(&seven, 5, 2, 2),
        lease(&eight, 2, 1, 1),
    ];
    let message = leases_to_proto(Term(3), &sent);
    assert_eq!(message.specs.len(), 4);
    let got = leases_from_proto(message);
    assert_eq!(got.term, Term(3));
    assert!(got.refused.is_empty(), "{:?}", got.refused);
    let elements: Vec<_> = got.leases.iter().map(|l| (l.array_index, l.array_item.as_deref())).collect();
    assert_eq!(
        elements,
        [(Some(0), Some("a")), (Some(1), Some("b")), (None, None), (Some(0), None), (Some(1), Some("b"))]
    );
    for (sent, got) in sent.iter().zip(&got.leases) {
        assert_eq!((got.token, got.task, got.attempt), (sent.token, sent.task, sent.attempt));
        assert_eq!((got.spec.job, got.spec.group, got.spec.has_inputs), (sent.job.id, sent.group, sent.has_inputs));
        assert_eq!((&*got.spec.job_name, &*got.spec.queue), ("census", "night"));
        assert_eq!(got.spec.trace_parent, *sent.job.trace_parent);
        let whole = &sent.job.spec.tasks[usize::try_from(sent.group).unwrap()];
        let expected = TaskSpec { after: Vec::new(), array: None, ..TaskSpec::clone(whole) };
        assert_eq!(got.spec.task, expected, "neither dependencies nor items go along");
    }
    assert!(Arc::ptr_eq(&got.leases[0].spec, &got.leases[1].spec));
}

#[test]
fn a_lease_that_is_not_understood_costs_only_itself() {
    let mut message = leases_to_proto(Term(1), &[0, 1, 2].map(|n| lease(&job(n), 0, 0, 0)));
    message.specs[1].task.as_mut().unwrap().role = 9;
    message.leases.push(v1::Lease { token: 200, job: 5, spec: 99, ..v1::Lease::default() });
    message.leases.push(v1::Lease { token: 201, job: 5, spec: 0, ..v1::Lease::default() });
    let got = leases_from_proto(message);
    assert_eq!(got.leases.iter().map(|lease| lease.task.job.0).collect::<Vec<_>>(), [0, 2]);
    let why: Vec<_> = got.refused.iter().map(|refused| (refused.token.0, refused.why.as_str())).collect();
    let expected = [
        (100, "specs[1].task.role: 9 is not known to this build; it knows work, setup and teardown"),
        (200, "the lease refers to spec 99 of 3"),
        (201, "a lease of job 5 refers to the spec of job 0"),
    ];
    assert_eq!(why, expected);
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
        (report(ended(Some(v1::End::default()), None)), "end.kind: 0 is not known to this build; it knows 1 to 9"),
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
    let ended = (ends(), why(), times(), times(), option::of(results()));
    let what = prop_oneof![
        times().prop_map(|at| What::Started { at }),
        ended.prop_map(|(end, why, started, ended, result)| What::Ended { end, why, started, ended, result }),
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
