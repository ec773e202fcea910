//! When what is to be done: pure decisions, so that the task only has to follow them.

use std::time::Duration;

use tokio::time::Instant;

use super::super::lease::Lease;
use crate::clock::Jitter;
use crate::cluster::auth::{AuthError, Source};

/// Longest pause while nobody can be reached: tries cost nothing then, and calls wait.
const LONGEST_UNREACHABLE: Duration = Duration::from_secs(5);

/// Longest pause while Vault answers but gives no token.
const LONGEST_REFUSED: Duration = Duration::from_secs(30);

/// Pauses after a secret id was rejected. The first is for a standby that had not heard
/// of a new role or secret id. Vault locks a role out after 5 failures within 15 minutes,
/// for every node that uses it: so four tries, then few enough to be forgotten.
const AFTER_REJECTION: [Duration; 4] = [
    Duration::from_secs(3),
    Duration::from_secs(60),
    Duration::from_secs(300),
    Duration::from_secs(1_200),
];

/// The soonest step in a token's life, however little of it is left.
const SOONEST: Duration = Duration::from_secs(1);

/// A lease as it was learnt.
#[derive(Clone, Copy)]
pub(super) struct KnownLease {
    pub(super) lease: Lease,
    learnt: Instant,
    /// A renewal brought less than was asked for: max ttl is near.
    pub(super) capped: bool,
    /// Renewals that failed since.
    failures: u32,
    /// When something is to be done about it.
    due: Instant,
    /// From when on another token is the better way when renewals fail.
    late: Instant,
}

/// What is to be done next for a token that is held, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    Renew(Instant),
    Obtain(Instant),
}

// === impl KnownLease ===

impl KnownLease {
    /// What Vault just said. The next step is due after two thirds of the ttl.
    pub(super) fn new(lease: Lease, capped: bool, jitter: &Jitter) -> Self {
        let learnt = Instant::now();
        let ttl = lease.ttl.unwrap_or_default();
        let due = learnt + jitter.around(ttl * 2 / 3).max(SOONEST);
        Self { lease, learnt, capped, failures: 0, due, late: learnt + ttl * 5 / 6 }
    }

    /// What a look at the same token says. To look puts nothing off.
    pub(super) fn seen_again(self, lease: Lease, jitter: &Jitter) -> Self {
        let seen = Self::new(lease, self.capped, jitter);
        let (due, late) = (seen.due.min(self.due), seen.late.min(self.late));
        Self { failures: self.failures, due, late, ..seen }
    }

    /// When it was learnt.
    pub(super) const fn learnt(&self) -> Instant {
        self.learnt
    }

    /// Time until the token ends; `None` when it does not.
    pub(super) fn left(&self) -> Option<Duration> {
        self.lease.ttl.map(|ttl| ttl.saturating_sub(self.learnt.elapsed()))
    }

    /// The lease that is left of it; `None` when its time is up.
    pub(super) fn rest(self) -> Option<Lease> {
        let ttl = self.left();
        (ttl != Some(Duration::ZERO)).then_some(Lease { ttl, ..self.lease })
    }

    /// Plans another renewal after one that failed; answers how much time is left.
    pub(super) fn renewal_failed(&mut self, jitter: &Jitter) -> Duration {
        let left = self.left().unwrap_or_default();
        self.failures += 1;
        self.due = Instant::now() + jitter.around(pause_with(left));
        left
    }

    /// How long until another renewal is worth its while, after one that failed; `None`
    /// when none is.
    pub(super) fn renewal_pause(&self) -> Option<Duration> {
        let left = self.left().filter(|left| !left.is_zero())?;
        self.is_worth_renewing().then(|| pause_with(left))
    }

    const fn is_worth_renewing(&self) -> bool {
        self.lease.renewable && !self.capped
    }

    /// What the lease demands next.
    pub(super) fn next_step(self, source: Source) -> Step {
        let Self { lease, failures, due, late, .. } = self;
        if lease.ttl.is_none() {
            return Step::Nothing;
        }
        let is_late = failures > 0 && due >= late;
        match source {
            Source::Nowhere if lease.renewable => Step::Renew(due),
            Source::Nowhere => Step::Nothing,
            Source::File | Source::Login if self.is_worth_renewing() && !is_late => {
                Step::Renew(due)
            }
            Source::File | Source::Login => Step::Obtain(due),
        }
    }
}

// === impl Step ===

impl Step {
    /// When it is due; any time when there is nothing to do.
    pub(super) fn at(self) -> Instant {
        match self {
            Self::Nothing => Instant::now(),
            Self::Renew(at) | Self::Obtain(at) => at,
        }
    }
}

/// How long to wait after `error`, the `failures`-th in a row counted from 0.
pub(super) fn pause_after(error: &AuthError, failures: u32) -> Duration {
    match error {
        AuthError::Unreachable(_) => backoff(failures).min(LONGEST_UNREACHABLE),
        AuthError::Rejected { .. } => {
            let last = AFTER_REJECTION.len() - 1;
            AFTER_REJECTION[usize::try_from(failures).unwrap_or(last).min(last)]
        }
        // Vault says so of what passes, too: a role locked out, a standby on its own.
        AuthError::Refused { status: 403, .. } => backoff(failures).min(LONGEST_UNREACHABLE),
        AuthError::File { .. }
        | AuthError::NotAToken(_)
        | AuthError::Wrapping { .. }
        | AuthError::Refused { .. }
        | AuthError::Dead { .. }
        | AuthError::Unacceptable { .. } => backoff(failures),
    }
}

/// Between two renewals of a token with this much time `left`.
fn pause_with(left: Duration) -> Duration {
    (left / 10).clamp(SOONEST, LONGEST_REFUSED)
}

/// 1, 2, 4 … 30 s.
pub(super) fn backoff(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.min(5)).min(LONGEST_REFUSED)
}
