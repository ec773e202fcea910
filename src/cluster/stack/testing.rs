//! Attempts, answers and scripted addresses for the tests of the layers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use ::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;
use tower::util::BoxCloneSyncService;
use zeroize::Zeroizing;

use super::*;
use crate::clock::Deadline;
use crate::cluster::address::{Role, RoleCell};
use crate::cluster::error::Fault;
use crate::cluster::index::X_VAULT_INDEX;
use crate::cluster::operation::{AddressName, Elsewhere, Operation, Verb, Verdict};

pub(crate) fn operation(verb: Verb) -> Operation {
    Operation {
        needs_active: false,
        verb,
        method: Method::POST,
        path: "/v1/transit/decrypt/kube".into(),
        namespace: None,
        body: Some(Zeroizing::new(b"{}".to_vec())),
    }
}

pub(crate) fn call_of(verb: Verb, span: Duration) -> Call {
    let operation = Arc::new(operation(verb));
    Call { operation, token: None, deadline: Deadline::after(span) }
}

/// A decrypt with kube-apiserver's usual deadline.
pub(crate) fn call() -> Call {
    call_of(Verb::Decrypt, Duration::from_secs(3))
}

pub(crate) fn attempt() -> Attempt {
    Attempt::first(call())
}

pub(crate) fn name(index: u8) -> AddressName {
    AddressName::of(&url(index))
}

fn url(index: u8) -> Uri {
    format!("https://vault-{index}:8200").parse().unwrap()
}

pub(crate) fn answer(status: u16) -> Answer {
    Answer {
        status: StatusCode::from_u16(status).unwrap(),
        headers: HeaderMap::new(),
        body: Zeroizing::new(Vec::new()),
        address: name(0),
    }
}

pub(crate) fn sealed() -> Elsewhere {
    Elsewhere {
        reason: "sealed",
        at_fault: true,
        eject: true,
        maybe_served: false,
        again_after: None,
    }
}

pub(crate) fn leaderless() -> Elsewhere {
    let again_after = Some(Duration::from_millis(250));
    Elsewhere {
        reason: "has no active node",
        at_fault: false,
        eject: false,
        maybe_served: false,
        again_after,
    }
}

pub(crate) fn gateway() -> Elsewhere {
    Elsewhere { reason: "gateway", maybe_served: true, ..leaderless() }
}

pub(crate) fn limited() -> Elsewhere {
    let again_after = Some(Duration::from_millis(700));
    Elsewhere {
        reason: "rate limited",
        at_fault: false,
        eject: false,
        maybe_served: false,
        again_after,
    }
}

/// What a scripted address does with an attempt.
#[derive(Clone, Debug)]
pub(crate) enum Does {
    Answers,
    AnswersAfter(Duration),
    Refuses,
    Breaks,
    Distrusts,
    Freezes,
    /// Freezes, and holds on to the sender as long as it is in flight.
    Holds(mpsc::Sender<()>),
    Says(Verdict),
    /// Says what may be stale, unless it is made to ask the active node, which answers.
    IsBehind,
}

/// What `sys/health` says at each address, in turn: whether it is the active node's.
type Health = Arc<Mutex<BTreeMap<u8, VecDeque<bool>>>>;

type Script = Arc<dyn Fn(u8, u32) -> Does + Send + Sync>;

/// A stack whose addresses do as a script says, and a list of who was asked.
pub(crate) struct Scripted {
    pub(crate) stack: Stack,
    health: Health,
    asked: mpsc::UnboundedReceiver<u8>,
}

/// Every verdict travels in the answer's reason, so that the real judge can be used.
struct Scriptural;

impl Classify for Scriptural {
    fn classify(&self, _: &Operation, answer: &Answer) -> Verdict {
        let Some(verdict) = answer.headers.get("verdict") else { return Verdict::Final };
        match verdict.to_str().unwrap() {
            "token" => Verdict::TokenRefused,
            "stale" => Verdict::Stale("version is too new"),
            "sealed" => Verdict::Elsewhere(sealed()),
            "leaderless" => Verdict::Elsewhere(leaderless()),
            "gateway" => Verdict::Elsewhere(gateway()),
            "limited" => Verdict::Elsewhere(limited()),
            other => panic!("unknown verdict {other}"),
        }
    }
}

fn wire(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Final => unreachable!("an answer says that without a verdict"),
        Verdict::TokenRefused => "token",
        Verdict::Stale(_) => "stale",
        Verdict::Elsewhere(e) if e.eject => "sealed",
        Verdict::Elsewhere(e) if e.maybe_served => "gateway",
        Verdict::Elsewhere(e) if *e == leaderless() => "leaderless",
        Verdict::Elsewhere(_) => "limited",
    }
}

impl Scripted {
    /// `script` says what address `index` does with the attempt `number`.
    pub(crate) fn new(
        addresses: u8,
        script: impl Fn(u8, u32) -> Does + Send + Sync + 'static,
    ) -> Self {
        let cluster = ClusterName::try_new("test").unwrap();
        let jitter = Arc::new(Jitter::off());
        let judge: Arc<dyn Classify> = Arc::new(Scriptural);
        let script: Script = Arc::new(script);
        let (told, asked) = mpsc::unbounded_channel();
        let health = Health::default();
        let endpoints = (0..addresses)
            .map(|index| {
                let address = Address::new(AddressIndex(index), url(index));
                let transport = transport(index, Arc::clone(&script), told.clone(), &health);
                Stack::endpoint(&cluster, address, transport, &judge, &jitter)
            })
            .collect();
        let members = Members::fixed(cluster.clone(), endpoints);
        Self { stack: Stack::over(&cluster, members, &jitter, None), health, asked }
    }

