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
//! Where no index was sent, whose word an answer is depends on what its node was known as
//! when it was asked. What it is by the time of the answer says nothing: a standby that is
//! behind may be elected in between.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

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
    Beyond { cluster: String, header: HeaderValue },
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
    with_index: bool,
    the_active_one: bool,
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
        match &*known {
            Known::Refuses => {}
            Known::Beyond { cluster, .. } if *cluster == index.cluster => {}
            Known::Beyond { .. } | Known::Nothing => {
                if let Some(header) = Index::beyond(&index.cluster) {
                    *known = Known::Beyond { cluster: index.cluster, header };
                }
            }
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
        self.0.lock().expect("no code panics while it holds this lock")
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

    fn learn(&self, answer: &Answer) {
        let raw = answer.headers.get(X_VAULT_INDEX);
        if let Some(raw) = raw.filter(|raw| !raw.is_empty() && raw.len() <= MAX_LENGTH) {
            self.hands_on.learn(raw);
        }
    }
}

impl Step for HandOn {
    type Note = Asked;

    fn going(&self, attempt: &mut Attempt) -> Asked {
        let is_asked = attempt.hand_on.contains(self.address);
        attempt.index = is_asked.then(|| self.hands_on.header()).flatten();
        let the_active_one = self.role.get() == Role::Active;
        Asked { with_index: attempt.index.is_some(), the_active_one }
    }

