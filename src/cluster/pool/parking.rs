//! Where calls wait that no address can take.
//!
//! An election of two seconds must fail nobody who could wait for its end, and an outage
//! must not be multiplied by everybody's repeats. So, while no address is usable, calls
//! stand in one line, and at most two at a time leave it as *scouts*: each address is asked
//! about once a second, whatever its breaker says, by the call that has been sent least
//! often and has the most time left. Where probes say that an address is of no use, only a
//! call of kube-apiserver that was not sent yet goes there: the probes will tell when that
//! ends, so a repeat brings nothing, and the daemon's own errands can wait. When something
//! shows that an address answers, the others follow in steps: two, and two more for each
//! answer, so that a node that has just come back gets as much as it can answer and not all
//! at once. Whoever comes meanwhile stands at the end of the line; whoever has no time left
//! for an answer is passed over.
//!
//! A call whose repeat the budget refused stands in the same line.
//!
//! No address is usable when each is left out by its breaker or its role, or its last word
//! was a fault, or it asked for time (`Retry-After`, an election).

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use opentelemetry::KeyValue;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::clock::Jitter;
use crate::cluster::error::AttemptError;
use crate::cluster::operation::{AddressIndex, AddressSet, Answer, Attempt, Verb};
use crate::config::settings::ClusterName;
use crate::task::OwnedTask;
use crate::telemetry::metrics::{self, Metric};
pub(super) use plan::Seen;
use plan::{Grant, Plan};

mod plan;

/// Calls that may stand in the line of one cluster; more fail at once. The limit on calls
/// of kube-apiserver is reached before.
const MOST_PARKED: usize = 8_192;

/// The addresses as the pool sees them.
pub(super) trait View: Send + Sync + 'static {
    /// Each address.
    fn seen(&self) -> Vec<Seen>;
    /// Ends when a breaker or a role changes after the first poll.
    fn changed(&self) -> BoxFuture<'_, ()>;
}

/// The line of one cluster and the task that lets calls out of it.
pub(super) struct Parking {
    lot: Arc<Lot>,
    view: Arc<dyn View>,
    /// Started by the first call that parks.
    attendant: OnceLock<OwnedTask>,
}

/// What calls, flights and the attendant share.
pub(super) struct Lot {
    cluster: ClusterName,
    jitter: Arc<Jitter>,
    plan: Mutex<Plan>,
    changed: Notify,
    parked: AtomicUsize,
}

/// How a call leaves the line.
pub(super) enum Turn {
    /// An address is usable.
    Go,
    /// To see whether this address answers.
    Scout(AddressIndex, Scouting),
}

/// A scout's flight; it ends when this is dropped.
pub(super) struct Scouting {
    lot: Arc<Lot>,
    flight: u64,
}

/// Counts a parked call.
struct Place<'a>(&'a Lot);

/// What a parked call waits for. A flight that it was given and never saw ends with it.
struct Granted<'a> {
    lot: &'a Lot,
    grant: oneshot::Receiver<Grant>,
}

// === impl Parking ===

impl Parking {
    pub(super) fn new(cluster: ClusterName, jitter: Arc<Jitter>, view: Arc<dyn View>) -> Self {
        let lot = Lot {
            cluster,
            jitter,
            plan: Mutex::default(),
            changed: Notify::new(),
            parked: AtomicUsize::new(0),
        };
        Self { lot: Arc::new(lot), view, attendant: OnceLock::new() }
    }

    /// What flights report to.
    pub(super) const fn lot(&self) -> &Arc<Lot> {
        &self.lot
    }

    /// Whether somebody waits, so that whoever comes has to stand behind.
    pub(super) fn has_waiting(&self) -> bool {
        self.lot.parked.load(Ordering::Relaxed) > 0
    }

    /// Waits in line, as a call whose next attempt is this one. `None` when its deadline
    /// comes first, or no address wants to be asked before it, or the line is full.
    pub(super) async fn turn(&self, attempt: &Attempt) -> Option<Turn> {
        let (lot, deadline) = (&self.lot, attempt.call.deadline);
        if self.is_hopeless(attempt) || lot.parked.load(Ordering::Relaxed) >= MOST_PARKED {
            return None;
        }
        self.attendant.get_or_init(|| {
            let (lot, view) = (Arc::clone(&self.lot), Arc::clone(&self.view));
            OwnedTask::spawn_again("parking", move || attend(Arc::clone(&lot), Arc::clone(&view)))
        });
        let _place = Place::take(lot);
        let addresses = self.view.seen().len();
        let grant = lot.plan().enqueue(attempt, addresses);
        let mut granted = Granted { lot, grant };
        lot.changed.notify_one();
        let grant = tokio::time::timeout_at(deadline.instant(), &mut granted.grant);
        Some(lot.turn(grant.await.ok()?.ok()?))
    }

