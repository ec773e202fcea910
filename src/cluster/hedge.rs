//! A second address beside one that stays silent.
//!
//! An attempt is never cut while it may still answer in time: a Vault that is slow
//! everywhere must still be used. After a delay the next address is asked beside it; the
//! first good answer wins. Losers run out in the background, within the call's deadline:
//! to cut them would close their connections, and what a trial brings is worth knowing.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use opentelemetry::KeyValue;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tower::{Layer, Service};

use super::budget::{Allowance, Budget};
use super::error::{AttemptError, Fault, Word};
use super::operation::{AddressIndex, AddressSet, Answer, Attempt, AttemptReason};
use super::pool::{InFlight, Landed, NoAddress};
use crate::config::settings::ClusterName;
use crate::telemetry::metrics::{self, Metric};
pub use latency::{HedgeDelay, RecentLatency};

mod latency;

/// Attempts of one call that may be in flight together.
const MAX_IN_FLIGHT: usize = 3;

/// Attempts that one call may make in all, repeats and hedges together. Four rounds over
/// three nodes and one more: enough to sit out an election within a deadline of 3 s, over
/// which the retry layer spreads them, and the most that one call can weigh on a Vault in
/// trouble.
pub(crate) const MAX_ATTEMPTS: u32 = 13;

/// Losers that may run out in the background; beyond it they are cut.
const MAX_LOSERS: usize = 64;

/// Hedges, beyond those that brought the answer. Of a daemon with two calls a second this
/// makes one call in twenty cost one request more, whatever state Vault is in; the reserve is
/// for a daemon that is mostly idle and meets its first frozen node.
const ALLOWANCE: Allowance = Allowance { percent: 5, reserve: 3, refill: Duration::from_secs(60) };

/// How soon a call that the budget has no hedge for asks it again. A hedge that wins puts
/// back what it drew within a round trip, so that many calls that met the same frozen node
/// are brought home by a few, one after the other.
const ASK_AGAIN: Duration = Duration::from_millis(25);

/// How soon an address that failed is asked again beside one that is still silent.
const REJOIN: Duration = Duration::from_millis(250);

/// How long the others are waited for once an address has given an answer that may be
/// stale: far longer than a sound Vault takes, and it leaves time to say what is known.
const SECOND_OPINION: Duration = Duration::from_secs(1);

/// Puts a hedge over a pool. Its state is shared by all services that it makes.
#[derive(Clone)]
pub struct HedgeLayer {
    shared: Arc<Shared>,
}

/// Sends an attempt and joins it by others while it stays silent.
#[derive(Clone)]
pub struct Hedge<P> {
    pool: P,
    shared: Arc<Shared>,
}

struct Shared {
    cluster: ClusterName,
    delay: Arc<dyn HedgeDelay>,
    budget: Budget,
    losers: Losers,
}

/// Owns the attempts that lost; ends them when it is dropped.
#[derive(Default)]
struct Losers(Mutex<JoinSet<()>>);

/// The answer, and what it took.
#[derive(Debug)]
pub struct Won {
    /// The answer.
    pub answer: Answer,
    /// Attempts that were sent.
    pub sent: u32,
}

/// No attempt of this round brought an answer.
#[derive(Debug, thiserror::Error)]
#[error("no attempt brought an answer")]
pub struct Missed {
    /// Each attempt that failed, in the order in which they failed.
    pub attempts: Vec<AttemptError>,
    /// The addresses that it went to.
    pub tried: AddressSet,
    /// Attempts that were sent.
    pub sent: u32,
}

/// One call's attempts in flight.
struct Round<P> {
    pool: P,
    shared: Arc<Shared>,
    first: Attempt,
    flights: FuturesUnordered<InFlight>,
    tried: AddressSet,
    sent: u32,
    failed: Vec<AttemptError>,
    join_at: Instant,
    patience: Duration,
    /// The addresses of hedges that the budget gave.
    drawn: AddressSet,
    /// When an address had given an answer that may be stale, in this round or before.
    opinion_at: Option<Instant>,
    /// When an attempt of this round failed last.
    failed_at: Option<Instant>,
}

// === impl HedgeLayer ===

