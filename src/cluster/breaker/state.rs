//! What a breaker knows and decides, without the service that it guards.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use opentelemetry::KeyValue;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use super::permit::{Permit, Witness};
use super::policy::{BreakerPhase, BreakerPolicy, BreakerReport, OpenReason};
use super::window::Window;
use crate::clock::Jitter;
use crate::cluster::error::Fault;
use crate::cluster::operation::AddressName;
use crate::config::settings::ClusterName;
use crate::telemetry::metrics::{self, Metric};

mod probed;

/// A breaker's state, shared by its service, the pool that chooses, the prober and those
/// who report.
#[derive(Clone)]
pub struct BreakerState(Arc<Shared>);

struct Shared {
    cluster: ClusterName,
    address: AddressName,
    policy: BreakerPolicy,
    jitter: Arc<Jitter>,
    state: Mutex<State>,
    /// Wakes those who wait for the phase, or for the moment of a trial, to change.
    changed: Notify,
    /// Holds one wish for a probe until the prober takes it.
    probe: Notify,
}

struct State {
    gate: Gate,
    /// When the gate came to what it is.
    since: Instant,
    /// Grows with each change of phase; outcomes from before it are old news.
    epoch: u64,
    /// Times that it has been opened, or kept open, since it was last closed.
    stretches: u32,
    last_fault: Option<String>,
    /// When a probe was bad, if neither a probe nor an attempt has been good since.
    probed_bad_at: Option<Instant>,
    /// Outcomes since the last change of phase.
    window: Window,
    opened: u64,
    reason: Option<OpenReason>,
}

enum Gate {
    Closed {
        /// Faults in a row.
        faults: u32,
        /// How many of them were probes'.
        of_probes: u32,
    },
    Open(Open),
    HalfOpen,
}

/// What an open gate waits for.
struct Open {
    /// The end of the span for which it was opened.
    until: Instant,
    /// What may let a trial through after that.
    leave: Leave,
    /// The end of the span has been told to the prober.
    is_probe_asked: bool,
}

/// What lets a trial through once the span is over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// Nothing yet: it waits for a good probe.
    None,
    /// A good probe has come since the gate opened, and no bad one after it.
    Proven,
}

