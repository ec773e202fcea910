//! Encrypt, Decrypt and the canary: one Transit key's calls.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use super::{Active, Core, View};
use crate::clock::{Deadline, node_time};
use crate::keyring::condition::{Change, means_loss};
use crate::keyring::rotation::{Inactive, refuses_a_wrong_key};
use crate::keyring::{EncryptFor, KeyId, KeyringError, key_id};
use crate::secret::Plaintext;
use crate::telemetry::metrics::{self, Metric};
use crate::transit::{Refusal, TransitError, VaultCiphertext, Wrapped};

/// Which answers to an Encrypt are decrypted and compared.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Verify<'a> {
    /// Each.
    Always,
    /// The first of each version and address.
    FirstOf(&'a Verified),
}

/// Whether two KEKs are one key.
#[derive(Debug)]
pub(crate) enum Compared {
    /// The one decrypts what the other encrypts.
    Same,
    /// It does not, and says why.
    Another(String),
    /// Either of them could not be asked.
    Unknown(String),
}

/// The versions and addresses whose answers were proven in this generation.
#[derive(Debug, Default)]
pub(crate) struct Verified(Mutex<HashMap<u32, HashSet<String>>>);

/// How an Encrypt names the version.
enum Pick {
    Version(Active),
    Unpinned,
}

/// An answer, the version that was asked for, and its name.
struct Used {
    wrapped: Wrapped,
    asked: Option<u32>,
    key_id: KeyId,
}

/// What is encrypted to prove a version; as long as kube-apiserver's own probe is.
const CANARY: &[u8] = b"vault-kms-proxy proves this key.";

/// More addresses than a cluster has; it bounds what is remembered of a version.
const MOST_ADDRESSES: usize = 1_024;

// === impl Core ===

impl Core {
    /// Wraps `plaintext`, proves the answer as `verify` demands, and says which version
    /// made it.
    pub(crate) async fn encrypt(
        &self,
        plaintext: &Plaintext,
        caller: &EncryptFor,
        verify: Verify<'_>,
        deadline: Deadline,
    ) -> Result<(Wrapped, KeyId), KeyringError> {
        if matches!(self.current().active, Err(Inactive::Unread)) {
            self.first_read(deadline).await;
        }
        let Used { wrapped, asked, key_id } =
            match self.wrap(plaintext, self.pick(caller)?, deadline).await {
                Err(error) if is_outdated_pin(&error) => {
                    // The key was configured anew or Vault restored since the last read.
                    self.read_anew(deadline).await;
                    self.wrap(plaintext, self.pick(caller)?, deadline).await
                }
                result => result,
            }
            .map_err(|source| self.failed(source))?;
        let version = wrapped.ciphertext.version();
        if let Some(asked) = asked.filter(|asked| *asked != version) {
            let kek = self.settings.name.clone();
            let why = format!("{} answered v{version} instead of v{asked}", wrapped.address);
            return Err(KeyringError::ProofFailed { kek, why });
        }
        if verify.demands(version, &wrapped.address) {
            self.prove_answer(plaintext, &wrapped, deadline).await?;
            verify.note(version, &wrapped.address);
        }
        Ok((wrapped, key_id))
    }

    /// Unwraps. Needs nothing that is known here: any version that Vault still has.
    pub(crate) async fn decrypt(
        &self,
        ciphertext: &VaultCiphertext,
        deadline: Deadline,
    ) -> Result<Plaintext, KeyringError> {
        let plaintext = self.transit.decrypt(ciphertext, deadline).await;
        plaintext.map_err(|source| self.failed(source))
    }

    /// Unwraps what another KEK may have made. Not with a key that is known to be of a type
    /// with which a wrong key brings another plaintext (CBC, for example).
    pub(crate) async fn decrypt_unnamed(
        &self,
        ciphertext: &VaultCiphertext,
        deadline: Deadline,
    ) -> Result<Plaintext, KeyringError> {
        let view = self.current();
        match view.metadata.as_deref().filter(|key| !refuses_a_wrong_key(key)) {
            None => self.decrypt(ciphertext, deadline).await,
            Some(key) => Err(KeyringError::NotReady {
                kek: self.settings.name.clone(),
                why: format!(
                    "a key of type `{}` does not notice what another key made, so only what \
                     names it is decrypted with it",
                    key.key_type.escape_default()
                ),
            }),
        }
    }

