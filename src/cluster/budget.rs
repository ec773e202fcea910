//! How much may be asked on top of what callers ask.
//!
//! A share of the calls of the last ten seconds, and a reserve for a daemon that is mostly
//! idle: its first fault after ten quiet minutes must find something to draw on. It is
//! tower's `TpsBudget` with two things more: it can be read, for a gauge, and what was
//! drawn for nothing can be put back.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use opentelemetry::KeyValue;
use tokio::time::Instant;

use super::operation::AttemptReason;
use crate::config::settings::ClusterName;
use crate::telemetry::metrics::{self, Metric};

/// What a call brought or took counts for so long.
const SPAN: Duration = Duration::from_secs(10);

/// What happened within one of these counts as one sum.
const SLOT: Duration = Duration::from_secs(1);

/// One attempt, in the hundredths that a share needs.
const ONE: i64 = 100;

/// An allowance of attempts, shared by all calls to a cluster.
pub struct Budget {
    reserve: i64,
    percent: i64,
    labels: [KeyValue; 2],
    slots: Mutex<VecDeque<Slot>>,
}

/// What went in and out within one [`SLOT`], in hundredths of an attempt.
struct Slot {
    since: Instant,
    sum: i64,
}

// === impl Budget ===

impl Budget {
    /// `percent` of the calls of the last 10 s, and `per_second` for each of them, for
    /// attempts that `cluster` is asked for this reason.
    pub fn new(
        cluster: &ClusterName,
        reason: AttemptReason,
        per_second: u32,
        percent: u32,
    ) -> Self {
        let seconds = i64::try_from(SPAN.as_secs()).unwrap_or(i64::MAX);
        let labels = [
            KeyValue::new("cluster", cluster.as_str().to_owned()),
            KeyValue::new("reason", reason.as_str()),
        ];
        let budget = Self {
            reserve: i64::from(per_second) * seconds * ONE,
            percent: i64::from(percent),
            labels,
            slots: Mutex::default(),
        };
        budget.tell(budget.left());
        budget
    }

    /// A call began.
    pub fn deposit(&self) {
        let mut slots = self.slots();
        let is_a_new_second = slots.back().is_none_or(|slot| slot.since.elapsed() >= SLOT);
        if is_a_new_second {
            slots.push_back(Slot { since: Instant::now(), sum: 0 });
        }
        if let Some(slot) = slots.back_mut() {
            slot.sum += self.percent;
        }
        if is_a_new_second {
            let left = self.sum(&slots);
            drop(slots);
            self.tell(left);
        }
    }

    /// Takes one attempt out, if there is one.
    pub fn withdraw(&self) -> bool {
        let mut slots = self.slots();
        let has_one = self.sum(&slots) >= ONE;
        if has_one {
            Self::add(&mut slots, -ONE);
        }
        let left = self.sum(&slots);
        drop(slots);
        self.tell(left);
        has_one
    }

    /// Puts back what was drawn for an attempt that was not made.
    pub fn put_back(&self) {
        Self::add(&mut self.slots(), ONE);
    }

    /// Attempts that are left now.
    fn left(&self) -> i64 {
        self.sum(&self.slots())
    }

    fn add(slots: &mut VecDeque<Slot>, amount: i64) {
        match slots.back_mut() {
            Some(slot) if slot.since.elapsed() < SLOT => slot.sum += amount,
            _ => slots.push_back(Slot { since: Instant::now(), sum: amount }),
        }
    }

    fn sum(&self, slots: &VecDeque<Slot>) -> i64 {
        slots.iter().map(|slot| slot.sum).sum::<i64>() + self.reserve
    }

    /// The sums that still count.
    fn slots(&self) -> MutexGuard<'_, VecDeque<Slot>> {
        let mut slots = self.slots.lock().expect("no code panics while it holds this lock");
        while slots.front().is_some_and(|slot| slot.since.elapsed() >= SPAN) {
            slots.pop_front();
        }
        slots
    }

    fn tell(&self, left: i64) {
        #[allow(clippy::cast_precision_loss)] // a few thousand
        metrics::set(Metric::BudgetLeft, (left / ONE).max(0) as f64, &self.labels);
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").field("left", &(self.left() / ONE)).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(per_second: u32, percent: u32) -> Budget {
        let cluster = ClusterName::try_new("test").unwrap();
        Budget::new(&cluster, AttemptReason::Retry, per_second, percent)
    }

    fn drawn(budget: &Budget) -> usize {
        (0..10_000).take_while(|_| budget.withdraw()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_the_reserve_and_a_share_of_the_calls() {
        let budget = budget(10, 5);
        assert_eq!(drawn(&budget), 100);
        (0..200).for_each(|_| budget.deposit());
        assert_eq!(drawn(&budget), 10);
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(drawn(&budget), 0, "what a burst took comes back only later");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(drawn(&budget), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_full_after_ten_idle_minutes() {
        let budget = budget(10, 20);
        (0..1_000).for_each(|_| budget.deposit());
        drawn(&budget);
        tokio::time::advance(Duration::from_secs(600)).await;
        budget.deposit();
        assert_eq!(drawn(&budget), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_used_is_put_back() {
        let budget = budget(0, 100);
        budget.deposit();
        assert!(budget.withdraw() && !budget.withdraw());
        budget.put_back();
        assert!(budget.withdraw());
    }
}
