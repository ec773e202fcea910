//! The task that reads a key's metadata, and the waits that others have on it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::BoxFuture;
use opentelemetry::KeyValue;
use tokio::time::Instant;

use super::{Core, VOUCHED_AFTER};
use crate::clock::Deadline;
use crate::keyring::condition::PROOF_PERIOD;
use crate::keyring::rotation::{Again, Inactive, Observation, Teller};
use crate::keyring::{KeyId, KeyringError};
use crate::telemetry::metrics::{self, Metric};
use crate::transit::{KeyMetadata, Refusal, TransitError};

/// A read that takes longer will not be waited for; an election is over by then.
pub(crate) const READ_WITHIN: Duration = Duration::from_secs(5);
/// The least between two reads, however many calls want one.
const READ_GAP: Duration = Duration::from_millis(100);
/// The wait after the first failed read; it doubles from there.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// The longest wait while a key was never read, when nothing else serves.
const UNREAD_BACKOFF: Duration = Duration::from_secs(5);
/// A canary's encrypt and decrypt, together: what kube-apiserver gives one call. The longer
/// it waits in an outage, the more of a fleet's wait in the moment in which that ends.
pub(crate) const CANARY_WITHIN: Duration = Duration::from_secs(3);
/// The longest wait after failed canaries: kube-apiserver asks Status every 10 s then.
pub(crate) const CANARY_BACKOFF: Duration = Duration::from_secs(10);

/// What a canary proves.
#[derive(PartialEq, Eq)]
enum Target {
    Version(KeyId),
    /// Whichever version is the newest: the token may not read the key.
    Newest,
}

/// A canary that was made.
struct Canary {
    target: Target,
    at: Instant,
    /// In a row.
    failures: u32,
    /// The wait until the next one.
    wait: Duration,
}

/// Reads the key's metadata for ever.
pub(super) async fn run(core: Arc<Core>) {
    let mut backoff = FIRST_BACKOFF;
    loop {
        let wait = if core.read_once().await {
            backoff = FIRST_BACKOFF;
            core.jitter.around(core.rotation.refresh)
        } else {
            let unread = core.view.borrow().metadata.is_none();
            let longest = core.rotation.refresh;
            let longest = if unread { longest.min(UNREAD_BACKOFF) } else { longest };
            let wait = backoff.min(longest);
            backoff = backoff.saturating_mul(2).min(longest);
            core.jitter.half(wait) // an outage brings a whole fleet into step
        };
        core.idle_until(Instant::now() + wait).await;
    }
}

// === impl Core: the task ===

impl Core {
    /// Waits for the next read, and meanwhile activates what has come of age.
    async fn idle_until(&self, next_read: Instant) {
        let soonest = Instant::now() + READ_GAP;
        while Instant::now() < next_read {
            let step = match (self.current().again, self.transit.vault_now()) {
                (Again::No, _) => next_read,
                (Again::At(time), Some(now)) => {
                    let seconds = u64::try_from(time.0.saturating_sub(now.0)).unwrap_or(0).max(1);
                    next_read.min(Instant::now() + Duration::from_secs(seconds))
                }
                (Again::At(_) | Again::Always, _) => {
                    next_read.min(Instant::now() + Duration::from_secs(1))
                }
            };
            tokio::select! {
                biased;
                () = self.read_now.notified() => return tokio::time::sleep_until(soonest).await,
                () = self.transit.news() => drop(self.reconsider()),
                () = tokio::time::sleep_until(step) => {}
            }
        }
    }

    /// Reads once; whether it went well.
    async fn read_once(&self) -> bool {
        self.reads.send_modify(|reads| reads.started += 1);
        let deadline = Deadline::after(READ_WITHIN);
        let (error, refused) = match self.read_believably(deadline).await {
            Ok(taken_in) => (taken_in.err(), false),
            Err(error) => {
                self.take_in_refusal(&error, deadline).await;
                (Some(error.to_string()), error.is_final())
            }
        };
        self.reconsider();
        let good = error.is_none();
        let kek = &self.settings.name;
        let result = if good { "ok" } else { "error" };
        let [label] = self.label();
        metrics::add(Metric::MetadataReads, 1, &[label, KeyValue::new("result", result)]);
        match (&self.reads.borrow().error, &error) {
            (None, Some(error)) => {
                tracing::warn!(%kek, error, "The key's metadata could not be read.");
            }
            (Some(_), None) => tracing::info!(%kek, "The key's metadata is read again."),
            _ => {}
        }
        self.reads.send_modify(|reads| {
            reads.finished = reads.started;
            reads.good += u64::from(good);
            reads.error = error;
            reads.refused = refused;
        });
        good
    }

