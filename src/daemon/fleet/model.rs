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

/// For so long after an outage a node does half of what it can: its caches are cold.
const COLD: Duration = Duration::from_secs(5);

/// A node that is overloaded does one in so many of what it can else.
pub(super) const SCARCE: u32 = 4;

/// A node that sheds load refuses what would wait for longer.
const LONGEST_QUEUE: Duration = Duration::from_millis(500);

/// The way there and back.
const LATENCY: Duration = Duration::from_millis(2);

/// The life of a token: each one is due for renewal in the outage, and outlives it.
pub(super) const TOKEN_TTL: Duration = Duration::from_secs(100);

const LEADERLESS: &str =
    r#"{"errors":["local node not active but active cluster node not found"]}"#;

const OVER_QUOTA: &str = r#"{"errors":["rate limit quota exceeded"]}"#;

const KEY: &str = r#"{"data":{"keys":{"1":1700000000},"latest_version":1,
    "min_decryption_version":1,"min_encryption_version":0,"type":"aes256-gcm96"}}"#;

/// What kube-apiserver has decrypted, which no canary is.
pub(super) const OF_A_CALL: &str =
    r#"{"ciphertext":"vault:v1:AAAAAAAAAAAAAAAAcGluZwAAAAAAAAAAAAAAAAAAAAA="}"#;

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
    /// Each token that was given before is dead; else all is well.
    Revoked,
    /// The nodes together do less than is asked of them, and let it wait.
    Crowded,
    /// The same, and they refuse what would wait for too long.
    Shedding,
    /// A quota is less than what is asked of them.
    Limited,
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

/// One request as it went over the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) at: Duration,
    /// When it was answered, or given up.
    pub(super) until: Duration,
    pub(super) daemon: u32,
    pub(super) node: u8,
    pub(super) kind: Kind,
}

/// The cluster.
pub(super) struct Model {
    began: Instant,
    course: Course,
    /// So many requests a second a node does.
    capacity: u32,
    state: Mutex<State>,
}

struct State {
    /// When each node is free again.
    free_at: [Instant; 3],
    /// Within which second each node has answered how many requests.
    answered: [(u64, u32); 3],
    /// When each token was got, and until when it lives.
    tokens: HashMap<String, (Duration, Instant)>,
    logins: u64,
    requests: Vec<Request>,
}

/// The way from one daemon to one node.
#[derive(Clone)]
pub(super) struct Node {
    model: Arc<Model>,
    daemon: u32,
    index: AddressIndex,
    name: AddressName,
}

// === impl Model ===

impl Model {
    pub(super) fn new(course: Course, capacity: u32) -> Arc<Self> {
        let began = Instant::now();
        let state = State {
            free_at: [began; 3],
            answered: [(0, 0); 3],
            tokens: HashMap::new(),
            logins: 0,
            requests: Vec::new(),
        };
        Arc::new(Self { began, course, capacity, state: Mutex::new(state) })
    }

    pub(super) fn node(self: &Arc<Self>, daemon: u32, address: &Address) -> Node {
        let (index, name) = (address.index, address.name.clone());
        Node { model: Arc::clone(self), daemon, index, name }
    }

