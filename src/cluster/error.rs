//! How a call to a cluster can fail, and whose fault it is.

use std::fmt;
use std::time::Duration;

use super::operation::{AddressIndex, AddressName, Answer, Elsewhere};
use crate::config::settings::ClusterName;

/// One attempt that brought no answer worth handing on.
#[derive(Debug, thiserror::Error)]
#[error("{address}: {fault}")]
pub struct AttemptError {
    /// Where it happened.
    pub address: AddressName,
    /// The same, as the pool counts.
    pub index: AddressIndex,
    /// What happened.
    #[source]
    pub fault: Fault,
}

/// What happened to an attempt.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// No connection could be made, so nothing was sent.
    #[error("{0}")]
    Unreachable(String),
    /// The connection broke before an answer; the server may have seen the request.
    #[error("{0}")]
    Connection(String),
    /// TLS failed: certificate, name, protocol.
    #[error("TLS: {0}")]
    Tls(String),
    /// The call's deadline came first.
    #[error("no answer within the deadline")]
    Deadline,
    /// It gave no answer for a while in which others did, and was waited for no longer.
    #[error("silent for {} ms", .0.as_millis())]
    Silent(Duration),
    /// An HTTP answer that is broken: cut short, too large, not HTTP.
    #[error("broken answer: {0}")]
    Broken(String),
    /// The request cannot be sent as it is, anywhere; the address is sound.
    #[error("the request cannot be sent: {0}")]
    Unsendable(&'static str),
    /// The breaker lets nothing through.
    #[error("left out for now after: {last_fault}")]
    BreakerOpen {
        /// What opened it.
        last_fault: String,
    },
    /// An answer that says to go elsewhere; see [`Elsewhere`].
    #[error("{} (HTTP {status})", verdict.reason)]
    Elsewhere {
        /// The HTTP status.
        status: u16,
        /// What the answer means.
        verdict: Elsewhere,
    },
    /// An answer that may be stale; kept, because it is final when the active node gives it.
    #[error("{reason} (HTTP {})", answer.status.as_u16())]
    Stale {
        /// What it says.
        reason: &'static str,
        /// Whose word it is.
        word: Word,
        /// The answer itself.
        answer: Box<Answer>,
    },
    /// The token was refused.
    #[error("the token was refused (HTTP 403)")]
    TokenRefused,
}

/// Whose word an answer is that may be stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Some node's, which may be behind.
    Anyones,
    /// That of a node which was known as the active one when it was asked. It may have been
    /// that no longer.
    Claimants,
    /// The active node's for certain: whoever got the request has handed it on.
    Actives,
}

/// A call that no address of the cluster could answer.
#[derive(Debug)]
pub struct CallError {
    /// The cluster.
    pub cluster: ClusterName,
    /// Why it ended.
    pub kind: CallErrorKind,
    /// Every attempt that failed, in the order in which they failed. `Display` tells each
    /// text once.
    pub attempts: Vec<AttemptError>,
}

/// Why a call ended without an answer.
#[derive(Debug)]
pub enum CallErrorKind {
    /// Every address was tried and none could answer.
    Exhausted,
    /// The deadline came first.
    Deadline,
    /// The active node gave an answer that could have been stale elsewhere: it is final.
    Agreed(Box<Answer>),
    /// Every address that could be asked gave an answer that could have been stale, twice.
    /// It is not final: the active node, which knows for certain, has not said the same.
    Undecided,
    /// The token was refused: by two addresses, or by the only one that could be asked.
    TokenRefused,
    /// There is no token, and why.
    NoToken(String),
}

// === impl Fault ===

impl Fault {
    /// Whether the address is to blame, so that its breaker counts it.
    pub const fn is_address_fault(&self) -> bool {
        match self {
            Self::Unreachable(_)
            | Self::Connection(_)
            | Self::Tls(_)
            | Self::Deadline
            | Self::Broken(_) => true,
            Self::Elsewhere { verdict, .. } => verdict.at_fault,
            // a silence is judged where its length is known against that of others
            Self::Silent(_)
            | Self::Unsendable(_)
            | Self::BreakerOpen { .. }
            | Self::Stale { .. }
            | Self::TokenRefused => false,
        }
    }

