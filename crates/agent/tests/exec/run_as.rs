//! Tasks run as whom they ask for, with nothing of the agent's rights left, in folders of their own.

use std::{os::unix::fs::MetadataExt, path::PathBuf};

use muster_agent::exec::Rules;
use muster_core::{
    record::TaskResult,
    run_as::{RunAs, Scratch},
    spec::TaskSpec,
    state::End,
};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

use crate::{
    bench::{Bench, Over, argv, order, shell},
    skip::{here, skip},
};

/// In every Debian and its like.
const USER: &str = "daemon";

/// None: only root can run tasks as others.
async fn as_root(test: &str, rules: Rules) -> Option<Bench> {
    if nix::unistd::geteuid().is_root() {
        return Some(Bench::with_rules(rules).await);
    }
    skip(test, "not root");
    None
}

fn by(user: &str, spec: TaskSpec) -> TaskSpec {
    TaskSpec { run_as: RunAs { user: Some(user.into()), ..RunAs::default() }, ..spec }
}

async fn told(bench: &mut Bench, spec: TaskSpec) -> (Over, String) {
    let (over, out, _) = bench.output(spec).await;
    (over, out)
}

#[tokio::test]
async fn a_task_runs_as_its_user_with_all_its_groups_and_no_capability() {
    let Some(mut bench) = as_root(here!(), Rules::default()).await else { return };
    let text = "id -u; id -g; id -G; echo $HOME $USER $LOGNAME; grep -E '^Cap(Prm|Eff|Amb)' /proc/self/status; \
                cat /etc/shadow 2>/dev/null && echo read; pwd; touch here && stat -c %U . here";
    let (over, out) = told(&mut bench, by(USER, shell(text))).await;
    assert_eq!(over.end, End::Succeeded, "{}: {out}", over.why);
    let user = nix::unistd::User::from_name(USER).expect("asked").expect("there");
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[0], user.uid.to_string());
    assert_eq!(lines[1], user.gid.to_string());
    assert_eq!(lines[2], user.gid.to_string(), "root's groups are gone");
    assert_eq!(lines[3], format!("{} {USER} {USER}", user.dir.display()));
    assert!(lines[4..7].iter().all(|line| line.ends_with("\t0000000000000000")), "{out}");
    assert!(!out.contains("read"), "{out}");
    assert_eq!(lines[8..], [USER, USER], "its folder is its own");
    // And the next one is nobody's but the agent's again.
    let (_, out) = told(&mut bench, shell("id -u; stat -c %U .")).await;
    assert_eq!(out, "0\nroot\n");
}

#[tokio::test]
async fn what_else_it_asks_for_it_gets() {
    let Some(mut bench) = as_root(here!(), Rules::default()).await else { return };
    let run_as = RunAs {
        user: Some("2".into()),
        group: Some("tty".into()),
        groups: Some(vec!["disk".into(), "7".into()]),
        umask: Some(0o027),
        nice: Some(7),
        no_new_privs: true,
    };
    let text = "id -u; id -gn; id -Gn; umask; nice; grep NoNewPrivs /proc/self/status";
    let (over, out) = told(&mut bench, TaskSpec { run_as, ..shell(text) }).await;
    assert_eq!(over.end, End::Succeeded, "{}", over.why);
    assert_eq!(out, "2\ntty\ntty disk lp\n0027\n7\nNoNewPrivs:\t1\n");
    // None of it stays with the thread that started it, or with the agent.
    let (_, out) = told(&mut bench, shell("id -Gn; umask; nice; grep NoNewPrivs /proc/self/status")).await;
    assert!(out.ends_with("0\nNoNewPrivs:\t0\n") && !out.contains("lp"), "{out}");
    // Without another user, too.
    let run_as = RunAs { nice: Some(3), umask: Some(0o077), ..RunAs::default() };
    let (_, out) = told(&mut bench, TaskSpec { run_as, ..shell("id -u; umask; nice") }).await;
    assert_eq!(out, "0\n0077\n3\n");
}

