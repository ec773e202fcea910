//! Everything built from one accepted configuration.
//!
//! A new generation is built beside the old one and takes over what did not change: a
//! cluster keeps its connections, token and breakers while its settings and the bytes of
//! its TLS files are the same; a KEK of such a cluster is kept whole while its own settings
//! are the same. A KEK that is the same key in Vault but is reached, pinned or rotated in
//! another way begins with a copy of what was known, so that a trial that fails leaves no
//! trace in what runs. Each part owns its tasks and ends with its last user, so nobody has
//! to tear a generation down.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::identity::{KekIdentity, origin_of, same_cluster};
use super::state::{Memories, State};
use crate::admin::Check;
use crate::clock::{Jitter, node_time};
use crate::cluster::Cluster;
use crate::cluster::stack::{Stack, StackError};
use crate::cluster::tls::{LoadedTls, TlsError};
use crate::config::outline::Outline;
use crate::config::settings::{
    ClusterName, ClusterSettings, KekName, KekSettings, RotationSettings, Settings,
};
use crate::keyring::Keyring;
use crate::keyring::condition::KekCondition;
use crate::keyring::kek::Kek;
use crate::keyring::memory::{KekMemory, Snapshot};
use crate::task::OwnedTask;
use crate::transit::http_key::HttpTransitKey;
use crate::transit::replicas::{CanaryMemory, Replicas};
use crate::transit::verdict::TransitVerdicts;
use crate::transit::{TierCondition, TransitKey};

mod ready;
#[cfg(test)]
mod tests;

pub use ready::NotReady;

/// See the module.
#[derive(Debug)]
pub struct Generation {
    number: u64,
    outline: Outline,
    shutdown_grace: Duration,
    keyring: Arc<Keyring>,
    clusters: BTreeMap<ClusterName, Member>,
    keks: BTreeMap<KekIdentity, Held>,
    /// Clusters that the generation before did not have in this form.
    new_clusters: Vec<ClusterName>,
    /// KEKs that the generation before did not have in this form, and the first one if
    /// another was first.
    new_keks: Vec<KekName>,
}

/// A cluster and what it was built from.
#[derive(Clone, Debug)]
struct Member {
    tls: LoadedTls,
    cluster: Arc<Cluster>,
    /// Follows the files of `tls`.
    _watch: Option<Arc<OwnedTask>>,
}

/// A KEK and what it was built from.
#[derive(Clone, Debug)]
struct Held {
    kek: Arc<Kek>,
    memory: Arc<KekMemory>,
    canaries: Arc<CanaryMemory>,
    rotation: RotationSettings,
}

/// Why a generation could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A TLS file of a cluster.
    #[error("cluster {cluster}: {source}")]
    Tls {
        /// The cluster.
        cluster: ClusterName,
        /// What is wrong with which file.
        source: Box<TlsError>,
    },
    /// The rest of a cluster's stack.
    #[error("cluster {cluster}: {source}")]
    Stack {
        /// The cluster.
        cluster: ClusterName,
        /// What is wrong.
        source: Box<StackError>,
    },
    /// A KEK names a cluster that is not there; resolving the configuration rules it out.
    #[error("KEK `{kek}` names cluster {cluster}, which is not configured")]
    NoCluster {
        /// The KEK.
        kek: KekName,
        /// The cluster.
        cluster: ClusterName,
    },
}

// === impl BuildError ===

impl BuildError {
    fn tls(cluster: &ClusterName, source: TlsError) -> Self {
        Self::Tls { cluster: cluster.clone(), source: Box::new(source) }
    }

    fn stack(cluster: &ClusterName, source: StackError) -> Self {
        Self::Stack { cluster: cluster.clone(), source: Box::new(source) }
    }
}

// === impl Generation ===

