//! Puts an agent together, starts it and stops it cleanly. `muster-agent` and `ctl` use this door.

mod boot;
mod credentials;
mod hands;
mod identity;
mod machine;
mod older;
mod processes;
mod pulse;
mod run;
mod secure;
mod telling;
#[cfg(test)]
mod tests;
mod thread;
mod upstream;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use futures::future::BoxFuture;
use muster_common::clock::Clock;
use muster_core::{container, record::Offer, validate};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use self::{
    hands::Hands,
    identity::{Foreign, Identity},
};
pub use self::{
    processes::Processes,
    pulse::Pulse,
    run::{Agent, Done, Sources, Stop},
};
pub use crate::config::Config;
use crate::{
    containers::{self, Engine},
    host,
    journal::Journal,
    link::{self, Address, Link},
    logs::{self, Spools},
    supervisor::{self, Action, Input, Supervisor},
    visits::Visits,
};

/// A stopping agent waits so long for the controller to have all output; what is left is shipped at
/// the next start.
const LOGS_LIMIT: Duration = Duration::from_secs(3);
/// For the last words to leave and the tasks to end.
const END_LIMIT: Duration = Duration::from_secs(2);

/// An agent that runs. Dropped, it stops as if it was asked to.
#[derive(Debug)]
pub struct Running {
    /// What it told the controller of its machine.
    pub offer: Offer,
    /// Whether its loop turns.
    pub pulse: Pulse,
    stops: mpsc::Sender<Stop>,
    changes: mpsc::Sender<host::Overrides>,
    /// What runs containers.
    engine: Option<&'static str>,
    done: JoinHandle<()>,
}

impl Running {
    /// Asks for a clean stop and returns at once: everything is ended with its grace, reported, and
    /// the controller is told. Asked again, nothing is given grace any more.
    pub fn request_stop(&self) {
        // Full: two requests wait there already, and a third says nothing new.
        let _asked_often_enough = self.stops.try_send(Stop::End);
    }

    /// Asks it to make room for the next agent on this folder, and returns at once: what runs goes on in its keeper for as
    /// long as its leases hold. Without a keeper, or with nothing that runs, it is a clean stop.
    pub fn request_leave(&self) {
        let _asked_often_enough = self.stops.try_send(Stop::Leave);
    }

    /// Says anew what a person says of the machine; what runs goes on. The name stays.
    pub async fn offer(&self, machine: host::Overrides) {
        // Nobody listens any more: it is about to end.
        let _ends = self.changes.send(offering(machine, self.engine)).await;
    }

    /// Waits until the agent has ended; it does so when asked, or when it cannot go on. Cancel safe.
    pub async fn finished(&mut self) {
        if let Err(error) = (&mut self.done).await {
            error!(%error, "the agent ended in a way that it must not");
        }
    }

    /// Stops cleanly. It takes at most the longest grace of what runs, and some seconds.
    pub async fn stop(mut self) {
        self.request_stop();
        self.finished().await;
    }
}

/// Starts an agent: takes its folder, remembers, ends what an earlier instance left, and connects.
/// Returns before there is a connection.
///
/// # Errors
/// The configuration is wrong, the folder belongs to another agent, or something cannot be written.
pub fn start(config: Config) -> BoxFuture<'static, anyhow::Result<Running>> {
    // In a box, for an `async fn` would be compiled once more by each program that calls it, with all that it holds.
    Box::pin(begin(config))
}

