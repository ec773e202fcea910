//! What the calls of a row say about time.

use std::time::Duration;

use tokio::time::Instant;

use crate::Timed;

/// Calls are looked at through a window of this length,
const WINDOW: Duration = Duration::from_millis(500);

/// which is moved by so much at a time.
const STEP: Duration = Duration::from_millis(50);

/// Trouble is over when so much time in a row was as before.
const CALM: Duration = Duration::from_secs(1);

/// A window is as before when its p99 is at most this many times the p99 before the fault,
const FACTOR: u32 = 2;

/// or at most this: on two cores that the nodes, the daemon and the callers share, less says
/// nothing.
const NOISE: Duration = Duration::from_millis(50);

/// The `per_mille`th of `calls` by time taken; zero when there are none.
pub(super) fn quantile<'a>(
    calls: impl IntoIterator<Item = &'a Timed>,
    per_mille: usize,
) -> Duration {
    let mut times: Vec<Duration> = calls.into_iter().map(|call| call.took).collect();
    times.sort_unstable();
    let at = (times.len() * per_mille).div_ceil(1000).saturating_sub(1);
    times.get(at).copied().unwrap_or_default()
}

/// How long after `from` calls were last slower than before, or failed, until [`CALM`]; zero
/// when nothing was to be noticed. `normal` is the p99 of undisturbed calls.
///
/// A call counts in every window that it overlaps, so one that hangs is noticed while it does.
pub(super) fn recovery(
    calls: &[Timed],
    from: Instant,
    until: Instant,
    normal: Duration,
) -> Duration {
    let limit = (normal * FACTOR).max(NOISE);
    let mut trouble_until = from;
    let mut begin = from;
    while begin < until && begin < trouble_until + CALM {
        let end = begin + WINDOW;
        let within = calls.iter().filter(|call| call.began < end && call.end() > begin);
        let within: Vec<&Timed> = within.collect();
        let is_bad = within.is_empty()
            || within.iter().any(|call| !call.is_good)
            || quantile(within.iter().copied(), 990) > limit;
        if is_bad {
            trouble_until = last_slow(&within, limit).unwrap_or(end).min(until).max(trouble_until);
        }
        begin += STEP;
    }
    trouble_until - from
}

/// When the last of these calls ended that took longer than `limit`, or failed.
fn last_slow(calls: &[&Timed], limit: Duration) -> Option<Instant> {
    let slow = calls.iter().filter(|call| !call.is_good || call.took > limit);
    slow.map(|call| call.end()).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Calls of 5 ms, one after another, for `count` times 5 ms.
    fn steady(from: Instant, count: u32) -> Vec<Timed> {
        let call = |n| Timed { began: from + n * 5 * MS, took: 5 * MS, is_good: true };
        (0..count).map(call).collect()
    }

    #[test]
    fn a_quantile_is_the_call_that_so_many_do_not_exceed() {
        let now = Instant::now();
        let calls: Vec<_> =
            (1..=100).map(|n| Timed { began: now, took: n * MS, is_good: true }).collect();
        assert_eq!(quantile(&calls, 500), 50 * MS);
        assert_eq!(quantile(&calls, 990), 99 * MS);
        assert_eq!(quantile(&calls, 1000), 100 * MS);
        assert_eq!(quantile(&calls[..1], 990), MS);
        assert_eq!(quantile(&[], 990), Duration::ZERO);
    }

    #[test]
    fn steady_calls_have_nothing_to_recover_from() {
        let now = Instant::now();
        let calls = steady(now, 1000);
        assert_eq!(recovery(&calls, now + 1000 * MS, now + 4000 * MS, 5 * MS), Duration::ZERO);
    }

    #[test]
    fn recovery_lasts_until_the_last_slow_call_has_ended() {
        let now = Instant::now();
        let fault = now + 1000 * MS;
        let mut calls = steady(now, 200);
        // Two slow calls after each other, then all is well for three seconds.
        calls.push(Timed { began: fault, took: 300 * MS, is_good: true });
        calls.push(Timed { began: fault + 300 * MS, took: 400 * MS, is_good: true });
        calls.extend(steady(fault + 700 * MS, 600));
        assert_eq!(recovery(&calls, fault, now + 4700 * MS, 5 * MS), 700 * MS);
    }

    #[test]
    fn a_failed_call_is_trouble_however_fast_it_was() {
        let now = Instant::now();
        let mut calls = steady(now, 600);
        calls.push(Timed { began: now + 100 * MS, took: MS, is_good: false });
        assert_eq!(recovery(&calls, now, now + 3000 * MS, 5 * MS), 101 * MS);
    }

    #[test]
    fn silence_is_trouble() {
        let now = Instant::now();
        let mut calls = steady(now, 100);
        calls.extend(steady(now + 2500 * MS, 400));
        let took = recovery(&calls, now, now + 4500 * MS, 5 * MS);
        assert!(took >= 2450 * MS && took <= 2550 * MS, "{took:?}");
    }
}
