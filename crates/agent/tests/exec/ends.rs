//! How attempts end by themselves, and what they find when they start.

use std::{sync::Arc, time::Duration};

use muster_agent::exec::ExecEvent;
use muster_core::{
    record::TaskResult,
    spec::{Command, TaskSpec},
    state::End,
};

use crate::bench::{Bench, argv, lives, order, shell, wait_for};

#[tokio::test]
async fn an_attempt_ends_as_its_process_does() {
    let mut bench = Bench::new().await;
    for (spec, end) in [
        (argv(&["true"]), End::Succeeded),
        (argv(&["false"]), End::Exit(1)),
        (argv(&["/bin/sh", "-c", "exit 17"]), End::Exit(17)),
        (shell("exit 255"), End::Exit(255)),
        (shell("kill -TERM $$"), End::Signal(15)),
        (shell("kill -KILL $$"), End::Signal(9)),
        (shell("kill -34 $$"), End::Signal(34)),
        (TaskSpec { command: Command::Empty, ..argv(&[]) }, End::Succeeded),
    ] {
        let over = bench.run(spec.clone()).await;
        assert_eq!(over.end, end, "{spec:?} {over:?}");
        assert!(!over.started.is_never() && over.started <= over.ended, "{over:?}");
    }
}

#[tokio::test]
async fn what_cannot_start_says_why_to_people() {
    let mut bench = Bench::new().await;
    let folder = bench.dir.join("work");
    std::fs::create_dir(&folder).expect("made");
    std::fs::write(folder.join("plain"), "x").expect("written");
    std::fs::write(folder.join("script"), "#!/no/such/interpreter\n").expect("written");
    std::fs::write(folder.join("noise"), [0, 1, 2, 3]).expect("written");
    for name in ["script", "noise"] {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o755)).expect("changed");
    }
    let at = |mut spec: TaskSpec, cwd: &str| {
        spec.cwd = Some(cwd.into());
        spec
    };
    let work = folder.to_str().expect("text");
    let mut bad_env = argv(&["true"]);
    bad_env.env.insert("A=B".into(), "1".into());
    for (spec, words) in [
        (argv(&["trve"]), &["`trve` was not found in PATH", "did you mean `true`?"][..]),
        (argv(&["/no/such/thing"]), &["/no/such/thing does not exist"]),
        (argv(&[""]), &["empty"]),
        (argv(&[]), &["empty"]),
        (argv(&["true", "a\0b"]), &["zero byte"]),
        (at(argv(&["./plain"]), work), &["plain is not executable (mode", "chmod +x"]),
        (at(argv(&["./script"]), work), &["interpreter `/no/such/interpreter`"]),
        (at(argv(&["./noise"]), work), &["not a program for this machine"]),
        (at(argv(&["/tmp"]), work), &["/tmp is a folder"]),
        (at(argv(&["true"]), "/no/such/folder"), &["working directory /no/such/folder does not exist"]),
        (at(argv(&["trve"]), "/no/such/folder"), &["working directory /no/such/folder does not exist"]),
        (at(shell("true"), "/etc/passwd"), &["/etc/passwd is a file"]),
        (at(argv(&["true"]), "relative"), &["relative"]),
        (argv(&["true", &"x".repeat(3 << 20)]), &["larger than this machine takes"]),
        (bad_env, &["`A=B`"]),
    ] {
        let over = bench.run(spec.clone()).await;
        assert_eq!(over.end, End::NotStarted, "{over:?}");
        assert!(over.started.is_never());
        for word in words {
            assert!(over.why.contains(word), "{:?} lacks {word:?}", over.why);
        }
    }
}

#[tokio::test]
async fn the_environment_is_clean_and_tells_the_task_who_it_is() {
    let mut bench = Bench::new().await;
    let mut spec = argv(&["env"]);
    spec.env.insert("MINE".into(), "a b\n".into());
    spec.env.insert("HOME".into(), "/elsewhere".into());
    spec.env.insert("MUSTER_TOKEN".into(), "999".into());
    bench.start_order(|token| {
        let mut order = order(token, spec);
        order.element = Some((-4, Some("an item".into())));
        order
    });
    let over = bench.over().await;
    bench.drained().await;
    assert_eq!(over.end, End::Succeeded);
    let text = String::from_utf8(bench.controller.log(over.token).stdout).expect("text");
    let token = format!("MUSTER_TOKEN={}", over.token);
    for line in [
        "MINE=a b",
        "HOME=/elsewhere",
        "MUSTER_JOB=5",
        "MUSTER_JOB_NAME=census",
        "MUSTER_TASK=7",
        "MUSTER_TASK_NAME=t",
        "MUSTER_ATTEMPT=2",
        "MUSTER_INDEX=-4",
        "MUSTER_ITEM=an item",
        "MUSTER_QUEUE=default",
        "MUSTER_AGENT=web-1",
        "TRACEPARENT=00-aa-bb-01",
        &token,
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in:\n{text}");
    }
    let known = ["PATH", "HOME", "SHELL", "TMPDIR", "LANG", "LC_ALL", "USER", "LOGNAME", "MINE", "TRACEPARENT"];
    for name in text.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name) {
        assert!(name.starts_with("MUSTER_") || known.contains(&name), "{name} is not clean");
    }
}

