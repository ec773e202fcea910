//! Who may leave the line, and when: decisions without a task, a clock or an address.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::clock::{Deadline, Jitter};
use crate::cluster::hedge::MAX_ATTEMPTS;
use crate::cluster::operation::{AddressIndex, AddressSet, Attempt, Verb};
use heard::Heard;

mod heard;

/// Scouts that may fly together.
const SCOUTS: usize = 2;

/// A scout that is silent for so long does not keep others on the ground: it may have gone
/// to a node that is frozen.
const SILENT: Duration = Duration::from_millis(250);

/// How often an address is asked whether it is back.
pub(super) const PACE: Duration = Duration::from_secs(1);

/// The wait after the first fault at a sole address, which doubles up to [`PACE`]. With more
/// addresses it is longer, so that one call's attempts last as long as it does.
const FIRST_WAIT: Duration = Duration::from_millis(50);

/// The most that addresses lengthen the first wait.
const SLOWEST: u32 = 5;

/// With less time left, no repeat is worth sending.
pub(super) const LAST_TRY: Duration = Duration::from_millis(100);

/// Calls that leave when an address is usable again, before any has got an answer.
const FIRST_OUT: usize = 2;

/// While answers are late, one more call leaves in this time.
const TRICKLE: Duration = Duration::from_millis(50);

/// What is known of one address, as the breaker and the probe tell it.
#[derive(Clone, Copy, Debug)]
pub(in crate::cluster::pool) struct Seen {
    pub(in crate::cluster::pool) index: AddressIndex,
    /// It serves, as far as its breaker and its role say.
    pub(in crate::cluster::pool) is_sound: bool,
    /// It is left out, but something says that it is worth a look.
    pub(in crate::cluster::pool) is_trial_due: bool,
    /// Probes say that it is of no use.
    pub(in crate::cluster::pool) is_probed_bad: bool,
}

/// A call in the line.
struct Parked {
    number: u32,
    /// A call of kube-apiserver that was not sent yet.
    is_fresh: bool,
    deadline: Deadline,
    /// It is no scout before.
    scout_from: Instant,
    grant: oneshot::Sender<Grant>,
}

/// How a call leaves the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grant {
    /// An address is usable: go there.
    Go,
    /// Go to this one and see; the flight has this number.
    Scout(AddressIndex, u64),
}

/// The line and what is known of the addresses.
#[derive(Default)]
pub(super) struct Plan {
    queue: VecDeque<Parked>,
    heard: BTreeMap<AddressIndex, Heard>,
    scouts: Vec<Scout>,
    flights: u64,
    /// The next scout, to whatever address, goes then at the soonest.
    next_scout: Option<Instant>,
    /// Calls that may leave now.
    credit: usize,
    /// When one more may leave; `None` while no address is usable.
    trickle_at: Option<Instant>,
    /// How long the last answer took.
    answered_in: Duration,
}

struct Scout {
    flight: u64,
    since: Instant,
    to: AddressIndex,
}

// === impl Plan ===

impl Plan {
    /// Puts a call at the end of the line, whose next attempt is this one.
    pub(super) fn enqueue(
        &mut self,
        attempt: &Attempt,
        addresses: usize,
    ) -> oneshot::Receiver<Grant> {
        let (grant, granted) = oneshot::channel();
        let (number, deadline) = (attempt.number, attempt.call.deadline);
        let is_asked_for = matches!(attempt.call.operation.verb, Verb::Encrypt | Verb::Decrypt);
        let is_fresh = number == 1 && is_asked_for;
        // Once round, a call spreads what it has left over the time that it has left.
        let is_once_round = usize::try_from(number).unwrap_or(usize::MAX) > addresses + 1;
        let left = (MAX_ATTEMPTS + 1).saturating_sub(number).max(1);
        let wait = if is_once_round { deadline.remaining() / left } else { Duration::ZERO };
        let scout_from = Instant::now() + wait;
        self.queue.push_back(Parked { number, is_fresh, deadline, scout_from, grant });
        granted
    }

    /// Lets calls go that may; the ones that could not be told any more, and when to look
    /// again.
    pub(super) fn step(&mut self, seen: &[Seen], jitter: &Jitter) -> (Vec<Grant>, Option<Instant>) {
        let now = Instant::now();
        self.queue.retain(|parked| !parked.grant.is_closed());
        if self.queue.is_empty() {
            (self.credit, self.trickle_at) = (0, None);
            return (Vec::new(), None);
        }
        if seen.iter().any(|address| address.is_sound && !self.is_shaken(address.index)) {
            return (Vec::new(), self.release(now));
        }
        (self.credit, self.trickle_at) = (0, None);
        self.send_scouts(seen, now, jitter)
    }

    fn release(&mut self, now: Instant) -> Option<Instant> {
        let trickle_at = match self.trickle_at {
            None => {
                self.credit += FIRST_OUT;
                now + TRICKLE
            }
            Some(at) if at <= now => {
                self.credit += 1;
                now + TRICKLE
            }
            Some(at) => at,
        };
        while self.credit > 0
            && let Some(parked) = self.next_to_go(now)
        {
            if parked.grant.send(Grant::Go).is_ok() {
                self.credit -= 1;
            }
        }
        self.trickle_at = Some(trickle_at);
        (!self.queue.is_empty()).then_some(trickle_at)
    }

    /// The first in line that has time for one more answer. Those that have none are kept
    /// back, or each answer would be waited for by nobody and no further call would leave;
    /// when there is nobody else, the one with the most time goes.
    fn next_to_go(&mut self, now: Instant) -> Option<Parked> {
        let needs = self.answered_in.max(LAST_TRY);
        let has_time = |parked: &Parked| parked.deadline.instant() > now + needs;
        let place = self.queue.iter().position(has_time).or_else(|| {
            let queue = self.queue.iter().enumerate();
            queue.max_by_key(|(_, parked)| parked.deadline).map(|(place, _)| place)
        });
        self.queue.remove(place?)
    }

