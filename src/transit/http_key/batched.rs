//! The two verbs that are batched.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use super::Key;
use crate::clock::Deadline;
use crate::cluster::{Answer, CallError, CallErrorKind, Operation, Verb};
use crate::config::settings::ClusterName;
use crate::secret::Plaintext;
use crate::transit::batch::{Batched, Brought, Outcome};
use crate::transit::wire::Wrong;
use crate::transit::wire::batch::{Entry, Found};
use crate::transit::{Refusal, TransitCause, TransitError, VaultCiphertext, Wrapped};

/// A key's encrypts.
pub(super) struct Encrypts(pub(super) Arc<Key>);

/// A key's decrypts.
pub(super) struct Decrypts(pub(super) Arc<Key>);

/// What to encrypt.
pub(super) struct Sealing {
    pub(super) plaintext: Plaintext,
    pub(super) version: Option<u32>,
}

/// What both verbs do alike.
macro_rules! by_key {
    ($path:ident) => {
        fn cluster(&self) -> &ClusterName {
            self.0.cluster.name()
        }

        fn together(
            &self,
            body: Zeroizing<Vec<u8>>,
            needs_active: bool,
            deadline: Deadline,
        ) -> BoxFuture<'_, Result<Brought, CallError>> {
            let operation = self.0.operation(Self::VERB, &self.0.$path, Some(body));
            let operation = Operation { needs_active, ..operation };
            Box::pin(self.0.ask_together(operation, deadline))
        }

        fn refused(&self, refusal: Refusal, by: &Answer) -> TransitError {
            self.0.failed(TransitCause::Refused { refusal, address: by.address.to_string() })
        }

        fn unavailable(&self, error: CallError) -> TransitError {
            self.0.failed(TransitCause::Unavailable(Arc::new(error)))
        }

        fn crowded(&self, waiting: usize) -> TransitError {
            self.0.failed(TransitCause::Crowded(waiting))
        }

        fn overdue(&self) -> TransitError {
            self.unavailable(self.0.cluster.overdue())
        }
    };
}

// === impl Encrypts ===

impl Batched for Encrypts {
    type Ask = Sealing;
    type Given = Wrapped;
    const VERB: Verb = Verb::Encrypt;

    by_key!(encrypt_path);

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
        Box::pin(self.0.encrypt(&ask.plaintext, ask.version, deadline))
    }

    fn read(&self, ask: &Sealing, found: &Found<'_>, of: &Answer) -> Result<Wrapped, Wrong> {
        let ciphertext = found.ciphertext(&ask.plaintext, ask.version, self.0.nonce())?;
        Ok(self.0.wrapped(ciphertext, of))
    }
}

// === impl Decrypts ===

impl Batched for Decrypts {
    type Ask = VaultCiphertext;
    type Given = Plaintext;
    const VERB: Verb = Verb::Decrypt;

    by_key!(decrypt_path);

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
        Box::pin(self.0.decrypt(ask, deadline))
    }

    fn read(&self, _: &VaultCiphertext, found: &Found<'_>, _: &Answer) -> Result<Plaintext, Wrong> {
        found.plaintext()
    }
}

// === impl Key ===

impl Key {
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
