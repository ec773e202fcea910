//! Calls without a pause, as a busy apiserver makes them, and what became of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lab::{Daemon, Kms, Result};
use tokio::task::JoinSet;
use tokio::time::Instant;

const CALLERS: usize = 4;

/// Callers that encrypt and decrypt until they are told to stop.
#[derive(Debug)]
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    callers: JoinSet<Tally>,
}

/// What became of the calls.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) calls: usize,
    pub(crate) failed: usize,
    pub(crate) slowest: Duration,
    pub(crate) first_failure: Option<String>,
}

// === impl Traffic ===

impl Traffic {
    pub(crate) fn start(daemon: &Daemon) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            callers.spawn(call_on(daemon.kms(), Arc::clone(&stop)));
        }
        Self { stop, callers }
    }

    pub(crate) async fn finish(self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Tally::default();
        for tally in self.callers.join_all().await {
            sum.calls += tally.calls;
            sum.failed += tally.failed;
            sum.slowest = sum.slowest.max(tally.slowest);
            sum.first_failure = sum.first_failure.or(tally.first_failure);
        }
        Ok(sum)
    }
}

async fn call_on(kms: Kms, stop: Arc<AtomicBool>) -> Tally {
    let v1 = kms.v1();
    let mut tally = Tally::default();
    let seed = [0x5a; 32];
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        let made = v1.encrypt(&seed).await;
        tally.count(started, made.as_ref().err().map(ToString::to_string));
        let Ok(made) = made else { continue };

        let started = Instant::now();
        let failure = match v1.decrypt(&made).await {
            Ok(opened) if opened == seed => None,
            Ok(_) => Some("Decrypt answered something else".to_owned()),
            Err(status) => Some(status.to_string()),
        };
        tally.count(started, failure);
    }
    tally
}

// === impl Tally ===

impl Tally {
    fn count(&mut self, started: Instant, failure: Option<String>) {
        self.calls += 1;
        self.slowest = self.slowest.max(started.elapsed());
        if let Some(failure) = failure {
            self.failed += 1;
            self.first_failure.get_or_insert(failure);
        }
    }

    /// Prints itself; any failed call is an error.
    pub(crate) fn tell(&self) -> Result {
        let slowest = self.slowest.as_millis();
        println!("  calls {}, failed {}, slowest {slowest} ms", self.calls, self.failed);
        match &self.first_failure {
            None => Ok(()),
            Some(failure) => lab::fail!("{} calls failed, first: {failure}", self.failed),
        }
    }
}
