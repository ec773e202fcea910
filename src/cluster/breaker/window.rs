//! How often attempts failed of late, in bounded memory.

use std::time::Duration;

use tokio::time::Instant;

/// So many steps make up the window: an outcome is forgotten when it is between nine and
/// ten tenths of the window old.
const BUCKETS: usize = 10;

/// Outcomes of the last while, counted in buckets of time.
#[derive(Debug)]
pub(super) struct Window {
    began: Instant,
    step: Duration,
    /// The number of the bucket that counts now, from the beginning.
    current: u64,
    buckets: [Counts; BUCKETS],
}

/// Outcomes of one stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) sound: u32,
    pub(super) faults: u32,
}

// === impl Window ===

impl Window {
    /// An empty window that holds the outcomes of the last `span`.
    pub(super) fn new(span: Duration) -> Self {
        let step = (span / u32::try_from(BUCKETS).unwrap_or(1)).max(Duration::from_millis(1));
        Self { began: Instant::now(), step, current: 0, buckets: Default::default() }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.buckets = Default::default();
    }

    /// Counts one outcome.
    pub(super) fn count(&mut self, is_fault: bool) {
        let bucket = self.turn();
        let counted = if is_fault { &mut bucket.faults } else { &mut bucket.sound };
        *counted = counted.saturating_add(1);
    }

    /// What the window holds now.
    pub(super) fn total(&mut self) -> Counts {
        self.turn();
        self.buckets.iter().fold(Counts::default(), |sum, bucket| Counts {
            sound: sum.sound.saturating_add(bucket.sound),
            faults: sum.faults.saturating_add(bucket.faults),
        })
    }

    /// Empties the buckets that time has passed over; the one that counts now.
    fn turn(&mut self) -> &mut Counts {
        let passed = self.began.elapsed().as_millis() / self.step.as_millis();
        let now = u64::try_from(passed).unwrap_or(u64::MAX);
        let turns = now.saturating_sub(self.current);
        for turn in 1..=turns.min(BUCKETS as u64) {
            self.buckets[Self::place(now - turns + turn)] = Counts::default();
        }
        self.current = now;
        &mut self.buckets[Self::place(now)]
    }

    const fn place(number: u64) -> usize {
        (number % BUCKETS as u64) as usize
    }
}

// === impl Counts ===

impl Counts {
    /// How many outcomes there were.
    pub(super) const fn samples(self) -> u32 {
        self.sound.saturating_add(self.faults)
    }

    /// Which share of them were faults; 0 when there were none.
    pub(super) fn ratio(self) -> f64 {
        f64::from(self.faults) / f64::from(self.samples().max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_secs(30);

    const fn counts(sound: u32, faults: u32) -> Counts {
        Counts { sound, faults }
    }

    #[tokio::test(start_paused = true)]
    async fn outcomes_leave_the_window_as_time_passes() {
        let mut window = Window::new(SPAN);
        for second in 0..60_u32 {
            window.count(second % 2 == 1);
            let held = window.total().samples();
            assert!(held <= 30, "{held} after {second} s");
            assert!(held >= (second + 1).min(27), "{held} after {second} s");
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        tokio::time::advance(Duration::from_secs(26)).await;
        assert!(window.total().samples() > 0);
        tokio::time::advance(Duration::from_secs(4)).await;
        assert_eq!(window.total(), counts(0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_day_leaves_nothing_behind() {
        let mut window = Window::new(SPAN);
        for _ in 0..3 {
            window.count(true);
            assert_eq!(window.total(), counts(0, 1));
            tokio::time::advance(Duration::from_secs(24 * 3_600 + 7)).await;
            assert_eq!(window.total(), counts(0, 0));
        }
    }

    #[test]
    fn no_outcomes_are_no_failures() {
        assert!(counts(0, 0).ratio() < f64::EPSILON);
        assert!((counts(3, 1).ratio() - 0.25).abs() < f64::EPSILON);
    }
}
