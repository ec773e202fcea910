//! One request to one address over a pooled connection; the innermost service.
//!
//! hyper-util's client has its own hidden repeats switched off: a repeat is a decision of
//! the layers above, which know the budget. The one exception is made here and is not
//! hidden: a connection from the pool that the server had closed already is no fault of
//! the address, so the request goes out again on another one.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use secrecy::ExposeSecret as _;
use tower::Service;
use tracing::Span;
use zeroize::Zeroizing;

use super::address::Address;
use super::error::{AttemptError, Fault};
use super::index::{FORWARD, X_VAULT_INCONSISTENT, X_VAULT_INDEX};
use super::operation::{Answer, Attempt, Operation};
use super::tls::{LoadedTls, TlsSnapshot};
use crate::telemetry::traces;
use dial::{Dial, Served, Within};
use failure::Failure;
pub(crate) use failure::{explain_io, find, innermost};

mod dial;
mod failure;

/// No answer that this daemon asks for comes near it: a full batch of decrypts is about
/// 100 KiB. It bounds what a broken or hostile server can make us hold.
pub const MAX_ANSWER: usize = 8 << 20;

/// Vault refuses bodies above 32 MiB by default; ours are bounded far below by the
/// listener's message size and by the batch ceiling.
pub const MAX_REQUEST: usize = 8 << 20;

/// Idle connections kept per address. Two batches are in flight at most per key and verb;
/// what a storm opens above this is closed again after it.
const MAX_IDLE: usize = 16;

/// Vault closes idle connections after 5 minutes by default, load balancers often after
/// 60 s; below both, so that a pooled connection is seldom a closed one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

/// How long a connection may take to be made, TLS included. It survives one lost packet
/// (sent again after a second). What did not connect was not sent, so that even a login,
/// whose deadline is longer, can go on to the next address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How often a request may meet a closed pooled connection before that is a fault. After
/// a server's restart each idle connection can be one.
const MAX_CLOSED_CONNECTIONS: usize = MAX_IDLE;

/// HTTP/1.1 only. On OpenBao HTTP/2 had lower tails for single calls and was 14 to 31 %
/// slower for batches, and one stalled HTTP/2 connection stalls all its calls. With it,
/// a timed-out connection must be poisoned.
const OFFER_HTTP2: bool = false;

/// Headers of a request, with those that hyper adds.
const MOST_HEADERS: usize = 8;

const X_VAULT_REQUEST: HeaderName = HeaderName::from_static("x-vault-request");
const X_VAULT_TOKEN: HeaderName = HeaderName::from_static("x-vault-token");
const X_VAULT_NAMESPACE: HeaderName = HeaderName::from_static("x-vault-namespace");

type Pool = Client<Within<HttpsConnector<Dial>>, Full<Bytes>>;

/// Sends attempts to one address. Clones share the connections.
#[derive(Clone)]
pub struct Http {
    address: Address,
    tls: LoadedTls,
    /// The `Host` header; hyper would write it anew for each request.
    host: Option<HeaderValue>,
    connections: Arc<ArcSwap<Connections>>,
}

/// Pooled connections, and the TLS that made them.
struct Connections {
    tls: Arc<TlsSnapshot>,
    client: Pool,
}

/// Lends an operation's body to hyper without a copy; it is wiped with the operation.
struct BodyOf(Arc<Operation>);

// === impl Http ===

impl Http {
    /// A client for `address`. Nothing is dialled before the first attempt.
    pub fn new(address: Address, tls: &LoadedTls) -> Self {
        let connections = Connections::new(&address, tls.snapshot());
        let connections = Arc::new(ArcSwap::from_pointee(connections));
        Self { host: host(&address.url), address, tls: tls.clone(), connections }
    }

    /// The client over the TLS that holds now. After a change of its files, requests in
    /// flight end on the connections that they have, and idle ones are closed: they show a
    /// certificate that is not ours any more, or trust an authority that is no longer to be.
    fn client(&self) -> Pool {
        let tls = self.tls.snapshot();
        let held = self.connections.load();
        if Arc::ptr_eq(&held.tls, &tls) {
            return held.client.clone();
        }
        let fresh = Connections::new(&self.address, tls);
        let client = fresh.client.clone();
        self.connections.store(Arc::new(fresh));
        client
    }

    /// One request and its whole answer, within the call's deadline.
    async fn send(self, attempt: Attempt) -> Result<Answer, AttemptError> {
        let exchange = self.exchange(&attempt);
        let outcome = match tokio::time::timeout_at(attempt.call.deadline.instant(), exchange).await
        {
            Ok(outcome) => outcome,
            Err(_) => Err(Fault::Deadline),
        };
        outcome.map_err(|fault| AttemptError {
            address: self.address.name.clone(),
            index: self.address.index,
            fault,
        })
    }

