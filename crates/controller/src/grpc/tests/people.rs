//! What people ask and are told.

use muster_common::proto::v1;
use muster_core::spec::{After, Array, On, TaskSpec};
use tonic::Code;
use tonic_types::StatusExt as _;

use super::rig::{self, Rig, failed, job, run, selector, succeeded, task, within};

fn after(name: &str) -> After {
    After { job: None, job_name: None, task: Some(name.to_owned()), on: On::Success }
}

fn array(name: &str, count: u32) -> TaskSpec {
    TaskSpec { array: Some(Array::Range { first: 0, count, step: 1 }), ..task(name) }
}

#[test]
fn a_job_is_submitted_listed_shown_and_explained() {
    run(async |mut rig: Rig| {
        let id = rig
            .submit(&job("census", vec![array("scan", 100), TaskSpec { after: vec![after("scan")], ..task("merge") }]))
            .await;
        let reply = rig.people.list_jobs(v1::ListJobsRequest::default()).await.unwrap().into_inner();
        assert_eq!((reply.jobs.len(), reply.next_page_token.as_str()), (1, ""));
        assert_eq!(
            (reply.jobs[0].id, reply.jobs[0].name.as_str(), reply.jobs[0].submitted_by.as_str()),
            (id, "census", "ann")
        );
        let shown = rig.people.get_job(v1::GetJobRequest { selector: selector("census") }).await.unwrap().into_inner();
        let groups: Vec<_> =
            shown.groups.iter().map(|group| (group.name.as_str(), group.first_task, group.tasks)).collect();
        assert_eq!(groups, [("scan", 0, 100), ("merge", 100, 1)]);
        assert_eq!(shown.groups[1].tally.unwrap().waiting, 1);
        let request = v1::ExplainRequest { selector: selector(id) };
        let explained = rig.people.explain(request).await.unwrap().into_inner().explanations;
        let subjects: Vec<_> = explained.iter().map(|all| (all.subject.clone(), all.tasks)).collect();
        assert_eq!(subjects, [(format!("{id}.scan"), 100), (format!("{id}.merge"), 1)]);
        assert!(explained.iter().all(|all| !all.reasons.is_empty() && !all.reasons[0].text.is_empty()));
        let info = rig.people.info(v1::InfoRequest {}).await.unwrap().into_inner();
        assert!(info.now_us >= info.started_us && info.term > 0);
        rig.stop().await;
    });
}

