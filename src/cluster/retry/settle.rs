//! What the answers of a call's attempts come to.
//!
//! "No such version" from a standby that is behind must not be told as the loss of data. So
//! an answer that may be stale is final only from the active node, which is certain in two
//! cases:
//!
//! * Whoever got the request has handed it on, because an index came with it that no
//!   standby has reached ([`index`](crate::cluster::index)). That holds behind a load
//!   balancer too, where one address leads to many nodes.
//! * Where nodes do not know of such an index: the address whose node had said that it is
//!   active *before* it was asked has given the answer, and says so again when it is asked
//!   *after* the answer. A standby that was elected in between had not said so, and has to
//!   repeat its word; an active node that had stepped down before it answered no longer says
//!   so.
//!
//! Where only one address is configured, it may be a load balancer's, and who says that it is
//! active another one than who answered. So it must say so several times over, must not have
//! said of late that it is a standby, and must repeat its answer. While that is not so, it is
//! asked as often as there are nodes in a usual cluster, since one of them may know better.
//!
//! In neither case may another node say that it is active. A leader that was frozen takes
//! itself for the active node for a moment after it thaws, and knows nothing of what its
//! successor did.

use std::time::Duration;

use futures_util::future::join_all;

use super::progress::Progress;
use crate::cluster::error::{AttemptError, CallErrorKind, Fault, Word};
use crate::cluster::operation::{AddressIndex, AddressSet, Answer, Attempt, Call};
use crate::cluster::pool::Outlook;

/// How long a node may take to say that it is still the active one.
const CONFIRMATION: Duration = Duration::from_millis(500);

/// How often a sole address is asked for that in the same moment, over as many connections.
const SOLE_CONFIRMATIONS: usize = 4;

/// How often a sole address must say what may be stale before the call is given up.
const SOLE_ANSWERS: usize = 3;

/// The last that each address said to a call.
#[derive(Default)]
pub(super) struct LastWords {
    /// What may be stale.
    pub(super) stale: AddressSet,
    /// What may be stale, but is the active node's word for certain.
    pub(super) by_active: AddressSet,
    /// What may be stale, of a node that was known as the active one when it was asked.
    pub(super) by_claimant: AddressSet,
    /// What may be stale, for the second time.
    pub(super) repeated: AddressSet,
    /// That it does not accept the token.
    pub(super) refused: AddressSet,
    /// Nothing that is of use now; it is out of order.
    pub(super) faulty: AddressSet,
    /// That it cannot answer yet.
    pub(super) later: AddressSet,
}

/// Sends `attempt` to where certainty is, once some address has given an answer that may be
/// stale, or from the start when only the active node's will do. The active node comes first, and is asked to hand it on in case it is that no
/// longer. Where it is not known or cannot answer, those that were behind are to hand it on:
/// their own answer is known, and others may well know better by themselves.
pub(super) fn aim(outlook: &dyn Outlook, progress: &Progress, attempt: &mut Attempt) {
    let words = progress.last_words();
    let is_wanted = attempt.call.operation.needs_active || !words.stale.is_empty();
    // A standby may not know a token yet that is a moment old.
    attempt.needs_active = is_wanted || !words.refused.is_empty();
    if is_wanted {
        attempt.hand_on = match active(outlook, &words) {
            Some(active) => AddressSet::default().with(active),
            None if words.stale.is_empty() => outlook.all(),
            None => words.stale,
        };
    }
}

/// Whether there is somebody who can be asked for the active node's word at once and for
/// free; once for each address: whoever hands it on, or the active node, when that was not
/// known as such when it was asked. Only that address is then left to be tried.
pub(super) fn asks_at_once(outlook: &dyn Outlook, progress: &mut Progress) -> bool {
    let words = progress.last_words();
    let active = active(outlook, &words).map(|active| AddressSet::default().with(active));
    let whom = match active {
        Some(active) => words.stale.and(active),
        None if outlook.has_sound_beside(progress.tried) => AddressSet::default(),
        None => words.stale,
    };
    let known = words.by_active.union(progress.handed_on);
    let was_elected = active.unwrap_or_default().without(words.by_claimant);
    let whom = whom.and(outlook.roles().hands_on.union(was_elected)).without(known);
    progress.handed_on = progress.handed_on.union(whom);
    if !whom.is_empty() {
        progress.tried = outlook.all().without(whom);
    }
    !whom.is_empty()
}