#[tokio::test]
async fn it_leaves_its_result_and_reads_its_inputs_and_those_of_others_it_does_not() {
    let Some(mut bench) = as_root(here!(), Rules::default()).await else { return };
    bench.controller.set(|state| state.inputs = Some(r#"{"a": 1}"#.to_owned()));
    let text = r#"test "$(cat "$MUSTER_INPUTS")" = '{"a": 1}' || exit 3; echo '{"done": true}' > "$MUSTER_RESULT""#;
    bench.start_order(|token| muster_agent::exec::Order { has_inputs: true, ..order(token, by(USER, shell(text))) });
    let over = bench.over().await;
    assert_eq!((over.end, over.why.as_str()), (End::Succeeded, ""));
    assert_eq!(over.result, Some(TaskResult::Inline(b"{\"done\": true}\n".to_vec().into())));
    // One that writes none has none.
    let over = bench.run(by(USER, argv(&["true"]))).await;
    assert_eq!((over.end, over.result), (End::Succeeded, None));
    // Nothing of the agent's folder but what is its own can be read, whatever its name.
    let mut names = vec![bench.dir.clone(), bench.dir.join("run"), bench.dir.join("run/files")];
    for folder in [&bench.dir, &bench.dir.join("run")] {
        names.extend(std::fs::read_dir(folder).expect("ours").map(|entry| entry.expect("ours").path()));
    }
    assert!(names.iter().any(|name| name.ends_with("run/instances")), "{names:?}");
    let names: Vec<_> = names.iter().map(|name| name.display().to_string()).collect();
    let text = format!("for name in {}; do ls $name/. || cat $name; done 2>/dev/null", names.join(" "));
    let (_, out) = told(&mut bench, by(USER, shell(&text))).await;
    assert_eq!(out, "", "another user looks into the agent's folder");
}

#[tokio::test]
async fn a_private_folder_goes_with_its_attempt_and_stays_when_it_failed_if_asked() {
    let Some(mut bench) = as_root(here!(), Rules::default()).await else { return };
    let text =
        "echo $PWD; test $MUSTER_SCRATCH = $PWD && test $TMPDIR = $PWD || exit 9; stat -c %a:%U .; echo x > left";
    let ask = |scratch, text: &str| TaskSpec { scratch, ..by(USER, shell(text)) };
    let (over, out) = told(&mut bench, ask(Scratch::Private, text)).await;
    assert_eq!(over.end, End::Succeeded, "{out}");
    let folder = PathBuf::from(out.lines().next().expect("told"));
    assert_eq!(out.lines().nth(1), Some("700:daemon"));
    assert!(!folder.exists());
    for (scratch, end, stays) in [
        (Scratch::Private, "exit 1", false),
        (Scratch::KeepOnFailure, "exit 0", false),
        (Scratch::KeepOnFailure, "exit 1", true),
        (Scratch::KeepOnFailure, "kill -9 $$", true),
    ] {
        let (over, _) = told(&mut bench, ask(scratch, &format!("{text}; {end}"))).await;
        let kept = over.why.strip_prefix("its scratch folder is kept in ").map(PathBuf::from);
        assert_eq!(kept.is_some(), stays, "{scratch:?}, {end}: {}", over.why);
        if let Some(kept) = kept {
            assert_eq!(std::fs::read(kept.join("left")).expect("there"), b"x\n");
            assert_eq!(std::fs::metadata(&kept).expect("there").uid(), 1, "it is still its user's");
            std::fs::remove_dir_all(kept).expect("ours");
        }
    }
    let left = std::fs::read_dir(bench.dir.join("run/scratch")).expect("there").count();
    assert!(left <= 1, "{left} folders are left");
}

#[tokio::test]
async fn whom_it_may_not_be_is_told_and_nothing_runs() {
    let rules = Rules { user: Some("nobody".into()), users: Some(vec![USER.into()]), ..Rules::default() };
    let Some(mut bench) = as_root(here!(), rules).await else { return };
    let (_, out) = told(&mut bench, argv(&["id", "-un"])).await;
    assert_eq!(out, "nobody\n", "who names nobody is whom the operator says");
    let (_, out) = told(&mut bench, by(USER, argv(&["id", "-un"]))).await;
    assert_eq!(out, "daemon\n");
    let table = [
        (by("root", argv(&["id"])), "this agent runs no task as `root`; its file allows `daemon`, `nobody`"),
        (by("0", argv(&["id"])), "this agent runs no task as `0`"),
        (by("no-such", argv(&["id"])), "the agent's machine has no user `no-such`"),
        (
            TaskSpec { run_as: RunAs { group: Some("shadow".into()), ..RunAs::default() }, ..argv(&["id"]) },
            "`nobody` is no member of the group `shadow`",
        ),
        (
            TaskSpec { cwd: Some("/root".into()), ..by(USER, argv(&["id"])) },
            "the working directory /root may not be entered: it, or a folder above it, is closed (`namei -l /root` shows which): \
             `chmod +x` that, or name another `cwd` (as user `daemon`)",
        ),
    ];
    for (spec, why) in table {
        let over = bench.run(spec).await;
        assert_eq!(over.end, End::NotStarted, "{why}");
        assert!(over.why.contains(why), "{}", over.why);
    }
    assert_eq!(std::fs::read_dir(bench.dir.join("run/files")).expect("there").count(), 0, "files are left");
}

#[tokio::test]
async fn chosen_variables_of_the_agent_are_passed_on_and_no_others() {
    // Set for every test program by cargo.
    let rules = Rules { pass_env: vec!["CARGO_PKG_NAME".into(), "NOT_THERE".into()], ..Rules::default() };
    let mut bench = Bench::with_rules(rules).await;
    let (_, out) = told(&mut bench, shell("echo $CARGO_PKG_NAME; env | grep -c ^CARGO; env | grep NOT_THERE")).await;
    assert_eq!(out, "muster-agent\n1\n");
}

/// A file system of which nothing may be run; none: it cannot be mounted here.
struct Noexec(PathBuf);

impl Noexec {
    #[expect(clippy::disallowed_methods, reason = "no attempt: what an operator does")]
    fn mount(at: PathBuf) -> Option<Self> {
        std::fs::create_dir(&at).expect("made");
        let status =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "noexec", "none"]).arg(&at).status();
        status.is_ok_and(|status| status.success()).then_some(Self(at))
    }
}

