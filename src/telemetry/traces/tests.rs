//! Against real receivers; those need real threads and real time.

mod receiver;

use std::process::Stdio;

use http::HeaderMap;
use tokio::process::Command;
use tonic::Code;
use tracing_subscriber::layer::SubscriberExt;

use super::*;
use crate::config::settings::{LogFormat, LogSettings, OtlpProtocol};
use crate::telemetry::metrics;
use receiver::{Certificate, Receiver, attribute};

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn settings(endpoint: &str, protocol: OtlpProtocol) -> TraceSettings {
    let path = if protocol == OtlpProtocol::Http { "/v1/traces" } else { "" };
    let endpoint = format!("{endpoint}{path}").parse().unwrap();
    TraceSettings { endpoint, protocol, sample_ratio: 1.0 }
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

/// Held by a test that has a subscriber: whether a span is made at all is remembered for
/// the whole process.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A subscriber of the test's own, and its control.
struct Traced {
    dispatch: tracing::Dispatch,
    control: TraceControl,
    _alone: tokio::sync::MutexGuard<'static, ()>,
}

impl Traced {
    async fn start() -> Self {
        let alone = ALONE.lock().await;
        let (layer, control) = layer();
        let dispatch = tracing::Dispatch::new(tracing_subscriber::registry().with(layer));
        Self { dispatch, control, _alone: alone }
    }

    /// `tracing` asks only the subscriber of this thread again when there is no other.
    fn apply(&self, settings: Option<&TraceSettings>) -> Result<(), TraceError> {
        tracing::dispatcher::with_default(&self.dispatch, || self.control.apply(settings))
    }

    fn call(&self, parent: Option<&str>) -> HeaderMap {
        tracing::dispatcher::with_default(&self.dispatch, || call(parent))
    }
}

/// One call with one attempt; answers what the attempt would send to Vault.
fn call(parent: Option<&str>) -> HeaderMap {
    let mut incoming = HeaderMap::new();
    if let Some(parent) = parent {
        incoming.insert("traceparent", parent.parse().unwrap());
    }
    let span = server_span("/v2.KeyManagementService/Encrypt");
    accept_parent(&span, &incoming);
    let outgoing = span.in_scope(|| {
        let attempt = tracing::info_span!(
            "attempt",
            otel.name = "encrypt",
            otel.kind = "client",
            server.address = "vault.example"
        );
        let mut outgoing = HeaderMap::new();
        inject(&attempt, &mut outgoing);
        outgoing
    });
    record_grpc_status(&span, Code::Unavailable);
    outgoing
}

async fn a_call_arrives_whole(protocol: OtlpProtocol) {
    let receiver = Receiver::start(protocol).await;
    let traced = Traced::start().await;
    traced.apply(Some(&settings(&format!("http://{}", receiver.address), protocol))).unwrap();
    let sent = traced.call(Some(PARENT));
    traced.control.shutdown(soon()).await; // flushes: the batch's own delay is longer than this test

    let spans = receiver.inbox.spans();
    assert_eq!(spans.len(), 2, "{spans:?}");
    let named = |name: &str| spans.iter().find(|s| s.name == name).expect("no such span");
    let (server, attempt) = (named("v2.KeyManagementService/Encrypt"), named("encrypt"));
    assert_eq!(hex::encode(&server.trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(hex::encode(&server.parent_span_id), "b7ad6b7169203331");
    assert_eq!((server.kind, attempt.kind), (2, 3), "server and client");
    assert_eq!(server.status.as_ref().map(|s| s.code), Some(2), "an error");
    for (key, value) in [
        ("rpc.system", "grpc"),
        ("rpc.service", "v2.KeyManagementService"),
        ("rpc.method", "Encrypt"),
        ("rpc.grpc.status_code", "14"),
    ] {
        assert_eq!(attribute(&server.attributes, key).as_deref(), Some(value), "{key}");
    }
    assert_eq!(attempt.trace_id, server.trace_id);
    assert_eq!(attempt.parent_span_id, server.span_id);
    let address = attribute(&attempt.attributes, "server.address");
    assert_eq!(address.as_deref(), Some("vault.example"));
    let expected =
        format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", hex::encode(&attempt.span_id));
    assert_eq!(sent["traceparent"], expected);
    let resource = receiver.inbox.resource();
    let of = |key| attribute(&resource, key);
    assert_eq!(of("service.name").as_deref(), Some("vault-kms-proxy"));
    assert_eq!(of("service.version").as_deref(), Some(env!("CARGO_PKG_VERSION")));
    assert_eq!(of("service.instance.id").map(|id| id.len()), Some(32));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_and_its_attempt_arrive_over_grpc_with_the_ids_that_others_saw() {
    a_call_arrives_whole(OtlpProtocol::Grpc).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_and_its_attempt_arrive_over_http_with_the_ids_that_others_saw() {
    a_call_arrives_whole(OtlpProtocol::Http).await;
}

#[tokio::test]
async fn a_runtime_of_one_thread_can_shut_grpc_down() {
    a_call_arrives_whole(OtlpProtocol::Grpc).await;
}

#[tokio::test]
async fn a_caller_that_does_not_sample_is_obeyed_and_passed_on() {
    let receiver = Receiver::start(OtlpProtocol::Http).await;
    let traced = Traced::start().await;
    let endpoint = format!("http://{}", receiver.address);
    traced.apply(Some(&settings(&endpoint, OtlpProtocol::Http))).unwrap();
    let unsampled = PARENT.replace("-01", "-00");
    let sent = traced.call(Some(&unsampled));
    traced.control.shutdown(soon()).await;
    let sent = sent["traceparent"].to_str().unwrap();
    assert!(sent.starts_with("00-0af7651916cd43dd8448eb211c80319c-"), "{sent}");
    assert!(sent.ends_with("-00"), "{sent}");
    assert!(receiver.inbox.spans().is_empty());
}

#[tokio::test]
async fn a_traceparent_that_is_none_begins_a_new_trace() {
    let traced = Traced::start().await;
    traced.apply(Some(&settings("http://127.0.0.1:9", OtlpProtocol::Grpc))).unwrap();
    let sent = traced.call(Some("00-zz-1-01"));
    let sent = sent["traceparent"].to_str().unwrap();
    assert!(sent.len() == 55 && !sent.contains("0af7651916cd43dd"), "{sent}");
}

#[tokio::test]
async fn without_traces_no_span_is_made_and_no_header_is_sent() {
    let traced = Traced::start().await;
    tracing::dispatcher::with_default(&traced.dispatch, || {
        assert!(server_span("/v2.KeyManagementService/Status").is_disabled());
        assert!(call(Some(PARENT)).is_empty());
    });
}

#[tokio::test]
async fn traces_can_be_switched_on_moved_and_switched_off_while_the_process_runs() {
    let first = Receiver::start(OtlpProtocol::Grpc).await;
    let second = Receiver::start(OtlpProtocol::Http).await;
    let traced = Traced::start().await;
    let call = || traced.call(None);
    assert!(call().is_empty(), "off at first");

    let to_first = settings(&format!("http://{}", first.address), OtlpProtocol::Grpc);
    traced.apply(Some(&to_first)).unwrap();
    assert!(!call().is_empty());
    traced.apply(Some(&to_first)).unwrap(); // no change
    let refused = settings("https://me:hunter2@otel", OtlpProtocol::Http);
    traced.apply(Some(&refused)).unwrap_err();
    assert!(!call().is_empty(), "a refused change leaves all as it was");

    let to_second = settings(&format!("http://{}", second.address), OtlpProtocol::Http);
    traced.apply(Some(&to_second)).unwrap();
    call();
    traced.apply(None).unwrap();
    assert!(call().is_empty(), "off at last");

    let all = async {
        while first.inbox.spans().len() < 4 || second.inbox.spans().len() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), all).await.expect("spans were left behind");
    assert_eq!((first.inbox.spans().len(), second.inbox.spans().len()), (4, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_never_answers_holds_nobody_up_and_what_is_lost_is_counted() {
    let text = metrics::install().unwrap();
    // The kernel accepts for it; it never reads.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    for protocol in [OtlpProtocol::Grpc, OtlpProtocol::Http] {
        let traced = Traced::start().await;
        traced.apply(Some(&settings(&endpoint, protocol))).unwrap();
        let begin = tokio::time::Instant::now();
        for _ in 0..2_000 {
            traced.call(None);
        }
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
        let shutdown = traced.control.shutdown(Deadline::after(Duration::from_millis(200)));
        tokio::time::timeout(Duration::from_secs(3), shutdown).await.expect("it must end");
    }
    let text = text.render().unwrap();
    let lost = text
        .lines()
        .find_map(|l| l.strip_prefix("vault_kms_proxy_spans_lost_total{reason=\"queue_full\"} "));
    let lost: u32 = lost.expect("it must be counted").parse().unwrap();
    assert!(lost >= 2 * (4_000 - 2_048), "{lost}");
}

/// Runs [`a_process_of_its_own`] with these variables and answers its stderr.
async fn child(variables: &[(&str, &str)]) -> String {
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "telemetry::traces::tests::a_process_of_its_own", "--nocapture"])
        .envs(variables.iter().copied())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(30), run).await.unwrap().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    stderr
}

/// Does nothing as a test; as a child of one, it is a process that installs telemetry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_of_its_own() {
    let Ok(endpoint) = std::env::var("TEST_OTLP_ENDPOINT") else { return };
    let grpc = std::env::var("TEST_OTLP_PROTOCOL").unwrap() == "grpc";
    let protocol = if grpc { OtlpProtocol::Grpc } else { OtlpProtocol::Http };
    let log = LogSettings { filter: "debug".to_owned(), format: LogFormat::Text };
    let traces = settings(&endpoint, protocol);
    let telemetry = crate::telemetry::install(&log, None).unwrap();
    let again = crate::telemetry::install(&log, Some(&traces)).unwrap();
    server_span("/v2.KeyManagementService/Status").in_scope(|| tracing::info!("Inside."));
    let batches: usize = std::env::var("TEST_BATCHES").map_or(0, |n| n.parse().unwrap());
    for _ in 0..batches {
        call(None);
        let _ = telemetry.traces.running().as_ref().unwrap().provider.force_flush();
    }
    if let Ok(quoted) = std::env::var("TEST_PANIC_QUOTES") {
        crate::telemetry::log_panics();
        let _ = std::panic::catch_unwind(|| panic!("a bug without words of others"));
        let _ = std::panic::catch_unwind(|| panic!("a bug with {quoted}"));
    }
    tracing::info!("The end.");
    drop(telemetry);
    again.shutdown(soon()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_arrive_over_tls_that_the_systems_certificates_vouch_for() {
    let certificate = Certificate::make();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &certificate.cert).unwrap();
    let trusted = file.path().to_str().unwrap();
    let grpc = Receiver::grpc(Some(&certificate)).await;
    let https = Receiver::https(&certificate);
    for (receiver, protocol) in [(&grpc, "grpc"), (&https, "http")] {
        let endpoint = format!("https://{}", receiver.address);
        let stderr = child(&[
            ("SSL_CERT_FILE", trusted),
            ("TEST_OTLP_ENDPOINT", &endpoint),
            ("TEST_OTLP_PROTOCOL", protocol),
        ])
        .await;
        let spans = receiver.inbox.spans();
        assert_eq!(spans.len(), 1, "{protocol}: {stderr}");
        let inside = stderr.lines().find(|l| l.contains("Inside.")).unwrap();
        let trace = hex::encode(&spans[0].trace_id);
        assert!(inside.contains(&format!("trace_id={trace} span_id=")), "{inside}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_whose_certificate_nobody_vouches_for_gets_nothing() {
    let receiver = Receiver::grpc(Some(&Certificate::make())).await;
    let endpoint = format!("https://{}", receiver.address);
    let stderr = child(&[("TEST_OTLP_ENDPOINT", &endpoint), ("TEST_OTLP_PROTOCOL", "grpc")]).await;
    assert!(stderr.contains("Traces cannot be exported"), "{stderr}");
    assert!(receiver.inbox.spans().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_is_logged_with_its_place_and_without_what_it_quotes() {
    let receiver = Receiver::grpc(None).await;
    let endpoint = format!("http://{}", receiver.address);
    let stderr = child(&[
        ("TEST_OTLP_ENDPOINT", &endpoint),
        ("TEST_OTLP_PROTOCOL", "grpc"),
        ("TEST_PANIC_QUOTES", "the-seed"),
    ])
    .await;
    let told: Vec<&str> = stderr.lines().filter(|line| line.contains("A panic.")).collect();
    assert_eq!(told.len(), 2, "{stderr}");
    assert!(told.iter().all(|line| line.contains("traces/tests.rs:")), "{stderr}");
    assert!(told[0].contains("a bug without words of others"), "{stderr}");
    assert!(!stderr.contains("the-seed"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_receiver_is_told_once_however_many_batches_fail() {
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", dead.local_addr().unwrap());
    drop(dead);
    for protocol in ["grpc", "http"] {
        let stderr = child(&[
            ("TEST_OTLP_ENDPOINT", &endpoint),
            ("TEST_OTLP_PROTOCOL", protocol),
            ("TEST_BATCHES", "2"),
        ])
        .await;
        let told = stderr.lines().filter(|l| l.contains("Traces cannot be exported")).count();
        assert_eq!(told, 1, "{stderr}");
        assert!(stderr.contains("The end."), "the last line was not flushed: {stderr}");
        assert!(stderr.lines().count() < 8, "a flood: {stderr}");
    }
}