#[test]
fn a_bad_job_is_refused_with_every_problem_and_its_place() {
    run(async |mut rig: Rig| {
        let other = After { job: None, job_name: Some("nobody".to_owned()), task: None, on: On::Any };
        let spec = job("bad", vec![TaskSpec { after: vec![after("missing"), other], ..task("a") }, task("a")]);
        let request =
            v1::SubmitRequest { spec: Some(muster_common::wire::spec::job_to_proto(&spec)), ..Default::default() };
        let status = rig.people.submit(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let found = status.get_error_details().bad_request().unwrap().field_violations.clone();
        let paths: Vec<_> = found.iter().map(|violation| violation.field.as_str()).collect();
        assert!(paths.contains(&"tasks[0].after[0]") && paths.contains(&"tasks[0].after[1]"), "{found:?}");
        assert!(found.len() >= 3, "{found:?}");
        let reply = rig.people.list_jobs(v1::ListJobsRequest::default()).await.unwrap().into_inner();
        assert!(reply.jobs.is_empty());
    });
}

#[test]
fn a_repeated_submit_with_the_same_key_is_the_first_job() {
    run(async |mut rig: Rig| {
        let spec = Some(muster_common::wire::spec::job_to_proto(&job("once", vec![task("a")])));
        let request = v1::SubmitRequest { spec, key: "k".to_owned(), ..Default::default() };
        let first = rig.people.submit(request.clone()).await.unwrap().into_inner();
        let second = rig.people.submit(request).await.unwrap().into_inner();
        assert_eq!((first.job, first.duplicate), (second.job, false));
        assert!(second.duplicate);
    });
}

#[test]
fn another_job_is_waited_for_by_its_name() {
    run(async |mut rig: Rig| {
        let first = rig.submit(&job("first", vec![task("a")])).await;
        let by_name = After { job: None, job_name: Some("first".to_owned()), task: None, on: On::Any };
        let second = rig.submit(&job("second", vec![TaskSpec { after: vec![by_name], ..task("b") }])).await;
        let shown = rig.people.get_job(v1::GetJobRequest { selector: selector(second) }).await.unwrap().into_inner();
        assert_eq!(shown.spec.unwrap().tasks[0].after[0].job, first);
    });
}

#[test]
fn jobs_are_filtered_and_paged_newest_first() {
    run(async |mut rig: Rig| {
        for n in 0..7 {
            let mut spec = job(&format!("job-{n}"), vec![task("a")]);
            spec.labels.insert("parity".to_owned(), (n % 2).to_string());
            rig.submit(&spec).await;
        }
        let mut list = async |request: v1::ListJobsRequest| {
            let reply = rig.people.list_jobs(request).await.unwrap().into_inner();
            (reply.jobs.iter().map(|job| job.id).collect::<Vec<_>>(), reply.next_page_token)
        };
        let page = v1::ListJobsRequest { page_size: 3, ..Default::default() };
        let (first, token) = list(page.clone()).await;
        let (second, token) = list(v1::ListJobsRequest { page_token: token, ..page.clone() }).await;
        let (third, token) = list(v1::ListJobsRequest { page_token: token, ..page }).await;
        assert_eq!((first, second, third, token.as_str()), (vec![7, 6, 5], vec![4, 3, 2], vec![1], ""));
        let words = |word: &str| vec![word.to_owned()];
        let base = v1::ListJobsRequest::default;
        let cases = [
            (v1::ListJobsRequest { labels: words("parity=1"), ..base() }, vec![6, 4, 2]),
            (v1::ListJobsRequest { labels: words("parity"), name: "*-3".to_owned(), ..base() }, vec![4]),
            (v1::ListJobsRequest { labels: words("none"), ..base() }, vec![]),
            (v1::ListJobsRequest { states: words("pending"), page_size: 2, ..base() }, vec![7, 6]),
            (v1::ListJobsRequest { states: words("completed"), ..base() }, vec![]),
            (v1::ListJobsRequest { queue: "other".to_owned(), ..base() }, vec![]),
            (v1::ListJobsRequest { after_us: u64::MAX, ..base() }, vec![]),
            (v1::ListJobsRequest { before_us: 1, ..base() }, vec![]),
        ];
        for (request, expected) in cases {
            assert_eq!(list(request.clone()).await.0, expected, "{request:?}");
        }
        let odd = v1::ListJobsRequest { page_token: "odd".to_owned(), ..base() };
        assert_eq!(rig.people.list_jobs(odd).await.unwrap_err().code(), Code::InvalidArgument);
    });
}

#[test]
fn tasks_are_paged_and_filtered_by_state() {
    run(async |mut rig: Rig| {
        let mut agent = rig.agent().await;
        let tail = TaskSpec { after: vec![after("scan")], ..array("tail", 200) };
        let id = rig.submit(&job("many", vec![array("scan", 150), tail])).await;
        let first = agent.lease().await;
        agent.end(&[(&first, failed(3), None)]).await;
        let mut list = async |request: v1::ListTasksRequest| {
            let reply = rig.people.list_tasks(request).await.unwrap().into_inner();
            (reply.tasks, reply.next_page_token)
        };
        let base = || v1::ListTasksRequest { selector: selector(id), ..Default::default() };
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let (tasks, next) = list(v1::ListTasksRequest { page_size: 100, page_token: token, ..base() }).await;
            seen.extend(tasks.into_iter().map(|task| task.index));
            token = next;
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, (0..350).collect::<Vec<_>>());
        let (tasks, _) = list(v1::ListTasksRequest { states: vec!["failed".to_owned()], ..base() }).await;
        let named: Vec<_> = tasks.iter().map(|task| (task.name.as_str(), task.agent_name.as_str())).collect();
        assert_eq!(named, [(format!("scan[{}]", first.task).as_str(), "north")]);
        let (tasks, _) =
            list(v1::ListTasksRequest { selector: selector(format!("{id}.tail[7]")), ..Default::default() }).await;
        assert_eq!((tasks.len(), tasks[0].index, tasks[0].name.as_str()), (1, 157, "tail[7]"));
        let wrong = v1::ListTasksRequest { states: vec!["broken".to_owned()], ..base() };
        assert_eq!(rig.people.list_tasks(wrong).await.unwrap_err().code(), Code::InvalidArgument);
    });
}

#[test]
fn a_watcher_sees_the_end_and_then_the_stream_ends() {
    run(async |mut rig: Rig| {
        let mut agent = rig.agent().await;
        let id = rig.submit(&job("short", vec![task("a")])).await;
        let request = v1::WatchJobRequest { selector: selector(id) };
        let mut watch = rig.people.watch_job(request).await.unwrap().into_inner();
        assert_eq!(within(watch.message()).await.unwrap().unwrap().id, id);
        let lease = agent.lease().await;
        agent.end(&[(&lease, succeeded(), None)]).await;
        let mut last = None;
        while let Some(summary) = within(watch.message()).await.unwrap() {
            last = Some(summary);
        }
        assert_eq!(last.unwrap().state(), v1::JobState::Succeeded);
    });
}