    /// A scout for a call that does not wait: a hedge beside a scout that is silent.
    pub(super) fn turn_now(&self, except: AddressSet) -> Option<(AddressIndex, Scouting)> {
        let (seen, now) = (self.view.seen(), Instant::now());
        let mut plan = self.lot.plan();
        let except = plan::hopeless(&seen).fold(except, AddressSet::with);
        let index = plan.due(&seen, except, now).ok()?;
        let grant = plan.launch(index, seen.len(), now, &self.lot.jitter);
        drop(plan);
        match self.lot.turn(grant) {
            Turn::Scout(index, scouting) => Some((index, scouting)),
            Turn::Go => None,
        }
    }

    /// Whether every address asked for more time than there is; or is of no use by its
    /// probes, and nobody waits for a renewal, which comes again in its own time: those that
    /// stood here would all go in the moment in which the address is back. One that is not
    /// resolved yet asked for nothing.
    fn is_hopeless(&self, attempt: &Attempt) -> bool {
        let (seen, deadline) = (self.view.seen(), attempt.call.deadline);
        if seen.is_empty() {
            return false;
        }
        let can_come_again = attempt.call.operation.verb == Verb::RenewSelf;
        if can_come_again && seen.iter().all(|address| address.is_probed_bad) {
            return true;
        }
        let plan = self.lot.plan();
        seen.iter().all(|address| plan.rests_beyond(address.index, deadline))
    }
}

/// Lets calls go whenever something changes.
async fn attend(lot: Arc<Lot>, view: Arc<dyn View>) {
    loop {
        let mut changed = view.changed();
        // Before the look, so that no change slips between.
        let has_changed = futures_util::poll!(&mut changed).is_ready();
        let (lost, again) = lot.plan().step(&view.seen(), &lot.jitter);
        lost.into_iter().for_each(|grant| drop(lot.turn(grant)));
        let is_empty = lot.parked.load(Ordering::Relaxed) == 0;
        tokio::select! {
            biased;
            () = lot.changed.notified() => {}
            () = changed, if !is_empty && !has_changed => {}
            () = sleep_until(again), if again.is_some() => {}
        }
    }
}

async fn sleep_until(moment: Option<Instant>) {
    if let Some(moment) = moment {
        tokio::time::sleep_until(moment).await;
    }
}

// === impl Lot ===

impl Lot {
    /// Whether the last word of `index` was a fault, or it asked for time.
    pub(super) fn is_shaken(&self, index: AddressIndex) -> bool {
        self.plan().is_shaken(index)
    }

    /// Whether `index` asked for time that is not over.
    pub(super) fn is_resting(&self, index: AddressIndex) -> bool {
        self.plan().is_resting(index)
    }

    /// The last fault at `index`, if nothing good came since.
    pub(super) fn said(&self, index: AddressIndex) -> Option<String> {
        self.plan().said(index)
    }

    /// An attempt at one of so many addresses ended.
    pub(super) fn hear(
        &self,
        index: AddressIndex,
        verb: Verb,
        result: &Result<Answer, AttemptError>,
        took: Duration,
        addresses: usize,
    ) {
        if self.plan().hear(index, verb, result, took, addresses, &self.jitter) {
            self.look();
        }
    }

    fn landed(&self, flight: u64) {
        self.plan().landed(flight);
        self.look();
    }

    fn look(&self) {
        if self.parked.load(Ordering::Relaxed) > 0 {
            self.changed.notify_one();
        }
    }

    fn turn(self: &Arc<Self>, grant: Grant) -> Turn {
        match grant {
            Grant::Go => Turn::Go,
            Grant::Scout(index, flight) => {
                Turn::Scout(index, Scouting { lot: Arc::clone(self), flight })
            }
        }
    }

    fn count(&self, change: i64) {
        let labels = [KeyValue::new("cluster", self.cluster.as_str().to_owned())];
        metrics::add(Metric::CallsParked, change, &labels);
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().expect("no code panics while it holds this lock")
    }
}

impl fmt::Debug for Parking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parked = self.lot.parked.load(Ordering::Relaxed);
        f.debug_struct("Parking").field("parked", &parked).finish_non_exhaustive()
    }
}

// === impl Scouting, Granted, Place ===

impl Drop for Scouting {
    fn drop(&mut self) {
        self.lot.landed(self.flight);
    }
}

impl Drop for Granted<'_> {
    fn drop(&mut self) {
        self.grant.close();
        if let Ok(Grant::Scout(_, flight)) = self.grant.try_recv() {
            self.lot.landed(flight);
        }
    }
}

impl<'a> Place<'a> {
    fn take(lot: &'a Lot) -> Self {
        lot.parked.fetch_add(1, Ordering::Relaxed);
        lot.count(1);
        Self(lot)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.parked.fetch_sub(1, Ordering::Relaxed);
        self.0.count(-1);
    }
}

#[cfg(test)]
mod tests;
