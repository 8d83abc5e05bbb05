//! What runs attempts: a keeper that outlives us, or this process itself.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use muster_common::clock::Clock;
use muster_core::{id::Token, record::Enforced, time::Mono};
use tokio::sync::mpsc;
use tracing::info;

use super::Processes;
#[cfg(unix)]
use crate::keeper::{self, Client};
use crate::{
    config::Config,
    containers::Engine,
    exec::{self, Exec, ExecEvent, KillReason, Leftover, Links, Order, Swept},
    logs::{self, Spools},
    supervisor::Input,
};

/// The one or the other.
#[derive(Clone)]
pub(super) enum Hands {
    Own(Exec),
    #[cfg(unix)]
    Keeper(Client),
}

/// What an earlier life of this agent left.
pub(super) struct Before {
    pub(super) leftovers: Vec<Leftover>,
    /// The machine was started again since: nothing of it lives.
    pub(super) rebooted: bool,
    /// The GPUs that may be given to tasks.
    pub(super) gpus: Vec<u32>,
}

/// Everything that attempts need.
pub(super) struct Taken {
    pub(super) hands: Hands,
    pub(super) events: mpsc::Receiver<ExecEvent>,
    pub(super) spools: Spools,
    /// What became of what was left, for the supervisor.
    pub(super) inputs: Vec<Input>,
    /// What attempts are held to, and what not and why.
    pub(super) enforced: Vec<Enforced>,
}

/// A clock that keepers share.
#[cfg(unix)]
pub(super) fn clock() -> Clock {
    keeper::clock()
}

/// A clock.
#[cfg(not(unix))]
pub(super) fn clock() -> Clock {
    Clock::system()
}

/// Goes on with what runs, or ends it where it cannot go on.
pub(super) async fn take(
    config: &Config,
    data_dir: &Path,
    (clock, name): (Clock, &str),
    grpc: &logs::Grpc,
    (before, uid, engine): (Before, &str, Option<&Arc<Engine>>),
) -> anyhow::Result<Taken> {
    let limits = logs::Config {
        data_dir: data_dir.to_owned(),
        attempt_limit: config.log_limit,
        total_limit: config.log_quota,
        rate: config.log_rate,
        rate_max: config.log_rate_max,
    };
    let carry = |spools: &Spools| Links {
        inputs: Arc::new(grpc.clone()),
        results: Arc::new(grpc.clone()),
        spools: spools.clone(),
    };
    let unusable = || format!("cannot use the output spool in {}", data_dir.display());
    #[cfg(unix)]
    if let Some(program) = config.keeper.clone() {
        let setup = keeper::Setup {
            data: limits.data_dir.clone(),
            name: name.to_owned(),
            log_limit: limits.attempt_limit,
            log_quota: limits.total_limit,
            log_rate: limits.rate,
            log_rate_max: limits.rate_max,
            scratch_size: config.rules.scratch_size,
            limits: config.enforce,
            user: config.rules.user.clone(),
            users: config.rules.users.as_ref().map(|users| users.join(",")),
            pass_env: config.rules.pass_env.join(","),
            guard: "guard".to_owned(),
            owner: uid.to_owned(),
            containers: engine.map(|engine| engine.to_text()),
        };
        return take_keeper(keeper::Config { program, setup }, clock, &limits, before, carry).await;
    }
    #[cfg(not(unix))]
    let _nobody_else = uid;
    let spools = Spools::open(&limits).with_context(unusable)?;
    let settings = exec::Config {
        data_dir: data_dir.to_owned(),
        agent: name.into(),
        clock,
        path: None,
        enforce: config.enforce,
        rules: config.rules.clone(),
        containers: engine.cloned(),
        guard: config.guard.clone(),
        estate: None,
    };
    let (exec, events) = Exec::new(settings, carry(&spools)).await?;
    let found = exec.sweep(&before.leftovers).await;
    if let Some(engine) = engine {
        engine.remove_leftovers(exec.is_live());
    }
    exec.offer_gpus(&before.gpus, exec::gpus_of_survivors(&before.leftovers, &found));
    let swept: Vec<_> = before.leftovers.iter().map(|leftover| leftover.token).zip(found).collect();
    let inputs = vec![Input::Swept(told(swept, before.rebooted))];
    let enforced = exec.enforced();
    Ok(Taken { hands: Hands::Own(exec), events, spools, inputs, enforced })
}

