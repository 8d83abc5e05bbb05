//! A whole controller in this process: it starts, stops, starts again, and says what is in its way.

use std::{net::SocketAddr, path::Path, sync::Arc};

use muster_controller::app::{self, Config};
use muster_core::{
    event::{Answer, Event, Submission},
    id::JobId,
    spec::{JobSpec, TaskSpec},
};

fn config(folder: &Path) -> Config {
    Config { data_dir: folder.join("data"), listen: SocketAddr::from(([127, 0, 0, 1], 0)), ..Config::default() }
}

fn submission(key: &str) -> Event {
    let task = TaskSpec { name: "only".to_owned(), ..TaskSpec::default() };
    let spec = JobSpec {
        name: "census".to_owned(),
        queue: muster_core::spec::DEFAULT_QUEUE.to_owned(),
        tasks: vec![Arc::new(task)],
        ..JobSpec::default()
    };
    Event::Submit(Submission { spec: Arc::new(spec), key: key.into(), by: "test".into(), trace_parent: "".into() })
}

#[tokio::test]
async fn what_was_accepted_is_there_after_a_clean_stop() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let running = app::start(config(folder.path())).await.expect("it starts");
    assert_ne!(running.addr.port(), 0);
    let (term, answer) = (running.term(), running.handle.ask(submission("k")).await);
    assert!(matches!(answer, Ok(Answer::Submitted { job: JobId(1), duplicate: false, .. })), "{answer:?}");
    running.stop().await;

    let running = app::start(config(folder.path())).await.expect("it starts again");
    assert!(running.term() > term);
    assert!(running.view.load().job(JobId(1)).is_some());
    let answer = running.handle.ask(submission("k")).await;
    assert!(matches!(answer, Ok(Answer::Submitted { job: JobId(1), duplicate: true, .. })), "{answer:?}");
    running.stop().await;
}

async fn refusal(config: Config) -> String {
    match app::start(config).await {
        Ok(_) => panic!("it started"),
        Err(error) => format!("{error:#}"),
    }
}

#[tokio::test]
async fn what_is_in_its_way_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let running = app::start(config(folder.path())).await.expect("it starts");

    let other = tempfile::tempdir().expect("a temporary folder");
    let text = refusal(Config { listen: running.addr, ..config(other.path()) }).await;
    assert!(text.contains(&running.addr.to_string()) && text.contains("--listen"), "{text}");

    let text = refusal(config(folder.path())).await;
    assert!(text.contains("another controller (or `ctl dev`)") && text.contains("--data"), "{text}");

    let file = other.path().join("data");
    std::fs::write(&file, "mine").expect("it is written");
    let text = refusal(config(other.path())).await;
    assert!(text.contains("is a file; --data takes a folder"), "{text}");

    std::fs::remove_file(&file).expect("it is removed");
    std::fs::create_dir(&file).expect("it is made");
    std::fs::write(file.join("store.redb"), "not a store").expect("it is written");
    let text = refusal(config(other.path())).await;
    assert!(text.contains("is not a Muster store"), "{text}");
    running.stop().await;
}
