//! Vault's Transit engine: the verbs, their types, and what its answers mean.
//!
//! [`TransitKey`] is what the keyring sees. [`http_key::HttpTransitKey`] is the real
//! one; the keyring's unit tests put a scripted one in its place. Its requests and answers
//! are in `wire`, the meaning of answers in [`verdict`]. A key that several clusters hold is
//! one to the keyring, too: [`replicas`]. Calls that come together are sent together: `batch`
//! stands between [`http_key`] and the cluster, for each path and verb, and nothing above
//! sees it.

mod batch;
pub mod http_key;
pub mod replicas;
pub mod verdict;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::clock::{Deadline, UnixSeconds};
use crate::cluster::CallError;
use crate::config::settings::ClusterName;
use crate::secret::Plaintext;

pub use http_key::HttpTransitKey;
pub use replicas::Replicas;
pub use replicas::failure::ClusterFailure;
pub use verdict::TransitVerdicts;

/// One Transit key, in one cluster or in several that hold replicas of it.
pub trait TransitKey: fmt::Debug + Send + Sync + 'static {
    /// Wraps `plaintext` with `version`, or with the newest when `None`.
    ///
    /// The answer has been checked: it carries the version that was asked for and its
    /// ciphertext is as long as nonce, plaintext and tag demand.
    fn encrypt<'a>(
        &'a self,
        plaintext: &'a Plaintext,
        version: Option<KeyVersion>,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Wrapped, TransitError>>;

    /// Unwraps what Transit answered to an encrypt; never answers an empty plaintext.
    fn decrypt<'a>(
        &'a self,
        ciphertext: &'a VaultCiphertext,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Plaintext, TransitError>>;

    /// Unwraps in the cluster that encrypts: of several, the first one alone.
    fn decrypt_at_first<'a>(
        &'a self,
        ciphertext: &'a VaultCiphertext,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Plaintext, TransitError>> {
        self.decrypt(ciphertext, deadline)
    }

    /// Whether `wrapped`, which [`Self::encrypt`] answered, decrypts to `plaintext`.
    fn verify<'a>(
        &'a self,
        plaintext: &'a Plaintext,
        wrapped: &'a Wrapped,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<bool, TransitError>> {
        Box::pin(
            async move { Ok(self.decrypt(&wrapped.ciphertext, deadline).await? == *plaintext) },
        )
    }

    /// Reads the key's metadata; of several clusters, the first one's.
    fn read(&self, deadline: Deadline) -> BoxFuture<'_, Result<KeyMetadata, TransitError>>;

    /// The same as the active node has it: no other node's word will do, so it fails where the
    /// active one cannot be asked, or is not known.
    fn read_at_active(
        &self,
        deadline: Deadline,
    ) -> BoxFuture<'_, Result<KeyMetadata, TransitError>>;

    /// What the token may do on this key's encrypt path, from `sys/capabilities-self`.
    fn encrypt_capabilities(
        &self,
        deadline: Deadline,
    ) -> BoxFuture<'_, Result<Vec<String>, TransitError>>;

    /// Vault's wall clock now, as its answers tell it; of several clusters, the first one's.
    fn vault_now(&self) -> Option<UnixSeconds>;

    /// The cluster that it lives in; of several, the first.
    fn cluster(&self) -> &ClusterName;

    /// Whether a call has a chance now: there is a token, and an address that is not left
    /// out.
    fn is_usable(&self) -> bool {
        true
    }

    /// Whether a replica may encrypt with `version` while the metadata cannot be read.
    fn vouches_for(&self, _version: KeyVersion) -> Vouch {
        Vouch::No
    }

    /// Waits until [`Self::vouches_for`] may answer something else. For one waiter at a time.
    fn news(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    /// What keeps every verb waiting right now, if it is known before one of them fails.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// What is known of each of several clusters, in their order; empty for a key in one.
    fn tiers(&self) -> Vec<TierCondition> {
        Vec::new()
    }
}

/// One version of a key. Its creation time belongs to its identity: of a key that was
/// deleted and made again, version 1 is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyVersion {
    /// Its number.
    pub number: u32,
    /// When Vault made it.
    pub created: UnixSeconds,
}

/// Whether a replica may encrypt with a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vouch {
    /// None may.
    No,
    /// One may turn out to.
    Pending,
    /// One may: it is proven to have the first cluster's key material.
    Yes,
}

