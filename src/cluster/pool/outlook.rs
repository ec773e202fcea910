//! What the layers above may know of the pool's addresses.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tower::Service;

use super::{Endpoint, Shared, active};
use crate::cluster::address::{Address, Role};
use crate::cluster::error::{AttemptError, Fault};
use crate::cluster::operation::{AddressIndex, AddressSet, Answer, Attempt};
use crate::cluster::probe;

/// What the retry layer may know of the pool.
pub trait Outlook: Send + Sync + 'static {
    /// Every address.
    fn all(&self) -> AddressSet;
    /// Whether an address outside `tried` serves.
    fn has_sound_beside(&self, tried: AddressSet) -> bool;
    /// The active node's address, where one is known and serves.
    fn active(&self) -> Option<AddressIndex> {
        None
    }
    /// What is known of the nodes.
    fn roles(&self) -> Roles {
        Roles::default()
    }
    /// Asks the node at an address, once and now, whether it is the active one; no answer
    /// in this time is none.
    fn is_active_now(&self, _: AddressIndex, _: Duration) -> BoxFuture<'_, bool> {
        std::future::ready(false).boxed()
    }
    /// Whether no address is usable, so that the pool lets calls wait in line.
    fn is_out(&self) -> bool;
    /// Those that do not serve, and why.
    fn left_out(&self) -> Vec<AttemptError>;
    /// What each address has to do with a call that gets no answer in time without having
    /// been sent itself: whoever is being asked is silent, the others are left out.
    fn overdue(&self) -> Vec<AttemptError> {
        self.left_out()
    }
}

/// What the nodes are, by their addresses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Roles {
    /// Those that say that they are active: for a moment, two may.
    pub active: AddressSet,
    /// Those that are known to be standbys.
    pub standby: AddressSet,
    /// Those that have said of late that they are standbys, whatever they say now.
    pub stood_by: AddressSet,
    /// Those that are sure to hand a request on to the active node when they are asked to.
    pub hands_on: AddressSet,
}

// === impl Shared ===

impl<S> Outlook for Shared<S>
where
    S: Service<Attempt, Response = Answer, Error = AttemptError> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    fn all(&self) -> AddressSet {
        self.members.roster().indices()
    }

    fn has_sound_beside(&self, tried: AddressSet) -> bool {
        let roster = self.members.roster();
        let (lot, untried) = (self.parking.lot(), |index| !tried.contains(index));
        roster.iter().any(|e| {
            let index = e.address.index;
            untried(index) && e.is_sound() && !lot.is_resting(index)
        })
    }

    fn is_out(&self) -> bool {
        self.is_all_out(&self.members.roster())
    }

    fn active(&self) -> Option<AddressIndex> {
        active(&self.members.roster())
    }

    fn roles(&self) -> Roles {
        self.members.roster().iter().fold(Roles::default(), |mut roles, endpoint| {
            let Address { index, role, hands_on, .. } = &endpoint.address;
            match role.get() {
                Role::Active => roles.active = roles.active.with(*index),
                Role::Standby | Role::PerformanceStandby => {
                    roles.standby = roles.standby.with(*index);
                }
                _ => {}
            }
            if role.stood_by_of_late() {
                roles.stood_by = roles.stood_by.with(*index);
            }
            if hands_on.is_certain() {
                roles.hands_on = roles.hands_on.with(*index);
            }
            roles
        })
    }

    fn is_active_now(&self, index: AddressIndex, within: Duration) -> BoxFuture<'_, bool> {
        let roster = self.members.roster();
        let asked = roster.get(index).map(|e| (e.transport.clone(), e.address.role.clone()));
        async move {
            let Some((transport, role)) = asked else { return false };
            let says = probe::role_of(transport, within).await;
            role.hear(says);
            let is_active = says == Role::Active;
            if !is_active {
                role.doubt();
            }
            is_active
        }
        .boxed()
    }

    fn overdue(&self) -> Vec<AttemptError> {
        let mut errors = self.left_out();
        let roster = self.members.roster();
        let silent = |e: &Endpoint<S>| AttemptError {
            address: e.address.name.clone(),
            index: e.address.index,
            fault: Fault::Deadline,
        };
        let is_told = |e: &Endpoint<S>| errors.iter().any(|a| a.index == e.address.index);
        let asked = roster.iter().filter(|e| e.address.latency.is_under_way() && !is_told(e));
        let mut asked: Vec<_> = asked.map(silent).collect();
        if errors.is_empty() && asked.is_empty() {
            asked = roster.iter().map(silent).collect();
        }
        errors.splice(0..0, asked);
        errors
    }

    fn left_out(&self) -> Vec<AttemptError> {
        let error = |endpoint: &Endpoint<S>| {
            let Address { index, name, role, .. } = &endpoint.address;
            let said = self.parking.lot().said(*index);
            let is_usable = endpoint.is_sound() && said.is_none();
            let last_fault = said
                .or_else(|| endpoint.breaker.last_fault())
                .unwrap_or_else(|| role.get().to_string());
            let fault = Fault::BreakerOpen { last_fault };
            (!is_usable).then(|| AttemptError { address: name.clone(), index: *index, fault })
        };
        self.members.roster().iter().filter_map(error).collect()
    }
}
