//! What attempts hear at the addresses, and what that means for the next one.

use std::time::Duration;

use tokio::time::Instant;

use super::{PACE, Plan, backoff};
use crate::clock::{Deadline, Jitter};
use crate::cluster::error::{AttemptError, Fault};
use crate::cluster::operation::{AddressIndex, Answer, Verb};

/// An attempt that had less than this and met its deadline says more about the caller.
const FAIR: Duration = Duration::from_secs(1);

/// Calls that leave for each answer: so the number in flight doubles with each round trip,
/// as fast as the address really is.
const FOR_AN_ANSWER: usize = 2;

/// What the attempts at one address heard last.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    /// In a row.
    pub(super) faults: u32,
    said: Option<String>,
    /// It asked not to be asked before.
    rests_until: Option<Instant>,
    /// The next scout goes then at the soonest.
    pub(super) scout_at: Instant,
    /// The last flight to it, while nothing has been heard since.
    pub(super) awaits: Option<u64>,
    pub(super) was_due: bool,
    pub(super) was_bad: bool,
}

// === impl Plan ===

impl Plan {
    /// Whether the last word of `index` was a fault, or it asked for time.
    pub(in crate::cluster::pool) fn is_shaken(&self, index: AddressIndex) -> bool {
        self.heard.get(&index).is_some_and(|heard| heard.faults > 0 || heard.is_resting())
    }

    pub(in crate::cluster::pool) fn is_resting(&self, index: AddressIndex) -> bool {
        self.heard.get(&index).is_some_and(Heard::is_resting)
    }

    /// Whether `index` asked for time beyond `deadline`.
    pub(in crate::cluster::pool) fn rests_beyond(
        &self,
        index: AddressIndex,
        deadline: Deadline,
    ) -> bool {
        let rests_until = self.heard.get(&index).and_then(|heard| heard.rests_until);
        rests_until.is_some_and(|until| until >= deadline.instant())
    }

    /// The last fault at `index`, if nothing good came since.
    pub(in crate::cluster::pool) fn said(&self, index: AddressIndex) -> Option<String> {
        self.heard.get(&index).and_then(|heard| heard.said.clone())
    }

    /// Takes in how an attempt ended; whether the line should look again.
    pub(in crate::cluster::pool) fn hear(
        &mut self,
        index: AddressIndex,
        verb: Verb,
        result: &Result<Answer, AttemptError>,
        took: Duration,
        addresses: usize,
        jitter: &Jitter,
    ) -> bool {
        let heard = self.heard.entry(index).or_default();
        let fault = match result {
            Ok(_) => None,
            Err(error) => match &error.fault {
                fault if fault.is_an_opinion() => None,
                Fault::Unsendable(_) | Fault::Silent(_) | Fault::BreakerOpen { .. } => {
                    return false;
                }
                Fault::Deadline if took < FAIR => return false,
                Fault::Elsewhere { verdict, .. } if !verdict.eject && !verb.is_transit() => {
                    // Not about what the node serves by itself; only not again at once.
                    let wait = jitter.around(backoff(heard.faults.max(1), addresses));
                    (heard.awaits, heard.scout_at) = (None, Instant::now() + wait);
                    return true;
                }
                fault => Some(fault),
            },
        };
        heard.awaits = None;
        let Some(fault) = fault else {
            *heard = Heard::default();
            self.answered_in = took;
            self.credit = (self.credit + FOR_AN_ANSWER).min(self.queue.len());
            return true;
        };
        heard.faults = heard.faults.saturating_add(1);
        heard.said = Some(fault.to_string());
        let now = Instant::now();
        let mut wait = jitter.around(backoff(heard.faults, addresses));
        match fault {
            // neither changes from one moment to the next
            fault if fault.is_lasting() => wait = jitter.around(PACE),
            Fault::Elsewhere { verdict, .. } if verdict.eject => wait = jitter.around(PACE),
            Fault::Elsewhere { verdict, .. } => {
                heard.rests_until = verdict.again_after.map(|span| now + span);
                wait = wait.max(verdict.again_after.unwrap_or_default());
            }
            _ => {}
        }
        heard.scout_at = now + wait;
        true
    }
}

// === impl Heard ===

impl Heard {
    fn is_resting(&self) -> bool {
        self.rests_until.is_some_and(|until| until > Instant::now())
    }
}

impl Default for Heard {
    /// Nothing; it may be asked at once.
    fn default() -> Self {
        let scout_at = Instant::now();
        Self {
            faults: 0,
            said: None,
            rests_until: None,
            scout_at,
            awaits: None,
            was_due: false,
            was_bad: false,
        }
    }
}