    /// Reads, and takes it in. Whether an older state is true only the active node can say, so
    /// that is asked while there is a doubt. Where it cannot be, another node may still end the
    /// doubt: it may know what is newer.
    async fn read_believably(
        &self,
        deadline: Deadline,
    ) -> Result<Result<(), String>, TransitError> {
        let is_doubtful = || self.memory.with(|m| m.key.is_in_doubt());
        let mut taken_in = None;
        if !is_doubtful() {
            let read = self.read_attentively(self.transit.read(deadline)).await?;
            let result = self.take_in(read, Teller::Someone);
            if !is_doubtful() {
                return Ok(result);
            }
            taken_in = Some(result);
        }
        let soon = Deadline::after(deadline.remaining() / 2);
        match self.read_attentively(self.transit.read_at_active(soon)).await {
            Ok(read) => Ok(self.take_in(read, Teller::Active)),
            Err(error) if error.is_outage() => match taken_in {
                Some(result) => Ok(result),
                None => {
                    let read = self.read_attentively(self.transit.read(deadline)).await?;
                    Ok(self.take_in(read, Teller::Someone))
                }
            },
            Err(error) => Err(error),
        }
    }

    /// Waits for a read, and meanwhile takes into account what replicas turn out to vouch for.
    async fn read_attentively(
        &self,
        mut reading: BoxFuture<'_, Result<KeyMetadata, TransitError>>,
    ) -> Result<KeyMetadata, TransitError> {
        loop {
            tokio::select! {
                biased;
                read = &mut reading => return read,
                () = self.transit.news() => drop(self.reconsider()),
            }
        }
    }

    fn take_in(&self, metadata: KeyMetadata, teller: Teller) -> Result<(), String> {
        let kek = &self.settings.name;
        let latest = metadata.latest_version;
        match self.memory.with(|m| m.key.observe(metadata, teller, Instant::now()))? {
            Observation::First | Observation::Same => {}
            Observation::Rotated => tracing::info!(
                %kek, latest, delay = ?self.rotation.activation_delay,
                "The key was rotated; the new version encrypts after the delay."
            ),
            Observation::Stale { times } => {
                tracing::debug!(
                    %kek, latest, times,
                    "An older state of the key was answered; it is not believed."
                );
                // After a restart there is nothing else yet.
                if self.memory.with(|m| m.key.metadata().is_none()) {
                    return Err(format!(
                        "Vault answered an older state of the key (latest v{latest}) than the \
                         one that was seen before; it is believed when the active node says so \
                         for a minute"
                    ));
                }
            }
            Observation::Recreated => tracing::error!(
                %kek, latest,
                "The key was deleted and made again: what the old one encrypted is lost unless \
                 the old one is restored from a backup."
            ),
            Observation::RolledBack => tracing::error!(
                %kek, latest,
                "Vault answers an older state of the key again and again, as after a restore \
                 from a snapshot; it is taken for true. What newer versions encrypted is lost."
            ),
        }
        Ok(())
    }

    /// A key that Vault says is not there must not be encrypted with: a token that may
    /// `create` would make a new one by that. A token that may not read the key may still
    /// encrypt for KMS v1 when it cannot make one.
    async fn take_in_refusal(&self, error: &TransitError, deadline: Deadline) {
        match error.refusal() {
            Some(Refusal::KeyNotFound | Refusal::KeyDeleted | Refusal::Misconfigured(_)) => {
                self.memory.with(|m| m.key.lose(error.to_string()));
                self.unpinned.store(false, Ordering::Relaxed);
            }
            Some(Refusal::PolicyDenied) if self.view.borrow().metadata.is_none() => {
                // When nobody can say, what was known stands.
                if let Ok(capabilities) = self.transit.encrypt_capabilities(deadline).await {
                    let may = |what: &str| capabilities.iter().any(|c| c == what);
                    let unpinned = may("update") && !may("create") && !may("root");
                    if unpinned && !self.unpinned.load(Ordering::Relaxed) {
                        tracing::warn!(
                            kek = %self.settings.name,
                            "The token may not read the key, so KMS v1 encrypts with whichever \
                             version is the newest and KMS v2 not at all; allow `read` as \
                             config/policy.hcl does."
                        );
                    }
                    self.unpinned.store(unpinned, Ordering::Relaxed);
                }
            }
            _ => {}
        }
    }
}

// === impl Core: waits ===

