//! `X-Vault-Index`: how a node that may be behind is made to ask the active one.
//!
//! Vault and OpenBao tell with an answer how far the storage of the node has come. A
//! request that brings such an index along is not served by a standby that has not reached
//! it; with `X-Vault-Inconsistent: forward-active-node` it is handed on to the active node
//! then. OpenBao 2.7 sends base64 of `{"cluster":"<uuid>","value":"<raft index>"}`.
//!
//! The index that we have seen would seldom help: what makes an answer stale is a write
//! that somebody else has made, and no answer has told us how far that was. (Measured: of
//! 25 decrypts with a version made just before, on a standby, none was handed on with the
//! newest index of our own calls, and all 25 with one that lies beyond.) So where the form
//! is known, the value that is sent is the highest that there can be: no standby has
//! reached it, and the active node does not look at it. All that is kept of an index is
//! therefore the cluster that it names, for each address, so that no address is sent one
//! that it would not look at either. Nothing is sent where the form is another: Vault
//! Enterprise signs its indices.
//!
//! It is sent only to an address that has just given an answer that may be stale, or that
//! is the active node's. On every call it would cost a second hop whenever a standby is a
//! few milliseconds behind (0.6 ms become 1.4), and make every call hang with a leader that
//! is frozen, which standbys otherwise do without.
//!
//! An address may lead to another node tomorrow, one that knows no index and would answer a
//! request that brings one by itself. OpenBao 2.7 tells an index with every good answer of
//! Transit, and with no bad one. So what is known of an address ends with a good answer that
//! tells none, when the address fails, when its `sys/health` tells another version or
//! cluster, and by itself when no answer has borne it out for long.
//!
//! Where no index was sent, whose word an answer is depends on what its node was known as
//! when it was asked. What it is by the time of the answer says nothing: a standby that is
//! behind may be elected in between.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::address::{Address, Role, RoleCell};
use super::error::{AttemptError, Fault, Word};
use super::operation::{AddressIndex, Answer, Attempt};
use super::step::{Ended, Step};

/// Carries how far a node's storage has come, both ways.
pub(super) const X_VAULT_INDEX: HeaderName = HeaderName::from_static("x-vault-index");

/// Says what a standby is to do that has not come as far.
pub(super) const X_VAULT_INCONSISTENT: HeaderName = HeaderName::from_static("x-vault-inconsistent");

/// The value of [`X_VAULT_INCONSISTENT`] that goes with every index: without it, a standby
/// that is behind refuses the request.
pub(super) const FORWARD: HeaderValue = HeaderValue::from_static("forward-active-node");

/// Longer indices are not kept. OpenBao's has some 90 characters.
const MAX_LENGTH: usize = 4096;

/// How long an address is believed to hand on what it is asked to, from the last answer that
/// told an index. A key's metadata is read far more often.
const BELIEVED: Duration = Duration::from_secs(600);

/// Whether one address hands on what it is asked to.
#[derive(Clone, Default)]
pub struct HandsOn(Arc<Mutex<Known>>);

#[derive(Default)]
enum Known {
    /// It has told no index that we can read.
    #[default]
    Nothing,
    /// It has told one in a form that we can read, so it understands this one, which no
    /// standby of its cluster has reached.
    Beyond { cluster: String, header: HeaderValue, told: Instant },
    /// It has refused a request because of the index.
    Refuses,
}

/// An index in OpenBao's form.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    cluster: String,
    value: String,
}

/// Keeps the indices of one address's answers, sends one with the attempts that ask for it,
/// and says whose word an answer is.
#[derive(Clone)]
pub struct HandOn {
    hands_on: HandsOn,
    role: RoleCell,
    address: AddressIndex,
}

/// What counts of an attempt when its answer comes.
pub struct Asked {
    /// What was sent so that it hands it on.
    index: Option<HeaderValue>,
    the_active_one: bool,
    /// A good answer tells an index, if the node knows of any.
    of_transit: bool,
}

// === impl HandsOn ===

impl HandsOn {
    /// Whether a request that asks for it is sure to reach the active node.
    pub fn is_certain(&self) -> bool {
        matches!(&*self.lock(), Known::Beyond { .. })
    }

