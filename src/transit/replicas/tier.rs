//! One of the clusters, and whether calls go to it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::proof::Proof;
use crate::cluster::CallErrorKind;
use crate::config::settings::ClusterName;
use crate::transit::{KeyVersion, TransitCause, TransitError, TransitKey};

/// A silence that says something about a cluster, when another one answered meanwhile or
/// the deadline came. An election within the cluster is longer, and then a replica serves.
pub(super) const TELLING: Duration = Duration::from_millis(400);

/// A cluster with its key.
#[derive(Debug)]
pub(super) struct Tier {
    pub(super) key: Arc<dyn TransitKey>,
    /// Why calls pass it over, when they do. Its own breakers know of addresses that fail;
    /// this knows of a whole cluster that is silent or has no token.
    doubt: Mutex<Option<String>>,
    proof: Mutex<Proof>,
}

// === impl Tier ===

impl Tier {
    pub(super) fn new(key: Arc<dyn TransitKey>) -> Self {
        Self { key, doubt: Mutex::default(), proof: Mutex::default() }
    }

    pub(super) fn cluster(&self) -> &ClusterName {
        self.key.cluster()
    }

    /// Whether calls go to it first.
    pub(super) fn serves(&self) -> bool {
        self.key.is_usable() && self.doubt().is_none()
    }

    /// Why calls pass it over, when they do.
    pub(super) fn passed_over(&self) -> Option<String> {
        self.why_doubted()
            .or_else(|| (!self.key.is_usable()).then(|| "no address is usable".to_owned()))
    }

    /// Why calls pass it over although its addresses are usable, when they do.
    pub(super) fn why_doubted(&self) -> Option<String> {
        self.doubt().clone()
    }

    /// It failed with `error`, after `lasted`. Whether that is news.
    pub(super) fn failed(&self, error: &TransitError, lasted: Duration) -> bool {
        let tells = match &error.cause {
            TransitCause::Unavailable(error) => match error.kind {
                CallErrorKind::Exhausted
                | CallErrorKind::NoToken(_)
                | CallErrorKind::TokenRefused => true,
                // of a caller in a hurry, it says nothing
                CallErrorKind::Deadline => lasted >= TELLING,
                // it did answer
                CallErrorKind::Undecided | CallErrorKind::Agreed(_) => false,
            },
            TransitCause::Refused { .. } => return self.trust(lasted),
            TransitCause::Crowded(_)
            | TransitCause::Unacceptable { .. }
            | TransitCause::Clusters(_) => false,
        };
        tells && self.pass_over(error.cause.to_string())
    }

    /// Another cluster answered after `took` while this one had been silent for `lasted`.
    /// Whether that is news.
    pub(super) fn overtaken(&self, by: &ClusterName, took: Duration, lasted: Duration) -> bool {
        lasted >= took + TELLING
            && self.pass_over(format!("silent for {} ms while {by} answered", lasted.as_millis()))
    }

    /// It answered after `took`. Whether that is news. A late answer does not end a doubt,
    /// or every second call would wait for a cluster that is slow to answer.
    pub(super) fn trust(&self, took: Duration) -> bool {
        took < super::PATIENCE && self.doubt().take().is_some()
    }

    fn pass_over(&self, why: String) -> bool {
        self.doubt().replace(why).is_none()
    }

    /// What is proven of it. The lock is held for moments only.
    pub(super) fn proof(&self) -> MutexGuard<'_, Proof> {
        self.proof.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn may_encrypt(&self, version: KeyVersion) -> bool {
        self.proof().covers(version)
    }

    fn doubt(&self) -> MutexGuard<'_, Option<String>> {
        self.doubt.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
