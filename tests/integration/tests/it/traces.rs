//! One job is one trace, from the command line to the process.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use muster_integration::{
    collector::Collector,
    system::{Options, System},
    wait::{self, Look},
};

#[test]
fn ctl_controller_agent_and_the_task_itself_share_one_trace() -> Result<()> {
    let collector = Collector::start()?;
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()), ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned())];
    let env = env.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let system = System::start(Options { env, ..Options::default() })?;
    let told = system.folder().join("told");
    let file =
        format!("name = \"traced\"\n[[tasks]]\nname = \"a\"\nshell = \"echo $TRACEPARENT > {}\"\n", told.display());
    let job = system.submit("traced.toml", &file)?;
    system.ctl().finished(job, wait::LIMIT)?;
    // 00-<trace>-<span>-<flags>
    let parent = std::fs::read_to_string(&told)?;
    let trace = parent.split('-').nth(1).unwrap_or_default().to_owned();
    ensure!(trace.len() == 32, "TRACEPARENT is {parent:?}");
    wait::until("spans of all three programs in the task's trace", || {
        let spans = collector.spans();
        let of_it: BTreeSet<_> = spans.iter().filter(|span| span.trace == trace).map(|span| &span.service).collect();
        Ok(Look::when(of_it.len() >= 3, (&of_it, spans.len())))
    })?;
    system.finish()
}
