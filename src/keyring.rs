//! The configured KEKs, in order: the first encrypts, all decrypt.
//!
//! `kms` sees [`Keyring::encrypt`], [`Keyring::decrypt`] and [`Keyring::status`]. The
//! rest is in the modules: `envelope` reads and writes ciphertexts, `key_id` names
//! versions, [`rotation`] notices and activates them, [`condition`] decides what Status
//! may say, [`kek`] ties them to one Transit key, [`memory`] keeps what outlives a reload.

// A failed call makes one error and moves it a few times; a box would only hide the
// `TransitError` from `source()`.
#![allow(clippy::result_large_err)]

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future;

use crate::clock::{Deadline, UnixSeconds};
use crate::config::settings::{KekName, KekSettings, KeyringSettings, VerifyEncrypt};
use crate::secret::Plaintext;
use crate::task::OwnedTask;
use crate::transit::{Refusal, TransitError, VaultCiphertext};
use condition::KeyringCondition;
use envelope::{Form, Reader};
use kek::{Kek, Verified, Verify};

mod bare;
pub mod condition;
pub(crate) mod envelope;
#[cfg(test)]
mod fake;
pub mod kek;
mod key_id;
pub mod memory;
pub mod rotation;
#[cfg(test)]
mod tests;

/// The KEKs of one generation. Owns the task that keeps the first one proven.
#[derive(Debug)]
pub struct Keyring {
    settings: KeyringSettings,
    keks: Vec<Arc<Kek>>,
    names: Vec<KekName>,
    verified: Verified,
    _canary: Option<OwnedTask>,
}

/// How one KEK stands when a generation wants to begin.
#[derive(Debug)]
pub struct KekReadiness {
    /// The KEK.
    pub kek: KekName,
    /// It is the first one, so nothing is encrypted without it.
    pub primary: bool,
    /// Its metadata was read and, for the first one, its active version proven; or why not.
    pub result: Result<(), KeyringError>,
}

/// The key_id of a version of `kek` that Vault says was created at `created`.
pub fn key_id_of(kek: &KekSettings, version: u32, created: UnixSeconds) -> KeyId {
    key_id::of(kek, version, created)
}

/// The annotation that names the KEK in a v2 answer.
pub const KEK_ANNOTATION: &str = "kek.vault-kms-proxy.io";

/// The public name of a KEK version that KMS v2 sees: `<name>:vN:<16 hex>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeyId(Arc<str>);

/// Which of the two APIs asks; they differ in how an answer is proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EncryptFor {
    /// KMS v1: length checked always, decrypted the first time.
    V1,
    /// KMS v2: decrypted and compared always.
    V2 {
        /// The key_id that Status last told this caller, when that was at most 30 s ago;
        /// its KEK and version encrypt, if they still may.
        reported: Option<KeyId>,
    },
}

/// What an Encrypt answers. Proven: it decrypts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encrypted {
    /// 1 to 1,024 bytes for seeds; 1 to 65,535 for anything.
    pub ciphertext: Vec<u8>,
    /// The version that made it.
    pub key_id: KeyId,
    /// For v2 only.
    pub annotations: HashMap<String, Vec<u8>>,
}

/// What came with a ciphertext; empty for v1.
#[derive(Clone, Debug, Default)]
pub struct DecryptHints {
    /// The stored key_id.
    pub key_id: String,
    /// The stored annotations.
    pub annotations: HashMap<String, Vec<u8>>,
}

/// What v2 Status answers when it is not an RPC error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusReport {
    /// `ok` or the reason why not.
    pub healthz: String,
    /// The version that Encrypt uses.
    pub key_id: KeyId,
}

