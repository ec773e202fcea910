//! What is remembered of a Transit key while configurations come and go.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;

use super::KeyId;
use super::condition::Proofs;
use super::rotation::{Activation, SeenKey};
use crate::clock::UnixSeconds;

/// What was seen of one Transit key. It outlives reloads: the daemon keeps one for each
/// (name, mount, namespace, Transit key, cluster) and gives it to every [`super::kek::Kek`]
/// that is made for that key, so that a reload neither goes back to an older version nor
/// forgets a proof. With another first cluster the KEK begins with what
/// [`Snapshot::elsewhere`] leaves. Two generations may share it for a while, as long as both see the same
/// key in the same way; else the later one gets a [`Self::fork`].
#[derive(Debug, Default)]
pub struct KekMemory {
    remembered: Mutex<Remembered>,
    snapshot: watch::Sender<Snapshot>,
}

/// What of a memory outlives the process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// The version that was activated last, below which no later choice goes.
    pub activated: Option<Activation>,
    /// The version that encrypted last: another one only where `activeVersion` pins it.
    pub active: Option<Activation>,
    /// The newest version that was seen, which may not have encrypted yet.
    pub newest: Option<Activation>,
    /// When the active one was proven last, by this machine's clock.
    pub proven: Option<UnixSeconds>,
    /// Vault says for good that it is lost, and why.
    pub lost: Option<String>,
}

/// The contents, behind the lock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Remembered {
    /// Versions, doubts, activation.
    pub(crate) key: SeenKey,
    /// The version that encrypted last.
    pub(crate) active: Option<Activation>,
    /// Proofs and their failures.
    pub(crate) proofs: Proofs,
    /// The active version that the log told of last.
    pub(crate) told: Option<KeyId>,
}

// === impl Snapshot ===

impl Snapshot {
    /// What of it holds where another cluster is the KEK's first one: which version encrypted
    /// last, so that no key_id goes back. Whether that one is proven or lost, and how far the
    /// key is, only the cluster itself can say.
    #[must_use]
    pub fn elsewhere(self) -> Self {
        let Self { activated, active, .. } = self;
        Self { activated, active, ..Self::default() }
    }
}

// === impl KekMemory ===

impl KekMemory {
    /// Knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Knows what an earlier process knew; `now` is this machine's clock.
    pub fn restored(snapshot: Snapshot, now: UnixSeconds) -> Self {
        let Snapshot { activated, active, newest, proven, lost } = snapshot;
        let key = SeenKey::remembered(activated, newest);
        let mut remembered = Remembered { key, active, ..Remembered::default() };
        if let Some(proven) = proven {
            remembered.proofs = Proofs::restored(proven, now, Instant::now());
        }
        if let Some((active, why)) = active.zip(lost) {
            remembered.proofs.lose(active.version, why);
        }
        Self::of(remembered)
    }

    /// A memory of its own that begins with all that this one knows. What a configuration
    /// on trial learns through another address, token or pin must not become true for the
    /// one that runs, which stays when the trial fails.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self::of(self.with(|remembered| remembered.clone()))
    }

    /// What is to be kept of it.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot.borrow().clone()
    }

    /// Follows what is to be kept of it.
    pub fn snapshots(&self) -> watch::Receiver<Snapshot> {
        self.snapshot.subscribe()
    }

    fn of(remembered: Remembered) -> Self {
        let snapshot = watch::Sender::new(remembered.snapshot());
        Self { remembered: Mutex::new(remembered), snapshot }
    }

    /// Works on the contents. `work` must be short: the lock is held meanwhile.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut Remembered) -> R) -> R {
        // Every change is one assignment, so what a panic leaves behind is sound.
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut remembered);
        let now = remembered.snapshot();
        self.snapshot.send_if_modified(|kept| {
            let is_news = *kept != now;
            *kept = now;
            is_news
        });
        result
    }
}

// === impl Remembered ===

impl Remembered {
    fn snapshot(&self) -> Snapshot {
        let lost = self.key.gone().or_else(|| self.proofs.lost(self.active?.version));
        Snapshot {
            activated: self.key.activation(),
            active: self.active,
            newest: self.key.newest(),
            proven: self.proofs.proven(),
            lost: lost.map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V3: Activation = Activation { version: 3, created: UnixSeconds(7) };

    #[test]
    fn a_fork_begins_with_what_is_known_and_keeps_its_own_losses_to_itself() {
        let known = Snapshot { activated: Some(V3), active: Some(V3), ..Snapshot::default() };
        let running = KekMemory::restored(known.clone(), UnixSeconds(0));
        let trial = running.fork();
        assert_eq!(trial.snapshot(), known);
        trial.with(|m| m.proofs.lose(3, "permission denied".into()));
        assert_eq!(running.snapshot(), known);
        assert_eq!(trial.snapshot().lost.as_deref(), Some("permission denied"));
    }

    #[test]
    fn what_is_restored_is_kept_again_as_it_was() {
        let active = Activation { version: 2, ..V3 };
        for lost in [None, Some("gone".to_owned())] {
            let proven = Some(UnixSeconds(90));
            let newest = Some(Activation { version: 4, ..V3 });
            let activated = Some(V3);
            let known = Snapshot { activated, active: Some(active), newest, proven, lost };
            let restored = KekMemory::restored(known.clone(), UnixSeconds(100));
            assert_eq!(restored.snapshot(), known);
        }
    }

    #[test]
    fn only_what_is_to_be_kept_wakes_who_keeps_it() {
        let memory = KekMemory::new();
        let mut kept = memory.snapshots();
        memory.with(|m| m.told = Some(KeyId::from("kube:v1:0".to_owned())));
        assert!(!kept.has_changed().unwrap());
        memory.with(|m| m.active = Some(V3));
        assert!(kept.has_changed().unwrap());
        assert_eq!(kept.borrow_and_update().active, Some(V3));
    }
}
