//! X19: many agents that lose their leader at one time. They take no work and are simulated, but their links are
//! the real ones: how soon they come back, and how little together, is the product's own doing.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, ExitCode, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use muster_agent::{
    link::{Address, Event, Link, Up},
    supervisor::Input,
};
use muster_common::proto::{
    PROTOCOL,
    v1::{self, agent_up::Message},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    cast::{CONTROLLERS, Node},
    ground::Ground,
    now,
};

/// Everybody must be back within this.
pub(crate) const BACK_WITHIN: Duration = Duration::from_secs(60);
/// Within a lease, with room for one that is late; less often than real ones, for they all share two processors here.
const HEARTBEAT: Duration = Duration::from_millis(1_200);
/// Of connections per second against their mean.
const SLOT_US: u64 = 1_000_000;

/// The herd's own process.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many
    #[arg(long)]
    agents: usize,
    /// Controllers, tried in turn
    #[arg(long = "controller")]
    controllers: Vec<String>,
}

/// Who is attached, and since when.
struct Count {
    agents: usize,
    attached: AtomicUsize,
    arrivals: Mutex<Vec<u64>>,
}

impl Count {
    fn one_more(&self) {
        let mut arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.push(now::us());
        if self.attached.fetch_add(1, Ordering::SeqCst) + 1 == self.agents {
            say(&format!("all {} {}", now::us(), peak(&arrivals)));
            arrivals.clear();
        }
    }

    fn one_less(&self) {
        self.attached.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How many came in the fullest second.
fn peak(arrivals: &[u64]) -> usize {
    let within = |first: &u64| arrivals.iter().filter(|at| (*first..*first + SLOT_US).contains(at)).count();
    arrivals.iter().map(within).max().unwrap_or(0)
}

/// Runs until it is killed.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
        let count = Arc::new(Count { agents: args.agents, attached: AtomicUsize::new(0), arrivals: Mutex::default() });
        for n in 0..args.agents {
            let mut addresses: Vec<Address> =
                args.controllers.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
            let turn = n % addresses.len().max(1);
            addresses.rotate_left(turn);
            let (link, events, _bulk) = Link::new(addresses, None);
            link.start(&tracker, &stop);
            tracker.spawn(agent(n, events, Arc::clone(&count)));
        }
        tracker.close();
        tracker.wait().await;
        Ok(ExitCode::SUCCESS)
    })
}

/// One that holds nothing: it says hello and that it lives.
async fn agent(n: usize, mut events: tokio::sync::mpsc::Receiver<Event>, count: Arc<Count>) {
    let (mut up, mut is_attached): (Option<Up>, bool) = (None, false);
    let mut beat = tokio::time::interval(HEARTBEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            event = events.recv() => event,
            _ = beat.tick() => {
                // A stream without room is a slow controller; the next beat may go.
                let _sent = up.as_ref().filter(|_| is_attached).map(|up| up.send(Message::Heartbeat(v1::Heartbeat { stamp_us: 1, load: None })));
                continue;
            }
        };
        match event {
            Some(Event::Opened(opened)) => {
                let _sent = opened.send(Message::Hello(hello(n)));
                up = Some(opened);
            }
            Some(Event::Input(Input::Welcome(_))) if !is_attached => {
                is_attached = true;
                count.one_more();
            }
            Some(Event::Input(_)) => {}
            Some(Event::Closed) => {
                up = None;
                if std::mem::take(&mut is_attached) {
                    count.one_less();
                }
            }
            None => return,
        }
    }
}

fn hello(n: usize) -> v1::Hello {
    let offer = v1::Offer {
        name: format!("herd{n}"),
        os: "linux".to_owned(),
        arch: "x86_64".to_owned(),
        capacity: Some(v1::Request::default()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: "herd".to_owned(),
        ..v1::Offer::default()
    };
    v1::Hello {
        uid: format!("00000000-0000-4000-8000-{n:012}"),
        offer: Some(offer),
        protocol: PROTOCOL,
        oldest_protocol: PROTOCOL,
        ..v1::Hello::default()
    }
}

#[expect(clippy::print_stdout, reason = "the run reads it")]
fn say(line: &str) {
    println!("{line}");
}

/// The herd as the run sees it. Dropped, it is gone.
pub(crate) struct Herd {
    child: Child,
    lines: mpsc::Receiver<String>,
}

/// How a herd came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Came {
    /// When the last one was welcomed.
    pub(crate) at_us: u64,
    /// How many in the fullest second.
    pub(crate) peak: u64,
}

impl Herd {
    /// Lets it loose.
    pub(crate) fn start(ground: &Ground, agents: usize) -> Result<Self> {
        let exe = std::env::current_exe().context("cannot tell where this program is")?;
        let mut command = ground.command(&Node::Client.name(), &exe);
        command.args(["herd", "--agents", &agents.to_string()]);
        for n in 0..CONTROLLERS {
            command.args(["--controller", &format!("http://{}:7717", Node::Controller(n).address())]);
        }
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("could not start the herd")?;
        let stdout = child.stdout.take().context("the herd says nothing")?;
        let (say, lines) = mpsc::sync_channel(16);
        thread::spawn(move || pass_on(stdout, &say));
        Ok(Self { child, lines })
    }

    /// Waits until all are attached, the next time that it happens.
    pub(crate) fn came(&self) -> Result<Came> {
        let line = self
            .lines
            .recv_timeout(BACK_WITHIN)
            .map_err(|_| anyhow!("not all of the herd came within {BACK_WITHIN:?}"))?;
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["all", at, peak] => Ok(Came { at_us: at.parse()?, peak: peak.parse()? }),
            _ => bail!("the herd says {line:?}"),
        }
    }
}

impl Drop for Herd {
    fn drop(&mut self) {
        let _gone_already = self.child.kill().and_then(|()| self.child.wait());
    }
}

fn pass_on(stdout: ChildStdout, say: &mpsc::SyncSender<String>) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        if say.send(line).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_second_is_counted() {
        assert_eq!(peak(&[]), 0);
        assert_eq!(peak(&[0, 999_999, 1_000_000, 1_500_000, 1_900_000, 5_000_000]), 4);
    }
}
