//! A real receiver of traces: OTLP over gRPC, or over HTTP with protobuf bodies.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use prost::Message;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;

use crate::http_server::{Hangup, HttpServer};
use crate::{Error, Result, eventually};

/// Collects spans. Ends when dropped.
#[derive(Debug)]
pub struct Receiver {
    endpoint: String,
    spans: Spans,
    _server: Server,
}

/// One span, with its values as text.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// The trace, in hex.
    pub trace_id: String,
    /// The span, in hex.
    pub span_id: String,
    /// Its parent, in hex; empty for a root.
    pub parent_id: String,
    /// Its name.
    pub name: String,
    /// 1 internal, 2 server, 3 client.
    pub kind: i32,
    /// Its attributes.
    pub attributes: BTreeMap<String, String>,
    /// The attributes of what sent it, such as `service.name`.
    pub resource: BTreeMap<String, String>,
    /// The names of its events.
    pub events: Vec<String>,
    /// The ids of the spans that it is linked to.
    pub links: Vec<String>,
    /// 0 unset, 1 ok, 2 error.
    pub status: i32,
    /// What the status says.
    pub status_message: String,
    /// From its start to its end.
    pub duration: Duration,
}

#[derive(Debug, Clone, Default)]
struct Spans(Arc<Mutex<Vec<Span>>>);

#[derive(Debug)]
#[allow(dead_code, reason = "held for what dropping them does")]
enum Server {
    Grpc(JoinSet<()>),
    Http(HttpServer),
}

// === impl Receiver ===

impl Receiver {
    /// Listens for OTLP over gRPC.
    pub async fn grpc() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let spans = Spans::default();
        let service = TraceServiceServer::new(spans.clone());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let server = tonic::transport::Server::builder().add_service(service);
            let _ = server.serve_with_incoming(TcpListenerStream::new(listener)).await;
        });
        Ok(Self { endpoint, spans, _server: Server::Grpc(task) })
    }

    /// Listens for OTLP over HTTP, at `/v1/traces`.
    pub async fn http() -> Result<Self> {
        let spans = Spans::default();
        let seen = spans.clone();
        let server = HttpServer::start(None, move |request| receive(seen.clone(), request)).await?;
        let endpoint = format!("http://{}", server.address());
        Ok(Self { endpoint, spans, _server: Server::Http(server) })
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` is set to.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.all()
    }

    /// The spans of one trace.
    pub fn trace(&self, trace_id: &str) -> Vec<Span> {
        self.spans().into_iter().filter(|span| span.trace_id == trace_id).collect()
    }

    /// Waits for a span for which `is_it` holds.
    pub async fn wait_for(&self, within: Duration, is_it: impl Fn(&Span) -> bool) -> Result<Span> {
        let found = eventually("the receiver has such a span", within, || async {
            Ok(self.spans().into_iter().find(&is_it))
        });
        found.await.map_err(|error| {
            let names: Vec<String> = self.spans().into_iter().map(|span| span.name).collect();
            Error::new(format!("{error}; it has {names:?}"))
        })
    }
}

async fn receive(spans: Spans, request: Request<Bytes>) -> Result<Response<Full<Bytes>>, Hangup> {
    let decoded = ExportTraceServiceRequest::decode(request.body().clone());
    let status = match (request.uri().path(), decoded) {
        ("/v1/traces", Ok(export)) => {
            spans.add(export);
            200
        }
        ("/v1/traces", Err(_)) => 400,
        _ => 404,
    };
    let body = ExportTraceServiceResponse::default().encode_to_vec();
    let response = Response::builder().status(status);
    let response = response.header("Content-Type", "application/x-protobuf");
    response.body(Full::new(body.into())).map_err(|_| Hangup)
}

// === impl Spans ===

impl Spans {
    fn all(&self) -> Vec<Span> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn add(&self, export: ExportTraceServiceRequest) {
        let mut spans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for group in export.resource_spans {
            let resource = texts(&group.resource.map(|r| r.attributes).unwrap_or_default());
            for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                let status = span.status.unwrap_or_default();
                let nanos = span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano);
                spans.push(Span {
                    trace_id: hex(&span.trace_id),
                    span_id: hex(&span.span_id),
                    parent_id: hex(&span.parent_span_id),
                    name: span.name,
                    kind: span.kind,
                    attributes: texts(&span.attributes),
                    resource: resource.clone(),
                    events: span.events.into_iter().map(|event| event.name).collect(),
                    links: span.links.iter().map(|link| hex(&link.span_id)).collect(),
                    status: status.code,
                    status_message: status.message,
                    duration: Duration::from_nanos(nanos),
                });
            }
        }
    }
}

#[tonic::async_trait]
impl TraceService for Spans {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.add(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

// === impl Span ===

impl Span {
    /// An attribute, or nothing.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    attributes.iter().map(|pair| (pair.key.clone(), text(pair.value.as_ref()))).collect()
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        None => String::new(),
        Some(Any::StringValue(text)) => text.clone(),
        Some(Any::BoolValue(value)) => value.to_string(),
        Some(Any::IntValue(value)) => value.to_string(),
        Some(Any::DoubleValue(value)) => value.to_string(),
        Some(Any::BytesValue(bytes)) => hex(bytes),
        Some(other) => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