/// Why the keyring could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The ciphertext has no form that this daemon can read.
    #[error("{0}")]
    Unreadable(String),
    /// Nothing to encrypt, or more than fits.
    #[error("{0}")]
    BadPlaintext(String),
    /// The ciphertext needs something that is not configured; the text says what.
    #[error("{0}")]
    NotConfigured(String),
    /// The ciphertext names a KEK that is not configured.
    #[error(
        "the ciphertext was written with KEK `{named}`, which is not configured; \
         add it to the end of keyNames (configured: {configured})"
    )]
    UnknownKek {
        /// The KEK in the ciphertext.
        named: String,
        /// The configured ones, separated by commas.
        configured: String,
    },
    /// The primary's metadata was never read, so nothing may be encrypted with it.
    #[error("KEK `{kek}` is not ready: {why}")]
    NotReady {
        /// The KEK.
        kek: KekName,
        /// Why its metadata could not be read.
        why: String,
    },
    /// Vault, or the way to it, failed for this KEK.
    #[error("KEK `{kek}`: {source}")]
    Transit {
        /// The KEK.
        kek: KekName,
        /// What happened.
        source: Box<TransitError>,
    },
    /// No KEK could decrypt a ciphertext that names none, and at least one could not be asked.
    #[error("no answer from every KEK that may have written this ciphertext: {0}")]
    Undecided(String),
    /// The answer to an Encrypt did not decrypt to its plaintext.
    #[error("KEK `{kek}`: the new ciphertext failed its proof: {why}; it was thrown away")]
    ProofFailed {
        /// The KEK.
        kek: KekName,
        /// What the proof showed.
        why: String,
    },
    /// The active version is known to be lost.
    #[error("KEK `{kek}`: {why}")]
    Lost {
        /// The KEK.
        kek: KekName,
        /// What the active node says.
        why: String,
    },
}

// === impl KeyId ===

impl KeyId {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for KeyId {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

// === impl Keyring ===

impl Keyring {
    /// The keyring of `keks`, in the order of `settings.keks` and one for each. Must be
    /// called within a tokio runtime.
    pub fn new(settings: KeyringSettings, keks: Vec<Arc<Kek>>) -> Arc<Self> {
        let names = keks.iter().map(|kek| kek.name().clone()).collect();
        let canary = keks.first().map(|primary| {
            let (core, grace) = (Arc::clone(primary.core()), settings.status.grace);
            let begin = move || kek::keep_proven(Arc::clone(&core), grace);
            OwnedTask::spawn_again("canary", begin)
        });
        let verified = Verified::default();
        Arc::new(Self { settings, keks, names, verified, _canary: canary })
    }

    /// Wraps `plaintext` with the first KEK.
    ///
    /// # Errors
    /// When nothing proven can be answered before `deadline`.
    pub async fn encrypt(
        &self,
        plaintext: &Plaintext,
        caller: EncryptFor,
        deadline: Deadline,
    ) -> Result<Encrypted, KeyringError> {
        let kek = self.encrypting(&caller)?;
        let (name, format) = (kek.name(), self.settings.write_format);
        let longest = caller.longest_ciphertext();
        self.check_length(plaintext, name, longest)?;
        let verify = match (&caller, self.settings.verify_encrypt) {
            (EncryptFor::V1, VerifyEncrypt::V2) => Verify::FirstOf(&self.verified),
            (EncryptFor::V2 { .. }, _) | (_, VerifyEncrypt::Always) => Verify::Always,
        };
        let core = kek.core();
        let (wrapped, key_id) = core.encrypt(plaintext, &caller, verify, deadline).await?;
        let ciphertext = envelope::write(format, name, &wrapped.ciphertext);
        if ciphertext.len() > longest {
            return Err(too_long(plaintext, ciphertext.len(), longest));
        }
        let annotations = match caller {
            EncryptFor::V1 => HashMap::new(),
            EncryptFor::V2 { .. } => {
                HashMap::from([(KEK_ANNOTATION.to_owned(), name.as_str().as_bytes().to_vec())])
            }
        };
        Ok(Encrypted { ciphertext, key_id, annotations })
    }

    /// Unwraps any ciphertext that a configured KEK wrote.
    ///
    /// # Errors
    /// When the form is unknown, the KEK is not configured, or Vault cannot or will not.
    pub async fn decrypt(
        &self,
        ciphertext: &[u8],
        hints: &DecryptHints,
        deadline: Deadline,
    ) -> Result<Plaintext, KeyringError> {
        let bao = self.settings.bao_kms_provider.as_ref();
        match (Reader { keks: &self.names, bao }).read(ciphertext, hints)? {
            Form::Named { kek, ciphertext } => {
                self.kek(&kek)?.core().decrypt(&ciphertext, deadline).await
            }
            Form::Bare { first, ciphertext } => {
                let plaintext = self.decrypt_bare(first.as_ref(), &ciphertext, deadline).await;
                plaintext.map_err(|error| error.about(&ciphertext))
            }
        }
    }

    /// What v2 Status may say now; from memory, never from Vault.
    ///
    /// # Errors
    /// When the key was never seen, not even by an earlier process, or is known to be lost.
    pub fn status(&self) -> Result<StatusReport, KeyringError> {
        let (healthz, key_id) = self.primary()?.core().status(&self.settings.status)?;
        Ok(StatusReport { healthz, key_id })
    }

