//! Canaries: small ciphertexts that the first cluster made, by which a replica shows that
//! it has the same key material.

use std::collections::BTreeMap;

use tokio::sync::watch;

use crate::transit::{KeyVersion, VaultCiphertext};

/// What every canary holds; no secret.
pub(super) const CANARY: &[u8] = b"vault-kms-proxy asks a replica..";

/// The first cluster's ciphertexts of `CANARY`, one for each key version.
///
/// They outlive reloads, and in `stateDir` the process: with one at hand, a replica can be
/// proven while the first cluster is away. They are worth something only as long as the
/// first cluster is the one that made them, so each memory carries its `origin`.
#[derive(Debug)]
pub struct CanaryMemory {
    origin: String,
    canaries: watch::Sender<Canaries>,
}

/// A canary for each version.
pub type Canaries = BTreeMap<KeyVersion, VaultCiphertext>;

// === impl CanaryMemory ===

impl CanaryMemory {
    /// What was made by the cluster that `origin` describes.
    pub fn new(origin: String, canaries: Canaries) -> Self {
        Self { origin, canaries: watch::Sender::new(canaries) }
    }

    /// What tells the first cluster from another one of the same name.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Follows them, for who keeps them beyond the process.
    pub fn follow(&self) -> watch::Receiver<Canaries> {
        self.canaries.subscribe()
    }

    pub(super) fn of(&self, version: KeyVersion) -> Option<VaultCiphertext> {
        self.canaries.borrow().get(&version).cloned()
    }

    pub(super) fn versions(&self) -> Vec<KeyVersion> {
        self.canaries.borrow().keys().copied().collect()
    }

    pub(super) fn keep(&self, version: KeyVersion, canary: VaultCiphertext) {
        self.canaries.send_modify(|canaries| _ = canaries.insert(version, canary));
    }

    /// Forgets all but those of `wanted`.
    pub(super) fn retain(&self, wanted: &[KeyVersion]) {
        self.canaries.send_if_modified(|canaries| {
            let before = canaries.len();
            canaries.retain(|version, _| wanted.contains(version));
            canaries.len() != before
        });
    }
}
