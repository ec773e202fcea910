//! How a call can fail, and the one function that turns that into a gRPC code and message.
//!
//! kube-apiserver treats no code specially, so codes are for people and dashboards. The
//! message reaches API users and logs: it names addresses, causes and remedies, and never
//! a secret or a byte of a ciphertext.

use tonic::{Code, Status};

use super::NotServing;
use crate::cluster::CallErrorKind;
use crate::keyring::KeyringError;
use crate::transit::{Refusal, TransitCause, TransitError};

/// Longer messages are cut; HTTP/2 peers bound the size of a trailer.
const MAX_MESSAGE_BYTES: usize = 1024;

/// Why a call got no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallFailure {
    /// No generation yet.
    #[error(transparent)]
    NotServing(#[from] NotServing),
    /// The keyring could not.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// The call was still running when its time was up.
    #[error("the call did not end within its deadline")]
    Deadline,
    /// The call waited in line for its whole time, or the line was full.
    #[error("too many calls at once: {0}")]
    Overloaded(String),
    /// A bug; the call's panic was caught.
    #[error("internal error: the call panicked; the log has the place")]
    Panicked,
    /// An answer that kube-apiserver would store although it cannot be right.
    #[error("internal error: {0}; the answer was thrown away")]
    Impossible(&'static str),
}

// === impl CallFailure ===

impl CallFailure {
    /// The gRPC code.
    pub fn code(&self) -> Code {
        match self {
            Self::NotServing(_) => Code::Unavailable,
            Self::Keyring(error) => keyring_code(error),
            Self::Deadline => Code::DeadlineExceeded,
            Self::Overloaded(_) => Code::ResourceExhausted,
            Self::Panicked | Self::Impossible(_) => Code::Internal,
        }
    }
}

impl From<CallFailure> for Status {
    fn from(failure: CallFailure) -> Self {
        let mut message = failure.to_string();
        if message.len() > MAX_MESSAGE_BYTES {
            let end = (0..=MAX_MESSAGE_BYTES).rev().find(|&at| message.is_char_boundary(at));
            message.truncate(end.unwrap_or(0));
            message.push('…');
        }
        Self::new(failure.code(), message)
    }
}

fn keyring_code(error: &KeyringError) -> Code {
    match error {
        KeyringError::Unreadable(_) | KeyringError::BadPlaintext(_) => Code::InvalidArgument,
        KeyringError::UnknownKek { .. }
        | KeyringError::NotConfigured(_)
        | KeyringError::Lost { .. } => Code::FailedPrecondition,
        KeyringError::NotReady { .. } | KeyringError::Undecided(_) => Code::Unavailable,
        KeyringError::Transit { source, .. } => transit_code(source),
        KeyringError::ProofFailed { .. } => Code::DataLoss,
    }
}

fn transit_code(error: &TransitError) -> Code {
    match &error.cause {
        TransitCause::Refused { refusal, .. } => match refusal {
            Refusal::WrongKey | Refusal::BadRequest(_) => Code::InvalidArgument,
            Refusal::PolicyDenied => Code::PermissionDenied,
            Refusal::KeyNotFound => Code::NotFound,
            Refusal::TooOld
            | Refusal::TooNew
            | Refusal::KeyDeleted
            | Refusal::BelowMinimumEncryption
            | Refusal::AboveLatest
            | Refusal::Misconfigured(_) => Code::FailedPrecondition,
        },
        TransitCause::Unavailable(error) if matches!(error.kind, CallErrorKind::Deadline) => {
            Code::DeadlineExceeded
        }
        TransitCause::Unavailable(_) | TransitCause::Crowded(_) | TransitCause::Clusters(_) => {
            Code::Unavailable
        }
        TransitCause::Unacceptable { .. } => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let status = Status::from(CallFailure::Overloaded("ä".repeat(2_000)));
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().len() <= MAX_MESSAGE_BYTES + '…'.len_utf8());
        assert!(status.message().starts_with("too many calls at once: ä"));
    }

    #[test]
    fn a_failure_of_the_way_to_vault_is_unavailable_and_a_wrong_key_is_not() {
        let transit = |cause| KeyringError::Transit {
            kek: crate::config::settings::KekName::try_new("kube").unwrap(),
            source: Box::new(TransitError { mount: "transit".into(), key: "kube".into(), cause }),
        };
        let refused = |refusal| {
            CallFailure::from(transit(TransitCause::Refused { refusal, address: "a".into() }))
        };
        assert_eq!(refused(Refusal::WrongKey).code(), Code::InvalidArgument);
        assert_eq!(refused(Refusal::PolicyDenied).code(), Code::PermissionDenied);
        let away = |kind| {
            let cluster = crate::config::settings::ClusterName::try_new("default").unwrap();
            let attempts = Vec::new();
            let error = crate::cluster::CallError { cluster, kind, attempts }.into();
            CallFailure::from(transit(TransitCause::Unavailable(error)))
        };
        assert_eq!(away(CallErrorKind::Exhausted).code(), Code::Unavailable);
        assert_eq!(away(CallErrorKind::Deadline).code(), Code::DeadlineExceeded);
        assert_eq!(
            Status::from(away(CallErrorKind::Exhausted)).message(),
            "KEK `kube`: key `transit/kube`: cluster default: no address could answer"
        );
    }
}
