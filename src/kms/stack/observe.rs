//! The server span and the metrics of every call.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{HeaderMap, Request, Response};
use opentelemetry::KeyValue;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tonic::Code;
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Span;

use crate::telemetry::metrics::{self, Metric};
use crate::telemetry::traces;

/// Opens the server span of each call and measures it.
#[derive(Clone, Copy, Debug)]
pub struct ObserveLayer;

/// See [`ObserveLayer`].
#[derive(Clone, Debug)]
pub struct Observed<S> {
    inner: S,
}

pin_project! {
    /// A call in its span.
    #[derive(Debug)]
    pub struct ObservedFuture<F> {
        #[pin]
        call: F,
        observation: Observation,
    }
}

/// What is known of a call; counted when it ends, or when it is dropped because the caller
/// went away.
#[derive(Debug)]
struct Observation {
    span: Span,
    rpc: Rpc,
    start: Instant,
    code: Option<Code>,
}

/// Which RPC a path names. Unknown ones share a name, so that a peer cannot make metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rpc {
    api: &'static str,
    method: &'static str,
}

// === impl ObserveLayer ===

impl<S> Layer<S> for ObserveLayer {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Observed { inner }
    }
}

// === impl Observed ===

impl<S, B> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = ObservedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let observation = Observation::begin(&request);
        let _entered = observation.span.clone().entered();
        ObservedFuture { call: self.inner.call(request), observation }
    }
}

// === impl ObservedFuture ===

impl<F, B, E> Future for ObservedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let _entered = this.observation.span.enter();
        let answer = ready!(this.call.poll(cx));
        // A unary answer without a status in its headers ends well; its trailers say so.
        this.observation.code =
            Some(answer.as_ref().map_or(Code::Unknown, |a| grpc_status(a.headers())));
        Poll::Ready(answer)
    }
}

fn grpc_status(headers: &HeaderMap) -> Code {
    headers.get("grpc-status").map_or(Code::Ok, |value| Code::from_bytes(value.as_bytes()))
}

// === impl Observation ===

impl Observation {
    fn begin(request: &Request<Body>) -> Self {
        let rpc = Rpc::of(request.uri().path());
        let span = traces::server_span(request.uri().path());
        traces::accept_parent(&span, request.headers());
        metrics::add(Metric::CallsInFlight, 1, &[KeyValue::new("api", rpc.api)]);
        Self { span, rpc, start: Instant::now(), code: None }
    }
}

impl Drop for Observation {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled);
        traces::record_grpc_status(&self.span, code);
        metrics::add(Metric::CallsInFlight, -1, &[KeyValue::new("api", self.rpc.api)]);
        metrics::record(
            Metric::CallDuration,
            self.start.elapsed().as_secs_f64(),
            &[
                KeyValue::new("api", self.rpc.api),
                KeyValue::new("rpc.method", self.rpc.method),
                KeyValue::new("rpc.grpc.status_code", i64::from(code as i32)),
            ],
        );
    }
}

// === impl Rpc ===

impl Rpc {
    fn of(path: &str) -> Self {
        let (api, method) = match path {
            "/v1beta1.KeyManagementService/Version" => ("v1", "Version"),
            "/v1beta1.KeyManagementService/Encrypt" => ("v1", "Encrypt"),
            "/v1beta1.KeyManagementService/Decrypt" => ("v1", "Decrypt"),
            "/v2.KeyManagementService/Status" => ("v2", "Status"),
            "/v2.KeyManagementService/Encrypt" => ("v2", "Encrypt"),
            "/v2.KeyManagementService/Decrypt" => ("v2", "Decrypt"),
            _ => ("unknown", "unknown"),
        };
        Self { api, method }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_no_service_has_makes_no_new_metric() {
        let known = Rpc::of("/v2.KeyManagementService/Encrypt");
        assert_eq!((known.api, known.method), ("v2", "Encrypt"));
        assert_eq!(Rpc::of("/v2.KeyManagementService/Anything"), Rpc::of("/"));
    }

    #[test]
    fn the_code_of_an_answer_is_in_its_headers_or_is_ok() {
        let mut headers = HeaderMap::new();
        assert_eq!(grpc_status(&headers), Code::Ok);
        headers.insert("grpc-status", "14".parse().unwrap());
        assert_eq!(grpc_status(&headers), Code::Unavailable);
    }
}
