//! How much may be asked on top of what callers ask.
//!
//! A share of the calls, and a reserve for a daemon that is mostly idle: its first fault
//! after ten quiet minutes must find something to draw on. What is left is one figure: each
//! call brings its share, each attempt takes one, a part of the reserve comes back with
//! time. It never holds more than the reserve and the share of the last ten seconds' calls,
//! so that what a busy hour has saved is not spent on a Vault in trouble.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use opentelemetry::KeyValue;
use tokio::time::Instant;

use super::operation::AttemptReason;
use crate::config::settings::ClusterName;
use crate::telemetry::metrics::{self, Metric};

/// What a call brought can be drawn for so long.
const SPAN: Duration = Duration::from_secs(10);

/// What happened within one of these counts as one sum.
const SLOT: Duration = Duration::from_secs(1);

/// One attempt, in the hundredths that a share needs.
const ONE: i64 = 100;

/// How much a budget allows.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    /// Attempts for each hundred calls.
    pub percent: u32,
    /// Attempts beyond these that can be made at once after a quiet time.
    pub reserve: u32,
    /// How long it takes until one of the reserve is back.
    pub refill: Duration,
}

/// An allowance of attempts, shared by all calls to a cluster.
pub struct Budget {
    allowance: Allowance,
    labels: [KeyValue; 2],
    account: Mutex<Account>,
}

/// In hundredths of an attempt.
struct Account {
    left: i64,
    /// Until when the reserve has been filled up.
    filled: Instant,
    /// What the calls of the last seconds brought.
    earned: VecDeque<Slot>,
}

/// What came in within one [`SLOT`].
struct Slot {
    since: Instant,
    sum: i64,
}

// === impl Budget ===

impl Budget {
    /// What `allowance` says, for attempts that `cluster` is asked for this reason.
    pub fn new(cluster: &ClusterName, reason: AttemptReason, allowance: Allowance) -> Self {
        let labels = [
            KeyValue::new("cluster", cluster.as_str().to_owned()),
            KeyValue::new("reason", reason.as_str()),
        ];
        let left = i64::from(allowance.reserve) * ONE;
        let account = Account { left, filled: Instant::now(), earned: VecDeque::new() };
        let budget = Self { allowance, labels, account: Mutex::new(account) };
        budget.tell(left);
        budget
    }

    /// A call began.
    pub fn deposit(&self) {
        let mut account = self.account();
        let share = i64::from(self.allowance.percent);
        account.left += share;
        let is_a_new_second = match account.earned.back_mut() {
            Some(slot) if slot.since.elapsed() < SLOT => {
                slot.sum += share;
                false
            }
            _ => {
                account.earned.push_back(Slot { since: Instant::now(), sum: share });
                true
            }
        };
        let left = account.left;
        drop(account);
        if is_a_new_second {
            self.tell(left);
        }
    }

    /// Takes one attempt out, if there is one.
    pub fn withdraw(&self) -> bool {
        let mut account = self.account();
        let has_one = account.left >= ONE;
        if has_one {
            account.left -= ONE;
        }
        let left = account.left;
        drop(account);
        self.tell(left);
        has_one
    }

    /// Puts back what was drawn for attempts that were not made, or that were worth it.
    pub fn put_back(&self, attempts: usize) {
        self.account().left += i64::try_from(attempts).unwrap_or(0) * ONE;
    }

    /// Attempts that are left now.
    fn left(&self) -> i64 {
        self.account().left / ONE
    }

    /// The account of this moment.
    fn account(&self) -> MutexGuard<'_, Account> {
        let mut account = self.account.lock().expect("no code panics while it holds this lock");
        account.bring_up_to_date(&self.allowance);
        account
    }

    fn tell(&self, left: i64) {
        #[allow(clippy::cast_precision_loss)] // a few thousand
        metrics::set(Metric::BudgetLeft, (left / ONE).max(0) as f64, &self.labels);
    }
}

// === impl Account ===

impl Account {
    fn bring_up_to_date(&mut self, allowance: &Allowance) {
        while self.earned.front().is_some_and(|slot| slot.since.elapsed() >= SPAN) {
            self.earned.pop_front();
        }
        let part = allowance.refill / 100;
        let parts = self.filled.elapsed().as_nanos() / part.as_nanos().max(1);
        let parts = u32::try_from(parts).unwrap_or(u32::MAX);
        self.filled += part * parts;
        let most = i64::from(allowance.reserve) * ONE
            + self.earned.iter().map(|slot| slot.sum).sum::<i64>();
        self.left = (self.left + i64::from(parts)).min(most);
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").field("left", &self.left()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn budget(percent: u32, reserve: u32, refill: Duration) -> Budget {
        let cluster = ClusterName::try_new("test").unwrap();
        Budget::new(&cluster, AttemptReason::Retry, Allowance { percent, reserve, refill })
    }

    fn drawn(budget: &Budget) -> usize {
        (0..10_000).take_while(|_| budget.withdraw()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_the_reserve_and_a_share_of_the_calls() {
        let budget = budget(5, 3, secs(60));
        assert_eq!(drawn(&budget), 3);
        (0..200).for_each(|_| budget.deposit());
        assert_eq!(drawn(&budget), 10);
        tokio::time::advance(secs(59)).await;
        assert_eq!(drawn(&budget), 0, "what a burst took comes back only later");
        tokio::time::advance(secs(1)).await;
        assert_eq!(drawn(&budget), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn few_calls_are_joined_as_seldom_as_many() {
        let budget = budget(5, 3, secs(60));
        drawn(&budget);
        let mut joined = 0;
        for _ in 0..600 {
            budget.deposit();
            joined += drawn(&budget);
            tokio::time::advance(secs(1) / 2).await;
        }
        assert_eq!(joined, 600 / 20 + 300 / 60 - 1, "a share of the calls, one a minute");
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_full_after_ten_idle_minutes_and_never_fuller() {
        let budget = budget(20, 3, secs(60));
        (0..1_000).for_each(|_| budget.deposit());
        drawn(&budget);
        tokio::time::advance(secs(600)).await;
        assert_eq!(drawn(&budget), 3);
        (0..1_000).for_each(|_| budget.deposit());
        tokio::time::advance(secs(10)).await;
        assert_eq!(drawn(&budget), 3, "what calls brought is forgotten with them");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_used_is_put_back() {
        let budget = budget(100, 0, secs(60));
        budget.deposit();
        assert!(budget.withdraw() && !budget.withdraw());
        budget.put_back(1);
        assert!(budget.withdraw());
    }
}