#[tokio::test]
async fn only_the_three_standard_descriptors_reach_a_task() {
    use std::os::fd::AsRawFd;
    let mut bench = Bench::new().await;
    // One that is inherited on purpose, as a careless parent of the agent would leave it.
    let leaked = std::fs::File::open("/dev/null").expect("opens");
    nix::fcntl::fcntl(&leaked, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).expect("set");
    let mut other = Bench::new().await;
    let (_, out, _) =
        other.output(shell("for f in /proc/self/fd/*; do readlink $f; done; echo; ls /proc/self/fd")).await;
    assert!(leaked.as_raw_fd() > 2);
    assert!(out.starts_with("/dev/null\npipe:"), "{out}");
    let open: Vec<&str> = out.lines().skip_while(|line| !line.is_empty()).skip(1).collect();
    // 3 is what `ls` opens itself to look.
    assert_eq!(open, ["0", "1", "2", "3"], "{out}");
    assert_eq!(bench.run(argv(&["true"])).await.end, End::Succeeded);
}

#[tokio::test]
async fn stdin_is_empty_unless_given_and_fed_unless_closed() {
    let mut bench = Bench::new().await;
    assert_eq!(bench.output(argv(&["cat"])).await.1, "");
    let given = |text: &[u8], mut spec: TaskSpec| {
        spec.stdin = Some(text.to_vec());
        spec
    };
    let (over, out, _) = bench.output(given(b"hello\n", argv(&["cat"]))).await;
    assert_eq!((over.end, out.as_str()), (End::Succeeded, "hello\n"));
    let large = vec![b'x'; 3 << 20];
    let (over, out, _) = bench.output(given(&large, argv(&["wc", "-c"]))).await;
    assert_eq!((over.end, out.trim()), (End::Succeeded, "3145728"));
    assert_eq!(bench.run(given(&large, argv(&["true"]))).await.end, End::Succeeded);
    assert_eq!(bench.run(given(&large, shell("exec <&-; exit 3"))).await.end, End::Exit(3));
    // Also where nothing more can come the other way.
    let file = bench.dir.join("counted");
    let text = format!("exec >{} 2>&1; sleep 0.05; exec wc -c", file.display());
    assert_eq!(bench.run(given(&large, shell(&text))).await.end, End::Succeeded);
    assert_eq!(std::fs::read_to_string(&file).expect("written").trim(), "3145728");
}

#[tokio::test]
async fn each_task_without_a_folder_gets_an_empty_one_of_its_own() {
    let mut bench = Bench::new().await;
    for _ in 0..3 {
        let (over, out, _) = bench.output(shell("ls -A; echo at $(pwd); mkdir -p a/b; echo x > a/b/c")).await;
        assert_eq!(over.end, End::Succeeded);
        assert!(out.starts_with("at /"), "{out}");
        let folder = out.trim().trim_start_matches("at ").to_owned();
        assert!(!std::path::Path::new(&folder).join("a").exists());
    }
    let mut spec = argv(&["pwd"]);
    spec.cwd = Some("/usr".into());
    assert_eq!(bench.output(spec).await.1, "/usr\n");
}

