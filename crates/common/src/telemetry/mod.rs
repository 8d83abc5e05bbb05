//! Logs to stderr, spans to a collector, and one trace per job across all processes.
//!
//! * `MUSTER_LOG`: which logs (`info`, `muster_agent=debug,warn`, ...). `MUSTER_LOG_FORMAT`: `plain` or `json`.
//!   Where stderr is the system's journal, logs are its records, unless `MUSTER_LOG_FORMAT` says otherwise.
//! * `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`: where spans go (OTLP over gRPC);
//!   neither is set: nowhere, and a span that no log asks for costs one load. The other `OTEL_*`
//!   variables mean what OpenTelemetry says.
//!
//! Spans of single tasks are made at level `debug`: logs show them only when asked, traces always.

#[cfg(target_os = "linux")]
mod journal;
mod otlp;
mod trace_parent;

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets},
    fmt::MakeWriter,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

pub use self::trace_parent::{
    child_of, new_trace_parent, set_parent, trace_parent_from, trace_parent_of_current_span, trace_parent_or_new,
};

/// How a program wants its telemetry.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What traces call it, unless `OTEL_SERVICE_NAME` does: `muster-agent`.
    pub service: &'static str,
    /// What is logged unless `MUSTER_LOG` says otherwise: `info`.
    pub filter: &'static str,
}

impl Options {
    /// A daemon: it logs what changed.
    pub fn daemon(service: &'static str) -> Self {
        Self { service, filter: "info,opentelemetry=warn" }
    }

    /// A command that a person typed: it logs what went wrong.
    pub fn command(service: &'static str) -> Self {
        Self { service, filter: "warn" }
    }
}

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `MUSTER_LOG` cannot be read.
    #[error(
        "MUSTER_LOG is `{value}`, which is no filter; write a level (error, warn, info, debug, trace) or `target=level`, separated by commas"
    )]
    Filter {
        /// As it was found.
        value: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// `MUSTER_LOG_FORMAT` cannot be read.
    #[error("MUSTER_LOG_FORMAT is `{0}`; it can be `plain` or `json`")]
    Format(String),
    /// This process has telemetry already.
    #[error("telemetry was set up before in this process")]
    Twice,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Plain,
    Json,
}

/// Sets up logs and traces of this process. Once, in `main`, inside the runtime: the exporter's
/// connection lives there. A collector that cannot be used is a warning; work goes on without it.
///
/// # Errors
/// A variable that is ours says what cannot be, or this was called before.
pub fn init(options: Options) -> Result<Guard, Error> {
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let filter = env("MUSTER_LOG");
    let filter = parse_filter(filter.as_deref().unwrap_or(options.filter))?;
    let format = env("MUSTER_LOG_FORMAT");
    let journal = if format.is_none() { journal(env("JOURNAL_STREAM").as_deref(), &filter) } else { None };
    let format = parse_format(format.as_deref())?;
    let (exporter, problem) = match otlp::wanted(env) {
        otlp::Wanted::Nothing => (None, None),
        otlp::Wanted::Unusable(problem) => (None, Some(problem)),
        otlp::Wanted::Exporter => match otlp::provider(options.service, None) {
            Ok(provider) => (Some(provider), None),
            Err(problem) => (None, Some(problem)),
        },
    };
    let colours = io::stderr().is_terminal() && env("NO_COLOR").is_none();
    let spans = exporter.as_ref().map(otlp::layer);
    tracing_subscriber::registry()
        .with(spans)
        .with(journal.unwrap_or_else(|| logs(filter, format, colours, io::stderr)))
        .try_init()
        .map_err(|_| Error::Twice)?;
    if let Some(problem) = problem {
        tracing::warn!(%problem, "spans are not exported");
    }
    Ok(Guard { exporter })
}

type Logs<S> = Box<dyn Layer<S> + Send + Sync>;

fn logs<S, W>(filter: Targets, format: Format, colours: bool, writer: W) -> Logs<S>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a> + Send + Sync,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // A closed stderr must not become a panic inside the logger.
    let layer = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(colours).log_internal_errors(false);
    match format {
        Format::Plain => layer.with_filter(filter).boxed(),
        Format::Json => layer.json().with_ansi(false).flatten_event(true).with_filter(filter).boxed(),
    }
}

/// Logs as records of the journal, if `stream` says that this is where stderr goes.
#[cfg(target_os = "linux")]
fn journal<S>(stream: Option<&str>, filter: &Targets) -> Option<Logs<S>>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a> + Send + Sync,
{
    journal::of_stderr(stream).map(|journal| journal.with_filter(filter.clone()).boxed())
}

/// There is no journal.
#[cfg(not(target_os = "linux"))]
fn journal<S>(_stream: Option<&str>, _filter: &Targets) -> Option<Logs<S>> {
    None
}

/// Levels by target. Not the filters by fields of spans: they bring a regex engine, which costs more to build than all
/// the rest of the logs.
fn parse_filter(text: &str) -> Result<Targets, Error> {
    let filter: Targets = text.parse().map_err(|source| Error::Filter { value: text.to_owned(), source })?;
    let default = filter.default_level().unwrap_or(LevelFilter::ERROR);
    Ok(filter.with_default(default))
}

fn parse_format(text: Option<&str>) -> Result<Format, Error> {
    match text {
        None | Some("plain") => Ok(Format::Plain),
        Some("json") => Ok(Format::Json),
        Some(other) => Err(Error::Format(other.to_owned())),
    }
}

/// How long the last spans may take to leave: a command must not hang on a dead collector.
const FLUSH_LIMIT: Duration = Duration::from_secs(2);

/// Keeps telemetry alive. Dropped without `shutdown`, the last spans are lost.
#[derive(Debug)]
#[must_use = "call `shutdown` before the program ends, or its last spans are lost"]
pub struct Guard {
    exporter: Option<SdkTracerProvider>,
}

impl Guard {
    /// Sends what is left, within about three seconds whatever the collector does.
    ///
    /// Cancel safe: the flush goes on in its own thread until the process ends.
    pub async fn shutdown(self) {
        let Some(exporter) = self.exporter else { return };
        // It blocks, and on a runtime of one thread it would block the connection that it waits for.
        let flush = tokio::task::spawn_blocking(move || exporter.shutdown_with_timeout(FLUSH_LIMIT));
        match tokio::time::timeout(FLUSH_LIMIT + Duration::from_secs(1), flush).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the last spans may be lost"),
            Ok(Err(error)) => tracing::warn!(%error, "the last spans may be lost"),
            Err(_) => tracing::warn!("the last spans may be lost: the collector does not answer"),
        }
    }

    /// Whether spans go anywhere.
    pub fn is_exporting(&self) -> bool {
        self.exporter.is_some()
    }
}

#[cfg(test)]
mod tests;
