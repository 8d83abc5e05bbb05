//! `ctl admin token`: what people and machines prove who they are with.

use std::time::Duration;

use muster_common::proto::v1;
use muster_core::time::micros;

use super::Ctl;
use crate::{
    error::Error,
    exit::Exit,
    model::access::{Made, Revoked, Token, Tokens},
    output::style::Look,
};

#[derive(Debug, clap::Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a token and print it, this once
    Create(CreateArgs),
    /// List tokens, without their secrets
    List,
    /// Make a token worthless; what it follows is closed within seconds
    Revoke(RevokeArgs),
}

#[derive(Debug, clap::Args)]
struct CreateArgs {
    /// What the token is called wherever its deeds are shown
    #[arg(long, value_name = "NAME")]
    name: String,
    /// What it may do
    #[arg(long, value_enum)]
    role: Role,
    /// See and touch only work of this queue; several may be given
    #[arg(long, value_name = "QUEUE")]
    queue: Vec<String>,
    /// How long it is good (12h, 30d); otherwise until it is revoked
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    ttl: Option<Duration>,
}

#[derive(Debug, clap::Args)]
struct RevokeArgs {
    /// Its id or its name
    #[arg(value_name = "TOKEN")]
    token: String,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Role {
    /// Sees
    Viewer,
    /// Submits, cancels and retries as well
    Operator,
    /// May do everything
    Admin,
    /// Is an agent, and nothing else
    Agent,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let mut client = ctl.client().await?;
    match args.command {
        Command::Create(args) => {
            let role = match args.role {
                Role::Viewer => v1::AccessRole::Viewer,
                Role::Operator => v1::AccessRole::Operator,
                Role::Admin => v1::AccessRole::Admin,
                Role::Agent => v1::AccessRole::Agent,
            };
            let ttl_us = args.ttl.map_or(0, micros);
            let request = v1::CreateTokenRequest { name: args.name, role: role.into(), queues: args.queue, ttl_us };
            let reply = client.access.create_token(request).await?.into_inner();
            ctl.output.one(&Made::of(reply))?;
            ctl.output.note(Look::Dim, "it is shown this once; ctl takes it from --token-file or MUSTER_TOKEN");
        }
        Command::List => {
            let reply = client.access.list_tokens(v1::ListTokensRequest {}).await?.into_inner();
            let tokens = Tokens { tokens: reply.tokens.into_iter().map(Token::from).collect() };
            ctl.output.items(&tokens, &tokens.tokens)?;
        }
        Command::Revoke(args) => {
            client.access.revoke_token(v1::RevokeTokenRequest { token: args.token.clone() }).await?;
            ctl.output.one(&Revoked { revoked: args.token })?;
        }
    }
    Ok(Exit::OK)
}
