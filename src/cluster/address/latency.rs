//! How long an address takes to answer: an average that jumps to a peak at once and leaves
//! it slowly ("peak EWMA").

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

/// After this time a peak has lost two thirds of its weight. A node that had one slow
/// answer is asked again within a minute; one that is slow for good costs one hedge then.
const MEMORY: Duration = Duration::from_secs(10);

/// How long an address takes to answer, and how much it is asked at the moment.
///
/// A slow answer counts in full at once, for the next call must not wait for it as well.
/// Time heals: what is not asked drifts back to the quickest that it was ever seen, or to
/// what a probe of it takes if that is longer, and so gets its chance again.
#[derive(Clone, Default)]
pub struct Latency(Arc<Shared>);

/// One attempt under way; it ends when this is dropped.
#[derive(Debug)]
pub struct UnderWay(Latency);

#[derive(Default)]
struct Shared {
    seen: Mutex<Seen>,
    under_way: AtomicU32,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    /// Seconds, as of the moment.
    average: Option<(f64, Instant)>,
    /// The quickest answer.
    quickest: Option<f64>,
    /// What the last probe took, if no answer has come since.
    probed: Option<f64>,
}

// === impl Latency ===

impl Latency {
    /// Takes one answer's time into the average.
    pub fn observe(&self, took: Duration) {
        let (took, now) = (took.as_secs_f64(), Instant::now());
        let mut seen = self.lock();
        seen.quickest = Some(seen.quickest.map_or(took, |quickest| quickest.min(took)));
        seen.probed = None;
        let next = match seen.average {
            Some((average, at)) if average > took => took + (average - took) * kept(now - at),
            _ => took,
        };
        seen.average = Some((next, now));
    }

    /// An answer has been awaited for `lasted` and has not come.
    pub fn waited(&self, lasted: Duration) {
        let (lasted, now) = (lasted.as_secs_f64(), Instant::now());
        let mut seen = self.lock();
        if seen.at(now).is_none_or(|average| average < lasted) {
            seen.average = Some((lasted, now));
        }
    }

    /// Takes in how long a probe took, which tells of the way there.
    pub fn probed(&self, took: Duration) {
        self.lock().probed = Some(took.as_secs_f64());
    }

    /// What an answer takes now, as far as is known; `None` before the first.
    pub fn average(&self) -> Option<Duration> {
        self.lock().at(Instant::now()).map(Duration::from_secs_f64)
    }

    /// What one more attempt would take: the average, once for each that is under way.
    pub fn cost(&self) -> Option<Duration> {
        let ahead = self.0.under_way.load(Ordering::Relaxed);
        self.average().map(|average| average.saturating_mul(ahead.saturating_add(1)))
    }

    /// One more attempt is under way.
    pub fn begin(&self) -> UnderWay {
        self.0.under_way.fetch_add(1, Ordering::Relaxed);
        UnderWay(self.clone())
    }

    /// Whether an attempt is under way.
    pub fn is_under_way(&self) -> bool {
        self.0.under_way.load(Ordering::Relaxed) > 0
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.seen.lock().expect("no code panics while it holds this lock")
    }
}

impl fmt::Debug for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Latency({:?})", self.average())
    }
}

// === impl Seen ===

impl Seen {
    fn at(&self, now: Instant) -> Option<f64> {
        let Some((average, at)) = self.average else { return self.probed };
        let rest = self.quickest.unwrap_or(0.0).max(self.probed.unwrap_or(0.0));
        Some(if average > rest { rest + (average - rest) * kept(now - at) } else { rest })
    }
}

/// The share of a peak that is left after `passed`.
fn kept(passed: Duration) -> f64 {
    (-passed.as_secs_f64() / MEMORY.as_secs_f64()).exp()
}

// === impl UnderWay ===

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn shown(latency: &Latency) -> u128 {
        latency.average().unwrap().as_millis()
    }

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_answer_counts_at_once_and_quick_ones_wear_it_off() {
        let latency = Latency::default();
        assert_eq!(latency.average(), None);
        latency.observe(ms(10));
        latency.observe(ms(500));
        assert_eq!(shown(&latency), 500);
        latency.observe(ms(10));
        assert_eq!(shown(&latency), 500, "no time has passed");
        pass(10).await;
        latency.observe(ms(10));
        assert!((185..=200).contains(&shown(&latency)), "{latency:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_asked_drifts_back_to_its_quickest() {
        let latency = Latency::default();
        latency.observe(ms(10));
        latency.waited(ms(900));
        latency.waited(ms(100));
        assert_eq!(shown(&latency), 900);
        pass(20).await;
        assert!((120..=140).contains(&shown(&latency)), "{latency:?}");
        pass(100).await;
        assert_eq!(shown(&latency), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_way_that_probes_find_slow_is_not_forgiven() {
        let latency = Latency::default();
        latency.probed(ms(7));
        assert_eq!(shown(&latency), 7, "better than nothing");
        latency.observe(ms(2));
        latency.waited(ms(3_000));
        latency.probed(ms(800));
        pass(600).await;
        assert_eq!(shown(&latency), 800);
        latency.observe(ms(2));
        pass(600).await;
        assert_eq!(shown(&latency), 2, "an answer says more than a probe");
    }

    #[test]
    fn attempts_under_way_add_to_the_cost() {
        let latency = Latency::default();
        latency.observe(ms(2));
        let under_way: Vec<_> = (0..9).map(|_| latency.begin()).collect();
        assert_eq!((latency.cost(), shown(&latency)), (Some(ms(20)), 2));
        drop(under_way);
        assert_eq!(latency.cost(), Some(ms(2)));
    }
}
