//! When a breaker opens, for how long, and the words for it.

use std::time::Duration;

/// When a breaker opens and for how long.
#[derive(Clone, Copy, Debug)]
pub struct BreakerPolicy {
    /// Faults in a row that open it.
    pub faults_to_open: u32,
    /// Over how long the share of faults is taken.
    pub window: Duration,
    /// With fewer outcomes in the window than this, their share of faults says nothing.
    pub samples_to_judge: u32,
    /// The share of faults that opens it.
    pub ratio_to_open: f64,
    /// How long it is open the first time; each failed trial, and each bad probe when a
    /// trial would be due, doubles it.
    pub open_at_first: Duration,
    /// The longest that it is open, but for jitter.
    pub open_at_most: Duration,
    /// How long a trial that is due waits for a good probe when no probe reports at all.
    pub probe_patience: Duration,
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

/// Why a breaker opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenReason {
    /// So many faults in a row.
    FaultsInARow,
    /// Too large a share of the last attempts failed.
    FailureRatio,
    /// The address itself said that it serves nobody, such as a sealed node.
    Unfit,
    /// An attempt with plenty of time met its deadline.
    LongSilence,
    /// The attempt that was to show whether it serves again failed.
    TrialFailed,
}

/// What an operator may want to know of a breaker.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerReport {
    /// What it lets through.
    pub phase: BreakerPhase,
    /// How long it has been in this phase.
    pub lasted: Duration,
    /// How often it has opened since the address is known.
    pub opened: u64,
    /// Why it opened the last time.
    pub reason: Option<OpenReason>,
    /// The last fault that counted, in words; gone when the address answers again.
    pub last_fault: Option<String>,
}

// === impl BreakerPolicy ===

impl Default for BreakerPolicy {
    /// Five faults in a row: one restart breaks every connection in flight at once, and
    /// two or three of those must not eject a node that is back already; a frozen node,
    /// though, costs each call a hedge delay until it is left out, so not many more.
    ///
    /// Half of the attempts of half a minute: a node that fails every second one never
    /// fails five in a row. Twenty samples, so that a daemon with a call in a while does
    /// not take two bad ones for a trend.
    ///
    /// One second is about what an election takes where it is fast; half a minute is soon
    /// enough to find a repaired node, and one probe in that time costs nothing. Five
    /// seconds are longer than a probe takes, whatever comes of it.
    fn default() -> Self {
        Self {
            faults_to_open: 5,
            window: Duration::from_secs(30),
            samples_to_judge: 20,
            ratio_to_open: 0.5,
            open_at_first: Duration::from_secs(1),
            open_at_most: Duration::from_secs(30),
            probe_patience: Duration::from_secs(5),
            silence: Duration::from_secs(1),
            long_silence: Duration::from_secs(5),
        }
    }
}

impl BreakerPolicy {
    /// How long it is open when it has been opened or kept open `times` times before.
    pub(super) fn open_span(&self, times: u32) -> Duration {
        let factor = 1_u32.checked_shl(times).unwrap_or(u32::MAX);
        self.open_at_first.saturating_mul(factor).min(self.open_at_most)
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

    pub(super) const fn as_metric(self) -> f64 {
        match self {
            Self::Closed => 0.0,
            Self::HalfOpen => 1.0,
            Self::Open => 2.0,
        }
    }
}

// === impl OpenReason ===

impl OpenReason {
    /// The word that metrics, logs and status use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FaultsInARow => "faults_in_a_row",
            Self::FailureRatio => "failure_ratio",
            Self::Unfit => "unfit",
            Self::LongSilence => "long_silence",
            Self::TrialFailed => "trial_failed",
        }
    }
}
