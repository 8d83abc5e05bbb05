//! `ctl logs`: what tasks wrote.

use muster_common::proto::v1;

use super::Ctl;
use crate::{
    error::Error,
    exit::Exit,
    output::{self, Format},
    remote::{
        Client,
        output::{Printer, Shape},
        selector, tasks,
    },
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A job, or tasks of one
    #[arg(value_name = "WORK")]
    work: String,
    /// Go on with what is written until the work is over
    #[arg(short, long)]
    follow: bool,
    /// Only this stream
    #[arg(long, value_name = "STREAM", value_parser = ["stdout", "stderr"])]
    stream: Option<String>,
    /// Only the last N lines of what is there
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    tail: Option<u64>,
    /// Of this attempt, counted from 1; otherwise of the newest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    attempt: Option<u32>,
    /// Begin each line with the time it was written at
    #[arg(short, long)]
    timestamps: bool,
}

pub(crate) async fn run(ctl: &Ctl, args: Args) -> Result<Exit, Error> {
    let whole = matches!(ctl.output.format, Format::Json | Format::Yaml);
    if whole && args.follow {
        return Err(Error::new(Exit::USAGE, "-f has no end that json and yaml could wait for").next("use -o jsonl"));
    }
    let client = ctl.client().await?;
    let request = v1::LogsRequest {
        selector: selector(&args.work),
        follow: args.follow,
        attempt: args.attempt.unwrap_or(0),
        stream: args.stream.unwrap_or_default(),
        tail_lines: args.tail.unwrap_or(0),
    };
    let mut printer = match ctl.output.format {
        Format::Table => Printer::new(shape(&client, &args.work, args.timestamps).await?, ctl.output),
        Format::Jsonl => Printer::new(Shape::Machine, ctl.output),
        Format::Json | Format::Yaml => {
            let frames = Printer::collect(client, request).await?;
            output::raw(output::machine(ctl.output.format, &frames)?.as_bytes())?;
            return Ok(Exit::OK);
        }
    };
    printer.drain(client, request).await?;
    Ok(Exit::OK)
}

/// One task's bytes are shown as they are; of several, each line says whose it is.
async fn shape(client: &Client, work: &str, times: bool) -> Result<Shape, Error> {
    let names = tasks::page(client, work, &[], 2, "").await?.tasks.len() > 1;
    Ok(if names || times { Shape::Lines { names, times } } else { Shape::Raw })
}
