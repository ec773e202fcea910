//! What the prober asks a breaker and tells it.

use tokio::time::Instant;

use super::{BreakerState, Gate, Leave};

impl BreakerState {
    /// Waits until a probe is worth its while: after each fault that counted, when the
    /// breaker has opened, and when its time is up and no good probe has come since. One
    /// such moment that nobody waited for is kept. Many faults may come in little time, so
    /// the prober sets its own pace.
    pub async fn probe_wanted(&self) {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable(); // before the look, so that no change slips between
            let over_at = self.probe_at();
            tokio::select! {
                biased;
                () = self.0.probe.notified() => return,
                () = changed => {}
                () = tokio::time::sleep_until(over_at.unwrap_or_else(Instant::now)),
                    if over_at.is_some() =>
                {
                    if self.take_probe() {
                        return;
                    }
                }
            }
        }
    }

    /// The address has answered a probe well. That lets a trial through once the time is
    /// up; it does not close anything, for a node may well answer probes and nothing else.
    /// For the same reason it ends a row of faults only where all of them were probes': else
    /// a few that failed within a month would leave out an address that nobody calls.
    pub fn probe_good(&self) {
        let mut state = self.lock();
        if state.probed_bad_at.take().is_some() {
            self.0.changed.notify_waiters();
        }
        match &mut state.gate {
            Gate::Closed { faults, of_probes } if *faults > 0 && faults == of_probes => {
                (*faults, *of_probes) = (0, 0);
                state.last_fault = None;
            }
            Gate::Open(open) if open.leave == Leave::None => {
                open.leave = Leave::Proven;
                drop(state);
                self.0.changed.notify_waiters();
            }
            _ => {}
        }
    }

    /// The address has answered a probe badly, or not at all. A closed breaker counts it as
    /// one fault. An open one stays open, and longer each time that a trial would be due.
    pub fn probe_bad(&self, why: String) {
        let mut state = self.lock();
        state.probed_bad_at = Some(Instant::now());
        let stretches = state.stretches;
        let what = match &mut state.gate {
            Gate::Closed { of_probes, .. } => {
                *of_probes = of_probes.saturating_add(1);
                return self.fault(state, why, None);
            }
            Gate::HalfOpen => return, // its trial says more
            Gate::Open(open) => {
                let now = Instant::now();
                if open.leave == Leave::Proven {
                    open.leave = Leave::None;
                }
                if open.leave == Leave::None && open.until <= now {
                    open.until = now + self.0.jitter.around(self.0.policy.open_span(stretches));
                    open.is_probe_asked = false;
                    state.stretches = stretches.saturating_add(1);
                }
                why
            }
        };
        // Nobody is woken: nothing may happen sooner than before.
        state.last_fault = Some(what);
    }

    /// When the prober is to be told that the time is up, if that is still to come.
    fn probe_at(&self) -> Option<Instant> {
        match &self.lock().gate {
            Gate::Open(open) if open.leave != Leave::Proven && !open.is_probe_asked => {
                Some(open.until)
            }
            _ => None,
        }
    }

    /// Takes the wish for a probe that the end of the open span is, if it has come.
    fn take_probe(&self) -> bool {
        match &mut self.lock().gate {
            Gate::Open(open)
                if open.leave != Leave::Proven
                    && !open.is_probe_asked
                    && open.until <= Instant::now() =>
            {
                open.is_probe_asked = true;
                true
            }
            _ => false,
        }
    }
}
