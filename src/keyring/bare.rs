//! Ciphertexts that name no KEK: which one wrote them only the KEKs can say.
//!
//! They are asked in order, the next one as soon as one has not decrypted it. One that
//! cannot be asked holds nobody up: its silence is joined after [`PATIENCE`]. The first
//! plaintext counts, for an authenticated key type makes a wrong key an error, never another
//! plaintext; a key of another type is not asked. But that nobody can decrypt it is certain only when all have said so.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::kek::Kek;
use super::{Keyring, KeyringError};
use crate::clock::Deadline;
use crate::config::settings::KekName;
use crate::secret::Plaintext;
use crate::transit::VaultCiphertext;

/// The longest silence of a KEK before the next one is asked beside it. Within a cluster
/// another address joins long before, and within a KEK another cluster.
const PATIENCE: Duration = Duration::from_secs(1);

/// The share of the time left that is waited, when that is shorter.
const SHARE: f64 = 0.4;

impl Keyring {
    /// Decrypts a ciphertext that names no KEK: with `first`, then with the one that
    /// `legacy.key` names, then with each in order.
    pub(super) async fn decrypt_bare(
        &self,
        first: Option<&KekName>,
        ciphertext: &VaultCiphertext,
        deadline: Deadline,
    ) -> Result<Plaintext, KeyringError> {
        let mut waiting = self.bare_order(first).into_iter().enumerate();
        let mut asked = FuturesUnordered::new();
        let mut failed = Vec::new();
        let mut next = waiting.next();
        let mut join_at = Instant::now();
        loop {
            if let Some((place, kek)) = next.filter(|_| Instant::now() >= join_at) {
                asked.push(async move {
                    (place, kek.core().decrypt_unnamed(ciphertext, deadline).await)
                });
                next = waiting.next();
                join_at = Instant::now() + PATIENCE.min(deadline.remaining().mul_f64(SHARE));
            }
            tokio::select! {
                biased;
                Some((place, result)) = asked.next() => match result {
                    Ok(plaintext) => return Ok(plaintext),
                    Err(error) => {
                        failed.push((place, error));
                        join_at = Instant::now();
                    }
                },
                () = tokio::time::sleep_until(join_at), if next.is_some() => {}
                else => break,
            }
        }
        failed.sort_by_key(|(place, _)| *place);
        Err(self.undecrypted(failed.into_iter().map(|(_, error)| error).collect()))
    }

    /// What it means that no KEK has decrypted it.
    fn undecrypted(&self, mut failed: Vec<KeyringError>) -> KeyringError {
        match failed.len() {
            0 => self.no_kek(),
            1 => failed.remove(0),
            _ if failed.iter().all(KeyringError::is_verdict) => {
                let all = list(&failed);
                KeyringError::Unreadable(format!("no configured KEK can decrypt it: {all}"))
            }
            _ => KeyringError::Undecided(list(&failed)),
        }
    }

    /// Every KEK once. None is left out, whatever `legacy.key` says: any that ever was the
    /// first under `write.format: vault` has written ciphertexts that name no KEK.
    fn bare_order(&self, first: Option<&KekName>) -> Vec<&Arc<Kek>> {
        let named = first.into_iter().chain(&self.settings.legacy_key);
        let mut order: Vec<&Arc<Kek>> = Vec::with_capacity(self.keks.len());
        for name in named.chain(&self.names) {
            if order.iter().all(|kek| kek.name() != name) {
                order.extend(self.keks.iter().find(|kek| kek.name() == name));
            }
        }
        order
    }
}

fn list(errors: &[KeyringError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
