//! What one call has been through, and what that means for its next step.

use std::time::Duration;

use tokio::time::Instant;

use super::BACKOFF_AT_MOST;
use crate::cluster::error::{AttemptError, Fault};
use crate::cluster::hedge::{MAX_ATTEMPTS, Missed};
use crate::cluster::operation::{AddressIndex, AddressSet, Attempt, AttemptReason, Call, Fate};

/// How long a standby that answered with what may be stale gets before it is asked again:
/// one lagged by 126 ms at most.
const CATCH_UP: Duration = Duration::from_millis(150);

/// What one call has been through.
#[derive(Default)]
pub(super) struct Progress {
    pub(super) failed: Vec<AttemptError>,
    pub(super) tried: AddressSet,
    pub(super) sent: u32,
    pub(super) rounds: u32,
    pub(super) repeats: u32,
    /// Addresses that asked not to be tried again before a moment.
    pub(super) not_before: Vec<(AddressIndex, Instant)>,
    pub(super) refused_by_budget: bool,
    /// Another call's answer has ended a wait of this one; once, so that an address that
    /// answers every other call is not asked without a bound.
    pub(super) was_woken: bool,
}

// === impl Progress ===

impl Progress {
    pub(super) fn next_attempt(&self, call: &Call) -> Attempt {
        Attempt {
            call: call.clone(),
            number: self.sent + 1,
            reason: if self.sent == 0 { AttemptReason::First } else { AttemptReason::Retry },
            tried: self.tried,
            is_second_opinion: call.operation.repeatable() && self.met(Fault::is_an_opinion),
            needs_active: false,
            fate: Fate::default(),
        }
    }

    pub(super) fn take(&mut self, missed: Missed) {
        self.sent += missed.sent;
        self.tried = self.tried.union(missed.tried);
        for attempt in &missed.attempts {
            if let Fault::Elsewhere { verdict, .. } = &attempt.fault
                && let Some(wait) = verdict.again_after
            {
                self.not_before.retain(|(index, _)| *index != attempt.index);
                self.not_before.push((attempt.index, Instant::now() + wait));
            }
        }
        self.failed.extend(missed.attempts);
    }

    pub(super) fn met(&self, fault: impl Fn(&Fault) -> bool) -> bool {
        self.failed.iter().any(|attempt| fault(&attempt.fault))
    }

    /// Every address may be tried again, but for those that asked for more time.
    pub(super) fn go_round_again(&mut self) {
        self.rounds += 1;
        self.not_before.retain(|(_, at)| *at > Instant::now());
        self.tried =
            self.not_before.iter().fold(AddressSet::default(), |set, (index, _)| set.with(*index));
    }

    /// How long until one of `all` is worth another try. An address that is out of order is
    /// seldom worth it sooner than one that asked for a little time.
    pub(super) fn soonest(&self, all: AddressSet) -> Duration {
        let words = self.last_words();
        if !words.stale.is_empty() {
            return CATCH_UP;
        }
        let Some(first) = self.not_before.iter().map(|(_, at)| *at).min() else {
            return Duration::ZERO;
        };
        let first = first.saturating_duration_since(Instant::now());
        let waiting =
            self.not_before.iter().fold(AddressSet::default(), |set, (index, _)| set.with(*index));
        match () {
            () if waiting == all => first,
            () if waiting.union(words.faulty) == all => first.min(BACKOFF_AT_MOST),
            () => Duration::ZERO,
        }
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
