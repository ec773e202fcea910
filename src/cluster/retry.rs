//! The next address after a fault, within a budget and the deadline.
//!
//! Everything that is repeated here is safe to repeat; what is bounded is load and time.
//! The first repeat goes at once to an address that this call has not been to, and is
//! free: an idle daemon must survive its first fault. Further ones draw on a budget that
//! all calls share, and one call makes thirteen attempts at most (`MAX_ATTEMPTS`). A repeat
//! that the budget refuses stands in the pool's line, and so does every call while no
//! address is usable (see [`pool`](super::pool)). Where addresses are usable and were all
//! tried, a call waits before it goes round again.
//!
//! An answer that may be stale is final when the active node gives it (`settle`). When
//! that cannot be asked and the others repeat it, the call ends without waiting for its
//! deadline.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use opentelemetry::KeyValue;
use tower::{Layer, Service};

use super::budget::{Allowance, Budget};
use super::error::{AttemptError, CallError, CallErrorKind, Fault};
use super::hedge::{MAX_ATTEMPTS, Missed, Won};
use super::operation::{AddressSet, Answer, Attempt, AttemptReason, Call};
use super::pool::Outlook;
use crate::clock::Jitter;
use crate::config::settings::ClusterName;
use crate::telemetry::metrics::{self, Metric};
use progress::Progress;

mod progress;
mod settle;

/// The first wait between two rounds over the addresses; it doubles with each.
const BACKOFF_AT_FIRST: Duration = Duration::from_millis(100);

/// The longest wait between two rounds.
const BACKOFF_AT_MOST: Duration = Duration::from_secs(1);

/// The last repeat goes out with this much time left; with less, none is worth sending.
const LAST_TRY: Duration = Duration::from_millis(100);

/// Repeats, beyond the free ones. The reserve is for a daemon that is mostly idle.
const ALLOWANCE: Allowance =
    Allowance { percent: 20, reserve: 100, refill: Duration::from_millis(100) };

/// Puts retries over a hedge. The budget is shared by all services that it makes.
#[derive(Clone)]
pub struct RetryLayer {
    shared: Arc<Shared>,
}

/// Repeats attempts until one brings an answer.
#[derive(Clone)]
pub struct Retry<H> {
    hedge: H,
    shared: Arc<Shared>,
}

struct Shared {
    cluster: ClusterName,
    /// The label that names it; a copy of it copies no text.
    label: KeyValue,
    outlook: Arc<dyn Outlook>,
    jitter: Arc<Jitter>,
    budget: Budget,
}

// === impl RetryLayer ===

impl RetryLayer {
    /// Retries over the addresses that `outlook` shows.
    pub fn new(cluster: ClusterName, outlook: Arc<dyn Outlook>, jitter: Arc<Jitter>) -> Self {
        let budget = Budget::new(&cluster, AttemptReason::Retry, ALLOWANCE);
        Self::with_budget(cluster, outlook, jitter, budget)
    }

    fn with_budget(
        cluster: ClusterName,
        outlook: Arc<dyn Outlook>,
        jitter: Arc<Jitter>,
        budget: Budget,
    ) -> Self {
        let label = KeyValue::new("cluster", Arc::<str>::from(cluster.as_str()));
        Self { shared: Arc::new(Shared { cluster, label, outlook, jitter, budget }) }
    }
}

impl<H> Layer<H> for RetryLayer {
    type Service = Retry<H>;

    fn layer(&self, hedge: H) -> Retry<H> {
        Retry { hedge, shared: Arc::clone(&self.shared) }
    }
}

// === impl Retry ===

impl<H> Service<Call> for Retry<H>
where
    H: Service<Attempt, Response = Won, Error = Missed> + Clone + Send + 'static,
    H::Future: Send + 'static,
{
    type Response = Answer;
    type Error = CallError;
    type Future = BoxFuture<'static, Result<Answer, CallError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CallError>> {
        let shared = &self.shared;
        self.hedge
            .poll_ready(cx)
            .map_err(|missed| shared.error(CallErrorKind::Exhausted, missed.attempts))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let next = self.hedge.clone();
        let hedge = std::mem::replace(&mut self.hedge, next);
        let shared = Arc::clone(&self.shared);
        async move {
            let verb = call.operation.verb;
            let mut progress = Progress::default();
            let result = shared.run(hedge, call, &mut progress).await;
            let labels = [shared.label.clone(), KeyValue::new("verb", verb.as_str())];
            metrics::record(Metric::AttemptsPerCall, f64::from(progress.sent), &labels);
            result.map_err(|kind| shared.error(progress.end(kind), progress.failed))
        }
        .boxed()
    }
}

// === impl Shared ===