impl Generation {
    /// Builds number `number` from `settings`, taking over from `previous` what is the same.
    /// A KEK that `previous` does not know begins with its entry in `remembered`. Asks
    /// nothing of Vault: its tasks do, from now on.
    ///
    /// # Errors
    /// When a file that the settings name cannot be used.
    pub(super) fn build(
        number: u64,
        settings: &Settings,
        previous: Option<&Self>,
        remembered: &State,
        jitter: &Arc<Jitter>,
    ) -> Result<Self, BuildError> {
        let mut clusters = BTreeMap::new();
        let mut new_clusters = Vec::new();
        for wanted in &settings.clusters {
            let name = wanted.name.clone();
            let tls =
                LoadedTls::read(&wanted.tls).map_err(|error| BuildError::tls(&name, error))?;
            let kept = previous.and_then(|p| p.clusters.get(&name)).filter(|m| m.is(wanted, &tls));
            let member = match kept {
                Some(member) => member.clone(),
                None => {
                    new_clusters.push(name.clone());
                    Member::start(wanted, tls, jitter)
                        .map_err(|error| BuildError::stack(&name, error))?
                }
            };
            clusters.insert(name, member);
        }

        let rotation = &settings.keyring.rotation;
        let mut keks = BTreeMap::new();
        let mut in_order = Vec::new();
        let mut new_keks = Vec::new();
        for wanted in &settings.keyring.keks {
            let members = wanted.clusters.iter().map(|cluster| {
                clusters.get(cluster).ok_or_else(|| BuildError::NoCluster {
                    kek: wanted.name.clone(),
                    cluster: cluster.clone(),
                })
            });
            let members: Vec<&Member> = members.collect::<Result<_, _>>()?;
            let identity = KekIdentity::of(wanted);
            let before = previous.and_then(|p| p.keks.get(&identity));
            let has_new = wanted.clusters.iter().any(|cluster| new_clusters.contains(cluster));
            let kept = before.filter(|h| h.is(wanted, rotation) && !has_new);
            let held = match kept {
                Some(held) => held.clone(),
                None => {
                    new_keks.push(wanted.name.clone());
                    let memory = match before {
                        Some(before) => before.memory.fork(),
                        None => previous
                            .and_then(|p| p.known_elsewhere(&identity, wanted))
                            .or_else(|| remembered.of(wanted))
                            .map(|snapshot| KekMemory::restored(snapshot, node_time()))
                            .unwrap_or_default(),
                    };
                    let origin = origin_of(wanted, members[0].cluster.settings());
                    let canaries = match before.filter(|h| h.canaries.origin() == origin) {
                        Some(before) => Arc::clone(&before.canaries),
                        None => {
                            let kept = remembered.canaries(&wanted.name, &origin);
                            Arc::new(CanaryMemory::new(origin, kept))
                        }
                    };
                    Held::start(wanted, &members, (memory, canaries), rotation, jitter)
                }
            };
            in_order.push(Arc::clone(&held.kek));
            keks.insert(identity, held);
        }
        let first = |keks: &[Arc<Kek>]| keks.first().map(|kek| kek.name().clone());
        let promoted = first(&in_order).filter(|primary| {
            previous.and_then(|p| first(p.keyring.keks())).as_ref() != Some(primary)
        });
        new_keks.extend(promoted);
        let keyring = Keyring::new(settings.keyring.clone(), in_order);
        let outline = Outline::of(settings);
        let shutdown_grace = settings.shutdown_grace;
        Ok(Self {
            number,
            outline,
            shutdown_grace,
            keyring,
            clusters,
            keks,
            new_clusters,
            new_keks,
        })
    }

    /// What is known of the key that `wanted` has in another first cluster here: the order of
    /// its clusters has changed.
    fn known_elsewhere(&self, identity: &KekIdentity, wanted: &KekSettings) -> Option<Snapshot> {
        let is_it = |(known, held): &(&KekIdentity, &Held)| {
            known.names_as(identity) && held.kek.settings().epoch == wanted.epoch
        };
        let (_, held) = self.keks.iter().find(is_it)?;
        Some(held.memory.snapshot().elsewhere())
    }

    /// What is known of each key, for who keeps it beyond the process.
    pub(super) fn memories(&self) -> Memories {
        let keks = self.keks.values();
        keks.map(|held| (Arc::clone(held.kek.settings()), Arc::clone(&held.memory))).collect()
    }

    /// The canaries of each key in several clusters, for the same.
    pub(super) fn canaries(&self) -> Vec<(KekName, Arc<CanaryMemory>)> {
        let several = self.keks.values().filter(|held| held.kek.settings().clusters.len() > 1);
        several.map(|held| (held.kek.name().clone(), Arc::clone(&held.canaries))).collect()
    }

    /// Which one it is, from 1.
    pub const fn number(&self) -> u64 {
        self.number
    }

    /// What its configuration says.
    pub const fn outline(&self) -> &Outline {
        &self.outline
    }

    /// How long calls in flight may take to finish when the process stops.
    pub const fn shutdown_grace(&self) -> Duration {
        self.shutdown_grace
    }

    /// Its keyring.
    pub const fn keyring(&self) -> &Arc<Keyring> {
        &self.keyring
    }