    /// Whether this KEK decrypts what `other` encrypts. Of several clusters the first is
    /// asked alone, for it is the one that encrypts: that another can read it says nothing.
    pub(crate) async fn compare(&self, other: &Self, deadline: Deadline) -> Compared {
        let canary = Plaintext::new(CANARY.to_vec());
        let pick = match other.pick(&EncryptFor::V1) {
            Ok(pick) => pick,
            Err(error) => return Compared::Unknown(format!("the running one: {error}")),
        };
        let made = match other.wrap(&canary, pick, deadline).await {
            Ok(made) => made.wrapped,
            Err(error) => return Compared::Unknown(format!("the running one: {error}")),
        };
        match self.transit.decrypt_at_first(&made.ciphertext, deadline).await {
            Ok(back) if back == canary => Compared::Same,
            Ok(_) => Compared::Another("it decrypts to something else".to_owned()),
            Err(error) if error.is_outage() => Compared::Unknown(error.to_string()),
            Err(error) => Compared::Another(error.to_string()),
        }
    }

    /// The canary: encrypts and decrypts a text of our own with the active version.
    pub(crate) async fn prove(&self, deadline: Deadline) -> Result<(), KeyringError> {
        let canary = Plaintext::new(CANARY.to_vec());
        let result = self.encrypt(&canary, &EncryptFor::V1, Verify::Always, deadline).await;
        let Err(error) = result else { return Ok(()) };
        let change = self.memory.with(|m| match &error {
            KeyringError::Transit { source, .. } if source.is_outage() => {
                m.proofs.miss(source.to_string())
            }
            KeyringError::Transit { source, .. } => m.proofs.reject(source.to_string()),
            KeyringError::ProofFailed { why, .. } => m.proofs.reject(why.clone()),
            // Without an active version there is nothing to prove, and that is told
            // elsewhere.
            _ => Change::None,
        });
        // A loss was told where it was found.
        if change == Change::Unproven {
            let kek = &self.settings.name;
            tracing::warn!(%kek, %error, "The active key version could not be proven.");
        }
        Err(error)
    }

    async fn wrap(
        &self,
        plaintext: &Plaintext,
        pick: Pick,
        deadline: Deadline,
    ) -> Result<Used, TransitError> {
        match pick {
            Pick::Version(Active { version, key_id }) => {
                let wrapped = self.transit.encrypt(plaintext, Some(version), deadline).await;
                let wrapped = wrapped.inspect_err(|e| self.note_refusal(version.number, e))?;
                Ok(Used { wrapped, asked: Some(version.number), key_id })
            }
            Pick::Unpinned => {
                let wrapped = self.transit.encrypt(plaintext, None, deadline).await?;
                let key_id = key_id::unread(&self.settings, wrapped.ciphertext.version());
                Ok(Used { wrapped, asked: None, key_id })
            }
        }
    }

    async fn prove_answer(
        &self,
        plaintext: &Plaintext,
        wrapped: &Wrapped,
        deadline: Deadline,
    ) -> Result<(), KeyringError> {
        let version = wrapped.ciphertext.version();
        let kek = self.settings.name.clone();
        match self.transit.verify(plaintext, wrapped, deadline).await {
            Ok(true) => {
                self.note_proof(version);
                Ok(())
            }
            Ok(false) => {
                let why = format!("{} made it, but it decrypts to something else", wrapped.address);
                self.note_loss(version, &why);
                Err(KeyringError::ProofFailed { kek, why })
            }
            Err(source) if source.is_outage() => Err(self.failed(source)),
            Err(source) => {
                self.note_refusal(version, &source);
                Err(KeyringError::ProofFailed { kek, why: source.to_string() })
            }
        }
    }

