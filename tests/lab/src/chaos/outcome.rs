//! What a row cost, and what of it is not allowed.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;
use tonic::Code;

use super::{Allowed, CALLERS, DEADLINE, RecoveryFrom, Row, timeline};
use crate::{Failure, Seen};

/// A caller's own clock may be this late where many share two cores.
const LATE: Duration = Duration::from_millis(500);

/// A call that fails has waited for most of its deadline, for a node may come back.
const WAITED: Duration = Duration::from_millis(2500);

/// A call that has so much time left when a node can answer again does not fail.
const ENOUGH: Duration = Duration::from_secs(2);

/// A call that takes this long has waited for a cluster that is silent (for 1 s).
const WAITED_FOR_A_CLUSTER: Duration = Duration::from_millis(900);

/// So many calls may: for each caller the one that finds it silent, and one that was on its
/// way to it when it had just been taken back.
const MAY_WAIT: usize = 2 * CALLERS;

/// What is promised on a machine that has nothing else to do: so much more time than before
/// for a call that meets a node that hangs,
const HANGING: Duration = Duration::from_millis(500);

/// calls as fast as before again,
const AS_BEFORE: Duration = Duration::from_secs(2);

/// and the first answer after an outage.
const FIRST_ANSWER: Duration = Duration::from_millis(1500);

/// What was seen of one row.
#[derive(Debug)]
pub struct Outcome {
    row: Row,
    calls: usize,
    failures: Vec<Failure>,
    per_call: f64,
    p50: Duration,
    p99: Duration,
    worst: Duration,
    /// The p99 before the fault.
    normal: Duration,
    recovery: Duration,
    /// Calls that waited for a silent cluster.
    waited: usize,
    fault: Instant,
    back: Instant,
    has_met: bool,
    addresses: Vec<String>,
}

/// When things happened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) fault: Instant,
    pub(super) undo: Instant,
    /// When a node could answer again.
    pub(super) back: Instant,
    pub(super) end: Instant,
}

// === impl Outcome ===

impl Outcome {
    pub(super) fn new(
        row: &Row,
        seen: Seen,
        times: Times,
        per_call: f64,
        has_met: bool,
        addresses: Vec<String>,
    ) -> Self {
        let before = seen.calls.iter().filter(|call| call.end() < times.fault);
        let normal = timeline::quantile(before, 990);
        let after = |from| timeline::recovery(&seen.calls, from, times.end, normal);
        let recovery = match row.recovery {
            RecoveryFrom::Fault => after(times.fault),
            RecoveryFrom::Undo => after(times.undo),
            RecoveryFrom::Return => {
                let good = seen.calls.iter().filter(|call| call.is_good);
                let first = good.map(crate::Timed::end).filter(|end| *end >= times.back).min();
                first.map_or(Duration::MAX, |first| first - times.back)
            }
        };
        let since: Vec<_> = seen.calls.iter().filter(|call| call.end() >= times.fault).collect();
        Self {
            row: *row,
            calls: seen.calls.len(),
            per_call,
            p50: timeline::quantile(since.iter().copied(), 500),
            p99: timeline::quantile(since.iter().copied(), 990),
            worst: timeline::quantile(since.iter().copied(), 1000),
            normal,
            recovery,
            waited: since.iter().filter(|call| call.took >= WAITED_FOR_A_CLUSTER).count(),
            fault: times.fault,
            back: times.back,
            has_met,
            addresses,
            failures: seen.failures,
        }
    }

    /// Whether an attempt has met the fault at all: else the row has proven nothing.
    pub fn has_met(&self) -> bool {
        self.has_met
    }

    /// What was seen that the row does not allow.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        let allowed = |failure: &&Failure| match self.row.allowed {
            Allowed::NoFailure => false,
            Allowed::Unavailable => self.is_honest(failure) || failure.is_late(),
        };
        let wrong = self.failures.iter().filter(|failure| !allowed(failure));
        complaints.extend(wrong.map(ToString::to_string));
        if self.worst >= DEADLINE + LATE {
            complaints.push(format!("a call took {:.0?}", self.worst));
        }
        if self.per_call >= self.row.wire_bound {
            let (per_call, bound) = (self.per_call, self.row.wire_bound);
            complaints.push(format!("{per_call:.2} requests to Vault for each call, not {bound}"));
        }
        if self.row.passed_over && self.waited > MAY_WAIT {
            let waited = self.waited;
            complaints.push(format!("{waited} calls waited for the silent cluster"));
        }
        if self.row.recovery == RecoveryFrom::Return && self.recovery > DEADLINE {
            complaints.push("the return was not noticed within the deadline".to_owned());
        }
        complaints
    }

    /// What took longer than is promised; the machine may be why.
    pub fn slowness(&self) -> Vec<String> {
        let mut slowness = Vec::new();
        let mut limit = |what: &str, took: Duration, limit: Duration| {
            if took > limit {
                slowness.push(format!("{what} took {took:.0?}, longer than {limit:.0?}"));
            }
        };
        if self.row.hangs {
            limit("the slowest call", self.worst, self.normal + HANGING);
        }
        match self.row.recovery {
            RecoveryFrom::Return => limit("the first answer", self.recovery, FIRST_ANSWER),
            RecoveryFrom::Fault | RecoveryFrom::Undo => {
                limit("the way back to normal", self.recovery, AS_BEFORE);
            }
        }
        slowness
    }

    /// Whether a failure says what it should when no node could answer.
    fn is_honest(&self, failure: &Failure) -> bool {
        let names = |address: &String| {
            let authority = address.split("://").last().unwrap_or(address);
            failure.message.contains(authority)
        };
        // Mere silence is told as such.
        matches!(failure.code, Some(Code::Unavailable | Code::DeadlineExceeded))
            && failure.took >= WAITED
            && failure.began + failure.took >= self.fault
            && failure.began + failure.took <= self.back + ENOUGH
            && self.addresses.iter().all(names)
    }

    /// One failure, if there was one.
    pub fn example(&self) -> Option<&Failure> {
        let honest = self.failures.iter().find(|failure| self.is_honest(failure));
        honest.or(self.failures.first())
    }

    /// The table's heading.
    pub fn heading() -> String {
        format!(
            "{:36} {:>6} {:>6} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
            "", "calls", "failed", "requests", "p99 ms", "p50", "p99", "worst", "recovery"
        ) + &format!(
            "\n{:36} {:>6} {:>6} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8}",
            "", "", "", "per call", "before", "after", "after", "ms", "ms"
        )
    }
}

/// The outcome as a line of the table.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| format!("{:.0}", time.as_secs_f64() * 1000.0);
        write!(
            f,
            "{:36} {:>6} {:>6} {:>8.2} {:>8} {:>8} {:>8} {:>8} {:>8}",
            self.row.name,
            self.calls,
            self.failures.len(),
            self.per_call,
            ms(self.normal),
            ms(self.p50),
            ms(self.p99),
            ms(self.worst),
            if self.recovery == Duration::MAX { "never".to_owned() } else { ms(self.recovery) },
        )
    }
}
