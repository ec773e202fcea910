//! In which order a cluster's addresses are asked. No choice here is random: [`order`] says
//! for every situation which address comes first, and can be read aloud.

use std::time::Duration;

use crate::cluster::address::{Address, Role};
use crate::cluster::breaker::{BreakerPhase, BreakerState};
use crate::cluster::operation::{AddressIndex, AddressSet};

/// Costs that differ by less than this, or by less than [`ALIKE_FACTOR`], are the same: the
/// calls stay where they are. Three healthy nodes differ by a millisecond or two from one
/// answer to the next, and a call that changes its address for that gains nothing.
const ALIKE: Duration = Duration::from_millis(5);

/// See [`ALIKE`].
const ALIKE_FACTOR: u32 = 2;

/// What [`order`] knows of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which one it is.
    pub index: AddressIndex,
    /// What its breaker says.
    pub standing: Standing,
    /// What its node is; [`Role::Active`] for one at most.
    pub role: Role,
    /// Whether it sends calls on to another node instead of serving them.
    pub redirects: bool,
    /// How long one more attempt would take there; `None` while nothing is known.
    pub cost: Option<Duration>,
}

/// What a breaker means for the choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Closed: it serves.
    Sound,
    /// Open, and its trial is due.
    TrialDue,
    /// Open or on trial: not ready.
    LeftOut,
}

/// What [`order`] knows of the attempt.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// Addresses that the call has been to.
    pub tried: AddressSet,
    /// The address that answered last.
    pub preferred: Option<AddressIndex>,
    /// A due trial may go first, because a sound address can be asked in the same moment.
    pub carries_trial: bool,
    /// It is for the active node, if that can be asked.
    pub needs_active: bool,
}

/// What separates candidates before their cost does; the least comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    cannot_serve: bool,
    is_tried: bool,
    standing: u8,
    is_not_the_active_one: bool,
    redirects: bool,
}

/// The order in which `candidates` are asked to take an attempt:
///
/// 1. those whose node can serve: not sealed, without storage or secondary, so that one of
///    these is asked only where nothing else is left,
/// 2. those that this call has not been to,
/// 3. by breaker: a due trial first where a sound address can be asked in the same moment,
///    sound ones, due trials, those left out,
/// 4. the active node, for an attempt that needs it,
/// 5. nodes that serve by themselves before one that redirects,
/// 6. by cost, but all that are about as cheap as the cheapest are alike,
/// 7. of those that are alike the one that answered last,
/// 8. the order of `candidates`, which is the configuration's.
pub fn order(candidates: &[Candidate], wanted: &Wanted) -> Vec<AddressIndex> {
    let mut order: Vec<_> = candidates.iter().map(|c| (Class::of(c, wanted), c)).collect();
    order.sort_by_key(|(class, _)| *class);
    for peers in order.chunk_by_mut(|(a, _), (b, _)| a == b) {
        let least = peers.iter().filter_map(|(_, c)| c.cost).min().unwrap_or_default();
        let alike = (least * ALIKE_FACTOR).max(least + ALIKE);
        peers.sort_by_key(|(_, c)| {
            let more = c.cost.filter(|cost| *cost > alike); // what is not known may be cheap
            (more, Some(c.index) != wanted.preferred)
        });
    }
    order.into_iter().map(|(_, c)| c.index).collect()
}

// === impl Candidate ===

impl Candidate {
    /// What is known of `address` now. Of several that call themselves active, only
    /// `active` is taken for it.
    pub fn of(address: &Address, breaker: &BreakerState, active: Option<AddressIndex>) -> Self {
        let role = match address.role.get() {
            Role::Active if active != Some(address.index) => Role::Unknown,
            role => role,
        };
        Self {
            index: address.index,
            standing: Standing::of(breaker),
            role,
            redirects: address.role.redirects(),
            cost: address.latency.cost(),
        }
    }
}

// === impl Standing ===

impl Standing {
    /// What `breaker` means now.
    pub fn of(breaker: &BreakerState) -> Self {
        match breaker.phase() {
            BreakerPhase::Closed => Self::Sound,
            _ if breaker.is_trial_due() => Self::TrialDue,
            BreakerPhase::Open | BreakerPhase::HalfOpen => Self::LeftOut,
        }
    }
}

// === impl Class ===

impl Class {
    fn of(candidate: &Candidate, wanted: &Wanted) -> Self {
        let Candidate { index, standing, role, redirects, cost: _ } = *candidate;
        let standing = match standing {
            Standing::TrialDue if wanted.carries_trial => 0,
            Standing::Sound => 1,
            Standing::TrialDue => 2,
            Standing::LeftOut => 3,
        };
        Self {
            cannot_serve: !role.can_serve(),
            is_tried: wanted.tried.contains(index),
            standing,
            is_not_the_active_one: wanted.needs_active && role != Role::Active,
            redirects,
        }
    }
}

#[cfg(test)]
mod tests;
