//! Commands beside a task that have a terminal: it is one in every way, its user's, and what runs there goes with who left.

use muster_agent::{
    exec::{
        KillReason, Rules,
        beside::{self, Asked, Beside, Fed, Size, Terminal},
    },
    logs::Stream,
};
use muster_core::{run_as::RunAs, spec::TaskSpec, state::End};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

use crate::{
    bench::{Bench, LIMIT, argv, lives, wait_for},
    beside::{plain, started},
    skip::{here, skip},
};

const SIZE: Size = Size { columns: 100, rows: 30 };

/// Who sits before a terminal.
struct Person {
    keys: mpsc::Sender<Fed>,
    screen: mpsc::Receiver<(Stream, Vec<u8>)>,
    seen: Vec<u8>,
    command: JoinHandle<Result<End, String>>,
}

impl Person {
    /// Has the shell do this beside a task.
    fn at(beside: Beside, text: impl Into<String>) -> Self {
        let (keys, fed) = mpsc::channel(4);
        let (said, screen) = mpsc::channel(4);
        let terminal = Some(Terminal { name: "of-ours".into(), size: SIZE });
        let asked = Asked { command: ["sh".into(), "-c".into(), text.into()].into(), terminal };
        let command = tokio::spawn(beside::run(beside, asked, fed, said));
        Self { keys, screen, seen: Vec::new(), command }
    }

    async fn presses(&self, keys: &str) {
        self.keys.send(Fed::Bytes(keys.into())).await.expect("it is there");
    }