    async fn exchange(&self, attempt: &Attempt) -> Result<Answer, Fault> {
        let call = &attempt.call;
        let mut closed = 0;
        loop {
            let request = self.request(attempt)?;
            match self.exchange_once(request).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => {
                    // Nothing was answered on it, but the bytes may have gone out. Once that
                    // is an idle connection's end; twice, the server breaks off.
                    let may_repeat = failure.pooled_connection_was_closed
                        && if failure.fault.may_have_been_served() {
                            call.operation.repeatable() && closed == 0
                        } else {
                            closed < MAX_CLOSED_CONNECTIONS
                        };
                    if !may_repeat {
                        return Err(failure.fault);
                    }
                    closed += 1;
                    tracing::debug!(
                        server.address = %self.address.name,
                        "A pooled connection was closed already; the request goes out on another.",
                    );
                }
            }
        }
    }

    async fn exchange_once(&self, request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
        let response = self.client().request(request).await.map_err(Failure::of_client)?;
        if let Some(served) = response.extensions().get::<Served>() {
            served.mark();
        }
        let (head, body) = response.into_parts();
        let body = collect(&head.headers, body).await?;
        let address = self.address.name.clone();
        Ok(Answer { status: head.status, headers: head.headers, body, address })
    }

    fn request(&self, attempt: &Attempt) -> Result<Request<Full<Bytes>>, Fault> {
        let call = &attempt.call;
        let operation = &call.operation;
        let unsendable = Fault::Unsendable("its path is not a valid one");
        let Ok(path) = PathAndQuery::try_from(operation.path.as_str()) else {
            return Err(unsendable);
        };
        // Scheme and authority were parsed with the configuration; only the path is new.
        let mut parts = self.address.url.clone().into_parts();
        parts.scheme.get_or_insert(Scheme::HTTPS);
        parts.path_and_query = Some(path);
        let Ok(uri) = Uri::from_parts(parts) else { return Err(unsendable) };
        let body = match &operation.body {
            None => Bytes::new(),
            Some(bytes) if bytes.len() > MAX_REQUEST => {
                return Err(Fault::Unsendable("its body is over 8 MiB"));
            }
            Some(_) => Bytes::from_owner(BodyOf(Arc::clone(operation))),
        };

        let mut request = Request::new(Full::new(body));
        *request.method_mut() = operation.method.clone();
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.reserve(MOST_HEADERS);
        if let Some(host) = &self.host {
            headers.insert(HOST, host.clone());
        }
        headers.insert(X_VAULT_REQUEST, HeaderValue::from_static("true"));
        if operation.body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(token) = &call.token {
            let mut value = HeaderValue::from_str(token.expose_secret()).map_err(|_| {
                Fault::Unsendable("the token has a character that no HTTP header may carry")
            })?;
            value.set_sensitive(true);
            headers.insert(X_VAULT_TOKEN, value);
        }
        if let Some(namespace) = &operation.namespace {
            let value = HeaderValue::from_str(namespace).map_err(|_| {
                Fault::Unsendable("the namespace has a character that no HTTP header may carry")
            })?;
            headers.insert(X_VAULT_NAMESPACE, value);
        }
        if let Some(index) = &attempt.index {
            headers.insert(X_VAULT_INDEX, index.clone());
            headers.insert(X_VAULT_INCONSISTENT, FORWARD);
        }
        traces::inject(&Span::current(), headers);
        Ok(request)
    }
}

impl Service<Attempt> for Http {
    type Response = Answer;
    type Error = AttemptError;
    type Future = BoxFuture<'static, Result<Answer, AttemptError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), AttemptError>> {
        Poll::Ready(Ok(())) // connections are made as they are needed
    }

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        self.clone().send(attempt).boxed()
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http").field("address", &self.address.name).finish_non_exhaustive()
    }
}

// === impl Connections ===

impl Connections {
    fn new(address: &Address, tls: Arc<TlsSnapshot>) -> Self {
        let https_only = address.url.scheme_str() != Some("http");
        let mut config = tls.config();
        if OFFER_HTTP2 {
            Arc::make_mut(&mut config).alpn_protocols = vec![b"h2".into(), b"http/1.1".into()];
        }
        let connector = HttpsConnector::new(
            Dial::new(address.peer, CONNECT_TIMEOUT),
            config,
            https_only,
            tls.server_name_resolver(),
        );
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(MAX_IDLE)
            .retry_canceled_requests(false)
            .build(Within::new(CONNECT_TIMEOUT, connector));
        Self { tls, client }
    }
}

/// Host and port as `Host` has them: without the port that the scheme stands for.
fn host(url: &Uri) -> Option<HeaderValue> {
    let host = url.host()?;
    let usual = if url.scheme() == Some(&Scheme::HTTP) { 80 } else { 443 };
    match url.port_u16().filter(|port| *port != usual) {
        Some(port) => HeaderValue::try_from(format!("{host}:{port}")).ok(),
        None => HeaderValue::from_str(host).ok(),
    }
}

/// Takes the body in, up to [`MAX_ANSWER`], into one buffer that is wiped when dropped.
async fn collect(headers: &HeaderMap, mut body: Incoming) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let too_large = || Fault::Broken(format!("its body is over {} MiB", MAX_ANSWER >> 20));
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<usize>().ok())
        .unwrap_or(0);
    if announced > MAX_ANSWER || body.size_hint().lower() > MAX_ANSWER as u64 {
        return Err(Failure::fresh(too_large()));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(announced));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Failure::of_body(&e))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > MAX_ANSWER {
            return Err(Failure::fresh(too_large()));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

// === impl BodyOf ===

impl AsRef<[u8]> for BodyOf {
    fn as_ref(&self) -> &[u8] {
        self.0.body.as_ref().map_or(&[], |b| b.as_slice())
    }
}

#[cfg(test)]
mod tests;