    /// Whether the address has said itself that it serves nobody now.
    pub const fn ejects(&self) -> bool {
        matches!(self, Self::Elsewhere { verdict, .. } if verdict.eject)
    }

    /// Whether a server may have acted on the request, so that what is not repeatable
    /// must not be sent again. An answer that says "not here" is the server's word that
    /// it did not; a gateway's word that it got no answer is none.
    pub const fn may_have_been_served(&self) -> bool {
        match self {
            Self::Connection(_) | Self::Deadline | Self::Silent(_) | Self::Broken(_) => true,
            Self::Elsewhere { verdict, .. } => verdict.maybe_served,
            Self::Unreachable(_)
            | Self::Tls(_)
            | Self::Unsendable(_)
            | Self::BreakerOpen { .. }
            | Self::Stale { .. }
            | Self::TokenRefused => false,
        }
    }

    /// Whether it will be the same for as long as a call lasts: a certificate does not
    /// change from one moment to the next.
    pub const fn is_lasting(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Whether the address answered the question itself, if not in a way that settles it.
    pub const fn is_an_opinion(&self) -> bool {
        matches!(self, Self::Stale { .. } | Self::TokenRefused)
    }

    /// The word that metrics and spans use.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Connection(_) => "connection",
            Self::Tls(_) => "tls",
            Self::Deadline => "deadline",
            Self::Silent(_) => "silent",
            Self::Broken(_) => "broken",
            Self::Unsendable(_) => "unsendable",
            Self::BreakerOpen { .. } => "breaker_open",
            Self::Elsewhere { .. } => "elsewhere",
            Self::Stale { .. } => "stale",
            Self::TokenRefused => "token_refused",
        }
    }
}

// === impl CallError ===

impl std::error::Error for CallError {}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, kind, attempts } = self;
        match kind {
            CallErrorKind::Exhausted => write!(f, "cluster {cluster}: no address could answer")?,
            CallErrorKind::Deadline => write!(f, "cluster {cluster}: no answer in time")?,
            CallErrorKind::Agreed(answer) => {
                let status = answer.status.as_u16();
                write!(f, "cluster {cluster}: the active node says HTTP {status}")?;
            }
            CallErrorKind::Undecided => write!(
                f,
                "cluster {cluster}: not certain, because the active node has not confirmed it"
            )?,
            CallErrorKind::TokenRefused => write!(f, "cluster {cluster}: the token was refused")?,
            CallErrorKind::NoToken(why) => write!(f, "cluster {cluster}: no token: {why}")?,
        }
        for (n, (attempt, times)) in counted(attempts).into_iter().enumerate() {
            write!(f, "{} {attempt}", if n == 0 { ":" } else { ";" })?;
            if times > 1 {
                write!(f, " ({times} times)")?;
            }
        }
        Ok(())
    }
}

/// Each text once, in the order of their first, and how often it stands there: a call may
/// have knocked at the same closed door ten times, and every address must be told of
/// before a long message is cut.
fn counted(attempts: &[AttemptError]) -> Vec<(String, usize)> {
    let mut counted: Vec<(String, usize)> = Vec::new();
    for text in attempts.iter().map(ToString::to_string) {
        match counted.iter_mut().find(|(known, _)| *known == text) {
            Some((_, times)) => *times += 1,
            None => counted.push((text, 1)),
        }
    }
    counted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_address_said_again_and_again_is_told_once() {
        let at = |port: u16, fault| {
            let url = format!("https://v:{port}").parse().unwrap();
            AttemptError { address: AddressName::of(&url), index: AddressIndex(0), fault }
        };
        let refused = || Fault::Unreachable("refused".into());
        let attempts =
            vec![at(1, refused()), at(2, refused()), at(1, refused()), at(1, Fault::Deadline)];
        let cluster = ClusterName::try_new("default").unwrap();
        let error = CallError { cluster, kind: CallErrorKind::Exhausted, attempts };
        assert_eq!(
            error.to_string(),
            "cluster default: no address could answer: https://v:1: refused (2 times); \
             https://v:2: refused; https://v:1: no answer within the deadline"
        );
    }
}
