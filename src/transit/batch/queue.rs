//! Who waits, what is in flight, and what may go next.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Batched;
use super::ceiling::{Ceiling, Cost, RECOVERY};
use super::item::{Item, Ticket};
use super::lanes::{Full, Lanes};
use super::told::Fallback;
use crate::clock::Deadline;
use crate::transit::VaultCiphertext;

/// Requests in flight. With two, one is on its way while the other is worked on; four were
/// slower, for they carry fewer calls each.
const IN_FLIGHT: usize = 2;

/// A request that has been silent for so long does not count: nobody shall wait for it but those
/// that it carries. It may be a connection that is dead while others would not be; and where
/// Vault is slow everywhere, a call would wait for another's answer as long as for its own, which
/// a v2 Encrypt does twice. Of sound nodes a batch is answered in a tenth of it.
pub(super) const OVERDUE: Duration = Duration::from_millis(200);

/// Requests in flight, silent ones included.
const MOST_IN_FLIGHT: usize = 16;

/// How long calls go one by one after odd answers, at first. It doubles up to [`RECOVERY`].
const ODD: Duration = Duration::from_secs(10);

/// The state of one batcher.
pub(super) struct Queue<K: Batched> {
    lanes: Lanes<K>,
    /// Items that an identical one can join, waiting or in flight.
    known: HashMap<VaultCiphertext, Arc<Item<K>>>,
    flights: Vec<(u64, Instant)>,
    next_flight: u64,
    pub(super) ceiling: Ceiling,
    /// Until then no batches are sent.
    paused: Option<Instant>,
    /// How often in a row odd answers have come to batches.
    odd: u32,
}

/// What may go now.
pub(super) enum Next<K: Batched> {
    /// These together, in the flight of this number.
    Together(u64, Vec<Arc<Item<K>>>),
    /// These one by one, and not counted.
    OneByOne(Vec<Arc<Item<K>>>),
    Nothing,
}

// === impl Queue ===

impl<K: Batched> Default for Queue<K> {
    fn default() -> Self {
        Self {
            lanes: Lanes::default(),
            known: HashMap::new(),
            flights: Vec::new(),
            next_flight: 0,
            ceiling: Ceiling::default(),
            paused: None,
            odd: 0,
        }
    }
}

impl<K: Batched> Queue<K> {
    /// Whether calls go one by one, as if there were no batches.
    pub(super) fn is_paused(&self) -> bool {
        self.paused.is_some_and(|until| Instant::now() < until)
    }

    /// A flight for a call that goes at once: nobody waits, and there is room.
    pub(super) fn at_once(&mut self) -> Option<u64> {
        (self.lanes.is_empty() && self.has_room()).then(|| self.take_off())
    }

    /// The flight has ended.
    pub(super) fn land(&mut self, flight: u64) {
        self.flights.retain(|(other, _)| *other != flight);
    }

    /// A place with an identical item that is waiting or in flight.
    pub(super) fn join(&self, ask: &K::Ask, deadline: Deadline) -> Option<Ticket<K>> {
        let item = self.known.get(K::identity(ask)?)?;
        item.is_wanted().then(|| item.join(deadline))
    }

    /// Puts an item into the line.
    pub(super) fn push(&mut self, ask: K::Ask, deadline: Deadline) -> Result<Ticket<K>, Full> {
        let item = Arc::new(Item::new(ask, deadline));
        self.lanes.push(&item, deadline.lane())?;
        let ticket = item.join(deadline);
        if let Some(identity) = K::identity(&item.ask) {
            self.known.insert(identity.clone(), Arc::clone(&item));
        }
        Ok(ticket)
    }

    /// Takes what may go now out of the line. Those that nobody waits for any more, or whose
    /// time is up, are left.
    pub(super) fn next(&mut self, on_leaving: impl Fn(&Item<K>)) -> Next<K> {
        let is_paused = self.is_paused();
        if !is_paused && !self.has_room() {
            return Next::Nothing;
        }
        let (mut taken, mut sum) = (Vec::new(), Cost::default());
        while let Some(item) = self.lanes.first() {
            let with = sum + item.cost;
            let is_wanted = item.is_wanted();
            let fits = taken.is_empty() || self.ceiling.fits(taken.len() + 1, with);
            if is_wanted && !is_paused && !fits {
                break;
            }
            let Some(item) = self.lanes.pop() else { break };
            on_leaving(&item);
            if is_wanted {
                item.depart();
                sum = with;
                taken.push(item);
            } else {
                self.forget(&item);
                item.leave();
            }
        }
        match taken.is_empty() {
            true => Next::Nothing,
            false if is_paused => Next::OneByOne(taken),
            false => Next::Together(self.take_off(), taken),
        }
    }

    /// Nobody joins this item any more.
    pub(super) fn forget(&mut self, item: &Arc<Item<K>>) {
        let Some(identity) = K::identity(&item.ask) else { return };
        if self.known.get(identity).is_some_and(|known| Arc::ptr_eq(known, item)) {
            self.known.remove(identity);
        }
    }

    /// Calls go one by one for a while. For how long, if they did not already.
    pub(super) fn pause(&mut self, why: Fallback) -> Option<Duration> {
        let was_paused = self.is_paused();
        let span = match why {
            Fallback::OddAnswers | Fallback::Unproven => {
                let span = ODD.saturating_mul(1 << self.odd.min(6)).min(RECOVERY);
                self.odd += u32::from(!was_paused);
                span
            }
            _ => RECOVERY,
        };
        self.paused = self.paused.max(Some(Instant::now() + span));
        (!was_paused).then_some(span)
    }

    /// A batch was served.
    pub(super) fn served(&mut self) {
        self.odd = 0;
    }

    fn has_room(&self) -> bool {
        let in_time = self.flights.iter().filter(|(_, began)| began.elapsed() < OVERDUE);
        in_time.count() < IN_FLIGHT && self.flights.len() < MOST_IN_FLIGHT
    }

    fn take_off(&mut self) -> u64 {
        self.next_flight += 1;
        self.flights.push((self.next_flight, Instant::now()));
        self.next_flight
    }
}
