//! What is on record of a caller, and what is out of a caller's reach, on a real server.

use muster_common::{
    proto::v1::{self, access_client::AccessClient, muster_client::MusterClient},
    wire::{access::audit_from_proto, record, spec},
};
use muster_core::{
    access::Enforcement,
    audit::{Record, verify},
    id::JobId,
    record::{Key, Piece},
    spec::{After, JobSpec, On, TaskSpec},
};
use tonic::{
    Code, Status,
    body::Body,
    codegen::http,
    service::{Routes, interceptor::InterceptedService},
};
use tonic_types::StatusExt as _;

use super::{
    access::{Tokens, admin, call, create},
    rig::{Bearer, Rig, job, run, run_with, selector, task},
};
use crate::{
    grpc::{Parts, guard::Guard, peer::Peer},
    store::memory::Memory,
};

async fn audit(access: &mut Tokens, request: v1::ListAuditRequest) -> (Vec<v1::AuditRecord>, String) {
    let reply = access.list_audit(request).await.unwrap().into_inner();
    (reply.records, reply.next_page_token)
}

fn told(records: &[v1::AuditRecord]) -> Vec<(String, String, String, bool)> {
    let one = |record: &v1::AuditRecord| {
        let actor = record.actor.clone().unwrap_or_default().name;
        (actor, record.action.clone(), record.object.clone(), record.refused)
    };
    records.iter().map(one).collect()
}

#[test]
fn what_was_done_and_what_was_refused_is_read_newest_first_with_who_and_from_where() {
    run(async |rig: Rig| {
        let (_, mut access) = admin(&rig).await;
        let operator = create(&mut access, "op", v1::AccessRole::Operator, &[], 0).await;
        let viewer = create(&mut access, "eye", v1::AccessRole::Viewer, &[], 0).await;
        let mut people = MusterClient::new(InterceptedService::new(rig.channel.clone(), Bearer(Some(operator))));
        let spec = Some(spec::job_to_proto(&job("census", vec![task("a")])));
        let request = v1::SubmitRequest { spec, by: "somebody else".to_owned(), ..Default::default() };
        let id = people.submit(request).await.unwrap().into_inner().job;
        let shown = people.get_job(v1::GetJobRequest { selector: selector(id) }).await.unwrap().into_inner();
        assert_eq!(shown.summary.unwrap().submitted_by, "op", "who proved who they are is not who they say they are");
        let cancel = v1::CancelRequest { selector: selector(id), reason: "enough".to_owned(), ..Default::default() };
        people.cancel(cancel.clone()).await.unwrap();
        let unknown = v1::CancelRequest { selector: selector(99), ..Default::default() };
        assert!(people.cancel(unknown).await.is_err());
        let mut eye = MusterClient::new(InterceptedService::new(rig.channel.clone(), Bearer(Some(viewer))));
        let status = eye.cancel(cancel).await.unwrap_err();
        assert_eq!(
            status.message(),
            "this token (eye) has the role viewer; cancel needs operator; ask an admin for a token of that role \
             (`ctl admin token create`)"
        );
        call(&rig.channel, "/muster.v1.Muster/Submit", Some("Bearer nothing")).await;
        // The engine takes what is told in order: once this is recorded, all before it is.
        access.revoke_token(v1::RevokeTokenRequest { token: "eye".to_owned() }).await.unwrap();
        let (records, next) = audit(&mut access, v1::ListAuditRequest::default()).await;
        let line = |actor: &str, action: &str, object: &str, refused| {
            (actor.to_owned(), action.to_owned(), object.to_owned(), refused)
        };
        let all = told(&records);
        let ids: Vec<_> = all.iter().filter(|entry| entry.1 == "token.create").map(|entry| entry.2.clone()).collect();
        let job = id.to_string();
        let expected = [
            line("root", "token.revoke", &ids[0], false),
            line("anonymous", "submit", "", true),
            line("eye", "cancel", "", true),
            line("op", "cancel", "", true),
            line("op", "cancel", &job, false),
            line("op", "submit", &job, false),
            line("root", "token.create", &ids[0], false),
            line("root", "token.create", &ids[1], false),
            line("anonymous", "token.create", &ids[2], false),
        ];
        assert_eq!((all.as_slice(), next.as_str()), (expected.as_slice(), ""));
        assert!(records.iter().all(|record| record.peer.starts_with("127.0.0.1:")), "{records:?}");
        assert!(records[3].detail.contains("99 does not exist") && records[4].detail == "enough", "{records:?}");

        let base = v1::ListAuditRequest::default;
        let cases = [
            (v1::ListAuditRequest { refused: true, ..base() }, 3),
            (v1::ListAuditRequest { actor: "op".to_owned(), ..base() }, 3),
            (v1::ListAuditRequest { actor: "op".to_owned(), refused: true, ..base() }, 1),
            (v1::ListAuditRequest { actor: ids[1].clone(), ..base() }, 3),
            (v1::ListAuditRequest { action: "token".to_owned(), ..base() }, 4),
            (v1::ListAuditRequest { action: "tok".to_owned(), ..base() }, 0),
            (v1::ListAuditRequest { since_us: u64::MAX, ..base() }, 0),
        ];
        for (request, count) in cases {
            assert_eq!(audit(&mut access, request.clone()).await.0.len(), count, "{request:?}");
        }
        let (mut seen, mut page_token) = (Vec::new(), String::new());
        loop {
            let (page, next) = audit(&mut access, v1::ListAuditRequest { page_size: 2, page_token, ..base() }).await;
            seen.extend(page);
            page_token = next;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, records);
    });
}

