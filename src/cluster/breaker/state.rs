//! What a breaker knows and decides, without the service that it guards.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use opentelemetry::KeyValue;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::clock::Jitter;
use crate::cluster::error::{AttemptError, Fault};
use crate::cluster::operation::{AddressName, Answer, Attempt};
use crate::config::settings::ClusterName;
use crate::telemetry::metrics::{self, Metric};

/// When a breaker opens and for how long.
#[derive(Clone, Copy, Debug)]
pub struct BreakerPolicy {
    /// Faults in a row that open it.
    pub faults_to_open: u32,
    /// How long it is open the first time; each failed trial doubles it.
    pub open_at_first: Duration,
    /// The longest that it is open.
    pub open_at_most: Duration,
    /// An attempt that had less than this and met its deadline says more about the caller
    /// than about the address, and does not count.
    pub silence: Duration,
    /// An attempt that had as long as this and met its deadline opens it at once. Logins
    /// wait that long, one at a time, and nothing hedges them: to count five of them would
    /// take a minute at a frozen node.
    pub long_silence: Duration,
}

/// What a breaker lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerPhase {
    /// Everything.
    Closed,
    /// One attempt, to see.
    HalfOpen,
    /// Nothing, for now.
    Open,
}

/// A breaker's state, shared by its service, the pool that chooses and those who report.
#[derive(Clone)]
pub struct BreakerState(Arc<Shared>);

struct Shared {
    cluster: ClusterName,
    address: AddressName,
    policy: BreakerPolicy,
    jitter: Arc<Jitter>,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    gate: Gate,
    /// Grows with each change of phase; outcomes from before it are old news.
    epoch: u64,
    /// Times that it has opened since it was last closed.
    openings: u32,
    last_fault: Option<String>,
}

#[derive(Clone, Copy)]
enum Gate {
    Closed { faults: u32 },
    Open { until: Instant },
    HalfOpen,
}

/// The right to make one attempt. A trial's right goes back when it is dropped unused.
#[derive(Debug)]
pub(super) struct Permit(Witness);

/// Names the attempt that its reports are about.
#[derive(Clone)]
pub struct Witness {
    state: BreakerState,
    epoch: u64,
    trial: bool,
}

/// What an attempt says about its address.
enum Evidence {
    Sound,
    Fault { what: String, eject: bool },
    Nothing,
}

// === impl BreakerPolicy ===

impl Default for BreakerPolicy {
    /// Five faults in a row: one restart breaks every connection in flight at once, and
    /// two or three of those must not eject a node that is back already; a frozen node,
    /// though, costs each call a hedge delay until it is left out, so not many more. One
    /// second is about what an election takes where it is fast; half a minute is soon
    /// enough to find a repaired node, and one trial in that time costs nothing.
    fn default() -> Self {
        Self {
            faults_to_open: 5,
            open_at_first: Duration::from_secs(1),
            open_at_most: Duration::from_secs(30),
            silence: Duration::from_secs(1),
            long_silence: Duration::from_secs(5),
        }
    }
}

// === impl BreakerPhase ===

impl BreakerPhase {
    /// The word that spans and status use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }

    const fn as_metric(self) -> f64 {
        match self {
            Self::Closed => 0.0,
            Self::HalfOpen => 1.0,
            Self::Open => 2.0,
        }
    }
}

// === impl BreakerState ===

impl BreakerState {
    /// A closed breaker for `address`.
    pub fn new(
        cluster: ClusterName,
        address: AddressName,
        policy: BreakerPolicy,
        jitter: Arc<Jitter>,
    ) -> Self {
        let state = Mutex::new(State {
            gate: Gate::Closed { faults: 0 },
            epoch: 0,
            openings: 0,
            last_fault: None,
        });
        let shared = Shared { cluster, address, policy, jitter, state, changed: Notify::new() };
        let breaker = Self(Arc::new(shared));
        // An address that never fails must show too.
        breaker.tell(BreakerPhase::Closed);
        breaker
    }

    /// What it lets through now.
    pub fn phase(&self) -> BreakerPhase {
        match self.lock().gate {
            Gate::Closed { .. } => BreakerPhase::Closed,
            Gate::Open { .. } => BreakerPhase::Open,
            Gate::HalfOpen => BreakerPhase::HalfOpen,
        }
    }

    /// Whether it is open and its time is up, so that the next attempt is a trial.
    pub fn is_trial_due(&self) -> bool {
        matches!(self.lock().gate, Gate::Open { until } if until <= Instant::now())
    }

    /// The last fault that counted since the address was last sound.
    pub fn last_fault(&self) -> Option<String> {
        self.lock().last_fault.clone()
    }

    /// Brings the next trial forward to `span` from now, when it would come later. The
    /// pool asks for it when no address is usable: then to wait half a minute helps nobody.
    pub fn trial_within(&self, span: Duration) {
        let latest = Instant::now() + span;
        let mut state = self.lock();
        if let Gate::Open { until } = &mut state.gate
            && *until > latest
        {
            *until = latest;
            drop(state);
            self.0.changed.notify_waiters();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no code panics while it holds this lock")
    }

    /// A permit, or the moment that is worth waiting for, if one is known.
    fn try_admit(&self) -> Result<Permit, Option<Instant>> {
        let mut state = self.lock();
        let trial = match state.gate {
            Gate::Closed { .. } => false,
            Gate::HalfOpen => return Err(None),
            Gate::Open { until } if until > Instant::now() => return Err(Some(until)),
            Gate::Open { .. } => {
                state.gate = Gate::HalfOpen;
                state.epoch += 1;
                true
            }
        };
        let witness = Witness { state: self.clone(), epoch: state.epoch, trial };
        drop(state);
        if trial {
            self.tell(BreakerPhase::HalfOpen);
        }
        Ok(Permit(witness))
    }

    pub(super) async fn admitted(self) -> Permit {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable(); // before the look, so that no change slips between
            match self.try_admit() {
                Ok(permit) => return permit,
                Err(None) => changed.await,
                Err(Some(until)) => {
                    tokio::select! {
                        () = changed => {}
                        () = tokio::time::sleep_until(until) => {}
                    }
                }
            }
        }
    }

