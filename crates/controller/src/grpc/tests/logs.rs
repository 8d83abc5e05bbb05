//! Of what tasks wrote, what a person asks for: by pattern, by time, over many jobs.

use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, poll};
use muster_common::proto::v1;
use muster_core::{
    access::Reach,
    spec::{Command, RetryPolicy, TaskSpec},
};
use tokio::sync::Semaphore;
use tonic::Code;

use super::rig::{Rig, batch, failed, job, run, selector, succeeded, task, within};
use crate::grpc::search;

/// Three jobs of one task each, which wrote these lines, a millisecond after one another; their numbers.
async fn three_jobs(rig: &mut Rig) -> Vec<u64> {
    let mut agent = rig.agent().await;
    let (up, mut down) = agent.log_stream().await;
    let mut jobs = Vec::new();
    for (n, (name, lines)) in
        [("first", ["a red\n", "a blue\n"]), ("second", ["b RED\n", "b gr"]), ("third", ["c red\n", "c end\n"])]
            .into_iter()
            .enumerate()
    {
        jobs.push(rig.submit(&job(name, vec![task("say")])).await);
        let lease = agent.lease().await;
        let mut batch = batch(&lease, 0, &lines, true);
        for (frame, at) in batch.frames.iter_mut().zip(1..) {
            frame.at_us = 1000 * u64::try_from(n).unwrap() + 1000 * at;
        }
        batch.frames[1].offset = lines[0].len() as u64;
        up.send(v1::LogUp { agent: agent.welcome.agent, batches: vec![batch] }).await.unwrap();
        within(down.message()).await.unwrap().expect("an acknowledgement");
        agent.end(&[(&lease, succeeded(), None)]).await;
    }
    jobs
}

async fn shown(rig: &mut Rig, request: v1::LogsRequest) -> String {
    let mut stream = rig.people.logs(request).await.unwrap().into_inner();
    let mut text = Vec::new();
    while let Some(reply) = within(stream.message()).await.unwrap() {
        text.extend(reply.frames.iter().flat_map(|frame| frame.data.to_vec()));
    }
    String::from_utf8(text).unwrap()
}

async fn searched(rig: &mut Rig, request: v1::SearchLogsRequest) -> (String, v1::SearchTotals) {
    let mut stream = rig.people.search_logs(request).await.unwrap().into_inner();
    let (mut text, mut totals) = (String::new(), None);
    while let Some(reply) = within(stream.message()).await.unwrap() {
        assert!(totals.is_none(), "nothing comes after the totals");
        for found in reply.matches {
            let line = found.line.unwrap();
            text += &format!(
                "{}.{}@{} {}|",
                found.job_name,
                found.task_name,
                line.offset,
                String::from_utf8_lossy(&line.data)
            );
        }
        totals = reply.totals;
    }
    (text.replace('\n', ""), totals.expect("totals at the end"))
}

#[test]
fn logs_are_shown_by_pattern_and_by_time() {
    run(async |mut rig: Rig| {
        let jobs = three_jobs(&mut rig).await;
        let ask = |n: usize| v1::LogsRequest { selector: selector(jobs[n]), ..Default::default() };
        let red = || "red".to_owned();
        let cases = [
            (v1::LogsRequest { pattern: red(), ..ask(0) }, "a red\n"),
            (v1::LogsRequest { pattern: red(), ..ask(1) }, ""),
            (v1::LogsRequest { pattern: red(), ignore_case: true, ..ask(1) }, "b RED\n"),
            (v1::LogsRequest { pattern: "gr$".to_owned(), ..ask(1) }, "b gr"),
            (v1::LogsRequest { pattern: "^a".to_owned(), tail_lines: 1, ..ask(0) }, "a blue\n"),
            (v1::LogsRequest { pattern: "^a".to_owned(), follow: true, ..ask(0) }, "a red\na blue\n"),
            (v1::LogsRequest { since_us: 2000, ..ask(0) }, "a blue\n"),
            (v1::LogsRequest { until_us: 2000, ..ask(0) }, "a red\n"),
        ];
        for (request, expected) in cases {
            assert_eq!(shown(&mut rig, request.clone()).await, expected, "{request:?}");
        }
        let wrong = v1::LogsRequest { pattern: "(".to_owned(), ..ask(0) };
        let status = rig.people.logs(wrong).await.unwrap_err();
        assert!(status.code() == Code::InvalidArgument && status.message().contains("regular expression"), "{status}");
    });
}