async fn begin(config: Config) -> anyhow::Result<Running> {
    let clock = hands::clock();
    let addresses: Vec<Address> = config.controllers.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
    anyhow::ensure!(!addresses.is_empty(), "no controller is named; give one with --controller http://host:port");
    // A slip is told to whoever starts it; later ones are told to the log.
    config.credential.header()?;
    let foreign = if config.adopt_data { Foreign::Adopt } else { Foreign::Refuse };
    let identity = Identity::take(&config.data_dir, &machine::own(), foreign)?;
    let data_dir = std::path::absolute(&config.data_dir).context("cannot tell where the data folder is")?;
    let engine = Engine::find(containers_of(&config)?, &identity.uid, config.enforce).await?;
    let engine_name = engine.as_ref().map(|engine| engine.name());
    let (machine, rules) = (offering(config.machine.clone(), engine_name), config.rules.clone());
    let mut watch = host::Watch::begin(machine, data_dir.clone(), Arc::new(move || rules.can_run())).await;
    // A directory of users may take its time, and nobody waits for this.
    let rules = config.rules.clone();
    tokio::task::spawn_blocking(move || rules.warn_of_strangers());
    let name = watch.offer().name.clone();
    // The machine's own name has been seen by nobody yet.
    validate::agent_name(&name)
        .map_err(anyhow::Error::msg)
        .context("name this agent with --name, or `name` in its file")?;
    let (mut journal, memory) = Journal::open(&data_dir)?;
    let settings =
        supervisor::Config { drain: config.drain, ..supervisor::Config::new(watch.offer().capacity.clone()) };
    let mut supervisor = Supervisor::new(settings, memory);
    let who = secure::Who { name: &name, uid: &identity.uid };
    let secured = secure::take(&config, &addresses, who, clock).await?;
    let tls = secured.as_ref().map(|secured| Arc::clone(&secured.tls));
    let (link, link_events, bulk) = Link::new(addresses, tls);
    let link = link.with(config.credential.clone());
    let grpc = logs::Grpc::new(Arc::new(bulk), config.credential.clone());
    let before =
        hands::Before { leftovers: supervisor.leftovers(), rebooted: boot::is_another(&data_dir)?, gpus: watch.gpus() };
    let taken =
        hands::take(&config, &data_dir, (clock, &name), &grpc, (before, &identity.uid, engine.as_ref())).await?;
    let hands::Taken { hands, events: exec_events, spools, inputs, enforced } = taken;
    watch.holds(enforced);
    let offer = watch.offer().clone();
    info!(name = offer.name, uid = %identity.uid, "the agent starts");

    let (links_tracker, tracker, stop) = (TaskTracker::new(), TaskTracker::new(), CancellationToken::new());
    link.start(&links_tracker, &stop);
    if let Some(secured) = secured {
        tracker.spawn(secured.keep(stop.clone()));
    }
    let visits = Visits::new(grpc.clone(), (engine, config.rules.clone()), tracker.clone(), stop.clone());
    let shipping = thread::apart("muster-logs", spools.clone().ship(grpc, stop.clone()));
    tracker.spawn(shipping.context("cannot start a thread")?);
    let (stops, stop_requests) = mpsc::channel(2);
    let ((changes, said), (news, machine)) = (mpsc::channel(1), mpsc::channel(4));
    let looking = stop.clone();
    tracker.spawn(async move { looking.run_until_cancelled(watch.run(said, news)).await });
    let mut actions = Vec::new();
    restore(clock, &mut supervisor, &mut journal, inputs, &mut actions);
    if journal.is_clean() {
        hands.settled();
    }
    let agent = Agent::new(clock, (identity.uid.clone(), offer.clone()), supervisor, journal, hands.clone());
    let pulse = Pulse::new(config.look_every);
    let agent = agent.watched(pulse.clone()).with(actions).visited(visits);
    let sources = Sources { link: link_events, exec: exec_events, stops: stop_requests, machine };
    let life = Life { identity, hands, spools, links: links_tracker, tracker, stop };
    let done = tokio::spawn(life.live(agent, sources));
    Ok(Running { offer, pulse, stops, changes, engine: engine_name, done })
}

/// What is said of containers. They belong to the agent's own user: where tasks run as another, there are none, and no
/// task that wants one is to come.
fn containers_of(config: &Config) -> anyhow::Result<containers::Settings> {
    let said = config.containers.clone();
    let Some(user) = &config.rules.user else { return Ok(said) };
    match said.engine {
        containers::Choice::Podman | containers::Choice::Docker => anyhow::bail!(
            "`run_as.user` is `{user}`, and containers would belong to the agent's own user, whatever it is: take out \
             either `run_as.user` or `containers.engine` from the agent's file"
        ),
        containers::Choice::Auto | containers::Choice::Off => {
            Ok(containers::Settings { engine: containers::Choice::Off, ..said })
        }
    }
}

/// What a person says of the machine, and that it runs containers.
fn offering(mut machine: host::Overrides, engine: Option<&str>) -> host::Overrides {
    if let Some(engine) = engine {
        machine.labels.entry(container::LABEL.to_owned()).or_insert_with(|| engine.to_owned());
    }
    machine
}

/// What must be ended in order when the loop has ended.
struct Life {
    /// The folder is ours until all has ended.
    identity: Identity,
    hands: Hands,
    spools: Spools,
    /// The link to the controller, apart: it ends by itself when the loop has let go of it.
    links: TaskTracker,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Life {
    async fn live(self, agent: Agent<Hands>, sources: Sources) {
        let Done { up, left } = agent.run(sources).await;
        self.hands.stop(left).await;
        if left {
            // Its files go on growing: the next agent ships them.
            self.stop.cancel();
        } else if timeout(LOGS_LIMIT, self.spools.drained()).await.is_err() {
            warn!("some output is not with the controller yet; it is shipped at the next start");
        }
        // The stream ends behind its last message; the link ends with it.
        drop(up);
        self.stop_tasks().await;
        info!(uid = %self.identity.uid, "the agent has ended");
    }

    async fn stop_tasks(&self) {
        self.links.close();
        // Its last words are on their way: the link ends by itself when they are said.
        let _said_or_too_late = timeout(END_LIMIT / 4, self.links.wait()).await;
        self.stop.cancel();
        self.tracker.close();
        if timeout(END_LIMIT, async { tokio::join!(self.links.wait(), self.tracker.wait()) }).await.is_err() {
            warn!("a part of the agent did not end in time");
        }
    }
}

/// Journals what became of an earlier life; it is reported when the controller has taken us in.
fn restore(
    clock: Clock,
    supervisor: &mut Supervisor,
    journal: &mut Journal,
    inputs: Vec<Input>,
    actions: &mut Vec<Action>,
) {
    for input in inputs {
        supervisor.handle(clock.now(), input, actions);
    }
    for action in &*actions {
        if let Action::Journal(entry) = action {
            journal.add(entry);
        }
    }
    // Once is enough.
    actions.retain(|action| !matches!(action, Action::Journal(_)));
    if let Err(error) = journal.write() {
        warn!(error = %link::chain(&error), "the journal cannot be written yet");
    }
}