/// What an attempt says about its address.
pub(super) enum Evidence {
    Sound,
    Fault {
        what: String,
        /// Why this one fault opens it, if it does.
        ejects: Option<OpenReason>,
    },
    Nothing,
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
            gate: Gate::Closed { faults: 0, of_probes: 0 },
            since: Instant::now(),
            epoch: 0,
            stretches: 0,
            last_fault: None,
            probed_bad_at: None,
            window: Window::new(policy.window),
            opened: 0,
            reason: None,
        });
        let (changed, probe) = (Notify::new(), Notify::new());
        let breaker =
            Self(Arc::new(Shared { cluster, address, policy, jitter, state, changed, probe }));
        // An address that never fails must show too.
        breaker.tell(BreakerPhase::Closed);
        breaker
    }

    /// What it lets through now.
    pub fn phase(&self) -> BreakerPhase {
        self.lock().phase()
    }

    /// Whether the next attempt is a trial: it is open, its time is up, and a good probe
    /// has come since it opened.
    pub fn is_trial_due(&self) -> bool {
        let state = self.lock();
        matches!(&state.gate, Gate::Open(open) if self.trial_at(open) <= Instant::now())
    }

    /// The last fault that counted since the address was last sound.
    pub fn last_fault(&self) -> Option<String> {
        self.lock().last_fault.clone()
    }

    /// Whether probes say that it is of no use: the next good one will tell when that ends,
    /// so that no call need be sent to see. A prober that reports nothing is not waited for.
    pub fn is_probed_bad(&self) -> bool {
        let bad_at = self.lock().probed_bad_at;
        bad_at.is_some_and(|at| at.elapsed() < self.0.policy.probe_patience)
    }

    /// Ends when something about it changes after the first poll.
    pub fn changed(&self) -> Notified<'_> {
        self.0.changed.notified()
    }

    /// A permit for an attempt that looks whether the address answers, whatever the phase
    /// is. Its success closes the breaker; its failure does not lengthen the time that it
    /// is open.
    pub(super) fn scout(&self) -> Permit {
        let epoch = self.lock().epoch;
        Permit(Witness { state: self.clone(), epoch, trial: false })
    }

    /// All that the status page tells of it.
    pub fn report(&self) -> BreakerReport {
        let state = self.lock();
        BreakerReport {
            phase: state.phase(),
            lasted: state.since.elapsed(),
            opened: state.opened,
            reason: state.reason,
            last_fault: state.last_fault.clone(),
        }
    }

    // --- admission

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().expect("no code panics while it holds this lock")
    }

    pub(super) fn epoch(&self) -> u64 {
        self.lock().epoch
    }

    /// When a trial goes, as far as is known. A prober that reports nothing at all must not
    /// keep it open for ever.
    fn trial_at(&self, open: &Open) -> Instant {
        match open.leave {
            Leave::Proven => open.until,
            Leave::None => open.until + self.0.policy.probe_patience,
        }
    }

    /// A permit, or the moment that is worth waiting for, if one is known.
    fn try_admit(&self) -> Result<Permit, Option<Instant>> {
        let mut state = self.lock();
        let trial = match &state.gate {
            Gate::Closed { .. } => false,
            Gate::HalfOpen => return Err(None),
            Gate::Open(open) => {
                let trial_at = self.trial_at(open);
                if trial_at > Instant::now() {
                    return Err(Some(trial_at));
                }
                state.pass_to(Gate::HalfOpen);
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
                Err(Some(trial_at)) => {
                    tokio::select! {
                        biased;
                        () = changed => {}
                        () = tokio::time::sleep_until(trial_at) => {}
                    }
                }
            }
        }
    }

    // --- judgement

    pub(super) fn evidence(&self, fault: &Fault, took: Duration) -> Evidence {
        match fault {
            Fault::Unsendable(_) | Fault::BreakerOpen { .. } | Fault::Silent(_) => {
                Evidence::Nothing
            }
            Fault::Deadline if took < self.0.policy.silence => Evidence::Nothing,
            Fault::Elsewhere { verdict, .. } if verdict.eject => {
                Evidence::Fault { what: fault.to_string(), ejects: Some(OpenReason::Unfit) }
            }
            fault if fault.is_address_fault() => {
                let is_long =
                    matches!(fault, Fault::Deadline) && took >= self.0.policy.long_silence;
                let ejects = is_long.then_some(OpenReason::LongSilence);
                Evidence::Fault { what: fault.to_string(), ejects }
            }
            _ => Evidence::Sound, // it answered
        }
    }

    /// Takes what an attempt says, unless the phase has changed since it was let through.
    pub(super) fn weigh(&self, witness: &Witness, evidence: Evidence) {
        let mut state = self.lock();
        if state.epoch != witness.epoch {
            return;
        }
        match evidence {
            Evidence::Nothing => {}
            Evidence::Sound => self.sound(state),
            Evidence::Fault { what, ejects } => {
                if witness.trial || matches!(state.gate, Gate::Closed { .. }) {
                    self.fault(state, what, ejects);
                } else {
                    state.last_fault = Some(what); // a scout's
                }
                self.0.probe.notify_one();
            }
        }
    }

    fn sound(&self, mut state: MutexGuard<'_, State>) {
        state.last_fault = None;
        state.probed_bad_at = None;
        if let Gate::Closed { faults, of_probes } = &mut state.gate {
            (*faults, *of_probes) = (0, 0);
            state.window.count(false);
            return;
        }
        state.stretches = 0;
        state.pass_to(Gate::Closed { faults: 0, of_probes: 0 });
        drop(state);
        tracing::info!(server.address = %self.0.address, "An address answers again.");
        self.tell(BreakerPhase::Closed);
    }

    fn fault(&self, mut state: MutexGuard<'_, State>, what: String, ejects: Option<OpenReason>) {
        let reason = state.reason_to_open(&self.0.policy, ejects);
        state.last_fault = Some(what);
        if let Some(reason) = reason {
            self.open(state, reason);
        }
    }

    fn open(&self, mut state: MutexGuard<'_, State>, reason: OpenReason) {
        let span = self.0.jitter.around(self.0.policy.open_span(state.stretches));
        state.stretches = state.stretches.saturating_add(1);
        state.opened += 1;
        state.reason = Some(reason);
        let until = Instant::now() + span;
        state.pass_to(Gate::Open(Open { until, leave: Leave::None, is_probe_asked: false }));
        let fault = state.last_fault.clone().unwrap_or_default();
        drop(state);

        let (address, seconds, reason) = (&self.0.address, span.as_secs_f64(), reason.as_str());
        if reason == OpenReason::TrialFailed.as_str() {
            tracing::debug!(server.address = %address, fault, seconds, "A trial failed.");
        } else {
            tracing::warn!(server.address = %address, fault, reason, seconds, "An address is left out.");
        }
        let [cluster, address] = self.labels();
        let labels = [cluster, address, KeyValue::new("reason", reason)];
        metrics::add(Metric::BreakerOpenings, 1, &labels);
        self.tell(BreakerPhase::Open);
    }

    /// A trial that came to nothing: the next one may go at once.
    pub(super) fn give_back(&self, witness: &Witness) {
        let mut state = self.lock();
        if state.epoch == witness.epoch && matches!(state.gate, Gate::HalfOpen) {
            let (until, leave) = (Instant::now(), Leave::Proven);
            state.pass_to(Gate::Open(Open { until, leave, is_probe_asked: false }));
            drop(state);
            self.tell(BreakerPhase::Open);
        }
    }

    fn tell(&self, phase: BreakerPhase) {
        self.0.changed.notify_waiters();
        metrics::set(Metric::BreakerState, phase.as_metric(), &self.labels());
    }

    fn labels(&self) -> [KeyValue; 2] {
        [
            KeyValue::new("cluster", self.0.cluster.as_str().to_owned()),
            KeyValue::new("server.address", self.0.address.as_str().to_owned()),
        ]
    }
}

