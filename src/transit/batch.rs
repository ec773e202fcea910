//! Calls that come together go to Vault together.
//!
//! A batch of 64 costs Vault little more than a single call does. So for each path and verb
//! one request is in flight, two while they carry few calls or very many, and what arrives goes
//! with the next. There is no timer: a call that finds room goes at once, with those that have
//! arrived already, and if there are none as a single request, within its own future, so that
//! whoever is alone loses nothing. Nothing above knows of batches, and to everything below
//! (token, retry, hedge, breaker) a batch is one call.
//!
//! What each caller may rely on:
//!
//! - It gets the answer to what it asked, or an error. An answer's references must be exactly
//!   those that were sent, each result passes the checks of a single answer, and anything else
//!   is asked one by one, as all calls are for a while then (`queue`).
//! - The first batch of encrypts that an address answers is decrypted and compared, item by
//!   item, before any of it is handed out.
//! - Its neighbours cost it nothing: a refused item is refused alone.
//! - No refusal is final that would not be for a single call. What may be stale is asked of
//!   the active node, many together and one alone.
//! - Its own deadline holds, with an error that names the addresses. A batch lives as long as
//!   somebody waits for any of it.
//! - KMS v1, which calls for each object, and v2 take turns: a storm of the one holds up nobody
//!   of the other.
//! - A request that is silent holds up the others for 25 ms, and for longer only where more are
//!   silent.
//!
//! Identical decrypts are one item: after a restart, many kube-apiservers ask for the same key.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio_util::sync::{CancellationToken, DropGuard};
use zeroize::Zeroizing;

use super::wire::Wrong;
use super::wire::batch::{Entry, Found};
use super::{Refusal, TransitError, VaultCiphertext};
use crate::clock::Deadline;
use crate::cluster::{Answer, CallError, Verb};
use crate::config::settings::ClusterName;
use ceiling::Cost;
use item::{Ticket, Told};
use line::Line;

pub(super) use item::Outcome;
pub(super) use line::Turn;
pub(super) use queue::Place;

mod ceiling;
mod flight;
mod item;
mod lanes;
mod line;
mod queue;
mod told;

/// How long after its deadline a caller still takes what its batch brings: the error of the
/// batch itself, whose deadline may be the same, tells more than one of ours. The guard over
/// calls lies 25 ms after the deadline.
const GRACE: Duration = Duration::from_millis(10);

/// With less time left, a call that has shared another one's outage is not worth sending.
const LAST_TRY: Duration = Duration::from_millis(100);

/// One verb of one key, as it is batched.
pub(super) trait Batched: Send + Sync + Sized + 'static {
    /// What a caller asks.
    type Ask: Send + Sync + 'static;
    /// What it is given.
    type Given: Clone + Send + Sync + 'static;
    /// The verb.
    const VERB: Verb;

    fn cluster(&self) -> &ClusterName;

    /// It as an item of a batch.
    fn entry(ask: &Self::Ask) -> Entry<'_>;

    /// What makes two of them one, where that is possible.
    fn identity(ask: &Self::Ask) -> Option<&VaultCiphertext>;

    /// A single request.
    fn alone<'a>(
        &'a self,
        ask: &'a Self::Ask,
        deadline: Deadline,
    ) -> BoxFuture<'a, Outcome<Self::Given>>;

    /// A request with this body; brings every answer that is final.
    fn together(
        &self,
        body: Zeroizing<Vec<u8>>,
        needs_active: bool,
        deadline: Deadline,
    ) -> BoxFuture<'_, Result<Brought, CallError>>;

    /// Reads and checks one item's result.
    fn read(&self, ask: &Self::Ask, found: &Found<'_>, of: &Answer) -> Result<Self::Given, Wrong>;

    /// Whether results that passed their checks may be handed out.
    fn prove<'a>(
        &'a self,
        _results: Vec<(&'a Self::Ask, &'a Self::Given)>,
        _of: &'a Answer,
        _deadline: Deadline,
    ) -> BoxFuture<'a, Proof> {
        Box::pin(std::future::ready(Proof::Given))
    }

    fn refused(&self, refusal: Refusal, by: &Answer) -> TransitError;

    fn unacceptable(&self, what: String, by: &Answer) -> TransitError;

    fn unavailable(&self, error: CallError) -> TransitError;

    /// So many wait already.
    fn crowded(&self, waiting: usize) -> TransitError;

    /// The deadline of one that waits for others has come.
    fn overdue(&self) -> TransitError;
}

/// What a proof of results came to.
#[derive(Debug)]
pub(super) enum Proof {
    /// They may be handed out.
    Given,
    /// Nobody knows, and why.
    Missing(String),
    /// They are wrong.
    Refuted,
}

/// A final answer.
pub(super) struct Brought {
    pub(super) answer: Answer,
    /// It is the active node's word for certain.
    pub(super) is_by_active: bool,
}

/// Sends what is asked of one verb together, where it comes together. Its tasks end with it.
pub(super) struct Batcher<K: Batched> {
    line: Arc<Line<K>>,
    _end_on_drop: DropGuard,
}

// === impl Batcher ===

impl<K: Batched> Batcher<K> {
    pub(super) fn new(kind: K) -> Self {
        let ended = CancellationToken::new();
        Self { line: Line::new(kind, ended.clone()), _end_on_drop: ended.drop_guard() }
    }

    /// How a call that comes now goes: whoever is told to go with others must [`Self::wait`]
    /// next.
    pub(super) async fn turn(&self) -> Turn<K> {
        let turn = self.line.turn().await;
        if matches!(turn, Turn::Alone(_)) {
            self.line.labels.size(1);
        }
        turn
    }

    /// Waits in line, and brings what the batch brings.
    pub(super) async fn wait(
        &self,
        ask: impl Fn() -> K::Ask + Send,
        deadline: Deadline,
        place: Place,
    ) -> Outcome<K::Given> {
        let (mut place, mut may_share) = (place, true);
        loop {
            let Ticket { told, is_late } = self.line.queue(ask(), deadline, place, may_share)?;
            match Self::told(told, deadline).await {
                // That was another one's deadline.
                Told::Ended(Err(error))
                    if is_late && error.is_outage() && deadline.remaining() > LAST_TRY =>
                {
                    (place, may_share) = (Place::Back, false);
                }
                Told::Ended(outcome) => return outcome,
                Told::Waiting => return Err(self.line.kind.overdue()),
                Told::Left if deadline.has_passed() => return Err(self.line.kind.overdue()),
                Told::Left => return self.line.kind.alone(&ask(), deadline).await,
            }
        }
    }

    /// What is told in time; `Waiting` when nothing is.
    async fn told(
        mut told: tokio::sync::watch::Receiver<Told<K::Given>>,
        deadline: Deadline,
    ) -> Told<K::Given> {
        let is_over = |told: &Told<K::Given>| !matches!(told, Told::Waiting);
        let over = async { told.wait_for(is_over).await.map(|told| told.clone()) };
        let told = tokio::time::timeout_at(deadline.instant() + GRACE, over).await;
        told.map_or(Told::Waiting, |told| told.unwrap_or(Told::Left))
    }
}

#[cfg(test)]
mod tests;
