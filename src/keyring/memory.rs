//! What is remembered of a Transit key while configurations come and go.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use super::KeyId;
use super::condition::Proofs;
use super::rotation::{Activation, SeenKey};

/// What was seen of one Transit key. It outlives reloads: the daemon keeps one for each
/// (name, mount, namespace, Transit key, cluster) and gives it to every [`super::kek::Kek`]
/// that is made for that key, so that a reload neither goes back to an older version nor
/// forgets a proof. Two generations may share it for a while, as long as both see the same
/// key in the same way; else the later one gets a [`Self::fork`].
#[derive(Debug, Default)]
pub struct KekMemory {
    remembered: Mutex<Remembered>,
    activation: watch::Sender<Option<Activation>>,
}

/// The contents, behind the lock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Remembered {
    /// Versions, doubts, activation.
    pub(crate) key: SeenKey,
    /// Proofs and their failures.
    pub(crate) proofs: Proofs,
    /// The active version that the log told of last.
    pub(crate) told: Option<KeyId>,
}

// === impl KekMemory ===

impl KekMemory {
    /// Knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Knows which version encrypted before this process began. Together with
    /// [`Self::activations`] this is the seam for keeping it in a file.
    pub fn with_activation(activation: Activation) -> Self {
        let key = SeenKey::with_activation(activation);
        Self::of(Remembered { key, ..Remembered::default() })
    }

    /// A memory of its own that begins with all that this one knows. What a configuration
    /// on trial learns through another address, token or pin must not become true for the
    /// one that runs, which stays when the trial fails.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self::of(self.with(|remembered| remembered.clone()))
    }

    /// The version that encrypted last.
    pub fn activation(&self) -> Option<Activation> {
        *self.activation.borrow()
    }

    /// Follows the version that encrypts.
    pub fn activations(&self) -> watch::Receiver<Option<Activation>> {
        self.activation.subscribe()
    }

    fn of(remembered: Remembered) -> Self {
        let activation = watch::Sender::new(remembered.key.activation());
        Self { remembered: Mutex::new(remembered), activation }
    }

    /// Works on the contents. `work` must be short: the lock is held meanwhile.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut Remembered) -> R) -> R {
        // Every change is one assignment, so what a panic leaves behind is sound.
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut remembered);
        let now = remembered.key.activation();
        self.activation.send_if_modified(|told| std::mem::replace(told, now) != now);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixSeconds;

    #[test]
    fn a_fork_begins_with_what_is_known_and_keeps_its_own_losses_to_itself() {
        let activation = Activation { version: 3, created: UnixSeconds(7) };
        let running = KekMemory::with_activation(activation);
        let trial = running.fork();
        assert_eq!(trial.activation(), Some(activation));
        trial.with(|m| m.proofs.lose(3, "permission denied".into()));
        assert_eq!(running.with(|m| m.proofs.failure().map(str::to_owned)), None);
    }
}
