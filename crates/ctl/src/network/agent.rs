//! An agent on a simulated machine: the real loop, link, journal and spools; its attempts only let time pass and say so.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use muster_agent::{
    app::{Agent, Processes, Sources},
    exec::{ExecEvent, KillReason, Order, ProcessIdentity},
    journal::Journal,
    link::{Address, Credential, Link},
    logs::{self, Grpc, Head, Spools, Stream},
    supervisor::{self, Supervisor},
};
use muster_common::clock::Clock;
use muster_core::{id::Token, record::Offer, resources::Request, spec::Command, state::End, time::Mono};
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use turmoil::Sim;

use super::{CONTROLLER, PORT, Run, Simulated, World, now};

/// A machine of its own for an agent of one processor.
pub(super) fn host(sim: &mut Sim<'_>, world: &World, name: &'static str) {
    let world = world.clone();
    sim.host(name, move || {
        let world = world.clone();
        async move { Ok(live(world, name.to_owned()).await?) }
    });
}

/// The way to the controller from a simulated machine.
fn address(world: &World) -> Address {
    let address: Address = format!("http://{CONTROLLER}:{PORT}").parse().expect("an address");
    address.through(Arc::new(Simulated(world.clone())))
}

/// An agent until its machine is no more.
pub(super) async fn live(world: World, name: String) -> anyhow::Result<()> {
    let (clock, folder) = (world.clock(), world.path(&name));
    let (journal, memory) = Journal::open(&folder)?;
    let spools = Spools::open(&logs::Config::new(folder))?;
    let capacity = Request { cpu_milli: 1000, ..Request::default() };
    let supervisor = Supervisor::new(supervisor::Config::new(capacity.clone()), memory);
    let (link, link_events, bulk) = Link::new(vec![address(&world)], None);
    let (tracker, stop) = (TaskTracker::new(), CancellationToken::new());
    let seed = name.bytes().fold(world.seed, |seed, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
    link.seeded(seed).start(&tracker, &stop);
    tracker.spawn(spools.clone().ship(Grpc::new(Arc::new(bulk), Credential::None), stop.clone()));
    let (exec, events) = mpsc::channel(1024);
    let uid = Arc::from(name.as_str());
    let attempts =
        Attempts { name: name.clone(), world, clock, spools, exec, offers: Mutex::default(), running: Arc::default() };
    let offer = Offer { name: name.clone(), capacity, ..Offer::default() };
    let agent = Agent::new(clock, (uid, offer), supervisor, journal, attempts);
    let (_stops, stops) = mpsc::channel(1);
    drop(agent.run(Sources { link: link_events, exec: events, stops, machine: mpsc::channel(1).1 }).await);
    anyhow::bail!("{name} has ended")
}

/// Attempts that let time pass. `sleep N`: N seconds; `count N`: a line every second, N times.
struct Attempts {
    name: String,
    world: World,
    clock: Clock,
    spools: Spools,
    exec: mpsc::Sender<ExecEvent>,
    offers: Mutex<Vec<Arc<Order>>>,
    running: Arc<Mutex<BTreeMap<Token, oneshot::Sender<KillReason>>>>,
}

impl Attempts {
    fn running(&self) -> MutexGuard<'_, BTreeMap<Token, oneshot::Sender<KillReason>>> {
        self.running.lock().expect("nobody panicked")
    }

    fn take_offer(&self, token: Token) -> Option<Arc<Order>> {
        let mut offers = self.offers.lock().expect("nobody panicked");
        let at = offers.iter().position(|order| order.token == token)?;
        Some(offers.remove(at))
    }
}

/// What an attempt does.
fn script(order: &Order) -> (String, u64) {
    match &order.spec.command {
        Command::Argv(words) => (words[0].clone(), words[1].parse().expect("a number")),
        other => panic!("{other:?} is no script"),
    }
}

impl Processes for Attempts {
    fn start(&self, order: Arc<Order>) {
        let (kill, killed) = oneshot::channel();
        self.running().insert(order.token, kill);
        let (clock, exec, world) = (self.clock, self.exec.clone(), self.world.clone());
        let head = Head { token: order.token, task: order.task, attempt: order.attempt };
        let mut spool = self.spools.attempt(head, None, None);
        let place = {
            let mut seen = world.lock();
            let (agent, task) = (self.name.clone(), order.spec.name.clone());
            seen.runs.push(Run { agent, task, attempt: order.attempt, began: now(), ended: None, killed: false });
            seen.runs.len() - 1
        };
        let began = clock.wall();
        let identity = ProcessIdentity { boot: "b".into(), pid: 1, start: 2, group: 3 };
        exec.try_send(ExecEvent::Started { token: order.token, at: began, identity }).expect("there is room");
        tokio::spawn(async move {
            let (word, times) = script(&order);
            let work = async {
                for n in 1..=times {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    if word == "count" {
                        spool.append(Stream::Stdout, clock.wall(), format!("line {n}\n").as_bytes());
                    }
                }
            };
            let end = tokio::select! {
                () = work => End::Succeeded,
                reason = killed => reason.map_or(End::Lost, KillReason::end),
            };
            spool.finish();
            {
                let mut seen = world.lock();
                seen.runs[place].ended = Some(now());
                seen.runs[place].killed = end != End::Succeeded;
            }
            let (token, why, result, next) = (order.token, None, None, None);
            let ended =
                ExecEvent::Ended { token, end, why, started: began, ended: clock.wall(), result, usage: None, next };
            exec.send(ended).await.expect("the agent listens");
        });
    }

    fn kill(&self, token: Token, reason: KillReason, _grace: Duration) {
        // One that is over already has said so.
        let _over = self.running().remove(&token).map(|kill| kill.send(reason));
    }

    // Nothing begins by itself here: an offer is an order that waits.
    fn offer(&self, order: Arc<Order>, _until: Mono) {
        self.offers.lock().expect("nobody panicked").push(order);
    }

    fn claim(&self, token: Token) {
        self.take_offer(token).into_iter().for_each(|order| self.start(order));
    }

    fn withdraw(&self, token: Token) {
        if self.take_offer(token).is_some() {
            self.exec.try_send(ExecEvent::Withdrawn { token }).expect("there is room");
        }
    }

    fn hold(&self, _renewed: Option<(Mono, Duration)>) {}
}
