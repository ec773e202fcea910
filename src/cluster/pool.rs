//! Which address an attempt goes to.
//!
//! The pool's response is not an answer but an attempt under way ([`InFlight`]), so that
//! the hedge above knows from which moment an address is silent and which one it is. No
//! choice is random: [`order`] says for every situation which address comes first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use futures_util::future::{self, BoxFuture};
use tokio::time::Instant;
use tower::{Layer as _, Service, ServiceExt as _};

use super::address::{Address, Role};
use super::breaker::{Breaker, BreakerLayer, BreakerState};
use super::error::AttemptError;
use super::operation::{AddressIndex, Answer, Attempt, AttemptReason};
use crate::clock::Jitter;
use crate::config::settings::ClusterName;
pub use flight::{InFlight, Landed};
use members::{Members, Roster};
pub use order::{Candidate, Standing, Wanted, order};
pub use outlook::{Outlook, Roles};
use parking::{Parking, Scouting, Seen, Turn, View};

mod flight;
pub mod members;
mod order;
mod outlook;
mod parking;

/// No address is preferred.
const NONE: u8 = u8::MAX;

/// The addresses of a cluster behind their breakers.
pub struct Pool<S> {
    shared: Arc<Shared<S>>,
}

struct Shared<S> {
    members: Members<S>,
    /// The address that answered last.
    preferred: Arc<AtomicU8>,
    /// Where calls wait while no address is usable.
    parking: Parking,
}

/// One address, its breaker and the service that reaches it.
#[derive(Clone, Debug)]
pub struct Endpoint<S> {
    /// The address.
    pub address: Address,
    /// Its breaker.
    pub breaker: BreakerState,
    /// The way to it, below the breaker.
    pub service: S,
    /// The same without those who watch the calls: for probes.
    pub transport: S,
}

/// No address could take the attempt.
#[derive(Debug, thiserror::Error)]
#[error("no address could take the attempt before its deadline")]
pub struct NoAddress {
    /// Those that were left out, and why; empty for a hedge, which does not wait.
    pub left_out: Vec<AttemptError>,
}

// === impl Pool ===

impl<S: Send + Sync + 'static> Pool<S> {
    /// A pool of `members`, which are addresses of `cluster`.
    pub fn new(cluster: ClusterName, members: Members<S>, jitter: Arc<Jitter>) -> Self {
        let preferred = Arc::new(AtomicU8::new(NONE));
        let parking = Parking::new(cluster, jitter, Arc::new(members.clone()));
        Self { shared: Arc::new(Shared { members, preferred, parking }) }
    }

    /// A view for the retry layer.
    pub fn outlook(&self) -> Arc<dyn Outlook>
    where
        S: Service<Attempt, Response = Answer, Error = AttemptError> + Clone,
        S::Future: Send + 'static,
    {
        Arc::clone(&self.shared) as Arc<dyn Outlook>
    }
}

impl<S> Clone for Pool<S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<S> Service<Attempt> for Pool<S>
where
    S: Service<Attempt, Response = Answer, Error = AttemptError> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    type Response = InFlight;
    type Error = NoAddress;
    type Future = BoxFuture<'static, Result<InFlight, NoAddress>>;

    /// Always ready: which address must be depends on the attempt.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NoAddress>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        Arc::clone(&self.shared).send(attempt).boxed()
    }
}

// === impl Shared ===

