//! Whether a generation may take over: what is new answers, and no key has become another.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future;

use super::Generation;
use crate::clock::Deadline;
use crate::cluster::CallError;
use crate::config::settings::{ClusterName, KekName};
use crate::keyring::kek::Compared;
use crate::keyring::{KekReadiness, KeyringError};

/// How long an encrypt by the running key and a decrypt by the new one may take; without an
/// answer nothing is said against the new one.
const COMPARE_WITHIN: Duration = Duration::from_secs(3);

/// Why a generation was built but cannot take over.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// A new or changed cluster gave no token.
    #[error("{0}")]
    Cluster(CallError),
    /// A new or changed KEK does not do what it is for: the primary encrypts, the others
    /// only have to be there.
    #[error("{error}")]
    Kek {
        /// Which one.
        kek: KekName,
        /// Why.
        error: KeyringError,
    },
    /// A KEK that is reached in another way is another key there.
    #[error("the key `{kek}` cannot decrypt what the running one has just encrypted: {why}")]
    AnotherKey {
        /// Which one.
        kek: KekName,
        /// What it says.
        why: String,
    },
}

// === impl Generation ===

impl Generation {
    /// Waits until what is new or changed has answered. What is not the primary's only
    /// earns a warning, unless `strict`: the reload that takes a dead cluster out must not
    /// need it, nor may it use up the primary's time.
    ///
    /// # Errors
    /// Everything that must answer and does not: the primary and its cluster, if new or
    /// changed, and with `strict` the others too.
    pub async fn ready(&self, deadline: Deadline, strict: bool) -> Result<(), Vec<NotReady>> {
        let clusters = self.new_clusters.iter().map(|name| {
            let cluster = &self.clusters[name].cluster;
            async move { (name, cluster.ready(deadline).await) }
        });
        let keks = self.keyring.ready(|kek| self.new_keks.contains(kek), deadline);
        let (clusters, keks) = future::join(future::join_all(clusters), keks).await;

        // A replica that is away is no reason to do without the rest of a configuration.
        let primary = self.keyring.keks().first().map(|kek| &kek.settings().clusters[0]);
        let mut missing = Vec::new();
        for (name, result) in clusters {
            match result {
                Ok(()) => {}
                Err(error) if strict || primary == Some(name) => {
                    missing.push(NotReady::Cluster(error));
                }
                Err(error) => tracing::warn!(
                    cluster = %name,
                    "A new cluster does not answer; what only it holds cannot be decrypted yet: {error}."
                ),
            }
        }
        let named = |name: &ClusterName| {
            let is_it = |m: &NotReady| matches!(m, NotReady::Cluster(e) if e.cluster == *name);
            missing.iter().any(is_it)
        };
        let told: Vec<_> = self.new_clusters.iter().filter(|name| named(name)).cloned().collect();
        for KekReadiness { kek, primary, result } in keks {
            match result {
                Ok(()) => {}
                // Without its cluster it cannot answer, and that is told.
                Err(_) if self.first_cluster(&kek).is_some_and(|name| told.contains(name)) => {}
                Err(error) if strict || primary => missing.push(NotReady::Kek { kek, error }),
                Err(error) => tracing::warn!(
                    %kek,
                    "A KEK that is not the primary does not answer; it cannot decrypt now: {error}."
                ),
            }
        }
        if missing.is_empty() { Ok(()) } else { Err(missing) }
    }

    /// The changed KEKs that cannot decrypt what those of the same name in `running` encrypt:
    /// under one name there would be two keys, and what the first has written could not be
    /// read. Those that are `retired` are not asked. What cannot be found out, because either
    /// does not answer, is warned about: it may be the way out of an outage.
    pub async fn other_keys(&self, running: &Self, retired: &[KekName]) -> Vec<NotReady> {
        let changed = self.keyring.keks().iter().filter(|kek| !retired.contains(kek.name()));
        let pairs = changed.filter_map(|kek| {
            let before = running.keyring.keks().iter().find(|known| known.name() == kek.name())?;
            (!Arc::ptr_eq(before, kek)).then_some((before, kek))
        });
        let asked = pairs.map(|(before, kek)| async move {
            let clusters = &before.settings().clusters;
            let answers = clusters.iter().any(|name| running.clusters[name].cluster.is_usable());
            let found = if answers {
                kek.core().compare(before.core(), Deadline::after(COMPARE_WITHIN)).await
            } else {
                Compared::Unknown("the running one has no usable address".to_owned())
            };
            let kek = kek.name().clone();
            match found {
                Compared::Same => None,
                Compared::Another(why) => Some(NotReady::AnotherKey { kek, why }),
                Compared::Unknown(why) => {
                    tracing::warn!(
                        %kek,
                        "It is not known whether the changed KEK decrypts what the running one \
                         has encrypted; see that both are the same key: {why}."
                    );
                    None
                }
            }
        });
        future::join_all(asked).await.into_iter().flatten().collect()
    }

    fn first_cluster(&self, kek: &KekName) -> Option<&ClusterName> {
        let kek = self.keyring.keks().iter().find(|held| held.name() == kek)?;
        kek.settings().clusters.first()
    }

    /// Whether the primary encrypts and decrypts now, asked anew.
    pub async fn encrypts(&self, deadline: Deadline) -> bool {
        match self.keyring.keks().first() {
            Some(primary) => primary.prove(deadline).await.is_ok(),
            None => false,
        }
    }
}
