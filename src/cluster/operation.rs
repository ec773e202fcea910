//! What is asked of a cluster and what comes back: the vocabulary that every layer of
//! the stack shares. Nothing here knows what a body means; [`Classify`] is the seam
//! through which `transit::verdict` tells.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use secrecy::SecretString;
use zeroize::Zeroizing;

use crate::clock::Deadline;
pub use addresses::{AddressIndex, AddressName, AddressSet, MAX_ADDRESSES};

mod addresses;

/// One thing to ask of Vault. Every operation may be repeated and sent to several
/// addresses at once, but for those that can use a secret up; see [`Self::repeatable`].
#[derive(Clone)]
pub struct Operation {
    /// Only the active node's answer will do: a good one of another node is taken for one
    /// that may be stale.
    pub needs_active: bool,
    /// What it is, for metrics, spans and verdicts.
    pub verb: Verb,
    /// The HTTP method.
    pub method: Method,
    /// The path with its leading `/v1/`, already percent-encoded.
    pub path: String,
    /// Vault's namespace, sent as `X-Vault-Namespace`.
    pub namespace: Option<String>,
    /// The JSON body.
    pub body: Option<Zeroizing<Vec<u8>>>,
}

/// What an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// Transit encrypt.
    Encrypt,
    /// Transit decrypt.
    Decrypt,
    /// Transit key metadata.
    ReadKey,
    /// Any auth method's login.
    Login,
    /// `sys/wrapping/lookup`: what a wrapping token wraps.
    LookupWrapping,
    /// `sys/wrapping/unwrap`, with the wrapping token as the token.
    Unwrap,
    /// `auth/token/lookup-self`.
    LookupSelf,
    /// `auth/token/renew-self`.
    RenewSelf,
    /// `auth/token/revoke-self`.
    RevokeSelf,
    /// `sys/capabilities-self`.
    Capabilities,
    /// `sys/health`.
    Health,
    /// Anything else that a command such as `check` reads.
    Read,
}

/// A call as it enters the stack: an operation, the token and the time that it has.
#[derive(Clone)]
pub struct Call {
    /// What to ask.
    pub operation: Arc<Operation>,
    /// Sent as `X-Vault-Token`; absent for logins and health.
    pub token: Option<Arc<SecretString>>,
    /// No answer is worth anything after it.
    pub deadline: Deadline,
}

/// One HTTP request to one address, as the pool is asked for it.
#[derive(Clone)]
pub struct Attempt {
    /// The call that it belongs to.
    pub call: Call,
    /// Its number within the call, from 1.
    pub number: u32,
    /// Why it is made.
    pub reason: AttemptReason,
    /// Addresses that this call has been to; the pool picks another while there is one.
    pub tried: AddressSet,
    /// The budget has no repeat left for it: it stands in line until others get answers.
    pub is_over_budget: bool,
    /// Another address has answered the call already, with what may be stale, so that the
    /// silence of this one is not waited for to the end.
    pub is_second_opinion: bool,
    /// Addresses that are to hand it on to the active node, should they not be that.
    pub hand_on: AddressSet,
    /// Sent as `X-Vault-Index`; [`index`](super::index) sets it.
    pub index: Option<HeaderValue>,
    /// It is for the active node, where that can be asked: only that one knows for certain
    /// what was changed a moment ago.
    pub needs_active: bool,
    /// Whether its outcome still counts; shared by the hedge and the breaker.
    pub fate: Fate,
}

/// Whether an attempt's outcome still says anything about its address. The hedge gives
/// up losers with it, so that the breaker does not judge an address by a race that
/// another one won.
#[derive(Clone, Debug, Default)]
pub struct Fate(Arc<AtomicBool>);

/// Why an attempt is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttemptReason {
    /// The call's first.
    First,
    /// The one before failed.
    Retry,
    /// The one before is silent and still in flight.
    Hedge,
}

/// An answer, received whole within the attempt.
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body; bounded, wiped when dropped.
    pub body: Zeroizing<Vec<u8>>,
    /// Who answered.
    pub address: AddressName,
}

/// Reads answers for the stack, which cannot.
pub trait Classify: Send + Sync + 'static {
    /// What `answer` to `operation` means for the address that gave it.
    fn classify(&self, operation: &Operation, answer: &Answer) -> Verdict;
}