impl<S> Shared<S>
where
    S: Service<Attempt, Response = Answer, Error = AttemptError> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    async fn send(self: Arc<Self>, attempt: Attempt) -> Result<InFlight, NoAddress> {
        if attempt.reason == AttemptReason::Hedge {
            return self.hedge(&attempt).ok_or(NoAddress { left_out: Vec::new() });
        }
        let must_wait = attempt.is_over_budget || self.parking.has_waiting();
        let mut flight = if must_wait { None } else { self.take_off(&attempt) };
        loop {
            if let Some(flight) = flight {
                return Ok(flight);
            }
            // To wait is better than to fail: most such times are an election and end
            // within seconds.
            let turn = self.parking.turn(&attempt).await;
            flight = match turn {
                Some(Turn::Go) => self.take_off(&attempt),
                Some(Turn::Scout(index, scouting)) => self.scout(index, scouting, &attempt),
                None => return Err(NoAddress { left_out: self.left_out() }),
            };
        }
    }

    /// To the first address that can take the attempt now, while there is a usable one.
    fn take_off(&self, attempt: &Attempt) -> Option<InFlight> {
        let roster = self.members.roster();
        if self.is_all_out(&roster) {
            return None;
        }
        let order = self.ordered(&roster, attempt).into_iter();
        order.into_iter().find_map(|endpoint| self.ask(&roster, endpoint, attempt))
    }

    /// To another address than those that were asked. It does not wait.
    fn hedge(&self, attempt: &Attempt) -> Option<InFlight> {
        let roster = self.members.roster();
        if self.is_all_out(&roster) {
            let (index, scouting) = self.parking.turn_now(attempt.tried)?;
            return self.scout(index, scouting, attempt);
        }
        let may_do = |Address { index, role, .. }: &Address| {
            !attempt.tried.contains(*index) && role.get().can_serve()
        };
        self.ordered(&roster, attempt)
            .into_iter()
            .filter(|endpoint| may_do(&endpoint.address))
            .find_map(|endpoint| self.ask(&roster, endpoint, attempt))
    }

    /// Through the breaker of `endpoint`, unless it asked for time.
    fn ask(
        &self,
        roster: &Roster<S>,
        endpoint: &Endpoint<S>,
        attempt: &Attempt,
    ) -> Option<InFlight> {
        if self.parking.lot().is_resting(endpoint.address.index) {
            return None;
        }
        let breaker = BreakerLayer::new(endpoint.breaker.clone()).layer(endpoint.service.clone());
        self.dispatch(roster, endpoint, breaker, None, attempt)
    }

    /// Past the breaker of `index`.
    fn scout(
        &self,
        index: AddressIndex,
        scouting: Scouting,
        attempt: &Attempt,
    ) -> Option<InFlight> {
        let roster = self.members.roster();
        let endpoint = roster.get(index)?;
        let breaker = Breaker::scouting(&endpoint.breaker, endpoint.service.clone());
        self.dispatch(&roster, endpoint, breaker, Some(scouting), attempt)
    }

    fn dispatch(
        &self,
        roster: &Roster<S>,
        endpoint: &Endpoint<S>,
        mut service: Breaker<S>,
        scouting: Option<Scouting>,
        attempt: &Attempt,
    ) -> Option<InFlight> {
        service.ready().now_or_never()?.ok()?;
        Some(InFlight {
            _under_way: endpoint.address.latency.begin(),
            address: endpoint.address.clone(),
            witness: service.witness(),
            began: Instant::now(),
            fate: attempt.fate.clone(),
            preferred: Arc::clone(&self.preferred),
            lot: Arc::clone(self.parking.lot()),
            addresses: roster.len(),
            verb: attempt.call.operation.verb,
            _scouting: scouting,
            answering: service.call(attempt.clone()).boxed(),
        })
    }

    fn ordered<'a>(&self, roster: &'a Roster<S>, attempt: &Attempt) -> Vec<&'a Endpoint<S>> {
        let active = active(roster);
        let candidates: Vec<_> =
            roster.iter().map(|e| Candidate::of(&e.address, &e.breaker, active)).collect();
        let has_sound = roster.iter().any(Endpoint::is_sound);
        let preferred = match self.preferred.load(Ordering::Relaxed) {
            NONE => None,
            index => Some(AddressIndex(index)),
        };
        let wanted = Wanted {
            tried: attempt.tried,
            preferred,
            carries_trial: has_sound
                && attempt.reason == AttemptReason::First
                && attempt.call.operation.repeatable(),
            needs_active: attempt.needs_active
                || attempt.call.operation.needs_active
                || attempt.call.operation.writes(),
        };
        let order = order(&candidates, &wanted);
        order.into_iter().filter_map(|index| roster.get(index)).collect()
    }
}

impl<S> Shared<S> {
    /// Whether none of `roster` is usable: each is left out, or its last word was a fault,
    /// or it asked for time.
    fn is_all_out(&self, roster: &Roster<S>) -> bool {
        let lot = self.parking.lot();
        roster.iter().all(|e| !e.is_sound() || lot.is_shaken(e.address.index))
    }
}

/// The active node's address. Two nodes may call themselves active for a moment; the one
/// that said so last is.
fn active<S>(roster: &Roster<S>) -> Option<AddressIndex> {
    let claims = |e: &&Endpoint<S>| e.is_sound() && e.address.role.get() == Role::Active;
    let active = roster.iter().filter(claims).max_by_key(|e| e.address.role.told_at());
    active.map(|e| e.address.index)
}

impl<S: Send + Sync + 'static> View for Members<S> {
    fn seen(&self) -> Vec<Seen> {
        let seen = |endpoint: &Endpoint<S>| Seen {
            index: endpoint.address.index,
            is_sound: endpoint.is_sound(),
            is_trial_due: Standing::of(&endpoint.breaker) == Standing::TrialDue,
            is_probed_bad: endpoint.breaker.is_probed_bad(),
        };
        self.roster().iter().map(seen).collect()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        // In this order, so that no change slips between.
        let mut changes = self.changes();
        let roster = self.roster();
        async move {
            let breakers: Vec<_> =
                roster.iter().map(|endpoint| Box::pin(endpoint.breaker.changed())).collect();
            if breakers.is_empty() {
                return changes.next().await; // no name is resolved yet
            }
            tokio::select! {
                biased;
                _ = future::select_all(breakers) => {}
                () = changes.next() => {}
            }
        }
        .boxed()
    }
}

// === impl Endpoint ===

impl<S> Endpoint<S> {
    /// Whether it serves: by its breaker, and by its node's role.
    pub fn is_sound(&self) -> bool {
        self.address.role.get().can_serve() && Standing::of(&self.breaker) == Standing::Sound
    }
}