/// What is known of one of a key's clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierCondition {
    /// The cluster.
    pub cluster: ClusterName,
    /// Why calls pass it over at present, when they do.
    pub passed_over: Option<String>,
    /// Why it does not encrypt, or not with the newest version; the first one always does.
    pub unproven: Option<String>,
}

/// A ciphertext as Transit writes it: `vault:vN:<base64>`, with a well-formed version and
/// base64 payload; and the associated data that it was made with.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct VaultCiphertext {
    version: u32,
    payload: String,
    associated_data: Option<String>,
}

/// What Transit answers to an encrypt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrapped {
    /// The ciphertext.
    pub ciphertext: VaultCiphertext,
    /// The address that made it, for `verifyEncrypt`.
    pub address: String,
    /// The cluster that made it.
    pub cluster: ClusterName,
}

/// What a key's metadata says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyMetadata {
    /// Creation time of each version that may still decrypt.
    pub versions: BTreeMap<u32, UnixSeconds>,
    /// The newest version.
    pub latest_version: u32,
    /// Older versions do not decrypt.
    pub min_decryption_version: u32,
    /// Older versions do not encrypt; 0 means no bound.
    pub min_encryption_version: u32,
    /// The key's type, such as `aes256-gcm96`.
    pub key_type: String,
    /// Whether the key is derived (needs a context with each call).
    pub derived: bool,
    /// Whether the key was deleted softly.
    pub soft_deleted: bool,
}

/// A Transit verb that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("key `{mount}/{key}`: {}", with_path(cause, mount, key))]
pub struct TransitError {
    /// The Transit engine's mount path.
    pub mount: String,
    /// Vault's name for the key.
    pub key: String,
    /// What happened.
    #[source]
    pub cause: TransitCause,
}

/// Why a Transit verb failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransitCause {
    /// Vault said no, and asking again or elsewhere would not change it.
    #[error("{refusal} ({address})")]
    Refused {
        /// What Vault refused.
        refusal: Refusal,
        /// Who said so.
        address: String,
    },
    /// No address could answer.
    #[error("{0}")]
    Unavailable(#[source] Arc<CallError>),
    /// So many calls wait for answers already that this one was not sent.
    #[error(
        "{0} calls wait for it already, so this one was not sent; Vault is slower than it is \
         called, see vault_kms_proxy_attempt_duration_seconds"
    )]
    Crowded(usize),
    /// Vault answered success with something that must not be handed on.
    #[error("{address} answered {what}; the answer was thrown away")]
    Unacceptable {
        /// What was wrong with it, without a byte of it.
        what: String,
        /// Who answered.
        address: String,
    },
    /// Of the key's clusters, none could do it and at least one could not be asked.
    #[error("{}", replicas::failure::told(.0))]
    Clusters(Vec<ClusterFailure>),
}

/// What Vault refuses for good. The text of each says what an operator can do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `message authentication failed`: another key made it, or it was changed.
    #[error("the ciphertext was not made by this key, or it was damaged")]
    WrongKey,
    /// `disallowed by policy (too old)`.
    #[error(
        "this key version is below min_decryption_version; lower it with \
         `vault write <mount>/keys/<key>/config min_decryption_version=…`"
    )]
    TooOld,
    /// `version is too new`, from the active node or from all.
    #[error("the key has no such version; was it deleted and made again, or restored?")]
    TooNew,
    /// `encryption key not found`, 404.
    #[error("no such key in Transit; make it with `vault write -f <mount>/keys/<key>`")]
    KeyNotFound,
    /// The key was deleted softly.
    #[error("the key was deleted (soft); restore it in Vault")]
    KeyDeleted,
    /// A policy that does not allow it.
    #[error(
        "the token's policy does not allow it; `vault-kms-proxy check --online` shows the line \
         that it lacks"
    )]
    PolicyDenied,
    /// `less than the minimum encryption key version`.
    #[error("the version is below min_encryption_version")]
    BelowMinimumEncryption,
    /// `higher than the latest key version`, from the active node or from all.
    #[error("the version is above the key's latest")]
    AboveLatest,
    /// No such mount, method or namespace.
    #[error(
        "Vault has no Transit engine or namespace there; check transitPath (or the key's mount) \
         and namespace: {0}"
    )]
    Misconfigured(String),
    /// Anything else that Vault calls a bad request; its words, shortened, without input.
    #[error("Vault refused the request: {0}")]
    BadRequest(String),
}

