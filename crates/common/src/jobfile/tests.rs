//! Good files become their spec, bad files their findings, to the line and the word.

mod bad;
mod equal;
mod examples;
mod good;
mod mutated;
mod schema;

use std::path::PathBuf;

use muster_core::{spec::JobSpec, time::Timestamp};

use super::{Context, Finding, Format, parse};

/// 2026-01-01 00:00:00 UTC.
const NOW: Timestamp = Timestamp(1_767_225_600_000_000);

fn context() -> Context {
    Context { cwd: PathBuf::from("/home/ada"), dir: examples(), now: NOW }
}

fn examples() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

#[track_caller]
fn good(text: &str, format: Format) -> JobSpec {
    match parse(text, format, &context()) {
        Ok(parsed) => parsed.spec,
        Err(found) => panic!("refused:\n{}", lines(&found).join("\n")),
    }
}

fn bad(text: &str, format: Format) -> Vec<String> {
    match parse(text, format, &context()) {
        Ok(_) => vec!["accepted".to_owned()],
        Err(found) => lines(&found),
    }
}

fn lines(found: &[Finding]) -> Vec<String> {
    found.iter().map(ToString::to_string).collect()
}
