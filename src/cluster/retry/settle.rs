//! What the answers of a call's attempts come to.

use super::progress::Progress;
use crate::cluster::error::{AttemptError, CallErrorKind, Fault};
use crate::cluster::operation::{AddressSet, Answer};
use crate::cluster::pool::Outlook;

/// The last that each address said to a call.
#[derive(Default)]
pub(super) struct LastWords {
    /// What may be stale.
    pub(super) stale: AddressSet,
    /// What may be stale, for the second time.
    pub(super) repeated: AddressSet,
    /// That it does not accept the token.
    pub(super) refused: AddressSet,
    /// Nothing that is of use now; it is out of order.
    pub(super) faulty: AddressSet,
    /// That it cannot answer yet.
    pub(super) later: AddressSet,
}

/// What the addresses' last words come to, if they settle the call.
pub(super) fn settled(outlook: &dyn Outlook, progress: &mut Progress) -> Option<CallErrorKind> {
    let all = outlook.all();
    let words = progress.last_words();
    let is_untried_left = outlook.has_sound_beside(progress.tried);
    if !words.refused.is_empty() {
        let is_enough = words.refused.len() > 1 || !is_untried_left;
        return is_enough.then_some(CallErrorKind::TokenRefused);
    }
    if words.stale.covers(all) {
        return progress.take_stale_answer().map(CallErrorKind::Agreed);
    }
    let is_hopeless = !is_untried_left && words.later.is_empty();
    if words.stale.is_empty() || words.stale != words.repeated || !is_hopeless {
        return None;
    }
    let unasked = outlook.left_out().into_iter();
    let heard = words.stale.union(words.faulty);
    progress.failed.extend(unasked.filter(|a| !heard.contains(a.index)));
    Some(CallErrorKind::Undecided)
}

// === impl Progress ===

impl Progress {
    pub(super) fn last_words(&self) -> LastWords {
        let mut words = LastWords::default();
        let mut heard = AddressSet::default();
        for AttemptError { index, fault, .. } in self.failed.iter().rev() {
            let is_stale = matches!(fault, Fault::Stale { .. });
            if heard.contains(*index) {
                if is_stale && words.stale.contains(*index) {
                    words.repeated = words.repeated.with(*index);
                }
                continue;
            }
            heard = heard.with(*index);
            let place = match fault {
                Fault::Stale { .. } => &mut words.stale,
                Fault::TokenRefused => &mut words.refused,
                Fault::Elsewhere { verdict, .. } if !verdict.at_fault => &mut words.later,
                _ => &mut words.faulty,
            };
            *place = place.with(*index);
        }
        words
    }

    /// Why the call ends, when it would end as `kind` for want of attempts or time: what
    /// some addresses did say tells more than that others were silent.
    pub(super) fn end(&self, kind: CallErrorKind) -> CallErrorKind {
        if !matches!(kind, CallErrorKind::Exhausted | CallErrorKind::Deadline) {
            return kind;
        }
        let words = self.last_words();
        if !words.refused.is_empty() {
            CallErrorKind::TokenRefused
        } else if !words.stale.is_empty() {
            CallErrorKind::Undecided
        } else if self.met(|f| !matches!(f, Fault::Deadline | Fault::Silent(_))) {
            // The same outage must not be told as one thing or the other by the chance of
            // where in a pause the deadline came.
            CallErrorKind::Exhausted
        } else {
            kind
        }
    }

    /// The answer that all addresses gave; the last of them is handed on.
    pub(super) fn take_stale_answer(&mut self) -> Option<Box<Answer>> {
        let place = self.failed.iter().rposition(|a| matches!(a.fault, Fault::Stale { .. }))?;
        match self.failed.remove(place).fault {
            Fault::Stale { answer, .. } => Some(answer),
            _ => None,
        }
    }
}