impl Shared {
    async fn run<H>(
        &self,
        mut hedge: H,
        call: Call,
        progress: &mut Progress,
    ) -> Result<Answer, CallErrorKind>
    where
        H: Service<Attempt, Response = Won, Error = Missed> + Send,
        H::Future: Send,
    {
        self.budget.deposit();
        let deadline = call.deadline;
        loop {
            if deadline.has_passed() {
                return Err(CallErrorKind::Deadline);
            }
            let mut attempt = progress.next_attempt(&call);
            settle::aim(&*self.outlook, progress, &mut attempt);
            // The transport and the pool keep the deadline themselves and know more to
            // say about it; this is for what they might forget.
            let round = tokio::time::timeout_at(deadline.instant(), hedge.call(attempt));
            match round.await {
                Err(_) => return Err(CallErrorKind::Deadline),
                Ok(Ok(won)) => {
                    progress.sent += won.sent;
                    return Ok(won.answer);
                }
                Ok(Err(missed)) => {
                    let was_sent = missed.sent > 0;
                    progress.take(missed);
                    if !was_sent {
                        // It stood in line for as long as that made sense.
                        let has_passed = deadline.has_passed();
                        let (late, never) = (CallErrorKind::Deadline, CallErrorKind::Exhausted);
                        return Err(if has_passed { late } else { never });
                    }
                }
            }
            if let Some(end) = settle::by_the_active(&*self.outlook, &call, progress).await {
                return Err(end);
            }
            if let Some(end) = self.end_of(&call, progress) {
                return Err(end);
            }
            if settle::asks_at_once(&*self.outlook, progress) {
                continue;
            }
            self.before_the_next(&call, progress).await?;
        }
    }

    /// Whether there is any point in going on.
    fn end_of(&self, call: &Call, progress: &mut Progress) -> Option<CallErrorKind> {
        if progress.met(|fault| matches!(fault, Fault::Unsendable(_))) {
            return Some(CallErrorKind::Exhausted);
        }
        if let Some(end) = settle::settled(&*self.outlook, progress) {
            return Some(end);
        }
        if call.deadline.has_passed() {
            return Some(CallErrorKind::Deadline);
        }
        let must_not_repeat =
            !call.operation.repeatable() && progress.met(Fault::may_have_been_served);
        let is_spent = progress.sent >= MAX_ATTEMPTS;
        (must_not_repeat || is_spent).then_some(CallErrorKind::Exhausted)
    }

    /// Waits until the next repeat may go, or says why none may.
    async fn before_the_next(
        &self,
        call: &Call,
        progress: &mut Progress,
    ) -> Result<(), CallErrorKind> {
        progress.repeats += 1;
        progress.is_over_budget = false;
        if self.outlook.is_out() {
            // The pool lets it wait, for as long as it takes.
            progress.go_round_again();
            let is_late = call.deadline.remaining() <= LAST_TRY;
            return if is_late { Err(CallErrorKind::Exhausted) } else { Ok(()) };
        }
        let is_elsewhere = self.outlook.has_sound_beside(progress.tried);
        if is_elsewhere && progress.repeats == 1 {
            return Ok(()); // the free one
        }
        if !is_elsewhere {
            self.pause(call, progress).await?;
            progress.go_round_again();
        }
        if !self.budget.withdraw() {
            progress.is_over_budget = true;
            metrics::add(Metric::RetriesRefused, 1, std::slice::from_ref(&self.label));
        }
        Ok(())
    }

    /// Passes some time before another round.
    async fn pause(&self, call: &Call, progress: &Progress) -> Result<(), CallErrorKind> {
        let remaining = call.deadline.remaining();
        let soonest = progress.soonest();
        if remaining <= LAST_TRY || remaining <= soonest {
            return Err(CallErrorKind::Exhausted);
        }
        let pace = progress.pace(self.outlook.all().len(), remaining);
        let factor = 1_u32.checked_shl(progress.rounds).unwrap_or(u32::MAX);
        let span = BACKOFF_AT_FIRST.saturating_mul(factor).min(BACKOFF_AT_MOST);
        let backoff = self.jitter.full(span).max(pace).min(remaining - LAST_TRY);
        tokio::time::sleep(backoff.max(soonest)).await;
        Ok(())
    }

    /// The error. For want of an answer it names each address, those too that were left out
    /// all the time: late in an outage, a call is sent to one of them or to none.
    fn error(&self, kind: CallErrorKind, mut attempts: Vec<AttemptError>) -> CallError {
        if matches!(kind, CallErrorKind::Exhausted | CallErrorKind::Deadline) {
            let told = attempts.iter().fold(AddressSet::default(), |set, a| set.with(a.index));
            let unasked = self.outlook.left_out().into_iter();
            attempts.extend(unasked.filter(|a| !told.contains(a.index)));
        }
        CallError { cluster: self.cluster.clone(), kind, attempts }
    }
}

#[cfg(test)]
mod tests;
