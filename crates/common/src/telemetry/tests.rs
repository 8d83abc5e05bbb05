//! Logs and traces as a person and a collector see them.

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::TcpListenerStream;

use super::*;

/// No test waits longer for anything.
const LIMIT: Duration = Duration::from_secs(30);

struct Collector(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let kept = self.0.send(request.into_inner()).await;
        kept.map_err(|_| tonic::Status::unavailable("the test is over"))?;
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A real collector, its address, and what it gets.
async fn collector() -> (String, mpsc::Receiver<ExportTraceServiceRequest>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, receiver) = mpsc::channel(16);
    let server = tonic::transport::Server::builder().add_service(TraceServiceServer::new(Collector(sender)));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (endpoint, receiver)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_job_is_one_trace_from_the_submission_to_the_process() {
    let (endpoint, mut received) = collector().await;
    let provider = otlp::provider("muster-test", Some(&endpoint)).unwrap();
    let guard = Guard { exporter: Some(provider.clone()) };
    assert!(guard.is_exporting());
    let submission = new_trace_parent();
    let process =
        tracing::subscriber::with_default(tracing_subscriber::registry().with(otlp::layer(&provider)), || {
            let controller = tracing::info_span!("job");
            set_parent(&controller, &submission);
            let sent = controller.in_scope(|| {
                tracing::debug!("nobody exports this");
                trace_parent_of_current_span()
            });
            let agent = tracing::debug_span!("task");
            set_parent(&agent, &sent);
            let process = agent.in_scope(|| child_of(&trace_parent_of_current_span()));
            tracing::debug_span!(target: "h2::codec", "a span of the exporter itself").in_scope(|| ());
            tracing::trace_span!("too fine").in_scope(|| ());
            process
        });
    guard.shutdown().await;

    let request = tokio::time::timeout(LIMIT, received.recv()).await.unwrap().unwrap();
    let [resource] = &request.resource_spans[..] else { panic!("one process: {request:?}") };
    let attributes = &resource.resource.as_ref().unwrap().attributes;
    let service = attributes.iter().find(|attribute| attribute.key == "service.name").unwrap();
    assert!(format!("{:?}", service.value).contains("muster-test"), "{service:?}");
    let mut spans: Vec<&Span> = resource.scope_spans.iter().flat_map(|scope| &scope.spans).collect();
    spans.sort_by(|a, b| a.name.cmp(&b.name));
    let [job, task] = spans[..] else { panic!("two spans: {spans:?}") };
    let parts: Vec<&str> = submission.split('-').collect();
    assert_eq!(
        (job.name.as_str(), hex(&job.trace_id), hex(&job.parent_span_id)),
        ("job", parts[1].into(), parts[2].into())
    );
    assert_eq!((task.name.as_str(), &task.trace_id, &task.parent_span_id), ("task", &job.trace_id, &job.span_id));
    assert!(job.events.is_empty());
    let process: Vec<&str> = process.split('-').collect();
    assert_eq!(process[1], parts[1]);
    assert!(![hex(&job.span_id), hex(&task.span_id)].contains(&process[2].to_owned()), "a span of its own");
}

#[tokio::test]
async fn a_trace_that_is_not_sampled_goes_nowhere_and_on() {
    let (endpoint, mut received) = collector().await;
    let provider = otlp::provider("muster-test", Some(&endpoint)).unwrap();
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let sent = tracing::subscriber::with_default(tracing_subscriber::registry().with(otlp::layer(&provider)), || {
        let span = tracing::info_span!("job");
        set_parent(&span, parent);
        span.in_scope(trace_parent_of_current_span)
    });
    Guard { exporter: Some(provider) }.shutdown().await;
    assert!(sent.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && sent.ends_with("-00"), "{sent}");
    assert!(received.try_recv().is_err(), "nothing was exported");
}

#[tokio::test]
async fn a_collector_that_never_answers_does_not_keep_a_program() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let provider = otlp::provider("muster-test", Some(&endpoint)).unwrap();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(otlp::layer(&provider)), || {
        tracing::info_span!("job").in_scope(|| ());
    });
    tokio::time::timeout(LIMIT, Guard { exporter: Some(provider) }.shutdown()).await.unwrap();
}