#[tokio::test]
async fn a_result_is_taken_when_it_is_json_and_refused_when_not() {
    let mut bench = Bench::new().await;
    let over = bench.run(shell(r#"echo '{"a": [1, 2]}' > $MUSTER_RESULT"#)).await;
    assert_eq!(over.end, End::Succeeded);
    assert_eq!(over.result, Some(TaskResult::Inline(Arc::from(&b"{\"a\": [1, 2]}\n"[..]))));
    for (text, word) in [
        ("echo '{\"a\":\n oops' > $MUSTER_RESULT", "not JSON: expected value at line 2 column 2"),
        (": > $MUSTER_RESULT", "not JSON"),
        (
            "printf '%101s' | tr ' ' '[' > $MUSTER_RESULT; printf '%101s' | tr ' ' ']' >> $MUSTER_RESULT",
            "nested 101 deep",
        ),
        ("mkdir -p $MUSTER_RESULT/x", "not a file"),
        ("ln -s /etc/passwd $MUSTER_RESULT", "not a file"),
        ("mkfifo $MUSTER_RESULT", "not a file"),
        ("truncate -s 65M $MUSTER_RESULT", "at most"),
    ] {
        let over = bench.run(shell(text)).await;
        assert_eq!((over.end, over.result), (End::Exit(65), None), "{text}: {}", over.why);
        assert!(over.why.contains(word), "{text}: {}", over.why);
    }
    let over = bench.run(shell("echo 1 > $MUSTER_RESULT; exit 3")).await;
    assert_eq!((over.end, over.result), (End::Exit(3), None));
    let over =
        bench.run(shell("{ printf '\"'; head -c 100000 /dev/zero | tr '\\0' x; printf '\"'; } > $MUSTER_RESULT")).await;
    assert_eq!((over.end, over.result), (End::Succeeded, Some(TaskResult::Stored(100_002))));
    {
        let state = bench.controller.state.lock().expect("not poisoned");
        assert_eq!(state.stored[&over.token.0].len(), 100_002);
        assert!(over.ended <= state.stored_at, "the delivery of its result counts as its time");
    }
    let left = std::fs::read_dir(bench.dir.join("run/files")).expect("is there").count();
    assert_eq!(left, 0, "files of attempts stay behind");
}

#[tokio::test]
async fn inputs_are_there_before_the_task_is_or_it_does_not_start() {
    let mut bench = Bench::new().await;
    bench.controller.set(|state| state.inputs = Some("{\"x\": 1}\n".into()));
    let spec = argv(&["sh", "-c", "cat $MUSTER_INPUTS"]);
    let with_inputs =
        |token, spec: &TaskSpec| muster_agent::exec::Order { has_inputs: true, ..order(token, spec.clone()) };
    bench.start_order(|token| with_inputs(token, &spec));
    let over = bench.over().await;
    bench.drained().await;
    assert_eq!(over.end, End::Succeeded);
    assert_eq!(bench.controller.log(over.token).stdout, b"{\"x\": 1}\n");
    bench.controller.set(|state| state.inputs = None);
    bench.start_order(|token| with_inputs(token, &spec));
    let over = bench.over().await;
    assert_eq!(over.end, End::NotStarted);
    assert!(over.why.contains("could not be fetched: the controller is away"), "{}", over.why);
}

#[tokio::test]
async fn a_script_that_leaves_a_child_ends_and_so_does_the_child() {
    let mut bench = Bench::new().await;
    let (over, out, _) = bench.output(shell("sleep 1000 & echo $!; exit 4")).await;
    assert_eq!(over.end, End::Exit(4));
    assert!(!lives(out.trim().parse().expect("a pid")), "the child outlived its attempt");
}

#[tokio::test]
async fn a_child_that_hides_in_a_session_of_its_own_ends_too() {
    let mut bench = Bench::new().await;
    let file = bench.dir.join("pid");
    let text = format!(
        "setsid sh -c 'echo $$ > {0}; sleep 1000' & until [ -s {0} ]; do sleep 0.01; done; exit 0",
        file.display()
    );
    assert_eq!(bench.run(shell(&text)).await.end, End::Succeeded);
    let pid = std::fs::read_to_string(&file).expect("written");
    assert!(!lives(pid.trim().parse().expect("a pid")), "the child outlived its attempt");
}

#[tokio::test]
async fn a_daemon_that_holds_no_pipe_is_found_soon_after() {
    let mut bench = Bench::new().await;
    let file = bench.dir.join("pid");
    let text = format!(
        "(setsid sh -c 'echo $$ > {0}; exec sleep 1000' >/dev/null 2>&1 </dev/null &) & until [ -s {0} ]; do sleep 0.01; done",
        file.display()
    );
    assert_eq!(bench.run(shell(&text)).await.end, End::Succeeded);
    let pid = bench.appears(&file).await.trim().parse().expect("a pid");
    wait_for("the daemon's end", || (!lives(pid)).then_some(())).await;
}

#[tokio::test]
async fn started_names_the_process_and_comes_before_the_end() {
    let mut bench = Bench::new().await;
    let token = bench.start(shell("echo $$; read x < /proc/$$/stat; echo $x; sleep 0.1"));
    let ExecEvent::Started { token: first, identity, .. } = bench.event().await else { panic!("not started first") };
    assert_eq!(first, token);
    bench.over().await;
    bench.drained().await;
    let out = String::from_utf8(bench.controller.log(token).stdout).expect("text");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], identity.pid.to_string());
    assert_eq!(lines[1].split(' ').nth(21), Some(identity.start.to_string().as_str()));
    assert_eq!(identity.group, identity.pid);
    assert!(!identity.boot.is_empty());
}

#[tokio::test]
async fn an_order_that_comes_twice_runs_once() {
    let mut bench = Bench::new().await;
    let file = bench.dir.join("runs");
    let spec = shell(&format!("echo x >> {}; sleep 0.1", file.display()));
    let twice = Arc::new(order(77, spec));
    bench.exec.start(Arc::clone(&twice));
    bench.exec.start(twice);
    assert_eq!(bench.over().await.end, End::Succeeded);
    bench.exec.stop().await;
    let more = tokio::time::timeout(Duration::from_millis(1), bench.events.recv()).await;
    assert!(!matches!(more, Ok(Some(ExecEvent::Ended { .. }))), "ended twice");
    assert_eq!(std::fs::read_to_string(file).expect("written"), "x\n");
}