#[test]
fn who_follows_waits_for_all_output_that_an_attempt_says_it_has_written() {
    run(async |mut rig: Rig| {
        let mut agent = rig.agent().await;
        // Of the second one nobody knows: its end is the end of all waiting for what nobody speaks of.
        let works = TaskSpec { command: Command::Argv(vec!["true".to_owned()]), ..task("a") };
        // Another task of the job goes on, so that of its end only the agent's clock tells, which is wrong.
        let goes_on = TaskSpec { name: "b".to_owned(), ..works.clone() };
        let says = rig.submit(&job("says", vec![works.clone(), goes_on])).await;
        let selected = [format!("{says}.a"), rig.submit(&job("is-old", vec![works])).await.to_string()];
        let mut follows = Vec::new();
        for selected in selected {
            let request = v1::LogsRequest { selector: selector(selected), follow: true, ..Default::default() };
            follows.push(rig.people.logs(request).await.unwrap().into_inner());
        }
        let mut leases = [agent.lease().await, agent.lease().await, agent.lease().await];
        leases.sort_by_key(|lease| (lease.job, lease.task));
        agent.end_saying(&leases[0], succeeded(), Some(true)).await;
        agent.end_saying(&leases[2], succeeded(), None).await;
        assert!(within(follows[1].message()).await.unwrap().is_none(), "nobody wrote anything");
        let (up, _down) = agent.log_stream().await;
        let batches = vec![batch(&leases[0], 0, &["late\n"], true)];
        up.send(v1::LogUp { agent: agent.welcome.agent, batches }).await.unwrap();
        let reply = within(follows[0].message()).await.unwrap().expect("it was to come");
        assert_eq!(reply.frames[0].data, "late\n");
        assert!(within(follows[0].message()).await.unwrap().is_none(), "that was all");
    });
}

#[test]
fn who_follows_waits_for_output_of_each_attempt_that_is_wanted() {
    run(async |mut rig: Rig| {
        let mut agent = rig.agent().await;
        let retried = TaskSpec { retry: RetryPolicy { max: 1, ..RetryPolicy::default() }, ..task("a") };
        let id = rig.submit(&job("retried", vec![retried])).await;
        let request = v1::LogsRequest { selector: selector(id), follow: true, ..Default::default() };
        let mut follow = rig.people.logs(request.clone()).await.unwrap().into_inner();
        let first = agent.lease().await;
        agent.end_saying(&first, failed(3), Some(true)).await;
        let second = agent.lease().await;
        let mut only_second = rig.people.logs(v1::LogsRequest { attempt: 2, ..request }).await.unwrap().into_inner();
        agent.end_saying(&second, succeeded(), Some(false)).await;
        assert!(within(only_second.message()).await.unwrap().is_none(), "it wrote nothing");
        let (up, _down) = agent.log_stream().await;
        let batches = vec![batch(&first, 0, &["late\n"], true)];
        up.send(v1::LogUp { agent: agent.welcome.agent, batches }).await.unwrap();
        let reply = within(follow.message()).await.unwrap().expect("it was to come");
        assert_eq!((reply.attempt, &*reply.frames[0].data), (1, &b"late\n"[..]));
        assert!(within(follow.message()).await.unwrap().is_none(), "that was all");
    });
}