#[test]
fn without_a_runtime_there_is_no_exporter_and_no_panic() {
    assert_eq!(otlp::provider("muster-test", None).unwrap_err(), "there is no async runtime for the exporter");
}

#[test]
fn a_span_outside_of_any_trace_has_no_trace_parent() {
    assert_eq!(trace_parent_of_current_span(), "");
    assert_eq!(trace_parent_or_new().len(), 55);
    let span = tracing::info_span!("nobody listens");
    set_parent(&span, &new_trace_parent());
    assert_eq!(span.in_scope(trace_parent_of_current_span), "");
}

#[test]
fn the_environment_decides_whether_spans_are_exported() {
    use otlp::Wanted;
    let there = "http://there:4317";
    type Variables<'a> = &'a [(&'a str, &'a str)];
    let table: [(Variables<'_>, Result<Wanted, &str>); 10] = [
        (&[], Ok(Wanted::Nothing)),
        (&[("OTEL_TRACES_EXPORTER", "otlp")], Ok(Wanted::Nothing)),
        (&[("OTEL_EXPORTER_OTLP_ENDPOINT", there)], Ok(Wanted::Exporter)),
        (&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", there)], Ok(Wanted::Exporter)),
        (&[("OTEL_EXPORTER_OTLP_ENDPOINT", there), ("OTEL_SDK_DISABLED", "True")], Ok(Wanted::Nothing)),
        (&[("OTEL_EXPORTER_OTLP_ENDPOINT", there), ("OTEL_SDK_DISABLED", "no")], Ok(Wanted::Exporter)),
        (&[("OTEL_EXPORTER_OTLP_ENDPOINT", there), ("OTEL_TRACES_EXPORTER", "none")], Ok(Wanted::Nothing)),
        (&[("OTEL_EXPORTER_OTLP_ENDPOINT", there), ("OTEL_TRACES_EXPORTER", "zipkin")], Err("zipkin")),
        (&[("OTEL_EXPORTER_OTLP_ENDPOINT", there), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], Ok(Wanted::Exporter)),
        (
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", there), ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")],
            Err("http/protobuf"),
        ),
    ];
    for (variables, expected) in table {
        let env = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        match (otlp::wanted(env), expected) {
            (Wanted::Unusable(problem), Err(part)) => assert!(problem.contains(part), "{problem}"),
            (wanted, expected) => assert_eq!(Ok(wanted), expected, "{variables:?}"),
        }
    }
}

/// What was logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn logged(filter: &str, format: Option<&str>) -> String {
    let lines = Lines::default();
    let writer = lines.clone();
    let layer = logs(parse_filter(filter).unwrap(), parse_format(format).unwrap(), false, move || writer.clone());
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        tracing::info!(job = 17, "job accepted");
        tracing::debug!(target: "muster_agent::exec", "spawned");
    });
    let bytes = lines.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn logs_are_lines_for_people_or_for_machines() {
    let plain = logged("info", None);
    assert!(plain.contains(" INFO muster_common::telemetry::tests: job accepted job=17\n"), "{plain}");
    assert_eq!(plain.lines().count(), 1);
    let json: serde_json::Value = serde_json::from_str(&logged("info", Some("json"))).unwrap();
    assert_eq!((&json["level"], &json["message"], &json["job"]), (&"INFO".into(), &"job accepted".into(), &17.into()));
    assert!(logged("warn,muster_agent=debug", Some("plain")).contains("DEBUG muster_agent::exec: spawned"));
    assert_eq!(logged("off", None), "");
}

#[test]
fn a_variable_that_cannot_be_read_is_named_with_what_can() {
    let error = parse_filter("info,muster=loud").unwrap_err().to_string();
    assert!(error.starts_with("MUSTER_LOG is `info,muster=loud`, which is no filter; write a level"), "{error}");
    let error = parse_format(Some("xml")).unwrap_err().to_string();
    assert_eq!(error, "MUSTER_LOG_FORMAT is `xml`; it can be `plain` or `json`");
}