/// The active node's word, if that is what an address has said.
pub(super) async fn by_the_active(
    outlook: &dyn Outlook,
    call: &Call,
    progress: &mut Progress,
) -> Option<CallErrorKind> {
    let words = progress.last_words();
    let stale = progress.stale_indices();
    let is_alone = |index| {
        let itself = AddressSet::default().with(index);
        outlook.roles().active.without(itself).is_empty()
    };
    let handed_on = stale.iter().copied().find(|index| {
        let is_standby = outlook.roles().standby.contains(*index);
        words.by_active.contains(*index) && (is_standby || is_alone(*index))
    });
    if let Some(index) = handed_on {
        return progress.take_stale_answer(index).map(CallErrorKind::Agreed);
    }

    let is_sole = outlook.all().len() == 1;
    let sole = stale.first().copied().filter(|_| is_sole);
    let index = outlook.active().or(sole).filter(|index| words.stale.contains(*index))?;
    // A sole address may lead to many nodes: who says that it is active may be another one
    // than who answered. By the second answer a standby has caught up.
    let is_enough =
        words.by_claimant.contains(index) && (!is_sole || words.repeated.contains(index));
    let is_one_node = |index| !is_sole || !outlook.roles().stood_by.contains(index);
    if outlook.roles().hands_on.contains(index) || !is_enough || !is_one_node(index) {
        return None;
    }
    let within = CONFIRMATION.min(call.deadline.remaining());
    let times = if is_sole { SOLE_CONFIRMATIONS } else { 1 };
    let says_so = join_all((0..times).map(|_| outlook.is_active_now(index, within))).await;
    let is_certain = !says_so.contains(&false) && is_alone(index) && is_one_node(index);
    is_certain.then(|| progress.take_stale_answer(index)).flatten().map(CallErrorKind::Agreed)
}

/// The active node's address, unless it has said in this call that it cannot answer it.
fn active(outlook: &dyn Outlook, words: &LastWords) -> Option<AddressIndex> {
    let unfit = words.faulty.union(words.later);
    outlook.active().filter(|index| !unfit.contains(*index))
}

/// What else the addresses' last words come to, if they settle the call.
pub(super) fn settled(outlook: &dyn Outlook, progress: &mut Progress) -> Option<CallErrorKind> {
    let words = progress.last_words();
    let is_untried_left = outlook.has_sound_beside(progress.tried);
    if !words.refused.is_empty() {
        let is_enough = words.refused.len() > 1 || !is_untried_left;
        return is_enough.then_some(CallErrorKind::TokenRefused);
    }
    let is_hopeless = !is_untried_left && words.later.is_empty();
    let is_enough = outlook.all().len() > 1 || progress.stale_answers() >= SOLE_ANSWERS;
    if words.stale.is_empty() || words.stale != words.repeated || !is_enough || !is_hopeless {
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
                Fault::Stale { word, .. } => {
                    match word {
                        Word::Anyones => {}
                        Word::Claimants => words.by_claimant = words.by_claimant.with(*index),
                        Word::Actives => words.by_active = words.by_active.with(*index),
                    }
                    &mut words.stale
                }
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

    /// The addresses that gave an answer that may be stale, each once, the last one first.
    fn stale_indices(&self) -> Vec<AddressIndex> {
        let stale = self.failed.iter().rev().filter(|a| matches!(a.fault, Fault::Stale { .. }));
        let mut indices = Vec::new();
        for AttemptError { index, .. } in stale {
            if !indices.contains(index) {
                indices.push(*index);
            }
        }
        indices
    }

    fn stale_answers(&self) -> usize {
        self.failed.iter().filter(|a| matches!(a.fault, Fault::Stale { .. })).count()
    }

    /// The last answer of `index` that may be stale, to be handed on.
    fn take_stale_answer(&mut self, index: AddressIndex) -> Option<Box<Answer>> {
        let is_it = |a: &AttemptError| a.index == index && matches!(a.fault, Fault::Stale { .. });
        let place = self.failed.iter().rposition(is_it)?;
        match self.failed.remove(place).fault {
            Fault::Stale { answer, .. } => Some(answer),
            _ => None,
        }
    }
}