impl fmt::Debug for BreakerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BreakerState({} {})", self.0.address, self.phase().as_str())
    }
}

// === impl State ===

impl State {
    const fn phase(&self) -> BreakerPhase {
        match self.gate {
            Gate::Closed { .. } => BreakerPhase::Closed,
            Gate::Open(_) => BreakerPhase::Open,
            Gate::HalfOpen => BreakerPhase::HalfOpen,
        }
    }

    fn pass_to(&mut self, gate: Gate) {
        self.gate = gate;
        self.since = Instant::now();
        self.epoch += 1;
        self.window.clear();
    }

    /// Counts one fault; why it opens the breaker, if it does.
    fn reason_to_open(
        &mut self,
        policy: &BreakerPolicy,
        ejects: Option<OpenReason>,
    ) -> Option<OpenReason> {
        let Gate::Closed { faults, .. } = &mut self.gate else {
            return Some(OpenReason::TrialFailed);
        };
        *faults = faults.saturating_add(1);
        let is_a_row = *faults >= policy.faults_to_open;
        self.window.count(true);
        let recent = self.window.total();
        let is_a_share =
            recent.samples() >= policy.samples_to_judge && recent.ratio() >= policy.ratio_to_open;
        ejects
            .or(is_a_row.then_some(OpenReason::FaultsInARow))
            .or(is_a_share.then_some(OpenReason::FailureRatio))
    }
}
