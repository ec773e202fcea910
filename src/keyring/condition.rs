//! What is proven of the version that encrypts, and what Status may say about it.
//!
//! A *proof* is an Encrypt whose answer was decrypted again and compared: a canary of our
//! own, or a call of kube-apiserver's. kube-apiserver stops writing when Status is an
//! error, and is taken out of its load balancer when `healthz` is not `ok`, so:
//!
//! | what is known | Status |
//! |---|---|
//! | the key was never seen | RPC error |
//! | last proof younger than the grace | `ok` |
//! | no proof since, Vault is unreachable | the reason, with key_id (or `ok`, by option) |
//! | no proof since, Vault answers, but nothing that could be a proof | the reason, with key_id |
//! | seen, but nothing proven yet | the reason, with key_id |
//! | Vault says for good that the version is gone, forbidden or unreadable | RPC error |
//!
//! The last is final at once: a refusal comes only from the active node or from all
//! addresses together, so waiting for a second one would only let more data hang on a
//! lost key. A later proof takes it back.

use std::time::Duration;

use tokio::time::Instant;

use super::KeyId;
use crate::config::settings::{ClusterName, KekName, OnOutage, StatusSettings};
use crate::transit::Refusal;

/// How long a proof is fresh enough to spare a canary.
pub(crate) const PROOF_PERIOD: Duration = Duration::from_secs(30);

/// What is proven of one KEK.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proofs {
    last: Option<Instant>,
    failure: Option<String>,
    /// The failure is that Vault answered, and what it answered.
    answered: bool,
    lost: Option<Loss>,
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
    /// The cluster that holds it.
    pub cluster: ClusterName,
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
    /// An Encrypt was decrypted again and compared, at `now`.
    pub(crate) fn prove(&mut self, now: Instant) -> Change {
        let first = self.last.is_none();
        let after_trouble = self.failure.is_some() || self.lost.is_some();
        *self = Self { last: Some(now), ..Self::default() };
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

    /// When the last proof was.
    pub(crate) const fn last(&self) -> Option<Instant> {
        self.last
    }

    /// Why the last proof failed, if it did.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// What Status may say at `now` while `version` is the active one. A proof of the
    /// version before it counts until the grace has passed, so that a rotation is no
    /// outage; a loss counts for the version that was lost only.
    pub(crate) fn say(&self, version: u32, now: Instant, status: &StatusSettings) -> Saying {
        if let Some(lost) = self.lost.as_ref().filter(|l| l.version == version) {
            return Saying::Lost(lost.why.clone());
        }
        let failure = self.failure().unwrap_or("no answer yet");
        let Some(last) = self.last else {
            return Saying::Reason(format!("not proven since the start: {failure}"));
        };
        let age = now.saturating_duration_since(last);
        let stays = status.on_outage == OnOutage::Ok && !self.answered;
        if age < status.grace || stays {
            return Saying::Ok;
        }
        Saying::Reason(format!("not proven for {} s: {failure}", age.as_secs()))
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
mod tests {
    use super::*;
    use crate::config::settings::StatusVersion;

    fn settings(on_outage: OnOutage) -> StatusSettings {
        StatusSettings { version: StatusVersion::V2, grace: Duration::from_secs(120), on_outage }
    }

    fn reason(text: &str) -> Saying {
        Saying::Reason(text.into())
    }

    #[tokio::test(start_paused = true)]
    async fn status_says_what_is_proven_in_each_state() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut proofs = Proofs::default();
        type Step = (u64, fn(&mut Proofs, Instant), Saying, Saying);
        let unproven = "not proven since the start: no answer yet";
        let never = "not proven since the start: refused";
        let stale = "not proven for 120 s: refused";
        let silent = "not proven for 121 s: no answer yet";
        let steps: [Step; 9] = [
            (0, |_, _| (), reason(unproven), reason(unproven)),
            (1, |p, _| _ = p.miss("refused".into()), reason(never), reason(never)),
            (10, |p, now| _ = p.prove(now), Saying::Ok, Saying::Ok),
            (20, |p, _| _ = p.miss("refused".into()), Saying::Ok, Saying::Ok),
            (129, |_, _| (), Saying::Ok, Saying::Ok),
            (130, |_, _| (), reason(stale), Saying::Ok),
            (140, |p, now| _ = p.prove(now), Saying::Ok, Saying::Ok),
            (
                150,
                |p, _| _ = p.lose(1, "gone".into()),
                Saying::Lost("gone".into()),
                Saying::Lost("gone".into()),
            ),
            (160, |p, now| _ = p.prove(now), Saying::Ok, Saying::Ok),
        ];
        for (second, event, report, stay) in steps {
            event(&mut proofs, at(second));
            assert_eq!(proofs.say(1, at(second), &settings(OnOutage::Report)), report, "{second}");
            assert_eq!(proofs.say(1, at(second), &settings(OnOutage::Ok)), stay, "{second}");
        }
        assert_eq!(proofs.say(1, at(281), &settings(OnOutage::Report)), reason(silent));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_proves_nothing_is_no_outage() {
        let mut proofs = Proofs::default();
        proofs.prove(Instant::now());
        tokio::time::advance(Duration::from_secs(120)).await;
        proofs.reject("HTTP 400".into());
        let say = |proofs: &Proofs| proofs.say(1, Instant::now(), &settings(OnOutage::Ok));
        assert_eq!(say(&proofs), reason("not proven for 120 s: HTTP 400"));
        proofs.miss("no address could answer".into());
        assert_eq!(say(&proofs), Saying::Ok);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_version_is_no_loss_of_the_next_one() {
        let mut proofs = Proofs::default();
        proofs.prove(Instant::now());
        proofs.lose(1, "too old".into());
        let settings = settings(OnOutage::Report);
        let now = Instant::now();
        assert_eq!(proofs.say(1, now, &settings), Saying::Lost("too old".into()));
        assert_eq!(proofs.say(2, now, &settings), Saying::Ok);
    }

    #[tokio::test(start_paused = true)]
    async fn each_change_is_told_once() {
        let mut proofs = Proofs::default();
        let now = Instant::now();
        assert_eq!(proofs.prove(now), Change::Proven);
        assert_eq!(proofs.prove(now), Change::None);
        assert_eq!(proofs.miss("a".into()), Change::Unproven);
        assert_eq!(proofs.miss("b".into()), Change::None);
        assert_eq!(proofs.lose(1, "c".into()), Change::Lost);
        assert_eq!(proofs.lose(1, "c".into()), Change::None);
        assert_eq!(proofs.prove(now), Change::Proven);
    }
}
