//! How long an address may stay silent before another one is asked beside it.

use std::sync::Mutex;
use std::time::Duration;

/// Says when silence is long enough.
pub trait HedgeDelay: Send + Sync + 'static {
    /// The delay for the next call.
    fn delay(&self) -> Duration;

    /// A call got its answer in this time.
    fn observe(&self, took: Duration);
}

/// The 95th percentile of recent answers, within bounds.
#[derive(Debug)]
pub struct RecentLatency {
    recent: Mutex<Ring>,
}

#[derive(Debug)]
struct Ring {
    samples: [Duration; SAMPLES],
    seen: usize,
    /// How many of them are above [`AT_LEAST`].
    long: usize,
    p95: Duration,
}

/// Enough for a percentile, few enough to follow a change within seconds.
const SAMPLES: usize = 64;

/// Below this, the percentile is a guess.
const ENOUGH: usize = 20;

/// Before there are [`ENOUGH`] samples: far above what an idle Vault needs (a few
/// milliseconds), far below the 3 s that kube-apiserver waits.
const AT_FIRST: Duration = Duration::from_millis(100);

/// A quick Vault's p95 is a few milliseconds, and a garbage collection is no silence.
const AT_LEAST: Duration = Duration::from_millis(50);

/// Two more addresses must fit into a deadline of 3 s with time to answer.
const AT_MOST: Duration = Duration::from_millis(400);

impl Default for RecentLatency {
    fn default() -> Self {
        let ring = Ring { samples: [Duration::ZERO; SAMPLES], seen: 0, long: 0, p95: AT_FIRST };
        Self { recent: Mutex::new(ring) }
    }
}

impl HedgeDelay for RecentLatency {
    fn delay(&self) -> Duration {
        let ring = self.recent.lock().expect("no code panics while it holds this lock");
        if ring.seen < ENOUGH { AT_FIRST } else { ring.p95.clamp(AT_LEAST, AT_MOST) }
    }

    fn observe(&self, took: Duration) {
        let mut ring = self.recent.lock().expect("no code panics while it holds this lock");
        let place = ring.seen % SAMPLES;
        let gone = std::mem::replace(&mut ring.samples[place], took);
        ring.long = ring.long + usize::from(took > AT_LEAST) - usize::from(gone > AT_LEAST);
        ring.seen += 1;
        let known = ring.seen.min(SAMPLES);
        let rank = (known - 1) * 95 / 100;
        // Of a quick Vault, next to no answer takes longer than the least delay, and then
        // the percentile does not either, whatever it is.
        if ring.long < known - rank {
            ring.p95 = AT_LEAST;
            return;
        }
        let mut sorted = ring.samples;
        let (_, p95, _) = sorted[..known].select_nth_unstable(rank);
        ring.p95 = *p95;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_follows_the_95th_percentile_within_bounds() {
        let latency = RecentLatency::default();
        let see = |ms, times| (0..times).for_each(|_| latency.observe(Duration::from_millis(ms)));
        see(200, 19);
        assert_eq!(latency.delay(), AT_FIRST);
        see(200, 1);
        assert_eq!(latency.delay(), Duration::from_millis(200));
        see(1, SAMPLES);
        assert_eq!(latency.delay(), AT_LEAST);
        see(2_000, 3);
        assert_eq!(latency.delay(), AT_LEAST, "three of 64 are above the percentile");
        see(2_000, 3);
        assert_eq!(latency.delay(), AT_MOST);
    }
}