#[cfg(unix)]
async fn take_keeper(
    config: keeper::Config,
    clock: Clock,
    limits: &logs::Config,
    before: Before,
    carry: impl Fn(&Spools) -> Links,
) -> anyhow::Result<Taken> {
    let joined = keeper::join(config, keeper::Had { leftovers: &before.leftovers, hold: &|| None }).await?;
    let wire = keeper::Wire::default();
    let on_forget = {
        let wire = wire.clone();
        move |bytes| wire.shipped(bytes)
    };
    let spools = Spools::to_ship(limits, &joined.written(), on_forget)
        .with_context(|| format!("cannot use the output spool in {}", limits.data_dir.display()))?;
    let alive = joined.alive.clone();
    let is_gone = |left: &&Leftover| !alive.iter().any(|alive| alive.order.token == left.token);
    let gone = before.leftovers.iter().filter(is_gone).map(|left| left.token);
    let swept = gone.map(|token| (token, joined.swept.get(&token).copied().unwrap_or(Swept::Dead))).collect();
    info!(attempts = alive.len(), "attempts of an earlier life go on");
    let inputs = vec![Input::Adopted { alive, renewed: joined.renewed }, Input::Swept(told(swept, before.rebooted))];
    let enforced = joined.enforced.clone();
    let (client, events) = Client::start(joined, carry(&spools), clock, wire);
    client.offer_gpus(&before.gpus);
    Ok(Taken { hands: Hands::Keeper(client), events, spools, inputs, enforced })
}

/// A sweep finds what is dead; why it is, only we know.
fn told(swept: Vec<(Token, Swept)>, rebooted: bool) -> Vec<(Token, Swept)> {
    if !swept.is_empty() {
        let survivors = swept.iter().filter(|(_, found)| *found == Swept::Survives).count();
        info!(attempts = swept.len(), survivors, rebooted, "an earlier life of this agent left attempts that are over");
    }
    let tell = |(token, found)| (token, if rebooted && found == Swept::Dead { Swept::Rebooted } else { found });
    swept.into_iter().map(tell).collect()
}

impl Hands {
    /// Ends: nothing runs any more, or what runs is left alone.
    pub(super) async fn stop(&self, left: bool) {
        match self {
            // Without a keeper there is nobody to leave it to.
            Self::Own(exec) => {
                let _ends = left;
                exec.stop().await;
            }
            #[cfg(unix)]
            Self::Keeper(client) if left => client.leave().await,
            #[cfg(unix)]
            Self::Keeper(client) => client.stop().await,
        }
    }
}

macro_rules! both {
    ($self:ident, $exec:ident => $own:expr, $client:ident => $keeper:expr) => {
        match $self {
            Hands::Own($exec) => $own,
            #[cfg(unix)]
            Hands::Keeper($client) => $keeper,
        }
    };
}

impl Processes for Hands {
    fn start(&self, order: Arc<Order>) {
        both!(self, exec => exec.start(order), client => client.start_order(order));
    }

    fn kill(&self, token: Token, reason: KillReason, grace: Duration) {
        both!(self, exec => exec.kill(token, reason, grace), client => client.kill(token, reason, grace));
    }

    fn offer(&self, order: Arc<Order>, until: Mono) {
        both!(self, exec => exec.offer(order, until), client => client.offer(order, until));
    }

    fn claim(&self, token: Token) {
        both!(self, exec => exec.claim(token), client => client.claim(token));
    }

    fn withdraw(&self, token: Token) {
        both!(self, exec => exec.withdraw(token), client => client.withdraw(token));
    }

    fn hold(&self, renewed: Option<(Mono, Duration)>) {
        both!(self, exec => Processes::hold(exec, renewed), client => client.hold(renewed));
    }

    fn offer_gpus(&self, all: &[u32]) {
        both!(self, exec => exec.offer_gpus(all, []), client => client.offer_gpus(all));
    }

    fn settled(&self) {
        match self {
            Self::Own(_) => {}
            #[cfg(unix)]
            Self::Keeper(client) => client.settled(),
        }
    }

    fn forget(&self, tokens: Vec<Token>) {
        both!(self, _exec => drop(tokens), client => client.forget(tokens));
    }

    fn flush(&self) {
        both!(self, _exec => {}, client => client.flush());
    }

    fn outlive_us(&self) -> bool {
        both!(self, _exec => false, _client => true)
    }

    fn gathers(&self) -> bool {
        both!(self, _exec => false, _client => true)
    }
}
