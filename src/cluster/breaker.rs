//! Leaves an address out while it keeps failing.
//!
//! ```text
//!            faults in a row, too many of late,
//!            or one that ejects
//!   closed ──────────────────────────────────────► open ◄────────┐
//!     ▲                                             │ time is up │ trial fails, or
//!     │                                             │ and a good │ a bad probe when
//!     │               trial succeeds                ▼ probe came │ time is up
//!     └───────────────────────────────────────── half-open ──────┘
//! ```
//!
//! The breaker acts in `poll_ready`: a service that is open is not ready until its trial
//! is due, and then for one attempt. It rejects nothing; who waits, and how long, is the
//! pool's decision, which reads [`BreakerState`] to choose. Only faults of the address
//! count: not a caller who went away (the future is dropped), not a hedge's loser
//! ([`Fate`](super::operation::Fate)), and not what was sent before the last change.
//!
//! A caller is not sent to see whether a dead node is back: a probe goes first
//! ([`BreakerState::probe_wanted`]), and only a good one lets a trial through. Two things
//! do without it, so that no breaker stays open for ever: a prober that reports nothing
//! ([`BreakerPolicy::probe_patience`]), and a pool that has no other address
//! ([`Breaker::scouting`]).

use std::task::{Context, Poll, ready};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tower::{Layer, Service};

use super::error::AttemptError;
use super::operation::{Answer, Attempt};
use permit::Permit;
pub use permit::Witness;
pub use policy::{BreakerPhase, BreakerPolicy, BreakerReport, OpenReason};
pub use state::BreakerState;

mod permit;
mod policy;
mod state;
mod window;

/// Puts services behind one breaker.
#[derive(Clone, Debug)]
pub struct BreakerLayer {
    state: BreakerState,
}

/// A service that is ready only when its breaker lets an attempt through.
pub struct Breaker<S> {
    inner: S,
    state: BreakerState,
    permit: Option<Permit>,
    waiting: Option<BoxFuture<'static, Permit>>,
}

// === impl BreakerLayer ===

impl BreakerLayer {
    /// Services behind `state`.
    pub const fn new(state: BreakerState) -> Self {
        Self { state }
    }
}

impl<S> Layer<S> for BreakerLayer {
    type Service = Breaker<S>;

    fn layer(&self, inner: S) -> Breaker<S> {
        Breaker { inner, state: self.state.clone(), permit: None, waiting: None }
    }
}

// === impl Breaker ===

impl<S> Breaker<S> {
    /// A service that is ready for one attempt whatever `state` says: a scout's, while no
    /// address is usable.
    pub fn scouting(state: &BreakerState, inner: S) -> Self {
        Self { inner, state: state.clone(), permit: Some(state.scout()), waiting: None }
    }

    /// Who may report on the attempt that this service is ready to make.
    pub fn witness(&self) -> Option<Witness> {
        self.permit.as_ref().map(Permit::witness)
    }
}

impl<S> Service<Attempt> for Breaker<S>
where
    S: Service<Attempt, Response = Answer, Error = AttemptError>,
    S::Future: Send + 'static,
{
    type Response = Answer;
    type Error = AttemptError;
    type Future = BoxFuture<'static, Result<Answer, AttemptError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), AttemptError>> {
        if self.permit.is_none() {
            let state = &self.state;
            let waiting = self.waiting.get_or_insert_with(|| state.clone().admitted().boxed());
            let permit = ready!(waiting.as_mut().poll(cx));
            self.waiting = None;
            self.permit = Some(permit);
        }
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        let permit = self.permit.take().expect("poll_ready was ready, as tower asks of callers");
        let began = Instant::now();
        let answering = self.inner.call(attempt.clone());
        async move {
            let result = answering.await;
            permit.settle(&attempt, &result, began.elapsed());
            result
        }
        .boxed()
    }
}

impl<S: Clone> Clone for Breaker<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), state: self.state.clone(), permit: None, waiting: None }
    }
}

#[cfg(test)]
mod tests;
