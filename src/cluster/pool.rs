//! Which address an attempt goes to.
//!
//! The pool's response is not an answer but an attempt under way ([`InFlight`]), so that
//! the hedge above knows from which moment an address is silent and which one it is. No
//! choice is random: [`order`] says for every situation which address comes first.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::Instant;
use tower::{Layer as _, Service, ServiceExt as _};

use super::address::{Address, Role, UnderWay};
use super::breaker::{Breaker, BreakerLayer, BreakerState, Witness};
use super::error::{AttemptError, Fault};
use super::operation::{AddressIndex, AddressSet, Answer, Attempt, AttemptReason, Fate};
use members::{Members, Roster};
pub use order::{Candidate, Standing, Wanted, order};

pub mod members;
mod order;

/// With no usable address, each is tried once in this time, whatever its breaker says.
const PARKED_TRIAL: Duration = Duration::from_secs(1);

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
    /// Those that do not serve, and why.
    fn left_out(&self) -> Vec<AttemptError>;
}

/// An attempt under way.
pub struct InFlight {
    address: Address,
    witness: Option<Witness>,
    began: Instant,
    fate: Fate,
    preferred: Arc<AtomicU8>,
    _under_way: UnderWay,
    answering: BoxFuture<'static, Result<Answer, AttemptError>>,
}

/// An attempt that has ended.
#[derive(Debug)]
pub struct Landed {
    /// Which address it was sent to.
    pub index: AddressIndex,
    /// How long it took.
    pub took: Duration,
    result: Result<Answer, AttemptError>,
    preferred: Arc<AtomicU8>,
}

/// No address could take the attempt.
#[derive(Debug, thiserror::Error)]
#[error("no address could take the attempt before its deadline")]
pub struct NoAddress {
    /// Those that were left out, and why; empty for a hedge, which does not wait.
    pub left_out: Vec<AttemptError>,
}

// === impl Pool ===

impl<S> Pool<S> {
    /// A pool of `members`.
    pub fn new(members: Members<S>) -> Self {
        let preferred = Arc::new(AtomicU8::new(NONE));
        Self { shared: Arc::new(Shared { members, preferred }) }
    }

    /// A view for the retry layer.
    pub fn outlook(&self) -> Arc<dyn Outlook>
    where
        S: Send + Sync + 'static,
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
        let is_hedge = attempt.reason == AttemptReason::Hedge;
        let roster = self.members.roster();
        for endpoint in self.ordered(&roster, &attempt) {
            if is_hedge && attempt.tried.contains(endpoint.address.index) {
                break; // a hedge is for another address
            }
            let mut service = service(endpoint);
            if let Some(Ok(_)) = service.ready().now_or_never() {
                return Ok(self.dispatch(endpoint.address.clone(), service, attempt));
            }
        }
        if is_hedge {
            return Err(NoAddress { left_out: Vec::new() });
        }
        self.park(attempt).await
    }

    /// No address is usable. The call waits for the first that lets it through, which is
    /// better than to fail: most such times are an election and end within seconds. An
    /// address that comes now may be it.
    async fn park(&self, attempt: Attempt) -> Result<InFlight, NoAddress> {
        let mut changes = self.members.changes();
        let first_ready = async {
            loop {
                changes.forget();
                let roster = self.members.roster();
                for endpoint in roster.iter() {
                    endpoint.breaker.trial_within(PARKED_TRIAL);
                }
                tokio::select! {
                    Some(ready) = self.first_ready(&roster, &attempt) => return ready,
                    () = changes.next() => {}
                }
            }
        };
        let deadline = attempt.call.deadline.instant();
        match tokio::time::timeout_at(deadline, first_ready).await {
            Ok((address, service)) => Ok(self.dispatch(address, service, attempt)),
            Err(_) => Err(NoAddress { left_out: self.left_out() }),
        }
    }

    async fn first_ready(
        &self,
        roster: &Roster<S>,
        attempt: &Attempt,
    ) -> Option<(Address, Breaker<S>)> {
        let order = self.ordered(roster, attempt).into_iter();
        let mut waiting: FuturesUnordered<_> = order
            .map(|endpoint| service(endpoint).ready_oneshot().map(move |ready| (endpoint, ready)))
            .collect();
        while let Some((endpoint, ready)) = waiting.next().await {
            if let Ok(service) = ready {
                return Some((endpoint.address.clone(), service));
            }
        }
        None
    }

    fn dispatch(&self, address: Address, mut service: Breaker<S>, attempt: Attempt) -> InFlight {
        InFlight {
            _under_way: address.latency.begin(),
            address,
            witness: service.witness(),
            began: Instant::now(),
            fate: attempt.fate.clone(),
            preferred: Arc::clone(&self.preferred),
            answering: service.call(attempt).boxed(),
        }
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
            needs_active: attempt.needs_active || attempt.call.operation.writes(),
        };
        let order = order(&candidates, &wanted);
        order.into_iter().filter_map(|index| roster.get(index)).collect()
    }
}

