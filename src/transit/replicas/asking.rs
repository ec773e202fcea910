//! Asks one cluster after the other until one answers.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Shared;
use crate::clock::Deadline;
use crate::config::settings::ClusterName;
use crate::transit::TransitError;

/// The longest silence of a cluster before the next one is asked beside it. Within a
/// cluster, silent addresses were joined by others long before; what is silent now is the
/// whole of it. Of the usual 3 s it leaves the next cluster two.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// The share of the time left that the next cluster is waited with, when that is shorter:
/// the next one gets the larger part.
const SHARE: f64 = 0.4;

/// How often a call looks whether the clusters that it waits for are known to be away by now.
const PEEK: Duration = Duration::from_millis(50);

/// How many attempts of clusters that lost a race may run on.
const MAX_LOSERS: usize = 64;

/// Attempts that lost run on to their end, so that the breakers of their addresses learn
/// what there is to learn. They end with their owner.
#[derive(Debug, Default)]
pub(super) struct Losers(Mutex<JoinSet<()>>);

/// What a cluster made of an attempt.
pub(super) type Outcome<T> = Result<T, TransitError>;

/// An attempt's end: which cluster, when it began, and what came of it.
type Landed<T> = (usize, Instant, Outcome<T>);

/// How one call goes to the clusters.
pub(super) struct Round<'a, T> {
    pub(super) shared: &'a Shared,
    pub(super) deadline: Deadline,
    /// The clusters, in order. Never empty.
    pub(super) order: Vec<usize>,
    /// Asks the cluster of this number.
    pub(super) ask: &'a (dyn Fn(usize) -> BoxFuture<'static, Outcome<T>> + Send + Sync),
    /// Whether this failure of that cluster ends the call.
    pub(super) ends: fn(usize, &TransitError) -> bool,
}

/// What a call brought.
pub(super) struct Answered<T> {
    /// The cluster that answered, and its answer; `None` when none did.
    pub(super) answer: Option<(usize, T)>,
    /// Those that failed, in the order in which they did.
    pub(super) failed: Vec<(usize, TransitError)>,
}

// === impl Round ===

impl<T: Send + 'static> Round<'_, T> {
    /// Asks the first cluster, the next one when it fails or stays silent, and so on; the
    /// first good answer counts.
    pub(super) async fn run(self) -> Answered<T> {
        let mut flights: FuturesUnordered<BoxFuture<'static, Landed<T>>> = FuturesUnordered::new();
        let mut in_flight: Vec<(usize, Instant)> = Vec::new();
        let mut failed = Vec::new();
        let mut waiting = self.order.iter().copied();
        let mut join_at = Instant::now();
        let mut next = waiting.next();
        loop {
            if let Some(tier) = next.filter(|_| Instant::now() >= join_at) {
                let (began, answering) = (Instant::now(), (self.ask)(tier));
                flights.push(Box::pin(async move { (tier, began, answering.await) }));
                in_flight.push((tier, began));
                next = waiting.next();
                join_at = began + patience(self.deadline);
            }
            let landed = tokio::select! {
                biased;
                landed = flights.next(), if !flights.is_empty() => landed,
                () = tokio::time::sleep_until(join_at.min(Instant::now() + PEEK)), if next.is_some() => {
                    // another call, or a probe, has found out what this one waits for
                    if in_flight.iter().all(|(tier, _)| !self.shared.tiers[*tier].serves()) {
                        join_at = Instant::now();
                    }
                    continue;
                }
                else => None,
            };
            let Some((tier, began, outcome)) = landed else {
                return Answered { answer: None, failed };
            };
            in_flight.retain(|(other, _)| *other != tier);
            let took = began.elapsed();
            match outcome {
                Ok(answer) => {
                    self.won(tier, took, &in_flight);
                    self.shared.losers.run_out(flights);
                    return Answered { answer: Some((tier, answer)), failed };
                }
                Err(error) => {
                    if self.shared.tiers[tier].failed(&error, took) {
                        self.shared.told(tier);
                    }
                    let ends = (self.ends)(tier, &error);
                    failed.push((tier, error));
                    if ends {
                        self.shared.losers.run_out(flights);
                        return Answered { answer: None, failed };
                    }
                    join_at = Instant::now();
                }
            }
        }
    }

    fn won(&self, tier: usize, took: Duration, silent: &[(usize, Instant)]) {
        let tiers = &self.shared.tiers;
        if tiers[tier].trust(took) {
            self.shared.told(tier);
        }
        for (other, began) in silent {
            if tiers[*other].overtaken(tiers[tier].cluster(), took, began.elapsed()) {
                self.shared.told(*other);
            }
        }
    }
}

fn patience(deadline: Deadline) -> Duration {
    PATIENCE.min(deadline.remaining().mul_f64(SHARE))
}

// === impl Answered ===

impl<T> Answered<T> {
    /// The failures with the clusters' names.
    pub(super) fn failures(self, shared: &Shared) -> Vec<(ClusterName, TransitError)> {
        let named = |(tier, error): (usize, _)| (shared.tiers[tier].cluster().clone(), error);
        self.failed.into_iter().map(named).collect()
    }
}

// === impl Losers ===

impl Losers {
    fn run_out<T: Send + 'static>(&self, flights: FuturesUnordered<BoxFuture<'static, Landed<T>>>) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        if !flights.is_empty() && tasks.len() < MAX_LOSERS {
            // each ends by the call's deadline, which its cluster keeps
            tasks.spawn(flights.for_each(|_| std::future::ready(())));
        }
    }
}