impl Drop for Noexec {
    #[expect(clippy::disallowed_methods, reason = "no attempt: what an operator does")]
    fn drop(&mut self) {
        drop(std::process::Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[tokio::test]
async fn a_program_where_nothing_may_be_run_is_told_of_as_that() {
    let mut bench = Bench::new().await;
    let Some(disk) = Noexec::mount(bench.dir.join("disk")) else { return skip(here!(), "nothing can be mounted here") };
    let program = disk.0.join("program");
    std::fs::copy("/bin/true", &program).expect("copied");
    let over = bench.run(argv(&[program.to_str().expect("text")])).await;
    assert_eq!(over.end, End::NotStarted, "{}", over.why);
    assert!(
        over.why.contains("program lies on a file system from which nothing may be run (mounted `noexec`)"),
        "{}",
        over.why
    );
}

#[tokio::test]
async fn a_task_leaves_no_core_dump_unless_it_asks_for_one() {
    // As where an operator lets all programs dump.
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE).expect("told");
    setrlimit(Resource::RLIMIT_CORE, hard, hard).expect("no more than it may be");
    let mut bench = Bench::new().await;
    let text = "grep 'Max core' /proc/self/limits; ulimit -c $(ulimit -H -c); grep 'Max core' /proc/self/limits";
    let (_, out) = told(&mut bench, shell(text)).await;
    let found: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    let [before, after] = found.as_slice() else { panic!("{out}") };
    assert_eq!(before[4], "0", "{out}");
    let own = if hard == RLIM_INFINITY { "unlimited".to_owned() } else { hard.to_string() };
    assert_eq!([before[5], after[4], after[5]], [&own; 3], "{out}");
}