    /// Time since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn phase_at(course: Course, at: Duration) -> Phase {
        let past = course.iter().take_while(|(from, _)| Duration::from_secs(*from) <= at);
        past.last().map_or(Phase::Calm, |(_, phase)| *phase)
    }

    /// What came, in the order in which it did.
    pub(super) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    /// How long the node takes for `call`, and what comes of it.
    fn serve(&self, to: &Node, call: &Call) -> (Duration, Result<(u16, String), Fault>) {
        let at = self.elapsed();
        let mut state = self.state.lock().unwrap();
        let (took, outcome) = self.answer(&mut state, to.index, call, at);
        let until = at + took.min(call.deadline.remaining());
        let (daemon, node) = (to.daemon, to.index.0);
        state.requests.push(Request { at, until, daemon, node, kind: kind_of(call) });
        (took, outcome)
    }

    fn answer(
        &self,
        state: &mut State,
        node: AddressIndex,
        call: &Call,
        at: Duration,
    ) -> (Duration, Result<(u16, String), Fault>) {
        let phase = Self::phase_at(self.course, at);
        let verb = call.operation.verb;
        // The leader dies; another one leads after that.
        let losses = self.course.iter().filter(|(from, phase)| {
            let loses = matches!(phase, Phase::LeaderLost | Phase::NobodyServes | Phase::Down);
            loses && Duration::from_secs(*from) <= at
        });
        let leader = u8::try_from(losses.count() % 3).unwrap();
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
            _ => false,
        };
        let is_scarce = matches!(phase, Phase::Crowded | Phase::Shedding);
        let is_cold = at.checked_sub(COLD).is_some_and(|before| {
            phase == Phase::Calm && Self::phase_at(self.course, before) == Phase::Down
        });
        let slowness = if is_scarce { SCARCE } else { 1 + u32::from(is_cold) };
        // A health check takes no work, but waits in the same queue.
        let work = Duration::from_secs(1) * slowness / self.capacity;
        let work = if verb == Verb::Health { Duration::ZERO } else { work };
        let (now, place) = (Instant::now(), usize::from(node.0));
        let wait = state.free_at[place].saturating_duration_since(now);
        if phase == Phase::Shedding && wait > LONGEST_QUEUE {
            return (LATENCY, Ok((503, r#"{"errors":["overloaded"]}"#.to_owned())));
        }
        if wait > call.deadline.remaining() {
            // Nobody waits for it any more when its turn comes, and it is not begun.
            return (wait, Err(Fault::Deadline));
        }
        if phase == Phase::Limited && verb != Verb::Health {
            let answered = &mut state.answered[place];
            if answered.0 != at.as_secs() {
                *answered = (at.as_secs(), 0);
            }
            if answered.1 >= self.capacity / SCARCE {
                return (LATENCY, Ok((429, OVER_QUOTA.to_owned())));
            }
            answered.1 += 1;
        }
        state.free_at[place] = now + wait + work;
        let took = wait + work + LATENCY;
        let answer = if has_no_answer {
            (500, LEADERLESS.to_owned())
        } else {
            let mut revoked = self.course.iter().filter(|(from, phase)| {
                *phase == Phase::Revoked && Duration::from_secs(*from) <= at
            });
            let since =
                revoked.next_back().map_or(Duration::ZERO, |(at, _)| Duration::from_secs(*at));
            let leads =
                node.0 == leader && !matches!(phase, Phase::LeaderLost | Phase::NobodyServes);
            state.answer(call, at, since, leads)
        };
        (took, Ok(answer))
    }
}

fn kind_of(call: &Call) -> Kind {
    let body = call.operation.body.as_ref();
    match call.operation.verb {
        Verb::ReadKey => Kind::Read,
        Verb::Login => Kind::Login,
        Verb::RenewSelf | Verb::LookupSelf => Kind::Renewal,
        Verb::Health => Kind::Probe,
        _ if body.is_some_and(|body| body.as_slice() == OF_A_CALL.as_bytes()) => Kind::Call,
        _ => Kind::Canary,
    }
}

// === impl State ===

impl State {
    /// The answer at this moment, if tokens from before `since` are dead.
    fn answer(
        &mut self,
        call: &Call,
        at: Duration,
        since: Duration,
        is_leader: bool,
    ) -> (u16, String) {
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
                self.tokens.insert(token.clone(), (at, now + TOKEN_TTL));
                return (200, auth(&token));
            }
            _ => {}
        }
        let token = call.token.as_ref().map(|token| token.expose_secret().to_owned());
        let token = token.unwrap_or_default();
        let is_alive = |(got, expires): &&mut (Duration, Instant)| *got >= since && *expires > now;
        let Some((_, expires)) = self.tokens.get_mut(&token).filter(is_alive) else {
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
        let to = self.clone();
        async move {
            let (took, outcome) = to.model.serve(&to, &attempt.call);
            let Self { model, index, name, .. } = to;
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
