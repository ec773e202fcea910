//! An attempt under way, and how it ended.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::parking::{Lot, Scouting};
use crate::cluster::address::{Address, UnderWay};
use crate::cluster::breaker::Witness;
use crate::cluster::error::{AttemptError, Fault};
use crate::cluster::operation::{AddressIndex, Answer, Fate, Verb};

/// An attempt under way.
pub struct InFlight {
    pub(super) address: Address,
    pub(super) witness: Option<Witness>,
    pub(super) began: Instant,
    pub(super) fate: Fate,
    pub(super) preferred: Arc<AtomicU8>,
    pub(super) lot: Arc<Lot>,
    /// Addresses of the cluster.
    pub(super) addresses: usize,
    pub(super) verb: Verb,
    pub(super) _under_way: UnderWay,
    pub(super) _scouting: Option<Scouting>,
    pub(super) answering: BoxFuture<'static, Result<Answer, AttemptError>>,
}

/// An attempt that has ended.
#[derive(Debug)]
pub struct Landed {
    /// Which address it was sent to.
    pub index: AddressIndex,
    /// How long it took.
    pub took: Duration,
    result: Result<Answer, AttemptError>,
    preferred: Arc<AtomicU8>,
}

// === impl InFlight ===

impl InFlight {
    /// Which address it was sent to.
    pub const fn index(&self) -> AddressIndex {
        self.address.index
    }

    /// What became of it when nobody waits for it any longer.
    pub fn silence(&self) -> AttemptError {
        AttemptError {
            address: self.address.name.clone(),
            index: self.address.index,
            fault: Fault::Silent(self.began.elapsed()),
        }
    }

    /// Whether it is a half-open breaker's one trial.
    pub fn is_trial(&self) -> bool {
        self.witness.as_ref().is_some_and(Witness::is_trial)
    }

    /// Whether its address has been left out since it was sent.
    pub fn is_left_out(&self) -> bool {
        self.witness.as_ref().is_some_and(Witness::is_overtaken)
    }

    /// Another attempt, which `took` so long, brought the answer. When this one had that
    /// time and `patience` on top, its silence counts against its address; whatever comes
    /// of it now does not. (Where every address is slow alike, none is silent.)
    pub fn lose(&self, took: Duration, patience: Duration) {
        let lasted = self.began.elapsed();
        self.address.latency.waited(lasted);
        self.fate.give_up();
        if lasted >= took + patience
            && let Some(witness) = &self.witness
        {
            witness.silent(lasted);
        }
    }
}

impl Future for InFlight {
    type Output = Landed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Landed> {
        self.answering.as_mut().poll(cx).map(|result| {
            let (index, took) = (self.address.index, self.began.elapsed());
            // What a loser brings late is news only when it is good.
            if result.is_ok() || !self.fate.is_given_up() {
                self.lot.hear(index, self.verb, &result, took, self.addresses);
            }
            Landed { index, took, result, preferred: Arc::clone(&self.preferred) }
        })
    }
}

impl fmt::Debug for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InFlight({})", self.address.name)
    }
}

// === impl Landed ===

impl Landed {
    /// How it ended. The hedge asks for its winner only: calls then go to the winner's
    /// address until another one does better.
    ///
    /// # Errors
    /// When it brought no answer.
    pub fn accept(self) -> Result<Answer, AttemptError> {
        if self.result.is_ok() {
            self.preferred.store(self.index.0, Ordering::Relaxed);
        }
        self.result
    }
}
