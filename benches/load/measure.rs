//! Callers that call without a pause, and what they saw.

use std::time::Duration;

use hdrhistogram::Histogram;
use lab::{Error, Result};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::side::{Failure, Side, Verb};
use crate::spent::{Meter, Spent};

/// How many times the sides take turns in a row.
pub(crate) const SLICES: u32 = 4;

/// Calls that all callers make together before anything is counted; two each at least.
const WARM_UP: usize = 500;

/// A caller that failed does not go on at once: what fails fast would count as load.
const AFTER_A_FAILURE: Duration = Duration::from_millis(10);

/// What one side did.
pub(crate) struct Measured {
    pub(crate) latencies: Histogram<u64>,
    pub(crate) busy: Duration,
    pub(crate) failed: u64,
    pub(crate) first_failure: Option<String>,
    /// What it cost, where that is asked for.
    pub(crate) spent: Spent,
}

/// What each of many callers does.
#[derive(Clone, Copy)]
struct Task {
    verb: Verb,
    /// Whose objects it takes: `first..first + count`, in turn.
    first: usize,
    count: usize,
}

/// Lets `callers` call each side for `seconds`, in slices that take turns.
pub(crate) async fn take_turns(
    sides: &[Side],
    verb: Verb,
    callers: usize,
    seconds: f64,
    meter: &Meter<'_>,
) -> Result<Vec<Measured>> {
    for side in sides {
        warm_up(side, verb, callers).await?;
    }
    let mut all: Vec<_> = sides.iter().map(|_| Measured::new()).collect();
    let slice = Duration::from_secs_f64(seconds) / SLICES;
    for turn in 0..SLICES {
        let mut order: Vec<usize> = (0..sides.len()).collect();
        // Whoever comes first meets what the row before has left behind.
        if !turn.is_multiple_of(2) {
            order.reverse();
        }
        for place in order {
            let begin = meter.read().await?;
            all[place].slice(&sides[place], verb, callers, slice).await?;
            all[place].spent.add(begin, meter.read().await?);
        }
    }
    Ok(all)
}

/// Connections, pools and the code itself. Only a wrong answer is a failure here.
pub(crate) async fn warm_up(side: &Side, verb: Verb, callers: usize) -> Result {
    let mut tasks = JoinSet::new();
    let rounds = (WARM_UP / callers).max(2);
    for caller in 0..callers {
        let (side, task) = (side.clone(), Task::of(side, verb, caller, callers));
        tasks.spawn(async move {
            for round in 0..rounds {
                match task.call(&side, round).await {
                    Err(failure @ Failure::Wrong(_)) => return Err(failure),
                    Err(Failure::Call(_)) => sleep(AFTER_A_FAILURE).await,
                    Ok(_) => {}
                }
            }
            Ok(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended?.map_err(Error::from)?;
    }
    Ok(())
}

// === impl Task ===

impl Task {
    /// Callers share no object: the daemon may answer two that ask the same thing at once
    /// with one request.
    fn of(side: &Side, verb: Verb, caller: usize, callers: usize) -> Self {
        let count = (side.len() / callers).max(1);
        Self { verb, first: caller * count % side.len(), count }
    }

    /// Answers what a later [`Side::open`] must find the seed of the object in.
    async fn call(
        self,
        side: &Side,
        round: usize,
    ) -> Result<Option<(crate::side::Stored, usize)>, Failure> {
        let number = self.first + round % self.count;
        match self.verb {
            Verb::Encrypt => Ok(Some((side.encrypt(number).await?, number))),
            Verb::Decrypt => side.decrypt(number).await.map(|()| None),
        }
    }
}

// === impl Measured ===

impl Measured {
    pub(crate) fn new() -> Self {
        let latencies = Histogram::new(3).expect("three digits are a valid precision");
        let (busy, spent) = (Duration::ZERO, Spent::default());
        Self { latencies, busy, failed: 0, first_failure: None, spent }
    }

    /// Lets `callers` call for a while.
    pub(crate) async fn slice(
        &mut self,
        side: &Side,
        verb: Verb,
        callers: usize,
        slice: Duration,
    ) -> Result {
        let begin = Instant::now();
        let end = begin + slice;
        let mut tasks = JoinSet::new();
        for caller in 0..callers {
            let (side, task) = (side.clone(), Task::of(side, verb, caller, callers));
            tasks.spawn(async move {
                let (mut taken, mut failed, mut last) = (Vec::new(), Vec::new(), None);
                let mut round = 0;
                while Instant::now() < end {
                    let start = Instant::now();
                    match task.call(&side, round).await {
                        Ok(made) => {
                            taken.push(start.elapsed());
                            last = made;
                        }
                        Err(Failure::Call(why)) => {
                            failed.push(why);
                            sleep(AFTER_A_FAILURE).await;
                        }
                        Err(wrong) => return Err(wrong),
                    }
                    round += 1;
                }
                Ok((taken, failed, last))
            });
        }
        let mut made = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            let (taken, failed, last) = ended?.map_err(Error::from)?;
            taken.into_iter().try_for_each(|took| self.record(took))?;
            made.extend(last);
            for why in failed {
                self.failed(why);
            }
        }
        self.busy += begin.elapsed();
        // When nothing is counted: what each caller encrypted last holds its seed.
        for (stored, number) in made {
            if let Err(wrong @ Failure::Wrong(_)) = side.open(&stored, number).await {
                return Err(wrong.into());
            }
        }
        Ok(())
    }

    /// Counts a call.
    pub(crate) fn record(&mut self, took: Duration) -> Result {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        Ok(self.latencies.record(micros.max(1))?)
    }

    /// Counts a call that had no answer.
    pub(crate) fn failed(&mut self, why: String) {
        self.failed += 1;
        self.first_failure.get_or_insert(why);
    }

    /// Calls a second.
    pub(crate) fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.busy.as_secs_f64()
    }

    /// A quantile, in ms.
    pub(crate) fn millis(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1_000.0
    }
}
