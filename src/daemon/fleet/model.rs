//! A Vault cluster of three nodes, as far as a fleet of daemons can tell it from a real one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, StatusCode};
use secrecy::ExposeSecret as _;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::cluster::address::Address;
use crate::cluster::operation::{AddressIndex, AddressName, Attempt};
use crate::cluster::{Answer, AttemptError, Call, Fault, Verb};

/// So many requests a second a node does, for each daemon of the fleet.
const CAPACITY: u32 = 2;

/// For so long after an outage a node does half of that: its caches are cold.
const COLD: Duration = Duration::from_secs(5);

/// The way there and back.
const LATENCY: Duration = Duration::from_millis(2);

/// The life of a token: each one is due for renewal in the outage, and outlives it.
const TOKEN_TTL: Duration = Duration::from_secs(100);

const LEADERLESS: &str =
    r#"{"errors":["local node not active but active cluster node not found"]}"#;

const KEY: &str = r#"{"data":{"keys":{"1":1700000000},"latest_version":1,
    "min_decryption_version":1,"min_encryption_version":0,"type":"aes256-gcm96"}}"#;

/// What kube-apiserver has decrypted, which no canary is.
pub(super) const OF_A_CALL: &str =
    r#"{"ciphertext":"vault:v1:AAAAAAAAAAAAAAAAcGluZwAAAAAAAAAAAAAAAAAAAAA="}"#;

/// Requests are counted in slots of this many milliseconds.
pub(super) const SLOT: usize = 100;

/// Requests within a slot, by [`Kind`].
pub(super) type Slot = [usize; 6];

/// What the cluster is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// All is well.
    Calm,
    /// The leader is dead; standbys serve by themselves what needs no write.
    LeaderLost,
    /// The leader is dead, and standbys would forward everything to it.
    NobodyServes,
    /// No node accepts a connection.
    Down,
}

/// When what begins, from the fleet's start on.
pub(super) type Course = &'static [(u64, Phase)];

/// What a request is, for the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// For kube-apiserver.
    Call,
    /// The daemon's own proof that the key works.
    Canary,
    Read,
    Login,
    Renewal,
    Probe,
}

/// The cluster.
pub(super) struct Model {
    began: Instant,
    course: Course,
    /// How long a node works on a request.
    work: Duration,
    state: Mutex<State>,
}

struct State {
    /// When each node is free again.
    free_at: [Instant; 3],
    /// Who holds which token, and until when.
    tokens: HashMap<String, Instant>,
    logins: u64,
    requests: Vec<Slot>,
}

/// The way from one daemon to one node.
#[derive(Clone)]
pub(super) struct Node {
    model: Arc<Model>,
    index: AddressIndex,
    name: AddressName,
}

// === impl Model ===

impl Model {
    pub(super) fn new(course: Course, daemons: u32) -> Arc<Self> {
        let work = Duration::from_secs(1) / (CAPACITY * daemons);
        let began = Instant::now();
        let state =
            State { free_at: [began; 3], tokens: HashMap::new(), logins: 0, requests: Vec::new() };
        Arc::new(Self { began, course, work, state: Mutex::new(state) })
    }

    pub(super) fn node(self: &Arc<Self>, address: &Address) -> Node {
        Node { model: Arc::clone(self), index: address.index, name: address.name.clone() }
    }

    /// Time since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn phase_at(course: Course, at: Duration) -> Phase {
        let past = course.iter().take_while(|(from, _)| Duration::from_secs(*from) <= at);
        past.last().map_or(Phase::Calm, |(_, phase)| *phase)
    }

    /// How many requests of which kind came in each slot.
    pub(super) fn requests(&self) -> Vec<Slot> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    /// How long `node` takes for `call`, and what comes of it.
    fn serve(&self, node: AddressIndex, call: &Call) -> (Duration, Result<(u16, String), Fault>) {
        let at = self.elapsed();
        let phase = Self::phase_at(self.course, at);
        let verb = call.operation.verb;
        let kind = match verb {
            Verb::ReadKey => Kind::Read,
            Verb::Login => Kind::Login,
            Verb::RenewSelf | Verb::LookupSelf => Kind::Renewal,
            Verb::Health => Kind::Probe,
            _ if call
                .operation
                .body
                .as_ref()
                .is_some_and(|b| b.as_slice() == OF_A_CALL.as_bytes()) =>
            {
                Kind::Call
            }
            _ => Kind::Canary,
        };
        let mut state = self.state.lock().unwrap();
        let slot = usize::try_from(at.as_millis()).unwrap() / SLOT;
        if state.requests.len() <= slot {
            state.requests.resize(slot + 1, Slot::default());
        }
        state.requests[slot][kind as usize] += 1;
        // The leader dies; another one leads after that.
        let events = self.course.iter().filter(|(from, phase)| {
            Duration::from_secs(*from) <= at && !matches!(phase, Phase::Calm)
        });
        let leader = u8::try_from(events.count() % 3).unwrap();
        let is_dead = phase == Phase::Down
            || matches!(phase, Phase::LeaderLost | Phase::NobodyServes)
                && node.0 == (leader + 2) % 3;
        if is_dead {
            return (Duration::ZERO, Err(Fault::Unreachable("connection refused".into())));
        }
        let needs_leader = matches!(verb, Verb::Login | Verb::RenewSelf);
        let has_no_answer = match phase {
            Phase::LeaderLost => needs_leader,
            Phase::NobodyServes => verb != Verb::Health,
            Phase::Calm | Phase::Down => false,
        };
        let is_cold = at.checked_sub(COLD).is_some_and(|before| {
            phase == Phase::Calm && Self::phase_at(self.course, before) == Phase::Down
        });
        let work = self.work * if is_cold { 2 } else { 1 };
        let now = Instant::now();
        let free_at = &mut state.free_at[usize::from(node.0)];
        *free_at = (*free_at).max(now) + work;
        let took = *free_at - now + LATENCY;
        let answer = if has_no_answer {
            (500, LEADERLESS.to_owned())
        } else {
            state.answer(call, phase == Phase::Calm && node.0 == leader)
        };
        (took, Ok(answer))
    }
}

