//! What batches tell: metrics, and a line when they are not sent for a while.

use std::time::Duration;

use opentelemetry::KeyValue;

use crate::cluster::Verb;
use crate::config::settings::ClusterName;
use crate::telemetry::metrics::{self, Metric};

/// Why a batch did not bring its calls their answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fallback {
    /// It was cut in halves.
    TooLarge,
    /// As a whole, while a single call was served.
    Refused,
    /// Addresses were there and answered, but not as Vault does.
    OddAnswers,
    /// Its references were not those that had been sent, or it was no batch's answer.
    Garbled,
    /// An item's answer did not pass the checks.
    Unacceptable,
    /// What it brought could not be proven, or was refuted.
    Unproven,
    /// Items were asked of the active node once more.
    Stale,
    /// A call was turned away.
    Crowded,
    /// A bug.
    Panic,
}

/// Labels of one batcher's metrics.
#[derive(Clone, Debug)]
pub(super) struct Labels([KeyValue; 2]);

// === impl Labels ===

impl Labels {
    pub(super) fn new(cluster: &ClusterName, verb: Verb) -> Self {
        Self([
            KeyValue::new("cluster", cluster.as_str().to_owned()),
            KeyValue::new("verb", verb.as_str()),
        ])
    }

    pub(super) fn size(&self, items: usize) {
        #[allow(clippy::cast_precision_loss)] // far below 2^52
        metrics::record(Metric::BatchSize, items as f64, &self.0);
    }

    pub(super) fn queued(&self) {
        metrics::add(Metric::BatchQueued, 1, &self.0);
    }

    pub(super) fn left_queue(&self, waited: Duration) {
        metrics::add(Metric::BatchQueued, -1, &self.0);
        metrics::record(Metric::BatchWait, waited.as_secs_f64(), &self.0);
    }

    pub(super) fn fallback(&self, why: Fallback) {
        let [cluster, verb] = self.0.clone();
        let reason = KeyValue::new("reason", why.as_str());
        metrics::add(Metric::BatchFallbacks, 1, &[cluster, verb, reason]);
    }

    /// Calls go one by one for `span`; told when they did not before.
    pub(super) fn paused(&self, why: Fallback, what: &str, span: Duration) {
        let [cluster, verb] = &self.0;
        tracing::warn!(
            cluster = %cluster.value,
            verb = %verb.value,
            reason = why.as_str(),
            what,
            seconds = span.as_secs(),
            "Calls go to Vault one by one for a while, for a batch of them was not served.",
        );
    }
}

// === impl Fallback ===

impl Fallback {
    /// The word that metrics and log lines use.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::TooLarge => "too_large",
            Self::Refused => "refused",
            Self::OddAnswers => "odd_answers",
            Self::Garbled => "garbled",
            Self::Unacceptable => "unacceptable",
            Self::Unproven => "unproven",
            Self::Stale => "stale",
            Self::Crowded => "crowded",
            Self::Panic => "panic",
        }
    }
}
