//! One thing to encrypt or decrypt, and those who wait for it.

use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Span;

use super::Batched;
use super::ceiling::Cost;
use crate::clock::Deadline;
use crate::transit::TransitError;

/// What a verb brings.
pub(in crate::transit) type Outcome<G> = Result<G, TransitError>;

/// What those who wait are told.
#[derive(Clone)]
pub(super) enum Told<G> {
    /// Nothing yet.
    Waiting,
    /// How it ended.
    Ended(Outcome<G>),
    /// Nobody sees to it any more: it has to be asked for anew.
    Left,
}

/// One thing to ask. Identical decrypts are one.
pub(super) struct Item<K: Batched> {
    pub(super) ask: K::Ask,
    pub(super) cost: Cost,
    pub(super) since: Instant,
    told: watch::Sender<Told<K::Given>>,
    inner: Mutex<Inner>,
}

struct Inner {
    /// The latest of those who wait.
    deadline: Deadline,
    is_in_flight: bool,
    /// Let go of at the end: a span that is held does not end.
    span: Span,
}

/// A place among those who wait for an item.
pub(super) struct Ticket<K: Batched> {
    pub(super) told: watch::Receiver<Told<K::Given>>,
    /// It was sent already, so with another deadline than this waiter's.
    pub(super) is_late: bool,
}

// === impl Item ===

impl<K: Batched> Item<K> {
    pub(super) fn new(ask: K::Ask, deadline: Deadline) -> Self {
        let entry = K::entry(&ask);
        let cost = Cost { strings: entry.strings(), bytes: entry.bytes() };
        let span = tracing::info_span!(
            "transit.batch",
            otel.name = format!("batch {}", K::VERB.as_str()),
            vault.verb = K::VERB.as_str(),
            vault.batch.size = tracing::field::Empty,
            vault.batch.wait_ms = tracing::field::Empty,
        );
        let inner = Inner { deadline, is_in_flight: false, span };
        let (told, since) = (watch::Sender::new(Told::Waiting), Instant::now());
        Self { ask, cost, since, told, inner: Mutex::new(inner) }
    }

    /// One more waits for it.
    pub(super) fn join(&self, deadline: Deadline) -> Ticket<K> {
        let told = self.told.subscribe();
        let is_late = self.with(|inner| {
            inner.deadline = inner.deadline.max(deadline);
            inner.is_in_flight
        });
        Ticket { told, is_late }
    }

    /// Whether somebody waits for it, and may do so still.
    pub(super) fn is_wanted(&self) -> bool {
        self.told.receiver_count() > 0 && !self.deadline().has_passed()
    }

    /// Waits until nobody waits for it.
    pub(super) async fn abandoned(&self) {
        self.told.closed().await;
    }

    pub(super) fn deadline(&self) -> Deadline {
        self.with(|inner| inner.deadline)
    }

    /// From here on, whoever joins comes late.
    pub(super) fn depart(&self) {
        self.with(|inner| inner.is_in_flight = true);
    }

    /// It goes with so many others, in a request whose spans stand under that of `first`.
    pub(super) fn note(&self, size: usize, first: &Self) {
        let span = self.span();
        if span.is_disabled() {
            return;
        }
        span.record("vault.batch.size", size);
        let waited = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        span.record("vault.batch.wait_ms", waited);
        if !std::ptr::eq(self, first) {
            span.follows_from(first.span().id());
        }
    }

    pub(super) fn span(&self) -> Span {
        self.with(|inner| inner.span.clone())
    }

    pub(super) fn end(&self, outcome: Outcome<K::Given>) {
        self.with(|inner| inner.span = Span::none());
        self.told.send_replace(Told::Ended(outcome));
    }

    /// Nobody sees to it any more, unless it has ended.
    pub(super) fn leave(&self) {
        self.told.send_if_modified(|told| {
            let is_waiting = matches!(told, Told::Waiting);
            if is_waiting {
                *told = Told::Left;
            }
            is_waiting
        });
    }

    fn with<R>(&self, work: impl FnOnce(&mut Inner) -> R) -> R {
        work(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