impl HedgeLayer {
    /// Hedges for `cluster`, each after `delay`.
    pub fn new(cluster: ClusterName, delay: Arc<dyn HedgeDelay>) -> Self {
        let budget = Budget::new(&cluster, AttemptReason::Hedge, ALLOWANCE);
        let losers = Losers::default();
        Self { shared: Arc::new(Shared { cluster, delay, budget, losers }) }
    }
}

impl<P> Layer<P> for HedgeLayer {
    type Service = Hedge<P>;

    fn layer(&self, pool: P) -> Hedge<P> {
        Hedge { pool, shared: Arc::clone(&self.shared) }
    }
}

// === impl Hedge ===

impl<P> Service<Attempt> for Hedge<P>
where
    P: Service<Attempt, Response = InFlight, Error = NoAddress> + Clone + Send + 'static,
    P::Future: Send + 'static,
{
    type Response = Won;
    type Error = Missed;
    type Future = BoxFuture<'static, Result<Won, Missed>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Missed>> {
        self.pool.poll_ready(cx).map_err(|no| Missed::parked(no, AddressSet::default()))
    }

    fn call(&mut self, first: Attempt) -> Self::Future {
        let next = self.pool.clone();
        let ready = std::mem::replace(&mut self.pool, next);
        let patience = self.shared.delay.delay();
        let round = Round {
            pool: ready,
            shared: Arc::clone(&self.shared),
            flights: FuturesUnordered::new(),
            tried: first.tried,
            opinion_at: first.is_second_opinion.then(Instant::now),
            failed_at: None,
            drawn: AddressSet::default(),
            first,
            sent: 0,
            failed: Vec::new(),
            join_at: Instant::now(),
            patience,
        };
        round.run().boxed()
    }
}

impl Missed {
    fn parked(no: NoAddress, tried: AddressSet) -> Self {
        Self { attempts: no.left_out, tried, sent: 0 }
    }
}

// === impl Round ===

