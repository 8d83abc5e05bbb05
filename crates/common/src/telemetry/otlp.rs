//! Spans to a collector by OTLP over gRPC, as the standard `OTEL_*` variables say.

use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry::{Key, KeyValue, trace::TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{Layer, filter::FilterFn, registry::LookupSpan};

/// Whether spans of this process go anywhere; what only serves traces is skipped when not.
static EXPORTING: AtomicBool = AtomicBool::new(false);

/// Whether spans of this process go anywhere.
pub(super) fn is_exporting() -> bool {
    EXPORTING.load(Ordering::Relaxed)
}

/// What the environment asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// No traces.
    Nothing,
    /// Traces, by OTLP over gRPC.
    Exporter,
    /// Traces, in a way that this build does not have.
    Unusable(String),
}

/// Reads what the environment asks for, except for what the SDK reads itself.
pub(super) fn wanted(env: impl Fn(&str) -> Option<String>) -> Wanted {
    let first = |names: [&str; 2]| names.into_iter().find_map(&env);
    let endpoint = first(["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"]);
    let disabled = env("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    if disabled || endpoint.is_none() {
        return Wanted::Nothing;
    }
    match env("OTEL_TRACES_EXPORTER").as_deref() {
        None | Some("otlp") => {}
        Some("none") => return Wanted::Nothing,
        Some(other) => {
            return Wanted::Unusable(format!("OTEL_TRACES_EXPORTER is `{other}`; it can be `otlp` or `none`"));
        }
    }
    match first(["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"]).as_deref() {
        None | Some("grpc") => Wanted::Exporter,
        Some(other) => Wanted::Unusable(format!(
            "OTEL_EXPORTER_OTLP_PROTOCOL is `{other}`; this build sends `grpc` only (port 4317)"
        )),
    }
}

/// The pipeline from ended spans to the collector; `endpoint` instead of the environment's if given.
///
/// # Errors
/// The environment names an endpoint that cannot be used, or there is no runtime here.
pub(super) fn provider(service: &'static str, endpoint: Option<&str>) -> Result<SdkTracerProvider, String> {
    // The exporter's connection is a task; without a runtime it would panic.
    tokio::runtime::Handle::try_current().map_err(|_| "there is no async runtime for the exporter".to_owned())?;
    let exporter = SpanExporter::builder().with_tonic();
    let exporter = match endpoint {
        Some(endpoint) => exporter.with_endpoint(endpoint),
        None => exporter,
    };
    let exporter = exporter.build().map_err(|error| error.to_string())?;
    // The sampler and all limits are the SDK's own reading of OTEL_*.
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource(service)).build())
}

fn resource(service: &'static str) -> Resource {
    let detected = Resource::builder().build();
    let name = detected.get(&Key::new("service.name"));
    let named = name.is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let builder = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if named { builder } else { builder.with_service_name(service) }.build()
}

/// The layer that turns our spans into theirs.
pub(super) fn layer<S>(provider: &SdkTracerProvider) -> impl Layer<S> + Send + Sync + use<S>
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    EXPORTING.store(true, Ordering::Relaxed);
    tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("muster"))
        .with_location(false)
        .with_threads(false)
        .with_tracked_inactivity(false)
        .with_filter(FilterFn::new(is_exported).with_max_level_hint(Level::DEBUG))
}

/// Our spans, and our events that a person would log. Nobody else's: the exporter itself makes
/// spans (h2, tonic), and each export would cause the next one.
fn is_exported(metadata: &Metadata<'_>) -> bool {
    let ours = metadata.target().starts_with("muster") || metadata.target().split("::").next() == Some("ctl");
    ours && *metadata.level() <= if metadata.is_span() { Level::DEBUG } else { Level::INFO }
}
