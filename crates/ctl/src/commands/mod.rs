//! One file per subcommand: its arguments and what it does.

pub(crate) mod admin;
pub(crate) mod agent;
pub(crate) mod agents;
pub(crate) mod audit;
pub(crate) mod cancel;
pub(crate) mod completions;
pub(crate) mod dev;
pub(crate) mod exec;
pub(crate) mod explain;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod queue;
pub(crate) mod recommend;
pub(crate) mod result;
pub(crate) mod retry;
pub(crate) mod run;
pub(crate) mod schema;
pub(crate) mod show;
pub(crate) mod stats;
pub(crate) mod status;
pub(crate) mod submit;
pub(crate) mod top;
pub(crate) mod validate;
pub(crate) mod version;
pub(crate) mod wait;

use std::{path::PathBuf, sync::OnceLock};

use crate::{
    cli::{Cli, Command},
    error::Error,
    exit::Exit,
    output::Output,
    remote::{
        Client, credential,
        find::{self, Place, Security},
    },
    system::Folder,
};

/// What every command has: where to write, and which controller was named.
#[derive(Debug)]
pub(crate) struct Ctl {
    pub(crate) output: Output,
    controller: Option<String>,
    ca: Option<PathBuf>,
    pub(crate) insecure: bool,
    token_file: Option<PathBuf>,
    /// A folder that is to go when nobody writes there any more.
    left: OnceLock<Folder>,
}

impl Ctl {
    /// From the global flags.
    pub(crate) fn new(cli: &Cli) -> Self {
        Self {
            output: Output::new(cli.output, cli.color),
            controller: cli.controller.clone(),
            ca: cli.ca.clone(),
            insecure: cli.insecure,
            token_file: cli.token_file.clone(),
            left: OnceLock::new(),
        }
    }

    /// Takes a system's folder; it goes with this, after the last thread.
    pub(crate) fn leave_behind(&self, folder: Folder) {
        // A second one has no system of its own left that could write to it.
        drop(self.left.set(folder));
    }

    /// The controller that somebody named.
    pub(crate) fn named(&self) -> Result<Option<Place>, Error> {
        find::named(self.controller.as_deref(), &self.security())
    }

    /// The controller that is named, or the one on this machine.
    pub(crate) fn place(&self) -> Result<Place, Error> {
        match self.named()? {
            Some(place) => Ok(place),
            None => find::fallback(&self.security()),
        }
    }

    fn security(&self) -> Security<'_> {
        Security { ca: self.ca.as_deref(), insecure: self.insecure }
    }

    /// A connection to it.
    pub(crate) async fn client(&self) -> Result<Client, Error> {
        self.connect(self.place()?).await
    }

    /// A connection to the controller at `place`, with the token that somebody gave.
    pub(crate) async fn connect(&self, place: Place) -> Result<Client, Error> {
        Client::connect(place, credential::find(self.token_file.as_deref())?).await
    }
}

/// Does what was typed.
pub(crate) async fn dispatch(ctl: &Ctl, command: Command) -> Result<Exit, Error> {
    match command {
        Command::Run(args) => Box::pin(run::run(ctl, args)).await,
        Command::Dev(args) => Box::pin(dev::run(ctl, args)).await,
        Command::Submit(args) => Box::pin(submit::run(ctl, args)).await,
        Command::List(args) => Box::pin(list::run(ctl, args)).await,
        Command::Show(args) => Box::pin(show::run(ctl, args)).await,
        Command::Logs(args) => Box::pin(logs::run(ctl, args)).await,
        Command::Result(args) => Box::pin(result::run(ctl, args)).await,
        Command::Exec(args) => Box::pin(exec::run(ctl, args)).await,
        Command::Cancel(args) => Box::pin(cancel::run(ctl, args)).await,
        Command::Retry(args) => Box::pin(retry::run(ctl, args)).await,
        Command::Wait(args) => Box::pin(wait::run(ctl, args)).await,
        Command::Explain(args) => Box::pin(explain::run(ctl, args)).await,
        Command::Recommend(args) => Box::pin(recommend::run(ctl, args)).await,
        Command::Stats(args) => Box::pin(stats::run(ctl, args)).await,
        Command::Status(args) => Box::pin(status::run(ctl, args)).await,
        Command::Admin(args) => Box::pin(admin::run(ctl, args)).await,
        Command::Agent(args) => Box::pin(agent::run(ctl, args)).await,
        Command::Agents(args) => Box::pin(agents::run(ctl, args)).await,
        Command::Audit(args) => Box::pin(audit::run(ctl, args)).await,
        Command::Top(args) => Box::pin(top::run(ctl, args)).await,
        Command::Queue(args) => Box::pin(queue::run(ctl, args)).await,
        Command::Version(args) => Box::pin(version::run(ctl, args)).await,
        Command::Validate(args) => validate::run(ctl, &args),
        Command::Schema(args) => schema::run(ctl, &args),
        Command::Completions(args) => completions::run(&args),
    }
}
