//! What the calls of one batcher share.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::Batched;
use super::flight::Flight;
use super::item::{Item, Outcome, Ticket};
use super::lanes::Full;
use super::queue::{Next, Queue};
use super::told::{Fallback, Labels};
use crate::clock::Deadline;
use crate::task::{caught, tell_panic};
use crate::transit::TransitError;
use crate::transit::verdict::TooLarge;

/// What the calls of one batcher share.
pub(super) struct Line<K: Batched> {
    pub(super) kind: K,
    pub(super) labels: Labels,
    queue: Mutex<Queue<K>>,
    /// Ends the tasks; cancelled when the batcher is dropped.
    ended: CancellationToken,
}

/// One request's place among those in flight. Gives it to whoever waits when it is dropped.
pub(in crate::transit) struct Slot<K: Batched> {
    line: Arc<Line<K>>,
    flight: Option<u64>,
}

// === impl Line ===

impl<K: Batched> Line<K> {
    pub(super) fn new(kind: K, ended: CancellationToken) -> Arc<Self> {
        let labels = Labels::new(kind.cluster(), K::VERB);
        Arc::new(Self { kind, labels, queue: Mutex::default(), ended })
    }

    /// The place of a call that goes at once, as a single one.
    pub(super) fn at_once(self: &Arc<Self>) -> Option<Slot<K>> {
        let flight = self.with(|queue| match queue.is_paused() {
            true => Some(None),
            false => queue.at_once().map(Some),
        })?;
        Some(Slot { line: Arc::clone(self), flight })
    }

    /// A place with an identical item, if there is one and `may_share`, or one in the line.
    pub(super) fn queue(
        self: &Arc<Self>,
        ask: K::Ask,
        deadline: Deadline,
        may_share: bool,
    ) -> Result<Ticket<K>, TransitError> {
        let placed = self.with(|queue| {
            let shared = may_share.then(|| queue.join(&ask, deadline)).flatten();
            match shared {
                Some(ticket) => Ok(ticket),
                None => queue.push(ask, deadline).inspect(|_| self.labels.queued()),
            }
        });
        let ticket = placed.map_err(|Full(waiting)| {
            self.labels.fallback(Fallback::Crowded);
            self.kind.crowded(waiting)
        })?;
        self.dispatch();
        Ok(ticket)
    }

    /// Sends what may go now.
    pub(super) fn dispatch(self: &Arc<Self>) {
        // Who waits does so within a runtime; without one there is nobody.
        let Ok(runtime) = Handle::try_current() else { return };
        while !self.ended.is_cancelled() {
            let on_leaving = |item: &Item<K>| self.labels.left_queue(item.since.elapsed());
            let flights = match self.with(|queue| queue.next(on_leaving)) {
                Next::Nothing => return,
                Next::Together(flight, items) => {
                    let slot = Slot { line: Arc::clone(self), flight: Some(flight) };
                    vec![Flight::new(Arc::clone(self), Some(slot), items)]
                }
                Next::OneByOne(items) => {
                    let alone = |item| Flight::new(Arc::clone(self), None, vec![item]);
                    items.into_iter().map(alone).collect()
                }
            };
            // The lock is not held: a runtime that shuts down drops what it is given, which
            // gives the slot back.
            for flight in flights {
                runtime.spawn(self.in_task(flight));
            }
        }
    }

    fn in_task(&self, flight: Flight<K>) -> impl Future<Output = ()> + Send + use<K> {
        let (ended, labels) = (self.ended.clone(), self.labels.clone());
        async move {
            tokio::select! {
                biased;
                () = ended.cancelled() => {}
                outcome = caught(flight.run()) => if outcome.is_err() {
                    labels.fallback(Fallback::Panic);
                    tell_panic("batch", "its calls go one by one");
                }
            }
        }
    }

    /// The item has its outcome.
    pub(super) fn end(&self, item: &Arc<Item<K>>, outcome: Outcome<K::Given>) {
        // Who comes from here on asks anew.
        self.with(|queue| queue.forget(item));
        item.end(outcome);
    }

    /// Nobody sees to the item any more, unless it has ended.
    pub(super) fn leave(&self, item: &Arc<Item<K>>) {
        self.with(|queue| queue.forget(item));
        item.leave();
    }

    /// Calls go one by one for a while, because of `what`.
    pub(super) fn pause(self: &Arc<Self>, why: Fallback, what: &str) {
        self.labels.fallback(why);
        if let Some(span) = self.with(|queue| queue.pause(why)) {
            self.labels.paused(why, what, span);
        }
        self.dispatch();
    }

    /// A batch of these was too large.
    pub(super) fn lower(&self, of: TooLarge, items: &[Arc<Item<K>>]) {
        self.labels.fallback(Fallback::TooLarge);
        let sum = items.iter().map(|item| item.cost).fold(super::Cost::default(), |a, b| a + b);
        self.with(|queue| queue.ceiling.lower(of, sum));
    }

    /// A batch was served.
    pub(super) fn served(&self) {
        self.with(Queue::served);
    }

    fn with<R>(&self, work: impl FnOnce(&mut Queue<K>) -> R) -> R {
        work(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

// === impl Slot ===

impl<K: Batched> Drop for Slot<K> {
    fn drop(&mut self) {
        if let Some(flight) = self.flight {
            self.line.with(|queue| queue.land(flight));
            self.line.dispatch();
        }
    }
}
