//! Which address an attempt goes to.
//!
//! The pool's response is not an answer but an attempt under way ([`InFlight`]), so that
//! the hedge above knows from which moment an address is silent and which one it is. No
//! choice here is random: [`order`] says for every situation which address comes first
//! and can be read aloud.

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

use super::address::Address;
use super::breaker::{Breaker, BreakerLayer, BreakerPhase, BreakerState, Witness};
use super::error::{AttemptError, Fault};
use super::operation::{AddressIndex, AddressSet, Answer, Attempt, AttemptReason, Fate};

/// With no usable address, each is tried once in this time, whatever its breaker says.
const PARKED_TRIAL: Duration = Duration::from_secs(1);

/// No address is preferred.
const NONE: u8 = u8::MAX;

/// What [`order`] knows of an address. Tier (the KEK's cluster order), probed role and
/// latency take their places here, between standing and preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which one it is.
    pub index: AddressIndex,
    /// What its breaker says.
    pub standing: Standing,
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

/// The addresses of a cluster behind their breakers.
pub struct Pool<S> {
    shared: Arc<Shared<S>>,
}

struct Shared<S> {
    endpoints: Vec<Endpoint<S>>,
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
}

/// What the retry layer may know of the pool.
pub trait Outlook: Send + Sync + 'static {
    /// Every address.
    fn all(&self) -> AddressSet;
    /// Whether an address outside `tried` serves.
    fn has_sound_beside(&self, tried: AddressSet) -> bool;
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

// === order ===

/// The order in which `candidates` are asked to take an attempt:
///
/// 1. those that this call has not been to,
/// 2. by standing: a due trial first where a sound address can be asked in the same moment
///    (`carries_trial`), sound ones, due trials, those left out,
/// 3. the address that answered last,
/// 4. the configuration's order.
pub fn order(
    candidates: &[Candidate],
    tried: AddressSet,
    preferred: Option<AddressIndex>,
    carries_trial: bool,
) -> Vec<AddressIndex> {
    let rank = |standing| match standing {
        Standing::TrialDue if carries_trial => 0,
        Standing::Sound => 1,
        Standing::TrialDue => 2,
        Standing::LeftOut => 3,
    };
    let mut order = candidates.to_vec();
    order.sort_by_key(|c| {
        (tried.contains(c.index), rank(c.standing), Some(c.index) != preferred, c.index)
    });
    order.into_iter().map(|c| c.index).collect()
}

// === impl Pool ===

impl<S> Pool<S> {
    /// A pool of `endpoints`, whose indices are their places in the list.
    pub fn new(endpoints: Vec<Endpoint<S>>) -> Self {
        let preferred = Arc::new(AtomicU8::new(NONE));
        Self { shared: Arc::new(Shared { endpoints, preferred }) }
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
        let order = self.order_for(&attempt);
        for index in &order {
            if is_hedge && attempt.tried.contains(*index) {
                break; // a hedge is for another address
            }
            let mut service = self.service(*index);
            if let Some(Ok(_)) = service.ready().now_or_never() {
                return Ok(self.dispatch(*index, service, attempt));
            }
        }
        if is_hedge {
            return Err(NoAddress { left_out: Vec::new() });
        }
        self.park(&order, attempt).await
    }

    /// No address is usable. The call waits for the first that lets it through, which is
    /// better than to fail: most such times are an election and end within seconds.
    async fn park(&self, order: &[AddressIndex], attempt: Attempt) -> Result<InFlight, NoAddress> {
        for endpoint in &self.endpoints {
            endpoint.breaker.trial_within(PARKED_TRIAL);
        }
        let mut waiting: FuturesUnordered<_> = order
            .iter()
            .map(|index| {
                let (index, service) = (*index, self.service(*index));
                service.ready_oneshot().map(move |ready| (index, ready))
            })
            .collect();
        let first_ready = async {
            loop {
                match waiting.next().await {
                    Some((index, Ok(service))) => return Some((index, service)),
                    Some((_, Err(_))) => {}
                    None => return None,
                }
            }
        };
        let deadline = attempt.call.deadline.instant();
        match tokio::time::timeout_at(deadline, first_ready).await {
            Ok(Some((index, service))) => Ok(self.dispatch(index, service, attempt)),
            Ok(None) | Err(_) => Err(NoAddress { left_out: self.left_out() }),
        }
    }

    fn dispatch(&self, index: AddressIndex, mut service: Breaker<S>, attempt: Attempt) -> InFlight {
        InFlight {
            address: self.endpoints[usize::from(index.0)].address.clone(),
            witness: service.witness(),
            began: Instant::now(),
            fate: attempt.fate.clone(),
            preferred: Arc::clone(&self.preferred),
            answering: service.call(attempt).boxed(),
        }
    }

    fn order_for(&self, attempt: &Attempt) -> Vec<AddressIndex> {
        let candidates: Vec<_> = self
            .endpoints
            .iter()
            .map(|e| Candidate { index: e.address.index, standing: standing(&e.breaker) })
            .collect();
        let has_sound = candidates.iter().any(|c| c.standing == Standing::Sound);
        let carries_trial = has_sound
            && attempt.reason == AttemptReason::First
            && attempt.call.operation.repeatable();
        let preferred = match self.preferred.load(Ordering::Relaxed) {
            NONE => None,
            index => Some(AddressIndex(index)),
        };
        order(&candidates, attempt.tried, preferred, carries_trial)
    }

    fn service(&self, index: AddressIndex) -> Breaker<S> {
        let endpoint = &self.endpoints[usize::from(index.0)];
        BreakerLayer::new(endpoint.breaker.clone()).layer(endpoint.service.clone())
    }
}

impl<S: Send + Sync + 'static> Outlook for Shared<S> {
    fn all(&self) -> AddressSet {
        self.endpoints.iter().fold(AddressSet::default(), |set, e| set.with(e.address.index))
    }

    fn has_sound_beside(&self, tried: AddressSet) -> bool {
        self.endpoints
            .iter()
            .any(|e| !tried.contains(e.address.index) && standing(&e.breaker) == Standing::Sound)
    }

    fn left_out(&self) -> Vec<AttemptError> {
        let error = |endpoint: &Endpoint<S>| AttemptError {
            address: endpoint.address.name.clone(),
            index: endpoint.address.index,
            fault: Fault::BreakerOpen {
                last_fault: endpoint.breaker.last_fault().unwrap_or_default(),
            },
        };
        self.endpoints
            .iter()
            .filter(|e| standing(&e.breaker) != Standing::Sound)
            .map(error)
            .collect()
    }
}

fn standing(breaker: &BreakerState) -> Standing {
    match breaker.phase() {
        BreakerPhase::Closed => Standing::Sound,
        _ if breaker.is_trial_due() => Standing::TrialDue,
        BreakerPhase::Open | BreakerPhase::HalfOpen => Standing::LeftOut,
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

#[cfg(test)]
mod tests;
