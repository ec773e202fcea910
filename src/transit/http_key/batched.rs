//! The two verbs that are batched.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use super::Key;
use crate::clock::Deadline;
use crate::cluster::{Answer, CallError, CallErrorKind, Operation, Verb};
use crate::config::settings::ClusterName;
use crate::secret::Plaintext;
use crate::transit::batch::{Batched, Brought, Outcome, Proof};
use crate::transit::wire::Wrong;
use crate::transit::wire::batch::{self, Entry, Found, Tag};
use crate::transit::{Refusal, TransitCause, TransitError, VaultCiphertext, Wrapped};

/// A key's encrypts.
pub(super) struct Encrypts {
    key: Arc<Key>,
    /// Addresses that have answered a batch whose ciphertexts decrypted to what was encrypted.
    proven: Mutex<HashSet<String>>,
}

/// A key's decrypts.
pub(super) struct Decrypts {
    pub(super) key: Arc<Key>,
}

/// More addresses than a cluster has.
const MOST_PROVEN: usize = 1_024;

/// What to encrypt.
pub(super) struct Sealing {
    pub(super) plaintext: Plaintext,
    pub(super) version: Option<u32>,
}

/// What both verbs do alike.
macro_rules! by_key {
    ($key:ident, $path:ident) => {
        fn cluster(&self) -> &ClusterName {
            self.$key.cluster.name()
        }

        fn together(
            &self,
            body: Zeroizing<Vec<u8>>,
            needs_active: bool,
            deadline: Deadline,
        ) -> BoxFuture<'_, Result<Brought, CallError>> {
            let operation = self.$key.operation(Self::VERB, &self.$key.$path, Some(body));
            let operation = Operation { needs_active, ..operation };
            Box::pin(self.$key.ask_together(operation, deadline))
        }

        fn refused(&self, refusal: Refusal, by: &Answer) -> TransitError {
            self.$key.failed(TransitCause::Refused { refusal, address: by.address.to_string() })
        }

        fn unacceptable(&self, what: String, by: &Answer) -> TransitError {
            self.$key.unacceptable(by, Wrong(what))
        }

        fn unavailable(&self, error: CallError) -> TransitError {
            self.$key.failed(TransitCause::Unavailable(Arc::new(error)))
        }

        fn crowded(&self, waiting: usize) -> TransitError {
            self.$key.failed(TransitCause::Crowded(waiting))
        }

        fn overdue(&self) -> TransitError {
            self.unavailable(self.$key.cluster.overdue())
        }
    };
}

// === impl Encrypts ===

impl Encrypts {
    pub(super) fn new(key: Arc<Key>) -> Self {
        Self { key, proven: Mutex::default() }
    }

    fn proven(&self) -> MutexGuard<'_, HashSet<String>> {
        self.proven.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Batched for Encrypts {
    type Ask = Sealing;
    type Given = Wrapped;
    const VERB: Verb = Verb::Encrypt;

    by_key!(key, encrypt_path);

    fn entry(ask: &Sealing) -> Entry<'_> {
        Entry::Encrypt(&ask.plaintext, ask.version)
    }

    /// Two encrypts of the same are two: each caller's ciphertext is its own.
    fn identity(_: &Sealing) -> Option<&VaultCiphertext> {
        None
    }

    fn alone<'a>(
        &'a self,
        ask: &'a Sealing,
        deadline: Deadline,
    ) -> BoxFuture<'a, Outcome<Wrapped>> {
        Box::pin(self.key.encrypt(&ask.plaintext, ask.version, deadline))
    }

    fn read(&self, ask: &Sealing, found: &Found<'_>, of: &Answer) -> Result<Wrapped, Wrong> {
        let ciphertext = found.ciphertext(&ask.plaintext, ask.version, self.key.nonce())?;
        Ok(self.key.wrapped(ciphertext, of))
    }

    fn prove<'a>(
        &'a self,
        results: Vec<(&'a Sealing, &'a Wrapped)>,
        of: &'a Answer,
        deadline: Deadline,
    ) -> BoxFuture<'a, Proof> {
        Box::pin(async move {
            let address = of.address.to_string();
            if self.proven().contains(&address) {
                return Proof::Given;
            }
            let proof = self.key.decrypt_and_compare(&results, deadline).await;
            if matches!(proof, Proof::Given) {
                let mut proven = self.proven();
                if proven.len() >= MOST_PROVEN {
                    proven.clear(); // each is proven once more
                }
                proven.insert(address);
            }
            proof
        })
    }
}

// === impl Decrypts ===

impl Batched for Decrypts {
    type Ask = VaultCiphertext;
    type Given = Plaintext;
    const VERB: Verb = Verb::Decrypt;

    by_key!(key, decrypt_path);

    fn entry(ask: &VaultCiphertext) -> Entry<'_> {
        Entry::Decrypt(ask)
    }

    fn identity(ask: &VaultCiphertext) -> Option<&VaultCiphertext> {
        Some(ask)
    }

    fn alone<'a>(
        &'a self,
        ask: &'a VaultCiphertext,
        deadline: Deadline,
    ) -> BoxFuture<'a, Outcome<Plaintext>> {
        Box::pin(self.key.decrypt(ask, deadline))
    }

    fn read(&self, _: &VaultCiphertext, found: &Found<'_>, _: &Answer) -> Result<Plaintext, Wrong> {
        found.plaintext()
    }
}

// === impl Key ===

impl Key {
    /// Whether what was wrapped decrypts to what was to be wrapped, each for itself.
    async fn decrypt_and_compare(
        &self,
        results: &[(&Sealing, &Wrapped)],
        deadline: Deadline,
    ) -> Proof {
        let tag = Tag::next();
        let entries = results.iter().map(|(_, wrapped)| Entry::Decrypt(&wrapped.ciphertext));
        let body = batch::request(entries, &tag);
        let operation = self.operation(Verb::Decrypt, &self.decrypt_path, Some(body));
        let answer = match self.ask_together(operation, deadline).await {
            Ok(Brought { answer, .. }) => answer,
            Err(error) => return Proof::Missing(error.to_string()),
        };
        let found = match batch::answer(&answer.body, &tag, results.len()) {
            Ok(found) => found,
            Err(Wrong(what)) => {
                return Proof::Missing(format!("{} answered {what}", answer.address));
            }
        };
        for ((sealing, _), found) in results.iter().zip(&found) {
            match found.plaintext() {
                Ok(plaintext) if plaintext == sealing.plaintext => {}
                Ok(_) => return Proof::Refuted,
                Err(Wrong(what)) => {
                    return Proof::Missing(format!("{} answered {what}", answer.address));
                }
            }
        }
        Proof::Given
    }

    async fn ask_together(
        &self,
        operation: Operation,
        deadline: Deadline,
    ) -> Result<Brought, CallError> {
        match self.cluster.call(operation, deadline).await {
            Ok(answer) => Ok(Brought { answer, is_by_active: false }),
            Err(mut error) => match error.kind {
                CallErrorKind::Agreed(answer) => {
                    Ok(Brought { answer: *answer, is_by_active: true })
                }
                kind => {
                    error.kind = kind;
                    Err(error)
                }
            },
        }
    }
}
