//! What the probers of one cluster share.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry::KeyValue;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use crate::clock::{Jitter, VaultClock};
use crate::cluster::address::{Address, Role};
use crate::cluster::operation::{AddressName, Verb};
use crate::config::settings::ClusterName;
use crate::telemetry::metrics::{self, Metric};

/// For this long after a call the cluster is busy.
pub(crate) const BUSY_FOR: Duration = Duration::from_secs(10);

/// What is known of a cluster beside its addresses: Vault's clock, whether anybody calls,
/// and whether its addresses belong together.
pub struct Watch {
    cluster: ClusterName,
    jitter: Arc<Jitter>,
    clock: Arc<VaultClock>,
    called: Mutex<Option<Instant>>,
    resumed: Notify,
    ids: Mutex<ClusterIds>,
}

#[derive(Default)]
struct ClusterIds {
    by_address: HashMap<AddressName, String>,
    is_warned: bool,
}

// === impl Watch ===

impl Watch {
    /// Nothing is known yet of `cluster`.
    pub fn new(cluster: ClusterName, jitter: Arc<Jitter>) -> Self {
        Self {
            cluster,
            jitter,
            clock: Arc::default(),
            called: Mutex::default(),
            resumed: Notify::new(),
            ids: Mutex::default(),
        }
    }

    /// Vault's wall clock.
    pub const fn clock(&self) -> &Arc<VaultClock> {
        &self.clock
    }

    pub(super) fn jitter(&self) -> &Jitter {
        &self.jitter
    }

    /// Somebody calls. What the daemon asks for itself does not make it busy, but for a
    /// login: calls wait for what it brings.
    pub fn note_call(&self, verb: Verb) {
        if !matches!(verb, Verb::Encrypt | Verb::Decrypt | Verb::Login) {
            return;
        }
        let mut called = self.called.lock().expect("no code panics while it holds this lock");
        let was_idle = !is_recent(*called);
        *called = Some(Instant::now());
        drop(called);
        if was_idle {
            self.resumed.notify_waiters();
        }
    }

    /// Whether somebody has called a moment ago.
    pub fn is_busy(&self) -> bool {
        is_recent(*self.called.lock().expect("no code panics while it holds this lock"))
    }

    /// Ends with the first call after a time without.
    pub(super) fn resumed(&self) -> Notified<'_> {
        self.resumed.notified()
    }

    /// Tells once when two addresses of the cluster are not of the same Vault.
    pub(super) fn note_cluster_id(&self, address: &Address, id: &str) {
        let news = self
            .ids
            .lock()
            .expect("no code panics while it holds this lock")
            .note(&address.name, id);
        if let Some(other) = news {
            tracing::warn!(
                cluster = %self.cluster,
                server.address = %address.name,
                %other,
                "Two addresses of a cluster are of different Vaults, by their cluster_id. A token or a key of one is not known to the other; list them as two clusters.",
            );
        }
    }

    /// `address` is not probed any more.
    pub(super) fn forget(&self, address: &Address) {
        let mut ids = self.ids.lock().expect("no code panics while it holds this lock");
        ids.by_address.remove(&address.name);
        drop(ids);
        address.role.set(Role::Unknown);
        self.show_role(address);
    }

    pub(super) fn show_role(&self, address: &Address) {
        metrics::set(Metric::AddressRole, address.role.get().as_metric(), &self.labels(address));
    }

    pub(super) fn count_probe(&self, address: &Address, result: &'static str) {
        let [cluster, name] = self.labels(address);
        metrics::add(Metric::Probes, 1, &[cluster, name, KeyValue::new("result", result)]);
    }

    fn labels(&self, address: &Address) -> [KeyValue; 2] {
        [
            KeyValue::new("cluster", self.cluster.as_str().to_owned()),
            KeyValue::new("server.address", address.name.as_str().to_owned()),
        ]
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("cluster", &self.cluster)
            .field("is_busy", &self.is_busy())
            .finish_non_exhaustive()
    }
}

// === impl ClusterIds ===

impl ClusterIds {
    /// Another address whose id differs, when that was not so before.
    fn note(&mut self, address: &AddressName, id: &str) -> Option<AddressName> {
        if self.by_address.get(address).is_none_or(|known| known != id) {
            self.by_address.insert(address.clone(), id.to_owned());
        }
        let other = self.by_address.iter().find(|(_, other)| *other != id);
        let other = other.map(|(other, _)| other.clone());
        let was_warned = std::mem::replace(&mut self.is_warned, other.is_some());
        other.filter(|_| !was_warned)
    }
}

fn is_recent(called: Option<Instant>) -> bool {
    called.is_some_and(|at| at.elapsed() < BUSY_FOR)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::stack::testing::name;

    #[test]
    fn two_vaults_in_one_cluster_are_told_of_once() {
        let mut ids = ClusterIds::default();
        assert_eq!(ids.note(&name(0), "one"), None);
        assert_eq!(ids.note(&name(1), "two"), Some(name(0)));
        assert_eq!(ids.note(&name(1), "two"), None);
        assert_eq!(ids.note(&name(0), "one"), None);
        // All were set up anew, one after the other: told once more, and then it is well.
        assert_eq!(ids.note(&name(1), "one"), None);
        assert_eq!(ids.note(&name(1), "new"), Some(name(0)));
        assert_eq!(ids.note(&name(0), "new"), None);
        assert_eq!(ids.note(&name(1), "new"), None);
    }
}