    /// What `/readyz` shows: whether the primary encrypts, and what is known of each KEK and
    /// of each cluster's token.
    pub fn checks(&self) -> Vec<Check> {
        let condition = self.keyring.condition();
        let ok = condition.is_ready();
        let detail = condition.status.unwrap_or_else(|error| error);
        let status = Check { name: "status".into(), ok, detail };
        let keks = condition.keks.into_iter().map(check_of);
        let clusters = self.clusters.values().map(|member| check_of_token(&member.cluster));
        std::iter::once(status).chain(keks).chain(clusters).collect()
    }
}

/// What is known of a KEK. It never makes the daemon unready: the status check above it
/// decides about encryption, and one dead cluster must not take a control-plane node with
/// all its other keys out of service.
fn check_of(kek: KekCondition) -> Check {
    let tiers: String = kek.tiers.iter().map(|tier| format!("; {}", tier_of(tier))).collect();
    let detail = match (&kek.active, kek.read_error.or(kek.inactive)) {
        (_, Some(error)) => error,
        (Some((_, key_id)), None) => key_id.as_str().to_owned(),
        (None, None) => "not read yet".to_owned(),
    };
    Check { name: format!("kek {}", kek.name).into(), ok: true, detail: detail + &tiers }
}

/// What is known of a cluster's token. As with a KEK it decides about nothing; that the next
/// login would fail is a matter of hours, and is seen here while there is time.
fn check_of_token(cluster: &Cluster) -> Check {
    let token = cluster.token_state();
    let detail = match (token.has_token, &token.rehearsal_error, &token.last_error) {
        (false, _, Some(error)) => format!("no token: {error}"),
        (false, _, None) => "no token yet".to_owned(),
        (true, Some(error), _) => format!("has a token, but the next login fails: {error}"),
        (true, None, Some(error)) => format!("has a token; {error}"),
        (true, None, None) => "has a token".to_owned(),
    };
    Check { name: format!("cluster {}", cluster.name()).into(), ok: true, detail }
}

fn tier_of(tier: &TierCondition) -> String {
    let TierCondition { cluster, passed_over, unproven } = tier;
    match (passed_over, unproven) {
        (None, None) => format!("cluster {cluster} serves"),
        (None, Some(why)) => format!("cluster {cluster} only decrypts: {why}"),
        (Some(away), None) => format!("cluster {cluster} is passed over: {away}"),
        (Some(away), Some(why)) => {
            format!("cluster {cluster} is passed over ({away}) and only decrypts: {why}")
        }
    }
}

// === impl Member ===

impl Member {
    fn start(
        settings: &Arc<ClusterSettings>,
        tls: LoadedTls,
        jitter: &Arc<Jitter>,
    ) -> Result<Self, StackError> {
        let stack = Stack::try_new(settings, &tls, Arc::new(TransitVerdicts), Arc::clone(jitter))?;
        let trial = stack.trial();
        let cluster = Cluster::new(Arc::clone(settings), Arc::new(stack), Arc::clone(jitter));
        let watch = tls.watch(&settings.tls, &settings.name, trial).map(Arc::new);
        Ok(Self { tls, cluster, _watch: watch })
    }

    /// Whether it is what `wanted` and `tls` would build again.
    fn is(&self, wanted: &ClusterSettings, tls: &LoadedTls) -> bool {
        same_cluster(self.cluster.settings(), wanted) && self.tls == *tls
    }
}

// === impl Held ===

impl Held {
    fn start(
        settings: &Arc<KekSettings>,
        members: &[&Member],
        (memory, canaries): (KekMemory, Arc<CanaryMemory>),
        rotation: &RotationSettings,
        jitter: &Arc<Jitter>,
    ) -> Self {
        let keys = members.iter().enumerate().map(|(n, member)| {
            let there = settings.in_cluster(n);
            Arc::new(HttpTransitKey::new(Arc::clone(&member.cluster), &there)) as _
        });
        let mut keys: Vec<Arc<dyn TransitKey>> = keys.collect();
        let transit = match keys.len() {
            1 => keys.swap_remove(0),
            _ => Arc::new(Replicas::new(
                Arc::clone(settings),
                keys,
                Arc::clone(&canaries),
                rotation.refresh,
                Arc::clone(jitter),
            )),
        };
        let memory = Arc::new(memory);
        let kek = Kek::new(
            Arc::clone(settings),
            transit,
            Arc::clone(&memory),
            rotation.clone(),
            Arc::clone(jitter),
        );
        Self { kek, memory, canaries, rotation: rotation.clone() }
    }

    /// Whether it is what `wanted` and `rotation` would build again over the same clusters.
    fn is(&self, wanted: &KekSettings, rotation: &RotationSettings) -> bool {
        **self.kek.settings() == *wanted && self.rotation == *rotation
    }
}