    /// The node at `index` is known to be active, or a standby; and so it says now.
    pub(crate) fn is(&self, index: u8, role: Role) {
        let roster = self.stack.members.roster();
        roster.get(AddressIndex(index)).unwrap().address.role.set(role);
        self.says_now(index, role);
    }

    /// What the node at `index` is known to be; whoever holds it may change it.
    pub(crate) fn role(&self, index: u8) -> RoleCell {
        self.stack.members.roster().get(AddressIndex(index)).unwrap().address.role.clone()
    }

    /// What the node at `index` says when it is asked, whatever it is taken for.
    pub(crate) fn says_now(&self, index: u8, role: Role) {
        self.say_in_turn(index, &[role]);
    }

    /// What the nodes behind the address `index` say, one after the other and again.
    pub(crate) fn say_in_turn(&self, index: u8, roles: &[Role]) {
        let are_active = roles.iter().map(|role| *role == Role::Active).collect();
        self.health.lock().unwrap().insert(index, are_active);
    }

    /// The node at `index` is known to hand on what it is asked to.
    pub(crate) fn hands_on(&self, index: u8) {
        let roster = self.stack.members.roster();
        roster.get(AddressIndex(index)).unwrap().address.hands_on.learn(&told_index());
    }

    /// A probe of the address `index` ends well; nothing here probes by itself.
    pub(crate) fn probe_bad(&self, index: u8) {
        let roster = self.stack.members.roster();
        let endpoint = roster.get(AddressIndex(index)).unwrap();
        endpoint.breaker.probe_bad("connection refused".to_owned());
    }

    pub(crate) fn probe_good(&self, index: u8) {
        let roster = self.stack.members.roster();
        roster
            .get(AddressIndex(index))
            .expect("it was made with this address")
            .breaker
            .probe_good();
    }

    /// Who was asked since the last time, in order.
    pub(crate) fn asked(&mut self) -> Vec<u8> {
        std::iter::from_fn(|| self.asked.try_recv().ok()).collect()
    }
}

/// As OpenBao tells it.
fn told_index() -> HeaderValue {
    STANDARD.encode(r#"{"cluster":"c","value":"40"}"#).parse().unwrap()
}

fn transport(
    index: u8,
    script: Script,
    told: mpsc::UnboundedSender<u8>,
    health: &Health,
) -> BoxCloneSyncService<Attempt, Answer, AttemptError> {
    let health = Arc::clone(health);
    BoxCloneSyncService::new(tower::service_fn(move |attempt: Attempt| {
        if attempt.call.operation.verb == Verb::Health {
            let is_active = health.lock().unwrap().get_mut(&index).and_then(|in_turn| {
                in_turn.rotate_left(1);
                in_turn.back().copied()
            });
            let mut good = answer(200);
            if let Some(is_active) = is_active {
                let body =
                    format!(r#"{{"initialized":true,"sealed":false,"standby":{}}}"#, !is_active);
                good.body = Zeroizing::new(body.into_bytes());
            }
            return std::future::ready(Ok(good)).boxed();
        }
        told.send(index).unwrap();
        perform(index, script(index, attempt.number), attempt)
    }))
}

fn perform(
    index: u8,
    does: Does,
    attempt: Attempt,
) -> BoxFuture<'static, Result<Answer, AttemptError>> {
    let fail =
        move |fault| Err(AttemptError { address: name(index), index: AddressIndex(index), fault });
    let mut good = answer(200);
    good.address = name(index);
    if attempt.index.is_some() {
        good.headers.insert(X_VAULT_INDEX, told_index());
    }
    let work = async move {
        match does {
            Does::Answers => Ok(good),
            Does::AnswersAfter(span) => {
                tokio::time::sleep(span).await;
                Ok(good)
            }
            Does::Refuses => fail(Fault::Unreachable("connection refused".into())),
            Does::Breaks => fail(Fault::Connection("connection reset".into())),
            Does::Distrusts => fail(Fault::Tls("the certificate has expired".into())),
            Does::Freezes => std::future::pending().await,
            Does::Holds(sender) => {
                std::future::pending::<()>().await;
                drop(sender);
                Ok(good)
            }
            Does::IsBehind if attempt.index.is_some() => Ok(good),
            Does::IsBehind => {
                good.status = StatusCode::BAD_REQUEST;
                good.headers.insert("verdict", wire(&Verdict::Stale("")).parse().unwrap());
                Ok(good)
            }
            Does::Says(verdict) => {
                good.status = StatusCode::SERVICE_UNAVAILABLE;
                good.headers.insert("verdict", wire(&verdict).parse().unwrap());
                Ok(good)
            }
        }
    };
    async move {
        match tokio::time::timeout_at(attempt.call.deadline.instant(), work).await {
            Ok(result) => result,
            Err(_) => fail(Fault::Deadline),
        }
    }
    .boxed()
}
