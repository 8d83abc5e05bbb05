//! The guard on a real server: every call, every kind of caller.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use muster_common::{
    proto::v1::{self, access_client::AccessClient, muster_client::MusterClient},
    token,
    wire::{
        access::{audit_from_proto, role_from_proto},
        record, spec,
    },
};
use muster_core::{
    access::{Enforcement, Role},
    audit::{Record, verify},
    id::JobId,
    record::{Key, Piece},
    spec::{After, JobSpec, On, TaskSpec},
};
use tonic::{
    Code, Status,
    body::Body,
    codegen::{Body as HttpBody, Bytes, Service, http},
    service::interceptor::InterceptedService,
    transport::Channel,
};
use tonic_types::StatusExt as _;

use super::rig::{Bearer, Rig, hello, job, run, run_with, selector, task, within};
use crate::{
    grpc::guard::{
        table::{Needs, rule},
        tests::all_calls,
    },
    store::memory::Memory,
};

/// Sends an empty message to `path`, and returns the code and the words of the answer.
async fn call(channel: &Channel, path: &str, header: Option<&str>) -> (Code, String) {
    let mut request = http::Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    if let Some(header) = header {
        request = request.header("authorization", header);
    }
    // One message of no bytes, which every call takes.
    let request = request.body(Body::new(http_body_of(&[0; 5]))).unwrap();
    let mut channel = channel.clone();
    poll_fn(|context| Service::<http::Request<Body>>::poll_ready(&mut channel, context)).await.unwrap();
    let answer = within(channel.call(request)).await.unwrap();
    match Status::from_header_map(answer.headers()) {
        Some(status) => (status.code(), status.message().to_owned()),
        // It was let in; a stream may go on for ever.
        None => (Code::Ok, String::new()),
    }
}

fn http_body_of(bytes: &'static [u8]) -> impl HttpBody<Data = Bytes, Error = Status> + Send + 'static {
    struct One(Option<Bytes>);
    impl HttpBody for One {
        type Data = Bytes;
        type Error = Status;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.take().map(|bytes| Ok(http_body::Frame::data(bytes))))
        }
    }
    One(Some(Bytes::from_static(bytes)))
}

async fn create(access: &mut Tokens, name: &str, role: v1::AccessRole, queues: &[&str], ttl_us: u64) -> String {
    let queues = queues.iter().map(ToString::to_string).collect();
    let request = v1::CreateTokenRequest { name: name.to_owned(), role: role.into(), queues, ttl_us };
    access.create_token(request).await.unwrap().into_inner().token
}

type Tokens = AccessClient<InterceptedService<Channel, Bearer>>;

/// An admin's token on a system that had none, and a client with it.
async fn admin(rig: &Rig) -> (String, Tokens) {
    let mut anybody = AccessClient::new(rig.channel.clone());
    let request =
        v1::CreateTokenRequest { name: "root".to_owned(), role: v1::AccessRole::Admin.into(), ..Default::default() };
    let token = anybody.create_token(request).await.unwrap().into_inner().token;
    let channel = InterceptedService::new(rig.channel.clone(), Bearer(Some(token.clone())));
    (token, AccessClient::new(channel))
}

fn needed(path: &str) -> Needs {
    rule(path).expect("every call has a rule").needs
}

