//! One batch, from its request to its last item's outcome.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use tracing::Instrument as _;

use super::item::Item;
use super::line::{Line, Slot};
use super::told::Fallback;
use super::{Batched, Brought, Proof};
use crate::clock::Deadline;
use crate::cluster::{CallError, Verdict};
use crate::transit::verdict::{self, TooLarge};
use crate::transit::wire::Wrong;
use crate::transit::wire::batch::{self, Tag};
use crate::transit::{Refusal, TransitError};

/// How many of a batch's items are asked one by one at a time, when they have to be.
const ONE_BY_ONE: usize = 8;

/// How many of a batch's other items its first one's span names.
const LINKS: usize = 16;

type Items<K> = Vec<Arc<Item<K>>>;

/// A batch under way. What has no outcome when it is dropped is left to those who wait.
pub(super) struct Flight<K: Batched> {
    line: Arc<Line<K>>,
    items: Items<K>,
    slot: Option<Slot<K>>,
}

/// What became of a request for many items.
enum Sent<K: Batched> {
    /// Items have their outcomes but for these.
    Served {
        /// Their answer may be stale.
        stale: Items<K>,
        /// They have to be asked alone.
        alone: Items<K>,
    },
    /// It was too large.
    TooLarge(TooLarge),
    /// It was refused as a whole.
    Refused(TransitError),
}

// === impl Flight ===

impl<K: Batched> Flight<K> {
    /// `items` together; a single one goes as a single request.
    pub(super) fn new(line: Arc<Line<K>>, slot: Option<Slot<K>>, items: Items<K>) -> Self {
        Self { line, items, slot }
    }

    /// Until every item has its outcome, or nobody waits for any of them.
    pub(super) async fn run(mut self) {
        let items = self.items.clone();
        let abandoned = async {
            for item in &items {
                item.abandoned().await;
            }
        };
        tokio::select! {
            biased;
            () = abandoned => {}
            () = self.fly() => {}
        }
    }

    async fn fly(&mut self) {
        let line = Arc::clone(&self.line);
        if let [item] = &self.items[..] {
            item.note(1, item);
        }
        let (mut stale, mut alone) = (Vec::new(), Vec::new());
        let mut parts = vec![self.items.clone()];
        while let Some(mut part) = parts.pop() {
            part.retain(|item| item.is_wanted());
            if part.len() < 2 {
                alone.extend(part);
                continue;
            }
            match line.together(&part, false).await {
                Sent::Served { stale: some, alone: others } => {
                    stale.push(some);
                    alone.extend(others);
                }
                Sent::TooLarge(of) => {
                    let rest = line.cut(of, &mut part);
                    parts.extend([rest, part]);
                }
                Sent::Refused(error) => alone.extend(line.refused(part, error).await),
            }
        }
        if self.items.len() > 1 {
            // The next batch need not wait for what concerns few.
            self.slot = None;
        }
        for mut some in stale {
            some.retain(|item| item.is_wanted());
            alone.extend(if some.len() < 2 { some } else { line.again(some).await });
        }
        line.one_by_one(alone).await;
    }
}

impl<K: Batched> Drop for Flight<K> {
    fn drop(&mut self) {
        for item in &self.items {
            self.line.leave(item);
        }
    }
}

// === impl Line ===

impl<K: Batched> Line<K> {
    /// Sends one request for all of them, and gives out what it brings.
    async fn together(self: &Arc<Self>, items: &[Arc<Item<K>>], needs_active: bool) -> Sent<K> {
        let tag = Tag::next();
        let body = batch::request(items.iter().map(|item| K::entry(&item.ask)), &tag);
        self.labels.size(items.len());
        note_all(items);
        let asked = self.kind.together(body, needs_active, latest(items));
        let Brought { answer, is_by_active } = match asked.instrument(items[0].span()).await {
            Ok(brought) => brought,
            Err(error) => {
                self.failed(items, error);
                return Sent::Served { stale: Vec::new(), alone: Vec::new() };
            }
        };
        let is_success = answer.status.is_success();
        if !is_success && !verdict::has_batch_results(&answer.body) {
            return match verdict::is_too_large(&answer) {
                Some(of) => Sent::TooLarge(of),
                None => {
                    Sent::Refused(self.kind.refused(verdict::refusal(K::VERB, &answer), &answer))
                }
            };
        }
        let found = match batch::answer(&answer.body, &tag, items.len()) {
            Ok(found) => found,
            Err(Wrong(what)) => {
                self.pause(Fallback::Garbled, &format!("{} answered {what}", answer.address));
                return Sent::Served { stale: Vec::new(), alone: items.to_vec() };
            }
        };
        self.served();
        let (mut good, mut stale, mut alone) = (Vec::new(), Vec::new(), Vec::new());
        for (item, found) in items.iter().zip(&found) {
            let Some(error) = found.error() else {
                match self.kind.read(&item.ask, found, &answer) {
                    Ok(given) => good.push((item, given)),
                    Err(Wrong(what)) => {
                        let what = format!("{} answered {what}", answer.address);
                        self.pause(Fallback::Unacceptable, &what);
                        alone.push(Arc::clone(item));
                    }
                }
                continue;
            };
            let refusal = verdict::refusal_of_item(K::VERB, answer.status, error);
            match verdict::classify_item(K::VERB, error) {
                Verdict::Stale(_) if !is_by_active => stale.push(Arc::clone(item)),
                // Which of the items a server's error is about, nobody says.
                Verdict::Final
                    if answer.status.is_server_error()
                        && matches!(refusal, Refusal::BadRequest(_)) =>
                {
                    alone.push(Arc::clone(item));
                }
                Verdict::Stale(_) | Verdict::Final => {
                    self.end(item, Err(self.kind.refused(refusal, &answer)));
                }
                Verdict::TokenRefused | Verdict::Elsewhere(_) => alone.push(Arc::clone(item)),
            }
        }
        if !good.is_empty() {
            let results = good.iter().map(|(item, given)| (&item.ask, given)).collect();
            let proof = self.kind.prove(results, &answer, latest(items));
            match proof.instrument(items[0].span()).await {
                Proof::Given => {
                    for (item, given) in good {
                        self.end(item, Ok(given));
                    }
                }
                Proof::Missing(why) => {
                    self.pause(Fallback::Unproven, &why);
                    alone.extend(good.into_iter().map(|(item, _)| Arc::clone(item)));
                }
                Proof::Refuted => {
                    tracing::error!(
                        address = %answer.address,
                        "A batch's ciphertexts were thrown away: they do not decrypt to what was \
                         encrypted. Find out what stands between this machine and Vault.",
                    );
                    let what = "a batch whose ciphertexts decrypt to something else";
                    self.pause(Fallback::Unacceptable, what);
                    for (item, _) in good {
                        let error = self.kind.unacceptable(what.to_owned(), &answer);
                        self.end(item, Err(error));
                    }
                }
            }
        }
        Sent::Served { stale, alone }
    }