/// All audit records of a controller on this store, oldest first; an admin is known by `token`.
fn chain(store: &Memory, token: &str) -> Vec<Record> {
    let (mut all, token) = (Vec::new(), token.to_owned());
    run_with(Enforcement::default(), store.clone(), async |rig: Rig| {
        let channel = InterceptedService::new(rig.channel.clone(), Bearer(Some(token)));
        let (records, _) = audit(&mut AccessClient::new(channel), v1::ListAuditRequest::default()).await;
        all = records.into_iter().rev().map(|record| audit_from_proto(record).unwrap()).collect();
    });
    all
}

#[test]
fn a_record_that_was_changed_in_the_store_is_told() {
    let store = Memory::default();
    let mut root = String::new();
    run_with(Enforcement::default(), store.clone(), async |rig: Rig| {
        let (token, mut access) = admin(&rig).await;
        root = token;
        for n in 0..20 {
            create(&mut access, &format!("t{n}"), v1::AccessRole::Viewer, &[], 0).await;
        }
    });
    let whole = chain(&store, &root);
    assert_eq!((whole.len(), verify(&whole)), (21, Ok(())), "it goes on across a restart");
    let key = Key::Audit(0);
    let Some(Piece::Audit(block)) = store.get(&key) else { panic!("there is a block") };
    // Somebody changes bytes in the store: the name of who did it.
    let mut bytes = record::encode(&Piece::Audit(block), &key);
    let at = bytes.windows(4).rposition(|part| part == b"root").expect("a name");
    bytes[at..at + 4].copy_from_slice(b"eve!");
    store.put(key.clone(), record::decode(&key, &bytes).unwrap());
    let broken = verify(&chain(&store, &root)).unwrap_err();
    assert_eq!(broken.to_string(), "record 15 was changed: record 16 holds another hash of it");
}

/// Each call that names work, made by this caller, was refused and recorded.
async fn everything_was_refused(access: &mut Tokens, actor: &str) {
    let refused = v1::ListAuditRequest { refused: true, actor: actor.to_owned(), ..Default::default() };
    let (records, _) = audit(access, refused).await;
    for action in ["submit", "show", "wait", "explain", "stats", "result", "logs", "cancel", "retry"] {
        assert!(records.iter().any(|record| record.action == action), "{action} is not on record: {records:?}");
    }
}

