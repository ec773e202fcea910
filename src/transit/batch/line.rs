//! What the calls of one batcher share.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::Batched;
use super::flight::Flight;
use super::item::{Item, Outcome, Ticket};
use super::lanes::Full;
use super::queue::{Next, Place, Queue};
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

/// How a call goes.
#[must_use = "those who have come meanwhile wait for it to go on"]
pub(in crate::transit) enum Turn<K: Batched> {
    /// At once, as a single request, with this to be held until it has ended.
    Alone(Slot<K>),
    /// With others: it waits here.
    Together(Place),
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

    /// How a call that comes now goes.
    pub(super) async fn turn(self: &Arc<Self>) -> Turn<K> {
        let line = Arc::clone(self);
        let flight = self.with(|queue| match queue.is_paused() {
            true => Some(None),
            false => queue.gather().map(Some),
        });
        let mut slot = match flight {
            None => return Turn::Together(Place::Back),
            Some(None) => return Turn::Alone(Slot { line, flight: None }),
            Some(flight) => Slot { line, flight },
        };
        // Calls that were sent together arrive together. Once for the sockets to be read, and
        // once for what was read to come here.
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        let goes_alone = |flight| self.with(|queue| queue.gathered(flight));
        if slot.flight.is_some_and(goes_alone) {
            return Turn::Alone(slot);
        }
        slot.flight = None;
        Turn::Together(Place::Front)
    }

    /// A place with an identical item, if there is one and `may_share`, or one in the line.
    pub(super) fn queue(
        self: &Arc<Self>,
        ask: K::Ask,
        deadline: Deadline,
        place: Place,
        may_share: bool,
    ) -> Result<Ticket<K>, TransitError> {
        let placed = self.with(|queue| {
            let shared = may_share.then(|| queue.join(&ask, deadline)).flatten();
            match shared {
                Some(ticket) => Ok(ticket),
                None => queue.push(ask, deadline, place).inspect(|_| self.labels.queued()),
            }
        });
        self.dispatch();
        self.watch();
        placed.map_err(|Full(waiting)| {
            self.labels.fallback(Fallback::Crowded);
            self.kind.crowded(waiting)
        })
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

    /// Sees to it that those who wait go when those before them are overdue. One task does, for
    /// as long as somebody waits: of everything else that lets them go they are told.
    fn watch(self: &Arc<Self>) {
        let Ok(runtime) = Handle::try_current() else { return };
        if !self.with(Queue::is_to_be_watched) {
            return;
        }
        let line = Arc::clone(self);
        runtime.spawn(async move {
            let watch = async {
                while let Some(at) = line.with(Queue::next_look) {
                    tokio::time::sleep_until(at).await;
                    line.dispatch();
                }
            };
            tokio::select! {
                biased;
                () = line.ended.cancelled() => {}
                () = watch => {}
            }
        });
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
