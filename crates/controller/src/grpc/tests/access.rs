//! The guard on a real server: every call, every kind of caller.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use muster_common::{
    proto::v1::{
        self, access_client::AccessClient, agent_link_client::AgentLinkClient, backup_client::BackupClient,
        muster_client::MusterClient,
    },
    token,
    wire::{access::role_from_proto, record, spec},
};
use muster_core::access::{Enforcement, Role};
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
pub(super) async fn call(channel: &Channel, path: &str, header: Option<&str>) -> (Code, String) {
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

pub(super) async fn create(
    access: &mut Tokens,
    name: &str,
    role: v1::AccessRole,
    queues: &[&str],
    ttl_us: u64,
) -> String {
    let queues = queues.iter().map(ToString::to_string).collect();
    let request = v1::CreateTokenRequest { name: name.to_owned(), role: role.into(), queues, ttl_us };
    access.create_token(request).await.unwrap().into_inner().token
}

pub(super) type Tokens = AccessClient<InterceptedService<Channel, Bearer>>;

/// An admin's token on a system that had none, and a client with it.
pub(super) async fn admin(rig: &Rig) -> (String, Tokens) {
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
fn a_password_that_slipped_into_an_address_is_not_written_down() {
    let store = Memory::default();
    let kept = store.clone();
    run_with(Enforcement::default(), store, async |rig: Rig| {
        let (token, mut access) = admin(&rig).await;
        let channel = InterceptedService::new(rig.channel.clone(), Bearer(Some(token)));
        for to in ["etcd://ann:hunter2@a:2379", "hunter2@"] {
            let request = v1::PromoteRequest { to: to.to_owned() };
            let status = BackupClient::new(channel.clone()).promote(request).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{status}");
            assert!(
                status.message().contains("etcd_password_file") && !status.message().contains("hunter2"),
                "{status}"
            );
        }
        create(&mut access, "later", v1::AccessRole::Viewer, &[], 0).await;
        let text = format!("{:?}", kept.pieces());
        assert!(text.contains("later") && !text.contains("hunter2"), "{text}");
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
        for taken in ["anonymous", "muster"] {
            let role = v1::AccessRole::Viewer.into();
            let request = v1::CreateTokenRequest { name: taken.to_owned(), role, ..Default::default() };
            let status = access.create_token(request).await.expect_err("the audit log says so of others");
            assert_eq!(status.code(), Code::InvalidArgument, "{taken}: {status}");
        }
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
        let passing = create(&mut access, "short", v1::AccessRole::Viewer, &[], 10_000_000).await;
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

#[test]
fn what_was_opened_while_nobody_was_asked_ends_when_the_first_token_is_made() {
    run(async |mut rig: Rig| {
        let mut agent = rig.agent().await;
        let spec = Some(spec::job_to_proto(&job("open", vec![task("a")])));
        let id = rig.people.submit(v1::SubmitRequest { spec, ..Default::default() }).await.unwrap().into_inner().job;
        let watch = v1::WatchJobRequest { selector: selector(id) };
        let mut watch = rig.people.watch_job(watch).await.unwrap().into_inner();
        admin(&rig).await;
        let ended = async {
            while agent.next().await?.is_some() {}
            Ok::<_, Status>(())
        };
        assert_eq!(within(ended).await.unwrap_err().code(), Code::Unauthenticated, "an agent that is nobody works on");
        let ended = async {
            while watch.message().await?.is_some() {}
            Ok::<_, Status>(())
        };
        assert_eq!(within(ended).await.unwrap_err().code(), Code::Unauthenticated, "somebody who is nobody looks on");
    });
}

#[test]
fn what_is_still_sent_is_refused_when_its_token_is_revoked() {
    run(async |rig: Rig| {
        let (_, mut access) = admin(&rig).await;
        let token = create(&mut access, "north", v1::AccessRole::Agent, &[], 0).await;
        let channel = InterceptedService::new(rig.channel.clone(), Bearer(Some(token)));
        // A result of which no part ever comes.
        let (_sender, parts) = tokio::sync::mpsc::channel(1);
        let parts = tokio_stream::wrappers::ReceiverStream::new(parts);
        let sent = tokio::spawn(async move { AgentLinkClient::new(channel).put_result(parts).await });
        let used = async {
            loop {
                let tokens = access.list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner().tokens;
                if tokens.iter().any(|token| token.name == "north" && token.last_used_us > 0) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        within(used).await;
        access.revoke_token(v1::RevokeTokenRequest { token: "north".to_owned() }).await.unwrap();
        assert_eq!(within(sent).await.unwrap().unwrap_err().code(), Code::Unauthenticated);
    });
}