#[test]
fn a_limited_token_sees_and_touches_only_work_of_its_queues() {
    run(async |rig: Rig| {
        let (root, mut access) = admin(&rig).await;
        let day = create(&mut access, "day", v1::AccessRole::Operator, &["day"], 0).await;
        let people = |token: &str| {
            MusterClient::new(InterceptedService::new(rig.channel.clone(), Bearer(Some(token.to_owned()))))
        };
        let (mut root, mut day) = (people(&root), people(&day));
        let spec_in = |queue: &str, name: &str, after: Vec<After>| {
            let task = TaskSpec { after, ..task("a") };
            Some(spec::job_to_proto(&JobSpec { queue: queue.to_owned(), ..job(name, vec![task]) }))
        };
        let submit = |queue: &str, name: &str| v1::SubmitRequest {
            spec: spec_in(queue, name, Vec::new()),
            ..Default::default()
        };
        let night = root.submit(submit("night", "secret")).await.unwrap().into_inner().job;
        root.submit(submit("night", "shared")).await.unwrap();
        let own = day.submit(submit("day", "shared")).await.unwrap().into_inner().job;

        let refused = day.submit(submit("night", "x")).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
        assert!(refused.message().contains("this token (day) is limited to `day`"), "{refused}");
        for after in [
            After { job: Some(JobId(night)), job_name: None, task: None, on: On::Any },
            After { job: None, job_name: Some("secret".to_owned()), task: None, on: On::Any },
        ] {
            let request = v1::SubmitRequest { spec: spec_in("day", "x", vec![after]), ..Default::default() };
            let refused = day.submit(request).await.unwrap_err();
            let found = refused.get_error_details().bad_request().unwrap().field_violations.clone();
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(!found[0].description.contains("did you mean"), "{found:?}");
        }
        for text in [night.to_string(), "secret".to_owned(), format!("{night}.a"), "secret.a".to_owned()] {
            let selector = || selector(text.as_str());
            let codes = [
                ("show", day.get_job(v1::GetJobRequest { selector: selector() }).await.err()),
                (
                    "tasks",
                    day.list_tasks(v1::ListTasksRequest { selector: selector(), ..Default::default() }).await.err(),
                ),
                ("watch", day.watch_job(v1::WatchJobRequest { selector: selector() }).await.err()),
                ("explain", day.explain(v1::ExplainRequest { selector: selector() }).await.err()),
                ("stats", day.stats(v1::StatsRequest { selector: selector(), slowest: 0 }).await.err()),
                ("result", day.get_result(v1::GetResultRequest { selector: selector() }).await.err()),
                ("logs", day.logs(v1::LogsRequest { selector: selector(), ..Default::default() }).await.err()),
                ("cancel", day.cancel(v1::CancelRequest { selector: selector(), ..Default::default() }).await.err()),
                ("retry", day.retry(v1::RetryRequest { selector: selector(), ..Default::default() }).await.err()),
            ];
            for (what, status) in codes {
                let status = status.unwrap_or_else(|| panic!("{what} of {text} is answered"));
                assert_eq!(status.code(), Code::NotFound, "{what} of {text}: {status}");
            }
        }
        let near = day.get_job(v1::GetJobRequest { selector: selector("secrte") }).await.unwrap_err();
        assert!(!near.message().contains("`secret`"), "a name is told: {near}");
        let listed = day.list_jobs(v1::ListJobsRequest::default()).await.unwrap().into_inner().jobs;
        assert_eq!(listed.iter().map(|job| job.id).collect::<Vec<_>>(), [own]);
        let shown = day.get_job(v1::GetJobRequest { selector: selector("shared") }).await.unwrap().into_inner();
        assert_eq!(shown.summary.unwrap().id, own, "another's job of that name is in nobody's way");
        let stats = day.stats(v1::StatsRequest::default()).await.unwrap().into_inner();
        assert_eq!(stats.jobs, 1);
        let queues = day.list_queues(v1::ListQueuesRequest {}).await.unwrap().into_inner().queues;
        let names: Vec<_> = queues.into_iter().filter_map(|view| Some(view.queue?.name)).collect();
        assert_eq!(names, ["day"]);
        day.cancel(v1::CancelRequest { selector: selector(own), ..Default::default() }).await.unwrap();
        root.cancel(v1::CancelRequest { selector: selector(night), ..Default::default() }).await.unwrap();
        everything_was_refused(&mut access, "day").await;
    });
}

#[test]
fn an_agents_certificate_is_not_taken_for_peoples_calls_and_that_is_on_record() {
    run(async |rig: Rig| {
        let Parts { handle, view, clock, .. } = rig.parts.clone();
        for enforcement in [Enforcement::Never, Enforcement::WithTokens, Enforcement::Always] {
            let guard = Guard::new(handle.clone(), view.clone(), clock, enforcement);
            for (path, allowed) in [("/muster.v1.Muster/Cancel", false), ("/muster.v1.AgentLink/Inputs", true)] {
                let mut request = http::Request::post(path).body(Body::empty()).unwrap();
                request.extensions_mut().insert(Peer::Agent("north".to_owned()));
                let answer = guard.call(Routes::default(), request).await;
                let code = Status::from_header_map(answer.headers()).map(|status| status.code());
                assert_eq!(code == Some(Code::PermissionDenied), !allowed, "{path} {enforcement:?}: {code:?}");
            }
        }
        // All that was told before is in the view when this is answered.
        let (_, mut access) = admin(&rig).await;
        let (records, _) = audit(&mut access, v1::ListAuditRequest { refused: true, ..Default::default() }).await;
        let line = ("north".to_owned(), "cancel".to_owned(), String::new(), true);
        assert_eq!(told(&records), [line.clone(), line.clone(), line]);
    });
}