    /// The next piece on the screen; none: there will be no more.
    async fn looks(&mut self) -> bool {
        let next = timeout(LIMIT, self.screen.recv()).await;
        let next = next.unwrap_or_else(|_| panic!("nothing after {:?}", self.text()));
        let Some((stream, data)) = next else { return false };
        assert_eq!(stream, Stream::Stdout, "a terminal has one screen: {data:?}");
        self.seen.extend(data);
        true
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    async fn sees(&mut self, text: &str) {
        while !self.text().contains(text) {
            if !self.looks().await {
                let end = timeout(LIMIT, &mut self.command).await;
                panic!("it ended without {text:?}: {:?}, {end:?}", self.text());
            }
        }
    }

    /// Looks on until it ends. Returns how, and all that was to be seen.
    async fn stays(mut self) -> (Result<End, String>, String) {
        while self.looks().await {}
        let seen = self.text();
        (timeout(LIMIT, self.command).await.expect("in time").expect("whole"), seen)
    }

    /// Leaves, and hears how it ended.
    async fn leaves(self) -> Result<End, String> {
        drop(self.keys);
        timeout(LIMIT, self.command).await.expect("in time").expect("whole")
    }
}

/// A task that lasts, and a person who does this beside it.
async fn before(text: &str) -> (Bench, Person) {
    let mut bench = Bench::with_rules(Rules::default()).await;
    let env = [("TERM".to_owned(), "of-the-task".to_owned())].into();
    let (_, identity) = started(&mut bench, TaskSpec { env, ..argv(&["sleep", "1000"]) }).await;
    let person = Person::at(plain(&identity), text.replace("@DIR@", &bench.dir.display().to_string()));
    (bench, person)
}

fn pids(text: &str) -> Vec<i32> {
    text.split_whitespace().map(|pid| pid.parse().expect("a pid")).collect()
}

#[tokio::test]
async fn a_terminal_is_all_that_a_command_reads_and_writes_and_its_sessions_own() {
    let text = "test -t 0 && test -t 1 && test -t 2 && echo all three; stty size; echo $TERM >&2; \
                set -- $$ $(cut -d ' ' -f 5,6,8 /proc/$$/stat); echo leads $(($1-$2)) $(($1-$3)) $(($1-$4)); \
                echo by name >/dev/tty; exit 7";
    let (_bench, person) = before(text).await;
    let (end, seen) = person.stays().await;
    assert_eq!(seen, "all three\r\n30 100\r\nof-ours\r\nleads 0 0 0\r\nby name\r\n");
    assert_eq!(end, Ok(End::Exit(7)));
}

#[tokio::test]
async fn what_is_typed_is_echoed_and_the_end_of_what_is_typed_is_the_end_of_the_input() {
    let (_bench, mut person) = before("cat; echo over").await;
    person.presses("wor\u{fc}\u{7f}ds\n").await;
    person.sees("words\r\n").await;
    person.keys.send(Fed::End).await.expect("it is there");
    let (end, seen) = person.stays().await;
    assert!(seen.ends_with("\r\nwords\r\nover\r\n"), "a letter is taken back whole: {seen:?}");
    assert_eq!(end, Ok(End::Exit(0)));
}

#[tokio::test]
async fn another_size_reaches_the_command_while_it_runs() {
    let text = "trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.05; done";
    let (_bench, mut person) = before(text).await;
    person.sees("ready").await;
    person.keys.send(Fed::Size(Size { columns: 50, rows: 20 })).await.expect("it is there");
    let (end, seen) = person.stays().await;
    assert_eq!((end, &*seen), (Ok(End::Exit(3)), "ready\r\n20 50\r\n"));
}

#[tokio::test]
async fn control_c_is_an_interrupt_to_what_is_in_front() {
    let (_bench, mut person) = before("echo ready; exec sleep 1000").await;
    person.sees("ready").await;
    person.presses("\u{3}").await;
    let (end, seen) = person.stays().await;
    assert_eq!((end, &*seen), (Ok(End::Signal(2)), "ready\r\n^C"));
}

#[tokio::test]
async fn what_was_written_before_the_end_is_seen_whole() {
    let (_bench, person) = before("seq 1 30000").await;
    let (end, seen) = person.stays().await;
    let expected: String = (1..=30000).map(|n| format!("{n}\r\n")).collect();
    assert!(seen == expected, "{} bytes of {}, {end:?}", seen.len(), expected.len());
    assert_eq!(end, Ok(End::Exit(0)));
}

#[tokio::test]
async fn what_runs_on_a_terminal_hears_that_its_person_left() {
    let text = "trap 'echo heard >@DIR@/heard; exit 4' HUP; echo ready; while :; do sleep 0.05; done";
    let (bench, mut person) = before(text).await;
    person.sees("ready").await;
    assert_eq!(person.leaves().await, Ok(End::Exit(4)));
    assert_eq!(bench.appears(&bench.dir.join("heard")).await, "heard\n");
}

/// It is deaf, and so is what it left in the background, in a group of its own.
const DEAF: &str =
    "trap '' HUP TERM; set -m; sleep 1000 & set +m; echo $! $$ >@DIR@/pids; while :; do sleep 0.05; done";

#[tokio::test]
async fn who_is_deaf_to_that_is_killed_with_all_groups_of_the_session() {
    let (bench, person) = before(DEAF).await;
    let pids = pids(&bench.appears(&bench.dir.join("pids")).await);
    assert_eq!(person.leaves().await, Ok(End::Signal(9)));
    wait_for("all of it to be dead", || (!pids.iter().any(|pid| lives(*pid))).then_some(())).await;
}

#[tokio::test]
async fn a_command_that_is_dropped_is_killed_with_all_groups_of_the_session() {
    let (bench, person) = before(DEAF).await;
    let pids = pids(&bench.appears(&bench.dir.join("pids")).await);
    person.command.abort();
    wait_for("all of it to be dead", || (!pids.iter().any(|pid| lives(*pid))).then_some(())).await;
}

#[tokio::test]
async fn a_command_on_a_terminal_ends_with_its_task() {
    let mut bench = Bench::with_rules(Rules::default()).await;
    let (token, identity) = started(&mut bench, argv(&["sleep", "1000"])).await;
    let person = Person::at(plain(&identity), DEAF.replace("@DIR@", &bench.dir.display().to_string()));
    let pids = pids(&bench.appears(&bench.dir.join("pids")).await);
    bench.exec.kill(token, KillReason::Cancelled, std::time::Duration::ZERO);
    assert_eq!(bench.over().await.end, End::Cancelled);
    assert!(pids.iter().all(|pid| !lives(*pid)), "the command outlived its task");
    assert_eq!(person.stays().await.0, Ok(End::Signal(9)));
}

#[tokio::test]
async fn a_terminal_belongs_to_whom_its_command_runs_as() {
    if !nix::unistd::geteuid().is_root() {
        return skip(here!(), "not root");
    }
    let mut bench = Bench::with_rules(Rules::default()).await;
    let run_as = RunAs { user: Some("daemon".into()), ..RunAs::default() };
    let (_, identity) = started(&mut bench, TaskSpec { run_as: run_as.clone(), ..argv(&["sleep", "1000"]) }).await;
    let text = "id -un; stat -c '%U %a' $(tty); echo by name >$(tty)";
    let (end, seen) = Person::at(Beside { run_as, ..plain(&identity) }, text).stays().await;
    assert_eq!(end, Ok(End::Exit(0)), "{seen}");
    assert_eq!(seen, "daemon\r\ndaemon 620\r\nby name\r\n");
}