#[test]
fn a_search_goes_through_all_jobs_newest_first() {
    run(async |mut rig: Rig| {
        let jobs = three_jobs(&mut rig).await;
        let ask = || v1::SearchLogsRequest { pattern: "red".to_owned(), ..Default::default() };
        let named = |name: &str| Some(v1::ListJobsRequest { name: name.to_owned(), ..Default::default() });
        let cases = [
            (ask(), "third.say@0 c red|first.say@0 a red|", 3),
            (
                v1::SearchLogsRequest { ignore_case: true, ..ask() },
                "third.say@0 c red|second.say@0 b RED|first.say@0 a red|",
                3,
            ),
            (v1::SearchLogsRequest { selector: selector(jobs[0]), ..ask() }, "first.say@0 a red|", 1),
            (v1::SearchLogsRequest { jobs: named("th*"), ..ask() }, "third.say@0 c red|", 1),
            (v1::SearchLogsRequest { until_us: 2000, ..ask() }, "first.say@0 a red|", 3),
            (v1::SearchLogsRequest { pattern: "b g".to_owned(), ..ask() }, "second.say@6 b gr|", 3),
            (v1::SearchLogsRequest { stream: "stderr".to_owned(), ..ask() }, "", 3),
            (v1::SearchLogsRequest { pattern: "nowhere".to_owned(), ..ask() }, "", 3),
        ];
        for (request, expected, looked_at) in cases {
            let (text, totals) = searched(&mut rig, request.clone()).await;
            assert_eq!((text.as_str(), totals.jobs), (expected, looked_at), "{request:?}");
            assert!(!totals.is_limited);
        }
        let (text, totals) = searched(&mut rig, v1::SearchLogsRequest { limit: 1, ..ask() }).await;
        assert_eq!((text.as_str(), totals.matches, totals.is_limited), ("third.say@0 c red|", 1, true));
        for (wrong, code) in [
            (v1::SearchLogsRequest::default(), Code::InvalidArgument),
            (v1::SearchLogsRequest { limit: u32::MAX, ..ask() }, Code::InvalidArgument),
            (v1::SearchLogsRequest { selector: selector("nobody"), ..ask() }, Code::NotFound),
        ] {
            assert_eq!(rig.people.search_logs(wrong).await.unwrap_err().code(), code);
        }
    });
}

#[test]
fn only_so_many_searches_look_at_one_time_and_who_does_not_read_stops_nobody() {
    run(async |mut rig: Rig| {
        three_jobs(&mut rig).await;
        let (turns, reach) = (Arc::new(Semaphore::new(1)), Reach::All);
        let begin = || {
            let request = v1::SearchLogsRequest { pattern: "red".to_owned(), ..Default::default() };
            search::search(rig.parts.clone(), &reach, &turns, request).map(Box::pin).unwrap()
        };
        let mut unread = begin();
        within(unread.next()).await.unwrap().unwrap();
        let mut other = begin();
        let held = turns.acquire().await.unwrap();
        assert!(poll!(other.next()).is_pending(), "somebody else looks");
        drop(held);
        assert!(within(other.try_collect::<Vec<_>>()).await.unwrap().last().unwrap().totals.is_some());
        assert!(within(unread.try_collect::<Vec<_>>()).await.unwrap().last().unwrap().totals.is_some());
    });
}

/// Heartbeats are answered by the same threads.
#[test]
fn a_search_leaves_its_thread_to_others_after_each_job_that_it_looked_at() {
    run(async |mut rig: Rig| {
        for _ in 0..50 {
            rig.submit(&job("x", vec![task("say")])).await;
        }
        let (turns, reach) = (Arc::new(Semaphore::new(1)), Reach::All);
        for (name, wanted) in [("", 50), ("nobody", 0)] {
            let jobs = Some(v1::ListJobsRequest { name: name.to_owned(), ..Default::default() });
            let request = v1::SearchLogsRequest { pattern: "red".to_owned(), jobs, ..Default::default() };
            let mut found = Box::pin(search::search(rig.parts.clone(), &reach, &turns, request).unwrap());
            let mut left = 0;
            let totals = loop {
                match poll!(found.next()) {
                    std::task::Poll::Pending => left += 1,
                    std::task::Poll::Ready(reply) => break reply.unwrap().unwrap().totals.unwrap(),
                }
                tokio::task::yield_now().await;
            };
            assert_eq!(totals.jobs, wanted);
            assert!(left >= wanted, "its thread was left {left} times");
        }
    });
}