/// Puts the key's path into the commands that a cause advises, so that they can be copied.
fn with_path(cause: &TransitCause, mount: &str, key: &str) -> String {
    cause.to_string().replace("<mount>/keys/<key>", &format!("{mount}/keys/{key}"))
}

// === impl VaultCiphertext ===

impl VaultCiphertext {
    /// A ciphertext of `version` with this base64 payload.
    ///
    /// # Errors
    /// `None` when the version is 0 or the payload is empty or no standard base64.
    pub fn try_new(version: u32, payload: &str) -> Option<Self> {
        use base64::Engine as _;
        let decoded = base64::engine::general_purpose::STANDARD.decode(payload).ok()?;
        (version > 0 && !decoded.is_empty()).then(|| Self {
            version,
            payload: payload.to_owned(),
            associated_data: None,
        })
    }

    /// The same, made with these associated data: without them it does not decrypt.
    #[must_use]
    pub fn bound_to(mut self, associated_data: &[u8]) -> Self {
        use base64::Engine as _;
        let encoded = base64::engine::general_purpose::STANDARD.encode(associated_data);
        self.associated_data = Some(encoded);
        self
    }

    /// Reads `vault:vN:<base64>`; `None` when the text has another form.
    pub fn parse(text: &str) -> Option<Self> {
        let (version, payload) = text.strip_prefix("vault:v")?.split_once(':')?;
        let canonical = !version.starts_with('0') && version.bytes().all(|b| b.is_ascii_digit());
        canonical.then(|| Self::try_new(version.parse().ok()?, payload))?
    }

    /// The key version that made it.
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// The base64 payload.
    pub fn payload(&self) -> &str {
        &self.payload
    }

    /// Base64 of the associated data that it was made with, if any.
    pub fn associated_data(&self) -> Option<&str> {
        self.associated_data.as_deref()
    }

    /// Whether it was made with associated data.
    pub const fn is_bound(&self) -> bool {
        self.associated_data.is_some()
    }

    /// As Transit reads it.
    pub fn to_vault(&self) -> String {
        format!("vault:v{}:{}", self.version, self.payload)
    }
}

impl fmt::Debug for VaultCiphertext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VaultCiphertext(v{}, {} base64 characters)", self.version, self.payload.len())
    }
}

// === impl TransitError ===

impl TransitError {
    /// Vault said no for good.
    pub const fn is_final(&self) -> bool {
        matches!(self.cause, TransitCause::Refused { .. })
    }

    /// Somebody who might have done it could not be asked, or did not answer in time.
    pub const fn is_outage(&self) -> bool {
        matches!(
            self.cause,
            TransitCause::Unavailable(_) | TransitCause::Crowded(_) | TransitCause::Clusters(_)
        )
    }

    /// What Vault refused, when it did.
    pub const fn refusal(&self) -> Option<&Refusal> {
        match &self.cause {
            TransitCause::Refused { refusal, .. } => Some(refusal),
            TransitCause::Unavailable(_)
            | TransitCause::Crowded(_)
            | TransitCause::Unacceptable { .. }
            | TransitCause::Clusters(_) => None,
        }
    }
}

// === impl KeyMetadata ===

impl KeyMetadata {
    /// The version `number`, when it may still decrypt.
    pub fn version(&self, number: u32) -> Option<KeyVersion> {
        let created = *self.versions.get(&number)?;
        Some(KeyVersion { number, created })
    }

    /// Whether version `number` exists and may encrypt, and what it writes may be decrypted.
    pub fn may_encrypt(&self, number: u32) -> bool {
        self.versions.contains_key(&number)
            && number >= self.min_encryption_version
            && number >= self.min_decryption_version
            && number <= self.latest_version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_ciphertexts_are_ciphertexts() {
        let parsed = VaultCiphertext::parse("vault:v12:AAEC").unwrap();
        assert_eq!((parsed.version(), parsed.payload()), (12, "AAEC"));
        assert_eq!(parsed.to_vault(), "vault:v12:AAEC");
        for bad in [
            "",
            "vault",
            "vault:v1",
            "vault:v1:",
            "vault:v0:AAEC",
            "vault:v01:AAEC",
            "vault:v+1:AAEC",
            "vault:v99999999999:AAEC",
            "vault:v1:A",
            "vault:v1:!!!!",
            "other:v1:AAEC",
            "vault:1:AAEC",
        ] {
            assert_eq!(VaultCiphertext::parse(bad), None, "{bad}");
        }
    }
}