#[test]
fn work_is_cancelled_and_tried_again() {
    run(async |mut rig: Rig| {
        let id = rig.submit(&job("idle", vec![array("scan", 5)])).await;
        let request = v1::CancelRequest { selector: selector(id), reason: "enough".to_owned(), ..Default::default() };
        let reply = rig.people.cancel(request).await.unwrap().into_inner();
        assert_eq!((reply.job, reply.tasks, reply.already_final), (id, 5, 0));
        let shown = rig.people.get_job(v1::GetJobRequest { selector: selector(id) }).await.unwrap().into_inner();
        let summary = shown.summary.unwrap();
        assert_eq!((summary.state(), summary.cancel_reason.as_str()), (v1::JobState::Cancelled, "enough"));
        let request = v1::RetryRequest { selector: selector(format!("{id}.scan[2]")), ..Default::default() };
        assert_eq!(rig.people.retry(request).await.unwrap_err().code(), Code::FailedPrecondition);
        let request = v1::RetryRequest { selector: selector(id), ..Default::default() };
        assert_eq!(rig.people.retry(request).await.unwrap().into_inner().tasks, 5);
        let request = v1::CancelRequest { selector: selector(99), ..Default::default() };
        assert_eq!(rig.people.cancel(request).await.unwrap_err().code(), Code::NotFound);
    });
}

#[test]
fn times_are_measured_over_finished_tasks() {
    run(async |mut rig: Rig| {
        let mut agent = rig.agent().await;
        let id = rig.submit(&job("timed", vec![array("scan", 10)])).await;
        for _ in 0..10 {
            let lease = agent.lease().await;
            agent.end(&[(&lease, succeeded(), None)]).await;
        }
        for text in [id.to_string(), String::new()] {
            let request = v1::StatsRequest { selector: selector(text), slowest: 2 };
            let stats = rig.people.stats(request).await.unwrap().into_inner();
            let slowest: Vec<_> = stats.slowest.iter().map(|task| task.name.as_str()).collect();
            assert_eq!((stats.jobs, stats.measured, stats.mean_us, stats.total_us), (1, 10, 5500, 55_000));
            assert_eq!((stats.p50_us, stats.p99_us, slowest), (5000, 10_000, vec!["scan[9]", "scan[8]"]));
            assert_eq!(stats.tally.unwrap().succeeded, 10);
        }
    });
}

#[test]
fn results_are_read_by_name_and_what_has_none_says_so() {
    run(async |mut rig: Rig| {
        let mut agent = rig.agent().await;
        let id = rig.submit(&job("left", vec![task("a"), task("b"), task("c")])).await;
        for (n, json) in ["{\"a\": 1}", "[2]"].iter().enumerate() {
            let lease = agent.lease().await;
            assert_eq!(lease.task as usize, n);
            agent.end(&[(&lease, succeeded(), Some(json))]).await;
        }
        let mut get = async |text: String| {
            let request = v1::GetResultRequest { selector: selector(text) };
            let mut parts = rig.people.get_result(request).await?.into_inner();
            let mut all = Vec::new();
            while let Some(part) = within(parts.message()).await? {
                all.extend(part.data);
            }
            Ok::<_, tonic::Status>(String::from_utf8(all).unwrap())
        };
        assert_eq!(get(format!("{id}.a")).await.unwrap(), "{\"a\": 1}");
        assert_eq!(get(format!("{id}.1")).await.unwrap(), "[2]");
        let several = get(id.to_string()).await.unwrap_err();
        assert!(several.message().contains(&format!("{id}.a, {id}.b")), "{several}");
        assert_eq!(get(format!("{id}.c")).await.unwrap_err().code(), Code::NotFound);
    });
}

#[test]
fn queues_are_set_and_agents_are_listed() {
    run(async |mut rig: Rig| {
        let _agent = rig.agent().await;
        let queue = v1::QueueRecord { name: "slow".to_owned(), max_running: Some(2), ..Default::default() };
        rig.people.set_queue(v1::SetQueueRequest { queue: Some(queue) }).await.unwrap();
        let queues = rig.people.list_queues(v1::ListQueuesRequest {}).await.unwrap().into_inner().queues;
        let slow = queues.iter().filter_map(|view| view.queue.as_ref()).find(|queue| queue.name == "slow");
        assert_eq!(slow.and_then(|queue| queue.max_running), Some(2));
        for name in ["", "two words"] {
            let queue = Some(v1::QueueRecord { name: name.to_owned(), ..Default::default() });
            let status = rig.people.set_queue(v1::SetQueueRequest { queue }).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{name}");
        }
        let agents = rig.people.list_agents(v1::ListAgentsRequest::default()).await.unwrap().into_inner().agents;
        assert_eq!((agents.len(), agents[0].state.as_str()), (1, "connected"));
        assert!(agents[0].last_seen_us > 0 && agents[0].offer.as_ref().unwrap().name == "north");
    });
}