    fn pick(&self, caller: &EncryptFor) -> Result<Pick, KeyringError> {
        let view = self.current();
        match (&view.active, caller) {
            (Ok(_), EncryptFor::V2 { reported: Some(reported) })
                if let Some(still) = self.reported(&view, reported) =>
            {
                Ok(Pick::Version(still))
            }
            (Ok(active), _) => Ok(Pick::Version(active.clone())),
            (Err(Inactive::Unread), EncryptFor::V1) if view.unpinned => Ok(Pick::Unpinned),
            (Err(inactive), _) => Err(self.not_active(inactive)),
        }
    }

    /// Whether `key_id` names a version of this key that may encrypt.
    pub(crate) fn may_encrypt_as(&self, key_id: &KeyId) -> bool {
        let view = self.current();
        view.active.is_ok() && self.reported(&view, key_id).is_some()
    }

    /// The version that `reported` names, if it is one of this key and may encrypt.
    fn reported(&self, view: &View, reported: &KeyId) -> Option<Active> {
        let version = key_id::version_in(&self.settings, reported)?;
        let metadata = view.metadata.as_ref().filter(|m| m.may_encrypt(version))?;
        let version = metadata.version(version)?;
        let key_id = key_id::of(&self.settings, version.number, version.created);
        (key_id == *reported).then_some(Active { version, key_id })
    }

    /// Notes a proof. One of another version, which a caller of KMS v2 was told of before
    /// a switch, proves nothing of the active one; nor does its loss mean anything.
    fn note_proof(&self, version: u32) {
        if !self.is_active(version) {
            return;
        }
        let time = node_time();
        #[allow(clippy::cast_precision_loss)] // seconds fit
        metrics::set(Metric::LastProof, time.0 as f64, &self.label());
        if self.memory.with(|m| m.proofs.prove(Instant::now(), time)) == Change::Proven {
            let kek = &self.settings.name;
            tracing::info!(%kek, version, "The active key version encrypts and decrypts.");
        }
    }

    fn note_refusal(&self, version: u32, error: &TransitError) {
        if error.refusal().is_some_and(means_loss) {
            self.note_loss(version, &error.to_string());
        }
    }

    fn note_loss(&self, version: u32, why: &str) {
        if !self.is_active(version) {
            return;
        }
        if self.memory.with(|m| m.proofs.lose(version, why.to_owned())) == Change::Lost {
            let kek = &self.settings.name;
            tracing::error!(%kek, version, why, "The active key version is lost.");
            // The metadata may tell more: the key may be gone.
            self.read_now.notify_one();
            // Found by a call: from here on canaries look for its end.
            self.prove_now.notify_one();
        }
    }

    fn is_active(&self, version: u32) -> bool {
        self.current().active.as_ref().map_or(true, |active| active.version.number == version)
    }
}

/// Whether the version that was asked for is no longer one that encrypts.
fn is_outdated_pin(error: &TransitError) -> bool {
    matches!(error.refusal(), Some(Refusal::BelowMinimumEncryption | Refusal::AboveLatest))
}

// === impl Verify ===

impl Verify<'_> {
    fn demands(self, version: u32, address: &str) -> bool {
        match self {
            Self::Always => true,
            Self::FirstOf(verified) => !verified.with(|seen| {
                seen.get(&version).is_some_and(|addresses| addresses.contains(address))
            }),
        }
    }

    fn note(self, version: u32, address: &str) {
        if let Self::FirstOf(verified) = self {
            verified.with(|seen| {
                let addresses = seen.entry(version).or_default();
                if addresses.len() >= MOST_ADDRESSES {
                    addresses.clear(); // each is proven once more
                }
                addresses.insert(address.to_owned());
            });
        }
    }
}

// === impl Verified ===

impl Verified {
    fn with<R>(&self, work: impl FnOnce(&mut HashMap<u32, HashSet<String>>) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
