//! What is proven of the version that encrypts, and what Status may say about it.
//!
//! A *proof* is an Encrypt whose answer was decrypted again and compared: a canary of our
//! own, or a call of kube-apiserver's. kube-apiserver stops writing when Status is an
//! error, and is taken out of its load balancer when `healthz` is not `ok`, so:
//!
//! | what is known | Status |
//! |---|---|
//! | the key was never seen, neither by this process nor by an earlier one | RPC error |
//! | last proof younger than the grace | `ok` |
//! | no proof since, Vault is unreachable | the reason, with key_id (or `ok`, by option) |
//! | no proof since, Vault answers, but nothing that could be a proof | the reason, with key_id |
//! | seen, but nothing proven yet | the reason, with key_id |
//! | seen by an earlier process, and this one may not read it | the reason, with key_id |
//! | Vault says for good that the version is gone, forbidden or unreadable | RPC error |
//!
//! The last is final at once: a refusal comes only from the active node or from all
//! addresses together, so waiting for a second one would only let more data hang on a
//! lost key. A later proof takes it back.
//!
//! What an earlier process left (`stateDir`) counts as if it had been seen by this one:
//! its key_id, its last proof with the age that it has by this machine's clock, its loss.
//! So a restart in the middle of an outage changes nothing that kube-apiserver sees.

use std::time::Duration;

use tokio::time::Instant;

use super::KeyId;
use crate::clock::UnixSeconds;
use crate::config::settings::{ClusterName, KekName, OnOutage, StatusSettings};
use crate::transit::{Refusal, TierCondition};

/// How long a proof is fresh enough to spare a canary.
pub(crate) const PROOF_PERIOD: Duration = Duration::from_secs(30);

/// What is proven of one KEK.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proofs {
    last: Option<Proof>,
    failure: Option<String>,
    /// The failure is that Vault answered, and what it answered.
    answered: bool,
    lost: Option<Loss>,
}

/// The last proof.
#[derive(Clone, Copy, Debug)]
struct Proof {
    /// When it was made, or taken over from an earlier process.
    at: Instant,
    /// How old it was then; `None` when this process made it.
    taken_over: Option<Duration>,
    /// When it was made, by this machine's clock.
    time: UnixSeconds,
}

/// A version that is known to be lost.
#[derive(Clone, Debug)]
struct Loss {
    version: u32,
    why: String,
}

/// What a proof or its failure changed, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing that was not known.
    None,
    /// Proven, for the first time or after failures.
    Proven,
    /// No longer provable.
    Unproven,
    /// Known to be lost.
    Lost,
}

/// What this process knows of the version that Status is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen<'a> {
    /// It has read the key.
    Here,
    /// It has not; an earlier process had.
    Before {
        /// Why it has not, as far as is known.
        why: Option<&'a str>,
        /// Vault refuses it.
        refused: bool,
    },
}

/// What Status may say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Saying {
    /// `ok`.
    Ok,
    /// The reason, with key_id.
    Reason(String),
    /// An RPC error.
    Lost(String),
}

/// What `/readyz` and the status page show of the keyring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyringCondition {
    /// What v2 Status says now: `ok`, a reason, or an error.
    pub status: Result<String, String>,
    /// Each KEK, in order; the first encrypts.
    pub keks: Vec<KekCondition>,
}

/// What is known of one KEK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KekCondition {
    /// Its name.
    pub name: KekName,
    /// The cluster that holds it; of several, the first.
    pub cluster: ClusterName,
    /// Each cluster, when several hold it.
    pub tiers: Vec<TierCondition>,
    /// Its key's latest version; `None` when its metadata was never read.
    pub latest_version: Option<u32>,
    /// The version that encrypts, and its key_id.
    pub active: Option<(u32, KeyId)>,
    /// Why no version encrypts, or why the active one is known to be lost.
    pub inactive: Option<String>,
    /// Since the last proof; only the first KEK is proven again and again.
    pub proof_age: Option<Duration>,
    /// Why the last read of its metadata failed; `None` after a good one.
    pub read_error: Option<String>,
    /// Why the last proof failed; `None` after a good one.
    pub proof_error: Option<String>,
}

/// Whether a refused Encrypt, or the refused Decrypt of its answer, means that the version
/// is gone, forbidden or unreadable. What is not listed may be our own mistake or a
/// matter of metadata that is a moment old.
pub(crate) const fn means_loss(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::WrongKey
        | Refusal::TooOld
        | Refusal::TooNew
        | Refusal::KeyNotFound
        | Refusal::KeyDeleted
        | Refusal::PolicyDenied
        | Refusal::Misconfigured(_) => true,
        Refusal::BelowMinimumEncryption | Refusal::AboveLatest | Refusal::BadRequest(_) => false,
    }
}