/// What an answer means for the address that gave it and for the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The call has its answer, good or bad; the address is sound.
    Final,
    /// The token was refused: one shared login, then once more. The address is sound.
    TokenRefused,
    /// It may know less than the active node: ask that; final when it says the same.
    Stale(&'static str),
    /// Another address may do better.
    Elsewhere(Elsewhere),
}

/// Why another address may do better.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// A few words for log lines and errors, such as `sealed`.
    pub reason: &'static str,
    /// Counts against the address in its breaker.
    pub at_fault: bool,
    /// Open the breaker at once (a sealed node does not serve the next call either).
    pub eject: bool,
    /// The request may have been acted on all the same (a gateway that gave up waiting), so
    /// what is not repeatable must not be sent again.
    pub maybe_served: bool,
    /// The soonest that the same address is worth another try.
    pub again_after: Option<Duration>,
}

// === impl Operation ===

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { needs_active, verb, method, path, namespace, body } = self;
        f.debug_struct("Operation")
            .field("needs_active", needs_active)
            .field("verb", verb)
            .field("method", method)
            .field("path", path)
            .field("namespace", namespace)
            .field("body", &body.as_ref().map(|b| format!("{} bytes", b.len())))
            .finish()
    }
}

impl Operation {
    /// Whether it may be sent again, or to two addresses at once, after a server may have
    /// seen it. A login may not: it can use up a secret id that is good for so many uses.
    /// Nor may an unwrap, which Vault answers once.
    pub const fn repeatable(&self) -> bool {
        !matches!(self.verb, Verb::Login | Verb::Unwrap)
    }

    /// Whether it changes what Vault keeps, so that a standby can only hand it on.
    pub const fn writes(&self) -> bool {
        matches!(self.verb, Verb::Login | Verb::RenewSelf)
    }
}

// === impl Verb ===

impl Verb {
    /// Whether it is what clusters are there for, and any node serves it by itself. What a
    /// node says to the others (a quota on logins, no active node to hand them on to) says
    /// nothing about these.
    pub const fn is_transit(self) -> bool {
        matches!(self, Self::Encrypt | Self::Decrypt | Self::ReadKey)
    }

    /// The word that metrics and spans use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::ReadKey => "read_key",
            Self::Login => "login",
            Self::LookupWrapping => "lookup_wrapping",
            Self::Unwrap => "unwrap",
            Self::LookupSelf => "lookup_self",
            Self::RenewSelf => "renew_self",
            Self::RevokeSelf => "revoke_self",
            Self::Capabilities => "capabilities",
            Self::Health => "health",
            Self::Read => "read",
        }
    }
}

// === impl Call, Attempt ===

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("operation", &self.operation)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("deadline", &self.deadline)
            .finish()
    }
}

impl Attempt {
    /// The first attempt of `call`, at whatever address. Later ones differ from it.
    pub fn first(call: Call) -> Self {
        Self {
            call,
            number: 1,
            reason: AttemptReason::First,
            tried: AddressSet::default(),
            is_over_budget: false,
            is_second_opinion: false,
            hand_on: AddressSet::default(),
            index: None,
            needs_active: false,
            fate: Fate::default(),
        }
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            call,
            number,
            reason,
            tried,
            is_over_budget,
            is_second_opinion,
            needs_active,
            hand_on,
            ..
        } = self;
        f.debug_struct("Attempt")
            .field("call", call)
            .field("number", number)
            .field("reason", reason)
            .field("tried", tried)
            .field("is_over_budget", is_over_budget)
            .field("is_second_opinion", is_second_opinion)
            .field("hand_on", hand_on)
            .field("needs_active", needs_active)
            .finish_non_exhaustive()
    }
}

// === impl Fate ===

impl Fate {
    /// From here on the outcome says nothing about the address.
    pub fn give_up(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether somebody gave the attempt up.
    pub fn is_given_up(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

// === impl AttemptReason ===

impl AttemptReason {
    /// The word that metrics and spans use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Retry => "retry",
            Self::Hedge => "hedge",
        }
    }
}

// === impl Answer ===

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer")
            .field("status", &self.status)
            .field("address", &self.address)
            .field("body", &format!("{} bytes", self.body.len()))
            .finish_non_exhaustive()
    }
}
