//! The span of a call, and how it and the spans of its attempts join other programs' traces.
//! Names and attributes follow OpenTelemetry's conventions for RPC and HTTP.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::{Context, global};
use tracing::Span;
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// A longer method name was made up by the peer; spans do not carry it whole.
const LONGEST_PATH: usize = 128;

/// The span of one gRPC call, from its path such as `/v2.KeyManagementService/Encrypt`.
///
/// Call [`accept_parent`] before it is first entered and [`record_grpc_status`] at its end.
pub fn server_span(path: &str) -> Span {
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.get(..LONGEST_PATH).unwrap_or(path);
    let (service, method) = path.split_once('/').unwrap_or(("", path));
    tracing::info_span!(
        "rpc",
        otel.name = path,
        otel.kind = "server",
        otel.status_code = Empty,
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = method,
        rpc.grpc.status_code = Empty,
    )
}

/// Writes how the call ended. Codes that blame the server mark the span as failed; the
/// caller's own mistakes do not.
pub fn record_grpc_status(span: &Span, code: tonic::Code) {
    use tonic::Code;
    span.record("rpc.grpc.status_code", code as i32);
    if matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    ) {
        span.record("otel.status_code", "ERROR");
    }
}

/// Makes `span`, not yet entered, a child of the one that the peer's `traceparent` names.
/// Does nothing without such a header, or while traces are off.
pub fn accept_parent(span: &Span, headers: &HeaderMap) {
    if span.is_disabled() || !headers.contains_key("traceparent") {
        return;
    }
    let parent = global::get_text_map_propagator(|propagator| {
        propagator.extract_with_context(&Context::new(), &Headers(headers))
    });
    // The one error that can come here is a span that began already: it keeps its parent.
    let _ = span.set_parent(parent);
}

/// Names `span` to the next program in `traceparent`. Does nothing while traces are off.
pub fn inject(span: &Span, headers: &mut HeaderMap) {
    if span.is_disabled() {
        return;
    }
    let context = span.context();
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut HeadersMut(headers));
    });
}

struct Headers<'a>(&'a HeaderMap);
struct HeadersMut<'a>(&'a mut HeaderMap);

// === impl Headers ===

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

// === impl HeadersMut ===

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}