// === impl Proofs ===

impl Proofs {
    /// What an earlier process proved at `proven`, when this machine's clock is at `time`.
    /// A proof from the future has no age that could be trusted, so it is none.
    pub(crate) fn restored(proven: UnixSeconds, time: UnixSeconds, now: Instant) -> Self {
        let age = u64::try_from(time.0.saturating_sub(proven.0)).ok().map(Duration::from_secs);
        let last = age.map(|age| Proof { at: now, taken_over: Some(age), time: proven });
        Self { last, ..Self::default() }
    }

    /// An Encrypt was decrypted again and compared, at `now`, which this machine's clock
    /// calls `time`.
    pub(crate) fn prove(&mut self, now: Instant, time: UnixSeconds) -> Change {
        let first = self.last.is_none_or(|last| !last.is_ours());
        let after_trouble = self.failure.is_some() || self.lost.is_some();
        *self = Self { last: Some(Proof { at: now, taken_over: None, time }), ..Self::default() };
        if first || after_trouble { Change::Proven } else { Change::None }
    }

    /// Nobody could be asked.
    pub(crate) fn miss(&mut self, why: String) -> Change {
        self.fail(why, false)
    }

    /// Vault answered, but neither with a proof nor with a refusal for good.
    pub(crate) fn reject(&mut self, why: String) -> Change {
        self.fail(why, true)
    }

    fn fail(&mut self, why: String, answered: bool) -> Change {
        self.answered = answered;
        let known = self.failure.replace(why).is_some();
        if known { Change::None } else { Change::Unproven }
    }

    /// Vault says for good that `version` is gone, forbidden or unreadable.
    pub(crate) fn lose(&mut self, version: u32, why: String) -> Change {
        let known = self.lost.as_ref().is_some_and(|l| l.version == version);
        self.failure = Some(why.clone());
        self.answered = true;
        self.lost = Some(Loss { version, why });
        if known { Change::None } else { Change::Lost }
    }

    /// When this process made the last proof.
    pub(crate) fn last(&self) -> Option<Instant> {
        self.last.filter(|last| last.is_ours()).map(|last| last.at)
    }

    /// How old the last proof is, whichever process made it.
    pub(crate) fn age(&self, now: Instant) -> Option<Duration> {
        self.last.map(|last| {
            last.taken_over.unwrap_or_default() + now.saturating_duration_since(last.at)
        })
    }

    /// When the last proof was made, by this machine's clock.
    pub(crate) fn proven(&self) -> Option<UnixSeconds> {
        self.last.map(|last| last.time)
    }

    /// Why `version` is known to be lost, if it is.
    pub(crate) fn lost(&self, version: u32) -> Option<&str> {
        self.lost.as_ref().filter(|lost| lost.version == version).map(|lost| lost.why.as_str())
    }

    /// Why the last proof failed, if it did.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// What Status may say at `now` while `version` is the active one. A proof of the
    /// version before it counts until the grace has passed, so that a rotation is no
    /// outage; a loss counts for the version that was lost only.
    pub(crate) fn say(
        &self,
        version: u32,
        seen: Seen<'_>,
        now: Instant,
        status: &StatusSettings,
    ) -> Saying {
        if let Some(why) = self.lost(version) {
            return Saying::Lost(why.to_owned());
        }
        let (why, refused) = match seen {
            Seen::Here => (None, false),
            Seen::Before { why, refused } => (why, refused),
        };
        let failure = self.failure().or(why).unwrap_or("no answer yet");
        if refused {
            // Nothing is encrypted with a key that cannot be read, so `ok` would be a lie.
            return Saying::Reason(failure.to_owned());
        }
        let Some(age) = self.age(now) else {
            return Saying::Reason(format!("not proven since the start: {failure}"));
        };
        let stays = status.on_outage == OnOutage::Ok && !self.answered;
        if age < status.grace || stays {
            return Saying::Ok;
        }
        Saying::Reason(format!("not proven for {} s: {failure}", age.as_secs()))
    }
}

// === impl Proof ===

impl Proof {
    /// Whether this process made it.
    const fn is_ours(&self) -> bool {
        self.taken_over.is_none()
    }
}

// === impl KeyringCondition ===

impl KeyringCondition {
    /// Whether Encrypt, Decrypt and Status serve as they should.
    pub fn is_ready(&self) -> bool {
        self.status.as_deref() == Ok("ok")
    }
}

#[cfg(test)]
mod tests;
