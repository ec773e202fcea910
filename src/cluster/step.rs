//! One step on an attempt's way to its address, and on the answer's way back.
//!
//! Several layers below the breaker do the same in tower's terms: they look at an attempt,
//! or mark it, before it goes on, and look at what comes back, or change it. What differs
//! stands in a [`Step`]; that it is a service with a boxed future, and hands `poll_ready`
//! down, stands here.

use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tower::{Layer, Service};
use tracing::{Instrument as _, Span};

use super::error::AttemptError;
use super::operation::{Answer, Attempt};

/// How an attempt ended.
pub type Ended = Result<Answer, AttemptError>;

/// What is done to each attempt, and to what comes of it.
pub trait Step: Clone + Send + Sync + 'static {
    /// What is remembered from one to the other.
    type Note: Send + 'static;

    /// The attempt goes on to the address.
    fn going(&self, attempt: &mut Attempt) -> Self::Note;

    /// It has ended. Not told of one whose future was dropped.
    fn ended(&self, note: Self::Note, result: Ended) -> Ended;

    /// The span that the rest of its way lies in.
    fn span(_: &Self::Note) -> Span {
        Span::none()
    }
}

/// Puts a step over services.
#[derive(Clone, Debug)]
pub struct StepLayer<T>(pub T);

/// A service with a step over it.
#[derive(Clone, Debug)]
pub struct Stepped<S, T> {
    inner: S,
    step: T,
}

// === impl StepLayer ===

impl<S, T: Clone> Layer<S> for StepLayer<T> {
    type Service = Stepped<S, T>;

    fn layer(&self, inner: S) -> Stepped<S, T> {
        Stepped { inner, step: self.0.clone() }
    }
}

// === impl Stepped ===

impl<S, T> Service<Attempt> for Stepped<S, T>
where
    S: Service<Attempt, Response = Answer, Error = AttemptError>,
    S::Future: Send + 'static,
    T: Step,
{
    type Response = Answer;
    type Error = AttemptError;
    type Future = BoxFuture<'static, Ended>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), AttemptError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut attempt: Attempt) -> Self::Future {
        let step = self.step.clone();
        let note = step.going(&mut attempt);
        let span = T::span(&note);
        let answering = span.in_scope(|| self.inner.call(attempt)).instrument(span);
        async move { step.ended(note, answering.await) }.boxed()
    }
}
