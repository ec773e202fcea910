//! What one call has been through, and what that means for its next step.

use std::time::Duration;

use super::BACKOFF_AT_MOST;
use crate::cluster::error::{AttemptError, Fault};
use crate::cluster::hedge::{MAX_ATTEMPTS, Missed};
use crate::cluster::operation::{AddressSet, Attempt, AttemptReason, Call};

/// How long a standby that answered with what may be stale gets before it is asked again:
/// one lagged by 126 ms at most.
const CATCH_UP: Duration = Duration::from_millis(150);

/// What one call has been through.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) failed: Vec<AttemptError>,
    pub(super) tried: AddressSet,
    /// Addresses that were asked at once to hand it on to the active node.
    pub(super) handed_on: AddressSet,
    pub(super) sent: u32,
    pub(super) rounds: u32,
    pub(super) repeats: u32,
    /// The budget has refused its next repeat.
    pub(super) is_over_budget: bool,
}

// === impl Progress ===

impl Progress {
    pub(super) fn next_attempt(&self, call: &Call) -> Attempt {
        Attempt {
            number: self.sent + 1,
            reason: if self.sent == 0 { AttemptReason::First } else { AttemptReason::Retry },
            tried: self.tried,
            is_over_budget: self.is_over_budget,
            is_second_opinion: call.operation.repeatable() && self.met(Fault::is_an_opinion),
            ..Attempt::first(call.clone())
        }
    }

    pub(super) fn take(&mut self, missed: Missed) {
        self.sent += missed.sent;
        self.tried = self.tried.union(missed.tried);
        self.failed.extend(missed.attempts);
    }

    pub(super) fn met(&self, fault: impl Fn(&Fault) -> bool) -> bool {
        self.failed.iter().any(|attempt| fault(&attempt.fault))
    }

    /// Every address may be tried again, those last that will say the same again.
    pub(super) fn go_round_again(&mut self) {
        self.rounds += 1;
        let lasting = self.failed.iter().filter(|attempt| attempt.fault.is_lasting());
        self.tried = lasting.fold(AddressSet::default(), |set, attempt| set.with(attempt.index));
    }

    /// How long until another try may bring something else.
    pub(super) fn soonest(&self) -> Duration {
        if self.last_words().stale.is_empty() { Duration::ZERO } else { CATCH_UP }
    }

    /// The pause that spreads the rounds that are left over the time that is left, each
    /// twice as long as the one before: an election's length is not known. A standby's lag
    /// is, so where nothing else is waited for there is nothing to spread.
    pub(super) fn pace(&self, addresses: usize, remaining: Duration) -> Duration {
        let words = self.last_words();
        if !words.stale.is_empty() && words.later.is_empty() {
            return Duration::ZERO;
        }
        let addresses = u32::try_from(addresses).unwrap_or(u32::MAX).max(1);
        let rounds = (MAX_ATTEMPTS.saturating_sub(self.sent) / addresses).clamp(1, 5);
        (remaining / (1 << rounds)).min(BACKOFF_AT_MOST)
    }
}