    fn ended(&self, asked: Asked, mut result: Ended) -> Ended {
        match &mut result {
            Ok(answer) => self.learn(answer),
            Err(AttemptError { fault, .. }) => match fault {
                Fault::Stale { word, .. } if asked.with_index => *word = Word::Actives,
                Fault::Stale { word, .. } if asked.the_active_one => *word = Word::Claimants,
                // It did not get as far as the question.
                Fault::Elsewhere { status: 400, .. } if asked.with_index => self.hands_on.refuse(),
                _ => {}
            },
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use tower::{Layer as _, ServiceExt as _};

    use super::*;
    use crate::cluster::operation::{AddressSet, Elsewhere};
    use crate::cluster::stack::testing::{answer, attempt, name};
    use crate::cluster::step::StepLayer;

    const CLUSTER: &str = "f431928e-8a16-3868-19f0-95048a03b379";

    /// As OpenBao 2.7.2 sends it.
    fn told(value: &str) -> String {
        STANDARD.encode(format!(r#"{{"cluster":"{CLUSTER}","value":"{value}"}}"#))
    }

    fn header(text: &str) -> HeaderValue {
        HeaderValue::from_str(text).unwrap()
    }

    /// One attempt at an address that answers so: what was sent, and what came of it.
    async fn ask(
        step: &HandOn,
        is_asked: bool,
        result: Result<Answer, Fault>,
    ) -> (Option<HeaderValue>, Result<Answer, Fault>) {
        let (sent, seen) = std::sync::mpsc::channel();
        let result = Mutex::new(Some(result));
        let inner = tower::service_fn(move |attempt: Attempt| {
            sent.send(attempt.index).unwrap();
            let result = result.lock().unwrap().take().unwrap();
            async move {
                let (address, index) = (name(0), AddressIndex(0));
                result.map_err(|fault| AttemptError { address, index, fault })
            }
        });
        let mut attempt = attempt();
        if is_asked {
            attempt.hand_on = AddressSet::default().with(AddressIndex(0));
        }
        let result = StepLayer(step.clone()).layer(inner).oneshot(attempt).await;
        (seen.recv().unwrap(), result.map_err(|error| error.fault))
    }

    fn step() -> HandOn {
        HandOn::new(&Address::new(AddressIndex(0), "https://vault-0:8200".parse().unwrap()))
    }

    fn answering(index: &str) -> Answer {
        let mut good = answer(200);
        good.headers.insert(X_VAULT_INDEX, header(index));
        good
    }

    fn stale() -> Fault {
        Fault::Stale { reason: "too new", word: Word::Anyones, answer: Box::new(answer(400)) }
    }

    fn is_by_active(result: &Result<Answer, Fault>) -> bool {
        matches!(result, Err(Fault::Stale { word: Word::Actives, .. }))
    }

    #[tokio::test]
    async fn what_is_sent_lies_beyond_what_any_node_has_reached() {
        let step = step();
        let _ = ask(&step, false, Ok(answering(&told("40")))).await;
        let (sent, result) = ask(&step, true, Err(stale())).await;
        assert_eq!(sent.unwrap(), header(&told("9223372036854775807")));
        assert!(is_by_active(&result), "{result:?}");
    }

    #[tokio::test]
    async fn nothing_is_sent_to_whoever_is_not_to_hand_on() {
        let step = step();
        let _ = ask(&step, false, Ok(answering(&told("40")))).await;
        let (sent, result) = ask(&step, false, Err(stale())).await;
        assert_eq!(sent, None);
        assert!(!is_by_active(&result), "{result:?}");
    }

    #[tokio::test]
    async fn an_address_that_has_told_no_index_that_we_can_read_is_sent_none() {
        let vaults = STANDARD.encode("v1:f431928e:40:0:8a163868");
        let unknown_field = STANDARD.encode(r#"{"cluster":"c","value":"40","epoch":1}"#);
        let no_number = STANDARD.encode(r#"{"cluster":"c","value":"0/16B3748"}"#);
        let long = STANDARD.encode(format!(r#"{{"cluster":"{}","value":"1"}}"#, "c".repeat(4_096)));
        for text in ["", "%%", "c:40", &vaults, &unknown_field, &no_number, &long] {
            let step = step();
            let _ = ask(&step, false, Ok(answering(text))).await;
            let (sent, result) = ask(&step, true, Err(stale())).await;
            assert_eq!(sent, None, "{text}");
            assert!(!is_by_active(&result), "{text}: {result:?}");
            assert!(!step.hands_on.is_certain());
        }
    }

    #[tokio::test]
    async fn an_index_follows_its_address_to_another_cluster() {
        let step = step();
        let _ =
            ask(&step, false, Ok(answering(&STANDARD.encode(r#"{"cluster":"c","value":"7"}"#))))
                .await;
        let _ = ask(&step, false, Ok(answering(&told("3")))).await;
        let (sent, _) = ask(&step, true, Err(stale())).await;
        assert_eq!(Index::read(&sent.unwrap()).unwrap().cluster, CLUSTER);
    }

    #[tokio::test]
    async fn an_address_that_refuses_an_index_is_not_sent_another() {
        let step = step();
        let _ = ask(&step, false, Ok(answering(&told("40")))).await;
        let verdict = Elsewhere {
            reason: "no index",
            at_fault: false,
            eject: false,
            maybe_served: false,
            again_after: None,
        };
        let refused = || Err(Fault::Elsewhere { status: 400, verdict: verdict.clone() });
        let _ = ask(&step, false, refused()).await;
        assert!(step.hands_on.is_certain(), "nothing was sent, so it was not about that");
        let _ = ask(&step, true, refused()).await;
        let _ = ask(&step, false, Ok(answering(&told("41")))).await;
        let (sent, result) = ask(&step, true, Err(stale())).await;
        assert_eq!(sent, None);
        assert!(!is_by_active(&result), "{result:?}");
        assert!(!step.hands_on.is_certain());
    }

    #[tokio::test]
    async fn without_an_index_it_counts_what_the_node_was_when_it_was_asked() {
        for (was, is, expected) in [
            (Role::Active, Role::Standby, Word::Claimants),
            (Role::Standby, Role::Active, Word::Anyones),
            (Role::Unknown, Role::Active, Word::Anyones),
        ] {
            let step = step();
            step.role.set(was);
            let role = step.role.clone();
            let inner = tower::service_fn(move |_: Attempt| {
                role.set(is);
                let (address, index) = (name(0), AddressIndex(0));
                async move { Err::<Answer, _>(AttemptError { address, index, fault: stale() }) }
            });
            let error = StepLayer(step).layer(inner).oneshot(attempt()).await.unwrap_err();
            let Fault::Stale { word, .. } = error.fault else { panic!("{error}") };
            assert_eq!(word, expected, "{was}, {is}");
        }
    }
}