impl<P> Round<P>
where
    P: Service<Attempt, Response = InFlight, Error = NoAddress> + Send + 'static,
    P::Future: Send,
{
    async fn run(mut self) -> Result<Won, Missed> {
        self.shared.budget.deposit();
        let flight = match self.pool.call(self.first.clone()).await {
            Ok(flight) => flight,
            Err(no) => return Err(Missed::parked(no, self.tried)),
        };
        self.launch(flight);
        loop {
            let enough_at = self.enough_at();
            tokio::select! {
                biased;
                landed = self.flights.next() => {
                    // `None` cannot come: a round ends with its last flight.
                    if let Some(end) = landed.and_then(|landed| self.land(landed)) {
                        return end;
                    }
                    if self.flights.is_empty() {
                        return Err(self.missed());
                    }
                }
                () = tokio::time::sleep_until(self.join_at), if self.may_join() => {
                    self.join().await;
                }
                () = tokio::time::sleep_until(enough_at), if self.opinion_at.is_some() => {
                    self.failed.extend(self.flights.iter().map(InFlight::silence));
                    self.leave(SECOND_OPINION / 2);
                    return Err(self.missed());
                }
            }
        }
    }

    fn launch(&mut self, flight: InFlight) {
        self.sent += 1;
        self.tried = self.tried.with(flight.index());
        // Nobody waits for a trial: a sound address is asked in the same moment.
        let wait = if flight.is_trial() { Duration::ZERO } else { self.patience };
        self.join_at = Instant::now() + wait;
        self.flights.push(flight);
    }

    /// Takes an attempt's end; brings the round's, if this is it.
    fn land(&mut self, landed: Landed) -> Option<Result<Won, Missed>> {
        let (index, took) = (landed.index, landed.took);
        let error = match landed.accept() {
            Ok(answer) => {
                self.shared.delay.observe(took);
                self.settle(index);
                self.leave(took);
                return Some(Ok(Won { answer, sent: self.sent }));
            }
            Err(error) => error,
        };
        // A bad request is one everywhere. A refused token is one when a second address
        // refuses it: a standby that lags does not know it yet.
        let ends = match error.fault {
            // the active node's word, which no other can better
            Fault::Unsendable(_) | Fault::Stale { word: Word::Actives, .. } => true,
            Fault::TokenRefused => {
                let is_another = |failed: &AttemptError| failed.index != error.index;
                self.first.is_second_opinion || self.failed.iter().any(is_another)
            }
            _ => false,
        };
        if error.fault.is_an_opinion() {
            self.opinion_at.get_or_insert_with(Instant::now);
        }
        self.failed.push(error);
        self.failed_at = Some(Instant::now());
        if ends {
            self.leave(took);
            return Some(Err(self.missed()));
        }
        self.join_at = Instant::now(); // its place is free
        None
    }

    /// The answer came from `index`. When that was a hedge, it was worth what was drawn: it
    /// is a node that is silent and not a Vault that is slow.
    fn settle(&self, index: AddressIndex) {
        if self.drawn.contains(index) {
            self.shared.budget.put_back(self.drawn.len());
        }
    }

    fn missed(&mut self) -> Missed {
        let attempts = std::mem::take(&mut self.failed);
        Missed { attempts, tried: self.tried, sent: self.sent }
    }

    fn may_join(&self) -> bool {
        self.flights.len() < MAX_IN_FLIGHT
            && self.first.number + self.sent <= MAX_ATTEMPTS
            && self.first.call.operation.repeatable()
    }

    /// When those that are still silent are waited for no longer.
    fn enough_at(&self) -> Instant {
        self.opinion_at.map_or_else(Instant::now, |at| at + SECOND_OPINION)
    }

    /// Asks another address beside those in flight, if the budget and the pool have one.
    async fn join(&mut self) {
        // Those that are waited for were left out since: no more is to be hoped of them,
        // and this is no hedge on a slow answer. A trial brings its own hedge.
        let is_free = self.flights.iter().all(|f| f.is_left_out() || f.is_trial());
        if !is_free && !self.shared.budget.withdraw() {
            self.join_at = Instant::now() + ASK_AGAIN;
            return;
        }
        let asked = self.ask_somebody().await;
        match asked {
            Some(index) if !is_free => self.drawn = self.drawn.with(index),
            None if !is_free => self.shared.budget.put_back(1),
            _ => {}
        }
    }

    /// Whom it asked, if anybody.
    async fn ask_somebody(&mut self) -> Option<AddressIndex> {
        let asked = self.ask_beside(self.tried).await;
        if asked.is_some() {
            return asked;
        }
        // Every address was asked: those that failed are worth another try, but not at once,
        // and not for what will be the same for as long as the call lasts.
        self.join_at = Instant::now() + REJOIN.max(self.patience);
        let failed_at = self.failed_at?;
        if failed_at + REJOIN > Instant::now() {
            self.join_at = failed_at + REJOIN;
            return None;
        }
        let lasting = self.failed.iter().filter(|failed| failed.fault.is_lasting());
        let out_of_question = self
            .flights
            .iter()
            .map(InFlight::index)
            .chain(lasting.map(|failed| failed.index))
            .fold(AddressSet::default(), AddressSet::with);
        self.ask_beside(out_of_question).await
    }

    /// Sends a hedge to an address outside `tried`, if one can take it.
    async fn ask_beside(&mut self, tried: AddressSet) -> Option<AddressIndex> {
        let attempt = Attempt {
            number: self.first.number + self.sent,
            reason: AttemptReason::Hedge,
            tried,
            is_second_opinion: self.opinion_at.is_some(),
            hand_on: self.first.hand_on,
            needs_active: self.first.needs_active,
            ..Attempt::first(self.first.call.clone())
        };
        let flight = self.pool.call(attempt).await.ok()?;
        let index = flight.index();
        let labels = [KeyValue::new("cluster", self.shared.cluster.as_str().to_owned())];
        metrics::add(Metric::Hedges, 1, &labels);
        self.launch(flight);
        Some(index)
    }

    /// The round is over: what is still in flight has lost.
    fn leave(&mut self, took: Duration) {
        for flight in std::mem::take(&mut self.flights) {
            flight.lose(took, self.patience);
            self.shared.losers.run_out(flight);
        }
    }
}

// === impl Losers ===

impl Losers {
    fn run_out(&self, flight: InFlight) {
        let mut tasks = self.0.lock().expect("no code panics while it holds this lock");
        while tasks.try_join_next().is_some() {}
        if tasks.len() < MAX_LOSERS {
            tasks.spawn(async move {
                flight.await; // ends by the call's deadline, which the transport keeps
            });
        }
    }
}

impl fmt::Debug for HedgeLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HedgeLayer").field("delay", &self.shared.delay.delay()).finish()
    }
}

#[cfg(test)]
mod tests;