// === impl State ===

impl State {
    fn answer(&mut self, call: &Call, is_leader: bool) -> (u16, String) {
        let now = Instant::now();
        let body = call.operation.body.as_ref().map_or(&[][..], |body| body);
        let seconds = TOKEN_TTL.as_secs();
        match call.operation.verb {
            Verb::Health => {
                let status = if is_leader { 200 } else { 429 };
                let standby = !is_leader;
                let body = format!(r#"{{"initialized":true,"sealed":false,"standby":{standby}}}"#);
                return (status, body);
            }
            Verb::Login => {
                self.logins += 1;
                let token = format!("hvs.{}", self.logins);
                self.tokens.insert(token.clone(), now + TOKEN_TTL);
                return (200, auth(&token));
            }
            _ => {}
        }
        let token = call.token.as_ref().map(|token| token.expose_secret().to_owned());
        let token = token.unwrap_or_default();
        let Some(expires) = self.tokens.get_mut(&token).filter(|expires| **expires > now) else {
            return (403, r#"{"errors":["permission denied"]}"#.to_owned());
        };
        match call.operation.verb {
            Verb::RenewSelf => {
                *expires = now + TOKEN_TTL;
                (200, auth(&token))
            }
            Verb::LookupSelf => {
                let left = (*expires - now).as_secs();
                let body = format!(
                    r#"{{"data":{{"ttl":{left},"creation_ttl":{seconds},"renewable":true,
                        "num_uses":0,"expire_time":"2030-01-01T00:00:00Z"}}}}"#
                );
                (200, body)
            }
            Verb::ReadKey => (200, KEY.to_owned()),
            Verb::Encrypt => (200, encrypted(body)),
            Verb::Decrypt => (200, decrypted(body)),
            verb => panic!("nobody here answers {verb:?}"),
        }
    }
}

fn auth(token: &str) -> String {
    let seconds = TOKEN_TTL.as_secs();
    format!(
        r#"{{"auth":{{"client_token":"{token}","lease_duration":{seconds},"renewable":true,
            "num_uses":0}}}}"#
    )
}

fn encrypted(body: &[u8]) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    let plaintext = STANDARD.decode(body["plaintext"].as_str().unwrap()).unwrap();
    let payload = STANDARD.encode([&[0; 12][..], &plaintext, &[0; 16]].concat());
    format!(r#"{{"data":{{"ciphertext":"vault:v1:{payload}","key_version":1}}}}"#)
}

fn decrypted(body: &[u8]) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap();
    let payload = body["ciphertext"].as_str().unwrap().rsplit(':').next().unwrap();
    let bytes = STANDARD.decode(payload).unwrap();
    let plaintext = STANDARD.encode(&bytes[12..bytes.len() - 16]);
    format!(r#"{{"data":{{"plaintext":"{plaintext}"}}}}"#)
}

// === impl Node ===

impl tower::Service<Attempt> for Node {
    type Response = Answer;
    type Error = AttemptError;
    type Future = BoxFuture<'static, Result<Answer, AttemptError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), AttemptError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        let Self { model, index, name } = self.clone();
        async move {
            let (took, outcome) = model.serve(index, &attempt.call);
            let deadline = attempt.call.deadline;
            let is_late = took > deadline.remaining();
            tokio::time::sleep(took.min(deadline.remaining())).await;
            let outcome = if is_late { Err(Fault::Deadline) } else { outcome };
            match outcome {
                Ok((status, body)) => {
                    let mut headers = HeaderMap::new();
                    let seconds = model.elapsed().as_secs();
                    let (minutes, seconds) = (seconds / 60, seconds % 60);
                    let date = format!("Thu, 01 Jan 2026 00:{minutes:02}:{seconds:02} GMT");
                    headers.insert(http::header::DATE, HeaderValue::try_from(date).unwrap());
                    let status = StatusCode::from_u16(status).unwrap();
                    let body = Zeroizing::new(body.into_bytes());
                    Ok(Answer { status, headers, body, address: name })
                }
                Err(fault) => Err(AttemptError { address: name, index, fault }),
            }
        }
        .boxed()
    }
}
