//! A fake Vault, for the answers that a real one cannot be made to give.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::http_server::{Hangup, HttpServer};
use crate::tls::Authority;
use crate::{Result, eventually};

/// A scripted HTTP server. **Not a Vault**: it knows nothing, and answers what a test told
/// it to. It records what it gets.
#[derive(Debug)]
pub struct FakeVault {
    server: HttpServer,
    scheme: &'static str,
    state: Arc<Mutex<State>>,
}

/// One scripted answer.
#[derive(Debug, Clone)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Bytes,
    delay: Duration,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Answer,
    Hang,
    HangUp,
}

/// One request that came in.
#[derive(Debug, Clone)]
pub struct Received {
    /// `POST /v1/transit/encrypt/kube`.
    pub line: String,
    /// Its headers.
    pub headers: http::HeaderMap,
    /// Its body.
    pub body: Bytes,
}

#[derive(Debug, Default)]
struct State {
    scripts: Vec<Script>,
    received: Vec<Received>,
}

#[derive(Debug)]
struct Script {
    path: String,
    answers: VecDeque<Answer>,
}

// === impl FakeVault ===

impl FakeVault {
    /// Starts one without TLS. Until told otherwise it answers `sys/health` as an active
    /// node does, and 404 to all else.
    pub async fn start() -> Result<Self> {
        Self::serve("http", None).await
    }

    /// Starts one with a certificate for 127.0.0.1 of this authority.
    pub async fn start_tls(authority: &Authority) -> Result<Self> {
        Self::start_with(&authority.server()?).await
    }

    /// Starts one with any certificate.
    pub async fn start_with(identity: &crate::Identity) -> Result<Self> {
        Self::serve("https", Some(identity.server_config()?)).await
    }

    async fn serve(scheme: &'static str, tls: Option<rustls::ServerConfig>) -> Result<Self> {
        let state = Arc::new(Mutex::new(State::default()));
        let seen = Arc::clone(&state);
        let server =
            HttpServer::start(tls, move |request| answer(Arc::clone(&seen), request)).await?;
        let fake = Self { server, scheme, state };
        let health = json!({ "initialized": true, "sealed": false, "standby": false });
        fake.on("sys/health", Answer::json(200, health));
        Ok(fake)
    }

    /// Its base URL.
    pub fn address(&self) -> String {
        format!("{}://{}", self.scheme, self.server.address())
    }

    /// Answers so from now on to every request whose path (after `/v1/`) starts so. The
    /// script set last wins.
    pub fn on(&self, path: &str, answer: Answer) {
        self.script(path, [answer]);
    }

    /// Answers with these in turn; the last one stays.
    pub fn script(&self, path: &str, answers: impl IntoIterator<Item = Answer>) {
        let script = Script { path: path.to_owned(), answers: answers.into_iter().collect() };
        lock(&self.state).scripts.insert(0, script);
    }

    /// What came in so far, in order.
    pub fn received(&self) -> Vec<Received> {
        lock(&self.state).received.clone()
    }

    /// What came in for a path (after `/v1/`) that starts so.
    pub fn received_at(&self, path: &str) -> Vec<Received> {
        self.received().into_iter().filter(|request| request.path().starts_with(path)).collect()
    }

    /// Waits until so many requests came in for a path that starts so.
    pub async fn wait_received(&self, path: &str, count: usize, within: Duration) -> Result {
        eventually(&format!("{count} requests for {path}"), within, || async {
            Ok((self.received_at(path).len() >= count).then_some(()))
        })
        .await
    }
}

async fn answer(
    state: Arc<Mutex<State>>,
    request: Request<Bytes>,
) -> Result<Response<Full<Bytes>>, Hangup> {
    let answer = {
        let mut state = lock(&state);
        let line = format!("{} {}", request.method(), request.uri().path());
        let (head, body) = request.into_parts();
        let received = Received { line, headers: head.headers, body };
        let path = received.path().to_owned();
        state.received.push(received);
        let script = state.scripts.iter_mut().find(|script| path.starts_with(&script.path));
        script.and_then(|script| {
            if script.answers.len() > 1 {
                script.answers.pop_front()
            } else {
                script.answers.front().cloned()
            }
        })
    };
    let answer = answer.unwrap_or_else(|| Answer::json(404, json!({ "errors": [] })));
    tokio::time::sleep(answer.delay).await;
    match answer.end {
        End::Answer => {}
        End::Hang => std::future::pending().await,
        End::HangUp => return Err(Hangup),
    }
    let mut response = Response::builder().status(answer.status);
    for (name, value) in &answer.headers {
        response = response.header(name, value);
    }
    response.body(Full::new(answer.body)).map_err(|_| Hangup)
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Answer ===

impl Answer {
    /// A status and a JSON body.
    pub fn json(status: u16, body: Value) -> Self {
        Self::raw(status, body.to_string()).header("Content-Type", "application/json")
    }

    /// A status and `{"errors": [...]}`.
    pub fn errors(status: u16, errors: &[&str]) -> Self {
        Self::json(status, json!({ "errors": errors }))
    }

    /// A status and any body.
    pub fn raw(status: u16, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        Self { status, headers: Vec::new(), body, delay: Duration::ZERO, end: End::Answer }
    }

    /// No answer, ever; the connection stays open.
    pub fn hang() -> Self {
        Self { end: End::Hang, ..Self::raw(200, "") }
    }

    /// The connection is broken instead of an answer.
    pub fn hang_up() -> Self {
        Self { end: End::HangUp, ..Self::raw(200, "") }
    }

    /// With a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// After a delay.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

// === impl Received ===

impl Received {
    /// What follows `/v1/`.
    pub fn path(&self) -> &str {
        let path = self.line.split_once(' ').map_or("", |(_, path)| path);
        path.strip_prefix("/v1/").unwrap_or(path)
    }

    /// The body as JSON; `Null` when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}