    /// No address could serve it: so it is for every item.
    fn failed(self: &Arc<Self>, items: &[Arc<Item<K>>], error: CallError) {
        let is_odd = error.attempts.iter().any(|a| verdict::may_be_about_the_form(&a.fault));
        let error = self.kind.unavailable(error);
        if is_odd {
            self.pause(Fallback::OddAnswers, &error.cause.to_string());
        }
        for item in items {
            self.end(item, Err(error.clone()));
        }
    }

    /// Takes the second half out of a batch that was too large.
    fn cut(self: &Arc<Self>, of: TooLarge, part: &mut Items<K>) -> Items<K> {
        self.lower(of, part);
        let half = part.len() / 2;
        if half < 2 {
            // Two in flight with one item each would be less than single calls are.
            self.pause(Fallback::TooLarge, "a batch of three is too large");
        }
        part.split_off(half)
    }

    /// The batch was refused. What a single call is told tells whether it was for its form;
    /// brings those that have to be asked alone then.
    async fn refused(self: &Arc<Self>, mut items: Items<K>, error: TransitError) -> Items<K> {
        let rest = items.split_off(1);
        let outcome = self.alone(&items[0]).await;
        let is_about_the_key = |refusal: &Refusal| {
            matches!(
                refusal,
                Refusal::PolicyDenied
                    | Refusal::KeyNotFound
                    | Refusal::KeyDeleted
                    | Refusal::Misconfigured(_)
            )
        };
        match outcome {
            Some(Err(single)) if single.refusal().is_some_and(is_about_the_key) => {
                for item in &rest {
                    self.end(item, Err(single.clone()));
                }
                Vec::new()
            }
            Some(Err(single)) if single.is_outage() => rest,
            None => rest,
            Some(_) => {
                self.pause(Fallback::Refused, &error.cause.to_string());
                rest
            }
        }
    }

    /// Asks the active node for these; brings those that have to be asked alone.
    async fn again(self: &Arc<Self>, items: Items<K>) -> Items<K> {
        self.labels.fallback(Fallback::Stale);
        match self.together(&items, true).await {
            Sent::Served { mut stale, alone } => {
                stale.extend(alone);
                stale
            }
            Sent::TooLarge(_) => items,
            Sent::Refused(error) => self.refused(items, error).await,
        }
    }

    async fn one_by_one(&self, items: Items<K>) {
        let each = |item: Arc<Item<K>>| async move {
            self.alone(&item).await;
        };
        stream::iter(items).for_each_concurrent(ONE_BY_ONE, each).await;
    }

    /// A single request for `item`; `None` when nobody waits for it.
    async fn alone(&self, item: &Arc<Item<K>>) -> Option<Result<(), TransitError>> {
        if !item.is_wanted() {
            self.leave(item);
            return None;
        }
        self.labels.size(1);
        let asked = self.kind.alone(&item.ask, item.deadline()).instrument(item.span());
        let outcome = tokio::select! {
            biased;
            () = item.abandoned() => return None,
            outcome = asked => outcome,
        };
        let told = outcome.as_ref().map(|_| ()).map_err(Clone::clone);
        self.end(item, outcome);
        Some(told)
    }
}

/// Tells the items' spans of each other: the attempts stand under the first one's, from which
/// some of the others can be found, and it from each of them.
fn note_all<K: Batched>(items: &[Arc<Item<K>>]) {
    for item in items {
        item.note(items.len(), &items[0]);
    }
    let first = items[0].span();
    for item in items.iter().skip(1).take(LINKS) {
        first.follows_from(item.span().id());
    }
}

/// The latest of their deadlines.
fn latest<K: Batched>(items: &[Arc<Item<K>>]) -> Deadline {
    let mut latest = items[0].deadline();
    for item in &items[1..] {
        latest = latest.max(item.deadline());
    }
    latest
}