#[test]
fn every_call_refuses_whoever_may_not_make_it_and_lets_in_whoever_may() {
    run(async |rig: Rig| {
        let (root, mut access) = admin(&rig).await;
        let mut by_role = Vec::new();
        for (role, name) in
            [(v1::AccessRole::Viewer, "v"), (v1::AccessRole::Operator, "o"), (v1::AccessRole::Agent, "a")]
        {
            by_role.push((role_from_proto(role.into()).unwrap(), create(&mut access, name, role, &[], 0).await));
        }
        by_role.push((Role::Admin, root));
        let revoked = create(&mut access, "gone", v1::AccessRole::Admin, &[], 0).await;
        access.revoke_token(v1::RevokeTokenRequest { token: "gone".to_owned() }).await.unwrap();
        let other = token::generate().text;
        let strangers: &[(&str, Option<String>)] = &[
            ("no token", None),
            ("nothing at all", Some("Bearer ".to_owned())),
            ("Bearer nothing", Some("Bearer nothing".to_owned())),
            ("another scheme", Some(format!("Basic {}", by_role[3].1))),
            ("no scheme", Some(by_role[3].1.clone())),
            ("a token of elsewhere", Some(format!("Bearer {other}"))),
            ("a slip", Some(format!("Bearer {}x", by_role[3].1))),
            ("a revoked token", Some(format!("Bearer {revoked}"))),
        ];
        for path in all_calls() {
            let Needs::Role(needed) = needed(&path) else { continue };
            for (what, header) in strangers {
                let (code, text) = call(&rig.channel, &path, header.as_deref()).await;
                // After twenty of one address it is told so, and no less refused.
                let refused = matches!(code, Code::Unauthenticated | Code::ResourceExhausted);
                assert!(refused, "{path} with {what}: {code:?} {text}");
            }
            for (role, token) in &by_role {
                let (code, text) = call(&rig.channel, &path, Some(&format!("Bearer {token}"))).await;
                if role.allows(needed) {
                    let let_in = !matches!(code, Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented);
                    assert!(let_in, "{path} as {role}: {code:?} {text}");
                } else {
                    assert_eq!(code, Code::PermissionDenied, "{path} as {role}: {text}");
                    assert!(text.contains(&format!("the role {role}")) && text.contains(needed.as_str()), "{text}");
                }
            }
        }
        let (code, _) = call(&rig.channel, "/muster.v1.Muster/DropEverything", None).await;
        assert_eq!(code, Code::Unimplemented);
        let (code, _) = call(&rig.channel, "/grpc.health.v1.Health/Check", None).await;
        assert_eq!(code, Code::Ok, "a probe has no token");
    });
}

#[test]
fn nobody_is_asked_before_the_first_token_and_everybody_after_it() {
    run(async |mut rig: Rig| {
        let list = async |rig: &mut Rig| rig.people.list_jobs(v1::ListJobsRequest::default()).await.err();
        assert!(list(&mut rig).await.is_none());
        let mut anybody = AccessClient::new(rig.channel.clone());
        let viewer =
            v1::CreateTokenRequest { name: "v".to_owned(), role: v1::AccessRole::Viewer.into(), ..Default::default() };
        let refused = anybody.create_token(viewer).await.unwrap_err();
        assert!(refused.message().contains("the first token must have the role admin"), "{refused}");
        let (_, mut access) = admin(&rig).await;
        let status = list(&mut rig).await.expect("asked now");
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().contains("MUSTER_TOKEN") && status.message().contains("ctl admin token create"));
        let tokens = access.list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner().tokens;
        assert_eq!((tokens.len(), tokens[0].state.as_str(), tokens[0].last_used_us > 0), (1, "live", true));
        let last = access.revoke_token(v1::RevokeTokenRequest { token: "root".to_owned() }).await.unwrap_err();
        assert_eq!(last.code(), Code::FailedPrecondition, "the doors would stay shut for ever: {last}");
    });
}

#[test]
fn a_secret_is_kept_by_nobody_but_its_holder() {
    let store = Memory::default();
    let kept = store.clone();
    run_with(Enforcement::default(), store, async |rig: Rig| {
        let (token, mut access) = admin(&rig).await;
        let viewer = create(&mut access, "v", v1::AccessRole::Viewer, &[], 0).await;
        let listed = access.list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner();
        for secret in [&token, &viewer] {
            let secret = secret.rsplit_once('_').unwrap().1;
            assert!(!format!("{listed:?}").contains(secret));
            let pieces = kept.pieces();
            assert!(pieces.len() > 2);
            for (key, piece) in pieces {
                let bytes = record::encode(&piece, &key);
                let found = bytes.windows(16).any(|part| secret.as_bytes().windows(16).any(|own| own == part));
                assert!(!found, "{key:?} holds a part of a secret");
            }
        }
    });
}

#[test]
fn a_bad_wish_for_a_token_is_refused_with_all_that_is_wrong() {
    run(async |rig: Rig| {
        let (_, mut access) = admin(&rig).await;
        let bad =
            v1::CreateTokenRequest { name: "two words".to_owned(), role: 9, queues: vec!["a b".to_owned()], ttl_us: 5 };
        let status = access.create_token(bad).await.unwrap_err();
        let found = status.get_error_details().bad_request().unwrap().field_violations.clone();
        let paths: Vec<_> = found.iter().map(|violation| violation.field.as_str()).collect();
        assert_eq!(paths, ["name", "role", "queues[0]", "ttl"]);
        create(&mut access, "ops", v1::AccessRole::Viewer, &[], 0).await;
        let cases = [("ops", v1::AccessRole::Viewer, vec![]), ("a", v1::AccessRole::Admin, vec!["q".to_owned()])];
        for (name, role, queues) in cases {
            let request = v1::CreateTokenRequest { name: name.to_owned(), role: role.into(), queues, ttl_us: 0 };
            assert_eq!(access.create_token(request).await.unwrap_err().code(), Code::FailedPrecondition, "{name}");
        }
        let request = v1::RevokeTokenRequest { token: "nobody".to_owned() };
        assert_eq!(access.revoke_token(request).await.unwrap_err().code(), Code::NotFound);
    });
}

