//! `ctl result`: the JSON that a task wrote as its result.

use muster_common::proto::v1;

use super::Ctl;
use crate::{
    error::Error,
    exit::Exit,
    output::{self, Format},
    remote::{Client, selector},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One task: 17.merge, or a job of one task
    #[arg(value_name = "TASK")]
    task: String,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let client = ctl.client().await?;
    if ctl.output.format == Format::Table {
        // As it was written, without holding all of it.
        let mut last = b'\n';
        let mut stream = open(&client, &args.task).await?;
        while let Some(chunk) = stream.message().await? {
            last = chunk.data.last().copied().unwrap_or(last);
            output::raw(&chunk.data)?;
        }
        if last != b'\n' {
            output::raw(b"\n")?;
        }
    } else {
        let value = fetch(&client, &args.task).await?;
        output::raw(output::machine(ctl.output.format, &value)?.as_bytes())?;
    }
    Ok(Exit::OK)
}

/// The whole result of a task.
pub(crate) async fn fetch(client: &Client, task: &str) -> Result<serde_json::Value, Error> {
    let mut bytes = Vec::new();
    let mut stream = open(client, task).await?;
    while let Some(chunk) = stream.message().await? {
        bytes.extend_from_slice(&chunk.data);
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::new(Exit::FAULT, format!("the result of {task} is no JSON: {error}")))
}

async fn open(client: &Client, task: &str) -> Result<tonic::Streaming<v1::ResultChunk>, Error> {
    let request = v1::GetResultRequest { selector: selector(task) };
    Ok(client.rpc.clone().get_result(request).await?.into_inner())
}