#[test]
fn output_is_followed_live_to_its_end() {
    run(async |mut rig: Rig| {
        let mut agent = rig.agent().await;
        let id = rig.submit(&job("talk", vec![array("say", 2)])).await;
        let request = v1::LogsRequest { selector: selector(id), follow: true, ..Default::default() };
        let mut follow = rig.people.logs(request).await.unwrap().into_inner();
        let (first, second) = (agent.lease().await, agent.lease().await);
        let (up, mut down) = agent.log_stream().await;
        let send = async |batches| up.send(v1::LogUp { agent: agent.welcome.agent, batches }).await.unwrap();
        let mut hear = async || {
            let reply = within(follow.message()).await.unwrap()?;
            let text: Vec<u8> = reply.frames.iter().flat_map(|frame| frame.data.to_vec()).collect();
            Some((reply.task_name, String::from_utf8(text).unwrap()))
        };
        send(vec![rig::batch(&first, 0, &["one\n"], false)]).await;
        assert_eq!(hear().await, Some(("say[0]".to_owned(), "one\n".to_owned())));
        send(vec![rig::batch(&second, 0, &["two\n"], true)]).await;
        assert_eq!(hear().await, Some(("say[1]".to_owned(), "two\n".to_owned())));
        send(vec![rig::batch(&first, 1, &["three\n"], true)]).await;
        assert_eq!(hear().await, Some(("say[0]".to_owned(), "three\n".to_owned())));
        within(down.message()).await.unwrap().expect("an acknowledgement");
        agent.end(&[(&first, succeeded(), None), (&second, succeeded(), None)]).await;
        assert_eq!(hear().await, None, "the job is over and nothing is open");

        let cases = [
            (v1::LogsRequest { selector: selector(format!("{id}.say[0]")), ..Default::default() }, "one\nthree\n"),
            (v1::LogsRequest { selector: selector(id), tail_lines: 1, ..Default::default() }, "three\n"),
            (v1::LogsRequest { selector: selector(id), stream: "stderr".to_owned(), ..Default::default() }, ""),
            (
                v1::LogsRequest { selector: selector(id), attempt: 1, follow: true, ..Default::default() },
                "one\ntwo\nthree\n",
            ),
        ];
        for (request, expected) in cases {
            let mut stream = rig.people.logs(request.clone()).await.unwrap().into_inner();
            let mut text = Vec::new();
            while let Some(reply) = within(stream.message()).await.unwrap() {
                text.extend(reply.frames.iter().flat_map(|frame| frame.data.to_vec()));
            }
            assert_eq!(String::from_utf8(text).unwrap(), expected, "{request:?}");
        }
        let wrong = [("stream", 0, "both", Code::InvalidArgument), ("attempt", 7, "", Code::NotFound)];
        for (what, attempt, stream, code) in wrong {
            let selector = selector(format!("{id}.say[0]"));
            let request = v1::LogsRequest { selector, attempt, stream: stream.to_owned(), ..Default::default() };
            assert_eq!(rig.people.logs(request).await.unwrap_err().code(), code, "{what}");
        }
    });
}

#[test]
fn a_stop_ends_every_open_stream_with_a_word() {
    run(async |mut rig: Rig| {
        let mut agent = rig.agent().await;
        let id = rig.submit(&job("open", vec![task("a")])).await;
        let request = v1::WatchJobRequest { selector: selector(id) };
        let mut watch = rig.people.watch_job(request).await.unwrap().into_inner();
        let request = v1::LogsRequest { selector: selector(id), follow: true, ..Default::default() };
        let mut follow = rig.people.logs(request).await.unwrap().into_inner();
        agent.lease().await;
        rig.stop().await;
        let end = async {
            while watch.message().await?.is_some() {}
            Ok::<_, tonic::Status>(())
        };
        assert_eq!(within(end).await.unwrap_err().code(), Code::Unavailable);
        assert_eq!(within(follow.message()).await.unwrap_err().code(), Code::Unavailable);
        let end = async {
            while agent.next().await?.is_some() {}
            Ok::<_, tonic::Status>(())
        };
        assert_eq!(within(end).await.unwrap_err().code(), Code::Unavailable);
    });
}