impl Core {
    /// Has the task read at once, and waits for a read that began after this call. Callers
    /// at the same time share it. Its failure shows in what is known afterwards.
    pub(super) async fn read_anew(&self, deadline: Deadline) {
        let mut reads = self.reads.subscribe();
        let before = reads.borrow_and_update().started;
        self.read_now.notify_one();
        let done = reads.wait_for(|reads| reads.finished > before);
        // At the deadline the call goes on with what is known and fails by itself.
        let _ = tokio::time::timeout_at(deadline.instant(), done).await;
    }

    /// Waits for the very first read to end, well or badly, and for what a replica may turn
    /// out to vouch for. An Encrypt that comes a moment after the start is answered a moment
    /// later instead of being refused.
    pub(super) async fn first_read(&self, deadline: Deadline) {
        let (mut reads, mut views) = (self.reads.subscribe(), self.view.subscribe());
        let settled = async {
            loop {
                views.mark_unchanged();
                let view = self.current();
                let is_unread = matches!(view.active, Err(Inactive::Unread));
                let may_change = reads.borrow_and_update().finished == 0 || view.again != Again::No;
                if !is_unread || !may_change {
                    return;
                }
                tokio::select! {
                    biased;
                    changed = reads.changed() => if changed.is_err() { return },
                    changed = views.changed() => if changed.is_err() { return },
                    () = tokio::time::sleep_until(self.begun + VOUCHED_AFTER),
                        if self.begun.elapsed() < VOUCHED_AFTER => {}
                }
            }
        };
        let _ = tokio::time::timeout_at(deadline.instant(), settled).await;
    }

    /// Waits until this KEK's own task has read the metadata, or was refused it for good;
    /// says whether the key can be used.
    pub(crate) async fn first_look(&self, deadline: Deadline) -> Result<(), KeyringError> {
        let mut reads = self.reads.subscribe();
        let settled = reads.wait_for(|reads| reads.good > 0 || reads.refused);
        let good = match tokio::time::timeout_at(deadline.instant(), settled).await {
            Ok(Ok(reads)) => reads.good > 0,
            Ok(Err(_)) | Err(_) => false,
        };
        let view = self.current();
        match &view.active {
            Ok(_) if good => Ok(()),
            Err(Inactive::Unread) if view.unpinned => Ok(()),
            Err(inactive) => Err(self.not_active(inactive)),
            // An earlier generation has read it, this one could not.
            Ok(_) => Err(self.not_active(&Inactive::Unread)),
        }
    }
}

/// Proves `core`'s active version for ever: at once when it changes, again when no proof
/// was made for a while, sooner after a failure.
///
/// Status says `ok` for `grace` after a proof, so a short grace makes canaries more frequent:
/// a healthy key without traffic must stay `ok`.
pub(crate) async fn keep_proven(core: Arc<Core>, grace: Duration) {
    let period = PROOF_PERIOD.min(grace / 2);
    let mut views = core.view.subscribe();
    let mut last: Option<Canary> = None;
    loop {
        views.mark_unchanged();
        let view = core.current();
        let target = match &view.active {
            Ok(active) => Some(Target::Version(active.key_id.clone())),
            Err(Inactive::Unread) if view.unpinned => Some(Target::Newest),
            Err(_) => None, // above all not when the key is gone: that could make a new one
        };
        let Some(target) = target else {
            if views.changed().await.is_err() {
                return;
            }
            continue;
        };
        let before = last.take().filter(|before| before.target == target);
        let due = before.as_ref().map(|before| {
            let proven = core.memory.with(|m| m.proofs.last()).filter(|_| before.failures == 0);
            proven.map_or(before.at, |proven| proven.max(before.at)) + before.wait
        });
        if let Some(due) = due.filter(|due| *due > Instant::now()) {
            last = before;
            tokio::select! {
                biased;
                () = core.prove_now.notified() => last = None,
                () = tokio::time::sleep_until(due) => {}
                changed = views.changed() => if changed.is_err() { return },
            }
            continue; // real traffic may have proven it meanwhile
        }
        let failures = match core.prove(Deadline::after(CANARY_WITHIN)).await {
            Ok(()) => 0,
            Err(_) => before.map_or(0, |before| before.failures).saturating_add(1),
        };
        let wait = match failures {
            0 => core.jitter.around(period),
            // an outage brings a whole fleet into step
            n => core.jitter.half(FIRST_BACKOFF.saturating_mul(1 << n.min(10)).min(CANARY_BACKOFF)),
        };
        last = Some(Canary { target, at: Instant::now(), failures, wait });
    }
}