fn service<S: Clone>(endpoint: &Endpoint<S>) -> Breaker<S> {
    BreakerLayer::new(endpoint.breaker.clone()).layer(endpoint.service.clone())
}

/// The active node's address. Two nodes may call themselves active for a moment; the one
/// that said so last is.
fn active<S>(roster: &Roster<S>) -> Option<AddressIndex> {
    let claims = |e: &&Endpoint<S>| e.is_sound() && e.address.role.get() == Role::Active;
    let active = roster.iter().filter(claims).max_by_key(|e| e.address.role.told_at());
    active.map(|e| e.address.index)
}

impl<S: Send + Sync + 'static> Outlook for Shared<S> {
    fn all(&self) -> AddressSet {
        self.members.roster().indices()
    }

    fn has_sound_beside(&self, tried: AddressSet) -> bool {
        let roster = self.members.roster();
        roster.iter().any(|e| !tried.contains(e.address.index) && e.is_sound())
    }

    fn active(&self) -> Option<AddressIndex> {
        active(&self.members.roster())
    }

    fn left_out(&self) -> Vec<AttemptError> {
        let error = |endpoint: &Endpoint<S>| AttemptError {
            address: endpoint.address.name.clone(),
            index: endpoint.address.index,
            fault: Fault::BreakerOpen {
                last_fault: endpoint
                    .breaker
                    .last_fault()
                    .unwrap_or_else(|| endpoint.address.role.get().to_string()),
            },
        };
        let roster = self.members.roster();
        roster.iter().filter(|e| !e.is_sound()).map(error).collect()
    }
}

// === impl Endpoint ===

impl<S> Endpoint<S> {
    /// Whether it serves: by its breaker, and by its node's role.
    pub fn is_sound(&self) -> bool {
        self.address.role.get().can_serve() && Standing::of(&self.breaker) == Standing::Sound
    }
}

// === impl InFlight ===

impl InFlight {
    /// Which address it was sent to.
    pub const fn index(&self) -> AddressIndex {
        self.address.index
    }

    /// What became of it when nobody waits for it any longer.
    pub fn silence(&self) -> AttemptError {
        AttemptError {
            address: self.address.name.clone(),
            index: self.address.index,
            fault: Fault::Silent(self.began.elapsed()),
        }
    }

    /// Whether it is a half-open breaker's one trial.
    pub fn is_trial(&self) -> bool {
        self.witness.as_ref().is_some_and(Witness::is_trial)
    }

    /// Whether its address has been left out since it was sent.
    pub fn is_left_out(&self) -> bool {
        self.witness.as_ref().is_some_and(Witness::is_overtaken)
    }

    /// Another attempt, which `took` so long, brought the answer. When this one had that
    /// time and `patience` on top, its silence counts against its address; whatever comes
    /// of it now does not. (Where every address is slow alike, none is silent.)
    pub fn lose(&self, took: Duration, patience: Duration) {
        let lasted = self.began.elapsed();
        self.address.latency.waited(lasted);
        self.fate.give_up();
        if lasted >= took + patience
            && let Some(witness) = &self.witness
        {
            witness.silent(lasted);
        }
    }
}

impl Future for InFlight {
    type Output = Landed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Landed> {
        self.answering.as_mut().poll(cx).map(|result| Landed {
            index: self.address.index,
            took: self.began.elapsed(),
            result,
            preferred: Arc::clone(&self.preferred),
        })
    }
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InFlight({})", self.address.name)
    }
}

// === impl Landed ===

impl Landed {
    /// How it ended. The hedge asks for its winner only: calls then go to the winner's
    /// address until another one does better.
    ///
    /// # Errors
    /// When it brought no answer.
    pub fn accept(self) -> Result<Answer, AttemptError> {
        if self.result.is_ok() {
            self.preferred.store(self.index.0, Ordering::Relaxed);
        }
        self.result
    }
}