#[test]
fn too_many_attempts_of_one_address_are_told_so_and_a_good_token_still_passes() {
    run(async |rig: Rig| {
        let (root, _access) = admin(&rig).await;
        let path = "/muster.v1.Muster/Info";
        let mut codes = Vec::new();
        for _ in 0..40 {
            codes.push(call(&rig.channel, path, Some("Bearer nothing")).await.0);
        }
        assert_eq!(codes.iter().filter(|code| **code == Code::Unauthenticated).count(), 20);
        assert_eq!(codes.last(), Some(&Code::ResourceExhausted));
        assert_eq!(call(&rig.channel, path, Some(&format!("Bearer {root}"))).await.0, Code::Ok);
    });
}

#[test]
fn a_known_token_with_another_secret_is_none() {
    run(async |rig: Rig| {
        let (root, _access) = admin(&rig).await;
        let id = token::parse(&root).unwrap().id;
        let forged = token::generate_for(id.clone()).text;
        let (code, text) = call(&rig.channel, "/muster.v1.Muster/Info", Some(&format!("Bearer {forged}"))).await;
        assert_eq!(
            (code, text.contains(&format!("access token {id} is not known here"))),
            (Code::Unauthenticated, true)
        );
    });
}

#[test]
fn an_open_answer_ends_soon_after_its_token_is_revoked_or_expires() {
    run(async |rig: Rig| {
        let (_, mut access) = admin(&rig).await;
        let operator = create(&mut access, "op", v1::AccessRole::Operator, &[], 0).await;
        let passing = create(&mut access, "short", v1::AccessRole::Viewer, &[], 2_000_000).await;
        let people = |token: &str| {
            MusterClient::new(InterceptedService::new(rig.channel.clone(), Bearer(Some(token.to_owned()))))
        };
        let spec = Some(spec::job_to_proto(&job("open", vec![task("a")])));
        let id = people(&operator).submit(v1::SubmitRequest { spec, ..Default::default() }).await.unwrap();
        let id = id.into_inner().job;
        let watch = v1::WatchJobRequest { selector: selector(id) };
        let mut first = people(&operator).watch_job(watch.clone()).await.unwrap().into_inner();
        let mut second = people(&passing).watch_job(watch).await.unwrap().into_inner();
        assert!(within(first.message()).await.unwrap().is_some() && within(second.message()).await.unwrap().is_some());
        access.revoke_token(v1::RevokeTokenRequest { token: "op".to_owned() }).await.unwrap();
        for stream in [&mut first, &mut second] {
            let status = within(stream.message()).await.unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{status}");
            assert!(status.message().contains("expired or was revoked"), "{status}");
        }
    });
}

#[test]
fn an_agent_is_an_agent_by_its_token_and_is_cut_off_when_it_is_revoked() {
    run(async |rig: Rig| {
        let (root, mut access) = admin(&rig).await;
        let token = create(&mut access, "north", v1::AccessRole::Agent, &[], 0).await;
        assert!(
            rig.try_agent_as(hello(), Bearer(None)).await.is_err_and(|status| status.code() == Code::Unauthenticated)
        );
        let as_admin = rig.try_agent_as(hello(), Bearer(Some(root))).await;
        assert!(as_admin.is_err_and(|status| status.code() == Code::PermissionDenied));
        let mut agent = rig.try_agent_as(hello(), Bearer(Some(token))).await.unwrap();
        access.revoke_token(v1::RevokeTokenRequest { token: "north".to_owned() }).await.unwrap();
        let ended = async {
            while agent.next().await?.is_some() {}
            Ok::<_, Status>(())
        };
        assert_eq!(within(ended).await.unwrap_err().code(), Code::Unauthenticated);
    });
}

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
    });
}
