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

/// Few calls go in two requests beside each other, for one alone would wait for the other's
/// answer before its own. More go in one: what they wait is less than what two requests of half
/// the size cost Vault and this machine.
const FEW: usize = 8;

/// So many go beside a request, too, if it carries no more, and twice as many go in two: in a
/// larger one a call costs Vault little less, and while it works on the one, this machine and the
/// callers see to the other. In one they would all wait for each other, round after round.
const MANY: usize = 24;

/// A request that has been silent for so long, times those in flight, does not count: nobody shall
/// wait for it but those that it carries. Vault may be far away, or slow; then calls are worked on
/// together only if they need not wait for each other, which a v2 Encrypt does twice. Or the
/// connection is dead while others would not be. A sound node nearby answers a full batch in a
/// fifth of it.
pub(super) const OVERDUE: Duration = Duration::from_millis(25);

/// The most that it comes to.
const LONG_OVERDUE: Duration = Duration::from_millis(200);

/// Requests in flight, silent ones included.
const MOST_IN_FLIGHT: usize = 16;

/// How long calls go one by one after odd answers, at first. It doubles up to [`RECOVERY`].
const ODD: Duration = Duration::from_secs(10);

/// The state of one batcher.
pub(super) struct Queue<K: Batched> {
    lanes: Lanes<K>,
    /// Items that an identical one can join, waiting or in flight.
    known: HashMap<VaultCiphertext, Arc<Item<K>>>,
    flights: Vec<Aloft>,
    next_flight: u64,
    /// The flight of a call that waits for those who come with it. Nobody goes before it.
    gathering: Option<u64>,
    /// A task sees to those who wait.
    is_watched: bool,
    pub(super) ceiling: Ceiling,
    /// Until then no batches are sent.
    paused: Option<Instant>,
    /// How often in a row odd answers have come to batches.
    odd: u32,
}

/// A request in flight.
struct Aloft {
    number: u64,
    since: Instant,
    carries: usize,
}

/// Where in its lane a call waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::transit) enum Place {
    /// It came before all others.
    Front,
    Back,
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
            gathering: None,
            is_watched: false,
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

    /// A flight for a call that finds nobody before it, and room. Nobody else goes before
    /// [`Self::gathered`].
    pub(super) fn gather(&mut self) -> Option<u64> {
        (self.lanes.is_empty() && self.has_room(1)).then(|| {
            let flight = self.take_off(1);
            self.gathering = Some(flight);
            flight
        })
    }

    /// Whether the call of this flight goes alone: nobody has come meanwhile. If it does not, its
    /// flight has ended.
    pub(super) fn gathered(&mut self, flight: u64) -> bool {
        if self.lanes.is_empty() {
            self.gathering = None;
            return true;
        }
        self.land(flight);
        false
    }

    /// The flight has ended.
    pub(super) fn land(&mut self, flight: u64) {
        self.flights.retain(|other| other.number != flight);
        self.gathering.take_if(|gathering| *gathering == flight);
    }

    /// A place with an identical item that is waiting or in flight.
    pub(super) fn join(&self, ask: &K::Ask, deadline: Deadline) -> Option<Ticket<K>> {
        let item = self.known.get(K::identity(ask)?)?;
        item.is_wanted().then(|| item.join(deadline))
    }

    /// Puts an item into the line.
    pub(super) fn push(
        &mut self,
        ask: K::Ask,
        deadline: Deadline,
        place: Place,
    ) -> Result<Ticket<K>, Full> {
        let item = Arc::new(Item::new(ask, deadline));
        self.lanes.push(&item, deadline.lane(), place)?;
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
        if !is_paused && !self.has_room(self.lanes.len()) {
            return Next::Nothing;
        }
        let most = self.most();
        let (mut taken, mut sum) = (Vec::new(), Cost::default());
        while let Some(item) = self.lanes.first() {
            let with = sum + item.cost;
            let is_wanted = item.is_wanted();
            let is_within = taken.len() < most && self.ceiling.fits(taken.len() + 1, with);
            let fits = taken.is_empty() || is_within;
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
            false => Next::Together(self.take_off(taken.len()), taken),
        }
    }

    /// Whether somebody waits, and nobody watches that yet. From here on somebody does.
    pub(super) fn is_to_be_watched(&mut self) -> bool {
        let is_new = !self.is_watched && !self.lanes.is_empty();
        self.is_watched |= is_new;
        is_new
    }

    /// When the requests in flight may be overdue; `None`, and nobody watches any more, when
    /// nobody waits.
    pub(super) fn next_look(&mut self) -> Option<Instant> {
        self.is_watched = !self.lanes.is_empty();
        let (now, overdue) = (Instant::now(), self.overdue());
        // Others may take off, and be overdue sooner.
        let latest = now + OVERDUE;
        let free_at = self.flights.iter().map(|flight| flight.since + overdue).max();
        let look_at = free_at.filter(|free_at| *free_at > now).unwrap_or(latest).min(latest);
        self.is_watched.then_some(look_at)
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

    /// How many go in the next request: a half, where the rest may go beside it.
    fn most(&self) -> usize {
        let waiting = self.lanes.len();
        if waiting >= MANY * 2 && self.flights.is_empty() { waiting / 2 } else { usize::MAX }
    }

    /// Whether a request may go that would carry so many.
    fn has_room(&self, coming: usize) -> bool {
        if self.gathering.is_some() || self.flights.len() >= MOST_IN_FLIGHT {
            return false;
        }
        let overdue = self.overdue();
        let mut counted = self.flights.iter().filter(|flight| flight.since.elapsed() < overdue);
        match (counted.next(), counted.next()) {
            (None, _) => true,
            (Some(one), None) => {
                let is_worth_it = one.carries + coming <= FEW || coming >= MANY;
                coming >= one.carries && is_worth_it
            }
            (Some(_), Some(_)) => false,
        }
    }

    /// How long a request counts.
    fn overdue(&self) -> Duration {
        let flights = u32::try_from(self.flights.len()).unwrap_or(u32::MAX);
        OVERDUE.saturating_mul(flights).min(LONG_OVERDUE)
    }

    fn take_off(&mut self, carries: usize) -> u64 {
        self.next_flight += 1;
        self.flights.push(Aloft { number: self.next_flight, since: Instant::now(), carries });
        self.next_flight
    }
}