    /// Asks the KEKs that `asked` picks for a sign of life: their metadata read by their own
    /// task, and for the first one a canary. Answers for each by `deadline`, in order.
    pub async fn ready(
        &self,
        asked: impl Fn(&KekName) -> bool,
        deadline: Deadline,
    ) -> Vec<KekReadiness> {
        let asked = self.keks.iter().enumerate().filter(|(_, kek)| asked(kek.name()));
        future::join_all(asked.map(|(index, kek)| async move {
            let primary = index == 0;
            let mut result = kek.core().first_look(deadline).await;
            if primary && result.is_ok() {
                result = kek.core().prove(deadline).await;
            }
            KekReadiness { kek: kek.name().clone(), primary, result }
        }))
        .await
    }

    /// What is known of each KEK; from memory.
    pub fn condition(&self) -> KeyringCondition {
        KeyringCondition {
            status: self.status().map(|report| report.healthz).map_err(|e| e.to_string()),
            keks: self.keks.iter().map(|kek| kek.core().condition()).collect(),
        }
    }

    /// The KEKs, in order.
    pub fn keks(&self) -> &[Arc<Kek>] {
        &self.keks
    }

    fn kek(&self, name: &KekName) -> Result<&Arc<Kek>, KeyringError> {
        self.keks.iter().find(|kek| kek.name() == name).ok_or_else(|| self.no_kek())
    }

    fn check_length(
        &self,
        plaintext: &Plaintext,
        kek: &KekName,
        longest: usize,
    ) -> Result<(), KeyringError> {
        if plaintext.is_empty() {
            return Err(KeyringError::BadPlaintext("there is nothing to encrypt".into()));
        }
        let least = envelope::least_length(self.settings.write_format, kek, plaintext.len());
        if least > longest { Err(too_long(plaintext, least, longest)) } else { Ok(()) }
    }

    /// The first KEK, or the one that Status has just named to this caller: a reload may
    /// have put another first between its Status and its Encrypt.
    fn encrypting(&self, caller: &EncryptFor) -> Result<&Arc<Kek>, KeyringError> {
        let told = match caller {
            EncryptFor::V2 { reported: Some(key_id) } => {
                self.keks.iter().find(|kek| kek.core().may_encrypt_as(key_id))
            }
            EncryptFor::V1 | EncryptFor::V2 { reported: None } => None,
        };
        told.map_or_else(|| self.primary(), Ok)
    }

    fn primary(&self) -> Result<&Arc<Kek>, KeyringError> {
        self.keks.first().ok_or_else(|| self.no_kek())
    }

    fn no_kek(&self) -> KeyringError {
        let configured: Vec<_> = self.names.iter().map(KekName::as_str).collect();
        KeyringError::Unreadable(format!(
            "no configured KEK may read it (configured: {})",
            configured.join(", ")
        ))
    }
}

fn too_long(plaintext: &Plaintext, length: usize, longest: usize) -> KeyringError {
    KeyringError::BadPlaintext(format!(
        "{} bytes of plaintext make a ciphertext of {length} bytes; kube-apiserver stores at \
         most {longest}",
        plaintext.len()
    ))
}

// === impl EncryptFor ===

impl EncryptFor {
    const fn longest_ciphertext(&self) -> usize {
        match self {
            Self::V1 => envelope::LONGEST_V1,
            Self::V2 { .. } => envelope::LONGEST_V2,
        }
    }
}

// === impl KeyringError ===

impl KeyringError {
    /// Vault cannot tell a wrong key from wrong associated data, so both are said.
    fn about(self, ciphertext: &VaultCiphertext) -> Self {
        if !ciphertext.is_bound() || !(self.is_verdict() || matches!(self, Self::Unreadable(_))) {
            return self;
        }
        Self::Unreadable(format!(
            "{self}; bao-kms-provider wrote it, and bound it to the names under \
             legacy.baoKmsProvider, which must be those of its configuration"
        ))
    }

    /// Vault's no is about the ciphertext. A key that may not be used or that is deleted
    /// could still be the one that wrote it.
    const fn is_verdict(&self) -> bool {
        match self {
            Self::Transit { source, .. } => match source.refusal() {
                Some(Refusal::PolicyDenied | Refusal::KeyDeleted | Refusal::Misconfigured(_))
                | None => false,
                Some(_) => true,
            },
            _ => false,
        }
    }
}