    /// Takes in an index that the address has told.
    pub(super) fn learn(&self, raw: &HeaderValue) {
        let Some(index) = Index::read(raw) else { return };
        let mut known = self.lock();
        match &mut *known {
            Known::Refuses => {}
            Known::Beyond { cluster, told, .. } if *cluster == index.cluster => {
                *told = Instant::now();
            }
            Known::Beyond { .. } | Known::Nothing => {
                if let Some(header) = Index::beyond(&index.cluster) {
                    let (cluster, told) = (index.cluster, Instant::now());
                    *known = Known::Beyond { cluster, header, told };
                }
            }
        }
    }

    /// There may be another node now, of which nothing is known.
    pub(super) fn forget(&self) {
        *self.lock() = Known::Nothing;
    }

    /// A good answer told no index, as those of a node that hands on do.
    fn doubt(&self) {
        let mut known = self.lock();
        if matches!(&*known, Known::Beyond { .. }) {
            *known = Known::Nothing;
        }
    }

    /// It does not want to be asked so again.
    fn refuse(&self) {
        *self.lock() = Known::Refuses;
    }

    /// What to send so that it does.
    fn header(&self) -> Option<HeaderValue> {
        match &*self.lock() {
            Known::Beyond { header, .. } => Some(header.clone()),
            Known::Nothing | Known::Refuses => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        let mut known = self.0.lock().expect("no code panics while it holds this lock");
        if matches!(&*known, Known::Beyond { told, .. } if told.elapsed() >= BELIEVED) {
            *known = Known::Nothing;
        }
        known
    }
}

impl fmt::Debug for HandsOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandsOn({})", self.is_certain())
    }
}

// === impl Index ===

impl Index {
    /// Reads OpenBao's form; `None` for any other.
    fn read(raw: &HeaderValue) -> Option<Self> {
        let json = STANDARD.decode(raw.as_bytes()).ok()?;
        let index: Self = serde_json::from_slice(&json).ok()?;
        let is_number = index.value.parse::<u64>().is_ok();
        (is_number && !index.cluster.is_empty()).then_some(index)
    }

    /// One that no node of `cluster` reaches. OpenBao reads values up to 2^64 and takes what
    /// it cannot read for reached; half of that leaves room for one that reads less.
    fn beyond(cluster: &str) -> Option<HeaderValue> {
        let index = Self { cluster: cluster.to_owned(), value: i64::MAX.to_string() };
        let json = serde_json::to_vec(&index).ok()?;
        HeaderValue::from_str(&STANDARD.encode(json)).ok()
    }
}

// === impl HandOn ===

impl HandOn {
    /// For attempts at `address`.
    pub fn new(address: &Address) -> Self {
        let Address { index, hands_on, role, .. } = address;
        Self { hands_on: hands_on.clone(), role: role.clone(), address: *index }
    }

    fn learn(&self, answer: &Answer, of_transit: bool) {
        let raw = answer.headers.get(X_VAULT_INDEX);
        match raw.filter(|raw| !raw.is_empty() && raw.len() <= MAX_LENGTH) {
            Some(raw) => self.hands_on.learn(raw),
            None if of_transit && answer.status.is_success() => self.hands_on.doubt(),
            None => {}
        }
    }
}

impl Step for HandOn {
    type Note = Asked;

    fn going(&self, attempt: &mut Attempt) -> Asked {
        let is_asked = attempt.hand_on.contains(self.address);
        attempt.index = is_asked.then(|| self.hands_on.header()).flatten();
        let the_active_one = self.role.get() == Role::Active;
        let of_transit = attempt.call.operation.verb.is_transit();
        Asked { index: attempt.index.clone(), the_active_one, of_transit }
    }

    fn ended(&self, asked: Asked, mut result: Ended) -> Ended {
        match &mut result {
            Ok(answer) => self.learn(answer, asked.of_transit),
            Err(AttemptError { fault, .. }) => match fault {
                Fault::Stale { word, answer, .. } => {
                    self.learn(answer, asked.of_transit);
                    // Unless it is another node now than the index was meant for.
                    if asked.index.is_some() && asked.index == self.hands_on.header() {
                        *word = Word::Actives;
                    } else if asked.the_active_one {
                        *word = Word::Claimants;
                    }
                }
                // It did not get as far as the question.
                Fault::Elsewhere { status: 400, .. } if asked.index.is_some() => {
                    self.hands_on.refuse();
                }
                Fault::Unreachable(_) | Fault::Connection(_) => self.hands_on.forget(),
                _ => {}
            },
        }
        result
    }
}

#[cfg(test)]
mod tests;
