//! The only source of time and chance.
//!
//! Everything that waits uses tokio's monotonic time, so that tests can pause it. What
//! depends on the wall clock uses [`VaultClock`]: Vault's own time, kept as an offset to
//! monotonic time, so that a node whose clock is wrong still activates a key version in
//! the same second as its neighbours.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

pub use vault::{TimeSource, Told, VaultClock};

mod vault;

/// When a call must have its answer, and in which lane it waits until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant, Lane);

/// Calls of one kind stand in line behind each other; the lanes take turns. So a storm of the
/// one kind holds up nobody of the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// KMS v1: a call for each object, thousands when a kube-apiserver starts.
    Objects,
    /// KMS v2 and what the daemon asks itself: few, and much hangs on each.
    #[default]
    Keys,
}

/// Seconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixSeconds(pub i64);

/// Seeded randomness for delays; the same seed gives the same delays.
#[derive(Debug)]
pub struct Jitter {
    random: Mutex<Option<StdRng>>,
}

/// This machine's wall clock, for log lines and for the age of files.
#[allow(clippy::disallowed_types)] // the one place that reads it
pub fn node_time() -> UnixSeconds {
    let since = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH);
    UnixSeconds(since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX)))
}

/// This machine's wall clock as log lines show it: UTC, to the millisecond.
#[allow(clippy::disallowed_types)] // see node_time
pub fn node_timestamp() -> impl fmt::Display {
    humantime::format_rfc3339_millis(std::time::SystemTime::now())
}

/// The kernel's monotonic clock in microseconds, by which systemd orders its signal and our
/// answer to it.
pub fn monotonic_usec() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let usec = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1_000);
    u64::try_from(usec).unwrap_or(0)
}

// === impl Deadline ===

impl Deadline {
    /// The deadline that lies `span` from now.
    pub fn after(span: Duration) -> Self {
        Self::at(Instant::now() + span)
    }

    /// The deadline at `instant`.
    pub const fn at(instant: Instant) -> Self {
        Self(instant, Lane::Keys)
    }

    /// The same, in this lane.
    #[must_use]
    pub const fn in_lane(self, lane: Lane) -> Self {
        Self(self.0, lane)
    }

    /// The lane in which its call waits.
    pub const fn lane(self) -> Lane {
        self.1
    }

    /// The moment itself, for `tokio::time::sleep_until`.
    pub const fn instant(self) -> Instant {
        self.0
    }

    /// Time left; zero when it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether no time is left.
    pub fn has_passed(self) -> bool {
        self.remaining().is_zero()
    }

    /// The later of the two, in the lane of the first.
    pub fn max(self, other: Self) -> Self {
        Self(self.0.max(other.0), self.1)
    }

    /// The earlier of the two, in the lane of the first.
    pub fn min(self, other: Self) -> Self {
        Self(self.0.min(other.0), self.1)
    }
}

// === impl UnixSeconds ===

impl UnixSeconds {
    /// This moment plus `span`, in whole seconds.
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(span.as_secs()).unwrap_or(i64::MAX)))
    }
}

// === impl Jitter ===

impl Jitter {
    /// Delays that differ from process to process.
    pub fn from_entropy() -> Self {
        Self { random: Mutex::new(Some(StdRng::from_os_rng())) }
    }

    /// Delays that the seed decides.
    pub fn seeded(seed: u64) -> Self {
        Self { random: Mutex::new(Some(StdRng::seed_from_u64(seed))) }
    }

    /// No jitter: every delay is the one that was asked for.
    pub const fn off() -> Self {
        Self { random: Mutex::new(None) }
    }

    /// `span`, shortened or lengthened by up to a tenth.
    pub fn around(&self, span: Duration) -> Duration {
        span.mul_f64(1.0 + 0.1 * self.unit())
    }

    /// Between half of `span` and all of it: for tries that a whole fleet begins at once.
    pub fn half(&self, span: Duration) -> Duration {
        self.full(span / 2) + span / 2
    }

    /// Anything between nothing and `span` ("full jitter"); `span` when jitter is off.
    pub fn full(&self, span: Duration) -> Duration {
        let mut random = self.random.lock().expect("no code panics while it holds this lock");
        random.as_mut().map_or(span, |r| span.mul_f64(r.random_range(0.0..=1.0)))
    }

    /// A number in -1..=1, or 0 when jitter is off.
    fn unit(&self) -> f64 {
        let mut random = self.random.lock().expect("no code panics while it holds this lock");
        random.as_mut().map_or(0.0, |r| r.random_range(-1.0..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_has_passed_leaves_nothing() {
        let deadline = Deadline::after(Duration::from_secs(3));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(deadline.remaining(), Duration::from_secs(1));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(deadline.has_passed());
    }

    #[test]
    fn jitter_stays_within_its_bounds_and_repeats_with_its_seed() {
        let (a, b) = (Jitter::seeded(7), Jitter::seeded(7));
        for _ in 0..1_000 {
            let delay = a.around(Duration::from_secs(10));
            assert_eq!(delay, b.around(Duration::from_secs(10)));
            assert!(delay >= Duration::from_secs(9) && delay <= Duration::from_secs(11));
            let half = a.half(Duration::from_secs(10));
            assert_eq!(half, b.half(Duration::from_secs(10)));
            assert!(half >= Duration::from_secs(5) && half <= Duration::from_secs(10));
        }
        assert_eq!(Jitter::off().half(Duration::from_secs(10)), Duration::from_secs(10));
        assert_eq!(Jitter::off().around(Duration::from_secs(10)), Duration::from_secs(10));
    }
}