    fn send_scouts(
        &mut self,
        seen: &[Seen],
        now: Instant,
        jitter: &Jitter,
    ) -> (Vec<Grant>, Option<Instant>) {
        let mut lost = Vec::new();
        loop {
            let has_fresh = self.queue.iter().any(Parked::is_fresh);
            let except = hopeless(seen).filter(|_| !has_fresh);
            let except = except.fold(AddressSet::default(), AddressSet::with);
            let index = match self.due(seen, except, now) {
                Ok(index) => index,
                Err(again) => return (lost, again),
            };
            let place = match self.next_scout(hopeless(seen).any(|bad| bad == index), now) {
                Ok(place) => place,
                Err(again) => return (lost, again),
            };
            let Some(parked) = self.queue.remove(place) else { return (lost, None) };
            let grant = self.launch(index, seen.len(), now, jitter);
            lost.extend(parked.grant.send(grant).err());
        }
    }

    /// The address that a scout may go to now; or when one may.
    pub(super) fn due(
        &mut self,
        seen: &[Seen],
        except: AddressSet,
        now: Instant,
    ) -> Result<AddressIndex, Option<Instant>> {
        for address in seen {
            let heard = self.heard.entry(address.index).or_default();
            let is_news =
                address.is_trial_due && !heard.was_due || heard.was_bad && !address.is_probed_bad;
            if is_news {
                heard.scout_at = now;
            }
            (heard.was_due, heard.was_bad) = (address.is_trial_due, address.is_probed_bad);
        }
        let quiet_at = |scout: &Scout| scout.since + SILENT;
        let loud = self.scouts.iter().filter(|scout| quiet_at(scout) > now);
        let mut soonest = self.next_scout.unwrap_or(now);
        if loud.clone().count() >= SCOUTS {
            soonest = loud.map(quiet_at).min().unwrap_or(soonest).max(soonest);
        }
        let next = seen
            .iter()
            .filter(|address| !except.contains(address.index))
            .map(|address| (self.heard[&address.index].scout_at, address.index))
            .min();
        match next {
            Some((at, index)) if at <= now && soonest <= now => Ok(index),
            Some((at, _)) => Err(Some(at.max(soonest))),
            None => Err(None),
        }
    }

    /// A scout takes off for `index`.
    pub(super) fn launch(
        &mut self,
        index: AddressIndex,
        addresses: usize,
        now: Instant,
        jitter: &Jitter,
    ) -> Grant {
        let heard = self.heard.entry(index).or_default();
        heard.scout_at = now + jitter.around(PACE); // sooner when it answers before
        // In turn: scouts that are in step would all come a moment too early.
        let gap = backoff(heard.faults.max(1), addresses) / u32::try_from(addresses).unwrap_or(1);
        self.next_scout = (addresses > 1).then(|| now + gap);
        self.flights += 1;
        heard.awaits = Some(self.flights);
        self.scouts.push(Scout { flight: self.flights, since: now, to: index });
        Grant::Scout(index, self.flights)
    }

    /// The scout has landed, or nobody waits for it any longer. One that brought no news (it
    /// was cancelled, or had too little time) is made up for by the next.
    pub(super) fn landed(&mut self, flight: u64) {
        let Some(place) = self.scouts.iter().position(|scout| scout.flight == flight) else {
            return;
        };
        let scout = self.scouts.swap_remove(place);
        let soonest = Instant::now().max(scout.since + FIRST_WAIT);
        if let Some(heard) = self.heard.get_mut(&scout.to)
            && heard.awaits == Some(flight)
        {
            heard.awaits = None;
            heard.scout_at = heard.scout_at.min(soonest);
        }
    }

    /// Whose turn it is to be a scout, or when it is somebody's: a call that was sent least
    /// often, so that an outage is not multiplied, and of those the one with the most time,
    /// so that it lives to hear the answer. To an address that is of no use goes none that
    /// was sent before.
    fn next_scout(&self, is_hopeless: bool, now: Instant) -> Result<usize, Option<Instant>> {
        let has_time = |parked: &Parked| parked.deadline.instant() > now + LAST_TRY;
        let may = |parked: &Parked| {
            let has_reason = parked.is_fresh || !is_hopeless;
            !parked.grant.is_closed() && has_reason && (parked.number == 1 || has_time(parked))
        };
        let candidates = self.queue.iter().enumerate().filter(|(_, parked)| may(parked));
        let ready = candidates.clone().filter(|(_, parked)| parked.scout_from <= now);
        let rank = |parked: &Parked| (!has_time(parked), parked.number, Reverse(parked.deadline));
        match ready.min_by_key(|(_, parked)| rank(parked)) {
            Some((place, _)) => Ok(place),
            None => Err(candidates.map(|(_, parked)| parked.scout_from).min()),
        }
    }
}

/// Those of `seen` that are of no use, as probes say.
pub(super) fn hopeless(seen: &[Seen]) -> impl Iterator<Item = AddressIndex> + '_ {
    seen.iter().filter(|address| address.is_probed_bad).map(|address| address.index)
}

fn backoff(faults: u32, addresses: usize) -> Duration {
    let first = FIRST_WAIT * u32::try_from(addresses).unwrap_or(SLOWEST).clamp(1, SLOWEST);
    let factor = 1_u32.checked_shl(faults.saturating_sub(1)).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(PACE)
}

// === impl Parked ===

impl Parked {
    fn is_fresh(&self) -> bool {
        self.is_fresh && !self.grant.is_closed()
    }
}

#[cfg(test)]
mod tests;