    fn evidence(&self, fault: &Fault, took: Duration) -> Evidence {
        match fault {
            Fault::Unsendable(_) | Fault::BreakerOpen { .. } | Fault::Silent(_) => {
                Evidence::Nothing
            }
            Fault::Deadline if took < self.0.policy.silence => Evidence::Nothing,
            Fault::Elsewhere { verdict, .. } if verdict.eject => {
                Evidence::Fault { what: fault.to_string(), eject: true }
            }
            fault if fault.is_address_fault() => {
                let is_long =
                    matches!(fault, Fault::Deadline) && took >= self.0.policy.long_silence;
                Evidence::Fault { what: fault.to_string(), eject: is_long }
            }
            _ => Evidence::Sound, // it answered
        }
    }

    fn weigh(&self, witness: &Witness, evidence: Evidence) {
        let mut state = self.lock();
        if state.epoch != witness.epoch {
            return;
        }
        match evidence {
            Evidence::Nothing => {}
            Evidence::Sound => {
                state.last_fault = None;
                let was_closed = matches!(state.gate, Gate::Closed { .. });
                state.gate = Gate::Closed { faults: 0 };
                if !was_closed {
                    state.openings = 0;
                    state.epoch += 1;
                    drop(state);
                    self.closed();
                }
            }
            Evidence::Fault { what, eject } => {
                let faults = match state.gate {
                    Gate::Closed { faults } => faults + 1,
                    Gate::HalfOpen | Gate::Open { .. } => self.0.policy.faults_to_open,
                };
                state.last_fault = Some(what);
                if faults < self.0.policy.faults_to_open && !eject {
                    state.gate = Gate::Closed { faults };
                    return;
                }
                let span = self.open_span(state.openings);
                state.gate = Gate::Open { until: Instant::now() + span };
                state.openings = state.openings.saturating_add(1);
                state.epoch += 1;
                let (what, first) = (state.last_fault.clone(), state.openings == 1);
                drop(state);
                self.opened(&what.unwrap_or_default(), span, first);
            }
        }
    }

    /// A trial that came to nothing: the next one may go at once.
    fn give_back(&self, witness: &Witness) {
        let mut state = self.lock();
        if state.epoch == witness.epoch && matches!(state.gate, Gate::HalfOpen) {
            state.gate = Gate::Open { until: Instant::now() };
            state.epoch += 1;
            drop(state);
            self.tell(BreakerPhase::Open);
        }
    }

    fn open_span(&self, openings: u32) -> Duration {
        let BreakerPolicy { open_at_first, open_at_most, .. } = self.0.policy;
        let grown = open_at_first.saturating_mul(1_u32.checked_shl(openings).unwrap_or(u32::MAX));
        self.0.jitter.around(grown.min(open_at_most))
    }

    fn opened(&self, fault: &str, span: Duration, first: bool) {
        let address = &self.0.address;
        let seconds = span.as_secs_f64();
        if first {
            tracing::warn!(server.address = %address, fault, seconds, "An address is left out.");
        } else {
            tracing::debug!(server.address = %address, fault, seconds, "A trial failed.");
        }
        self.tell(BreakerPhase::Open);
    }

    fn closed(&self) {
        tracing::info!(server.address = %self.0.address, "An address answers again.");
        self.tell(BreakerPhase::Closed);
    }

    fn tell(&self, phase: BreakerPhase) {
        self.0.changed.notify_waiters();
        let labels = [
            KeyValue::new("cluster", self.0.cluster.as_str().to_owned()),
            KeyValue::new("server.address", self.0.address.as_str().to_owned()),
        ];
        metrics::set(Metric::BreakerState, phase.as_metric(), &labels);
    }
}

impl fmt::Debug for BreakerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BreakerState({} {})", self.0.address, self.phase().as_str())
    }
}

// === impl Permit, Witness ===

impl Permit {
    /// Who may report on the attempt.
    pub(super) fn witness(&self) -> Witness {
        self.0.clone()
    }

    /// Reports the outcome; dropped without one, it reports that there is none.
    pub(super) fn settle(
        self,
        attempt: &Attempt,
        result: &Result<Answer, AttemptError>,
        took: Duration,
    ) {
        let given_up = attempt.fate.is_given_up() && !self.0.trial;
        let evidence = match result {
            _ if given_up => Evidence::Nothing,
            Ok(_) => Evidence::Sound,
            Err(error) => self.0.state.evidence(&error.fault, took),
        };
        self.0.state.weigh(&self.0, evidence);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.0.trial {
            self.0.state.give_back(&self.0);
        }
    }
}

impl Witness {
    /// Whether the attempt is a half-open breaker's one trial.
    pub const fn is_trial(&self) -> bool {
        self.trial
    }

    /// Whether the breaker has changed since the attempt was let through.
    pub fn is_overtaken(&self) -> bool {
        self.state.lock().epoch != self.epoch
    }

    /// The address was silent for longer than others are, while another one answered.
    pub fn silent(&self, lasted: Duration) {
        let what = format!("silent for {} ms while another answered", lasted.as_millis());
        self.state.weigh(self, Evidence::Fault { what, eject: false });
    }
}

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Witness")
            .field("state", &self.state)
            .field("trial", &self.trial)
            .finish_non_exhaustive()
    }
}
