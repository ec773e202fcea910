//! What one call does at the clusters, and what their answers mean for each other.

use std::sync::{Arc, PoisonError};

use futures_util::future::BoxFuture;
use opentelemetry::KeyValue;

use super::asking::{Answered, Round};
use super::failure::{self, ClusterFailure, Why};
use super::{FIRST, Shared};
use crate::clock::Deadline;
use crate::secret::Plaintext;
use crate::telemetry::metrics::{self, Metric};
use crate::transit::{KeyVersion, Refusal, TransitCause, TransitError, VaultCiphertext, Wrapped};

// === impl Shared ===

impl Shared {
    /// The clusters that `may` be asked: those that serve, then those that are passed over,
    /// in their order.
    pub(super) fn order(&self, may: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.tiers.len()).filter(|t| may(*t)).collect();
        order.sort_by_key(|t| !self.tiers[*t].serves());
        order
    }

    /// Whether the first cluster said in this life that it has `version`. One whose number it
    /// did not tell is newer than that answer, and it refuses a number that it has not.
    pub(super) fn is_said(&self, version: KeyVersion) -> bool {
        let said = self.first_said.lock().unwrap_or_else(PoisonError::into_inner);
        said.as_ref()
            .is_some_and(|key| key.version(version.number).is_none_or(|there| there == version))
    }

    /// Encrypts at one cluster. What a replica answers counts only when its canary decrypts
    /// beside it.
    pub(super) fn encrypt_at(
        self: Arc<Self>,
        t: usize,
        plaintext: Arc<Plaintext>,
        version: KeyVersion,
        deadline: Deadline,
    ) -> BoxFuture<'static, Result<Wrapped, TransitError>> {
        Box::pin(async move {
            let tier = &self.tiers[t];
            if t == FIRST && !self.is_said(version) {
                self.decrypt_canary_by(FIRST, version, deadline).await?;
            }
            let encrypt = tier.key.encrypt(&plaintext, Some(version), deadline);
            if t == FIRST {
                return encrypt.await;
            }
            let look = self.look_again(t, version, deadline);
            let (wrapped, looked) = tokio::join!(encrypt, look);
            let wrapped = wrapped.inspect_err(|error| {
                if error.refusal().is_some_and(is_about_the_key) {
                    self.revoke(t, version, format!("it refused to encrypt: {}", error.cause));
                }
            })?;
            looked?;
            if !tier.may_encrypt(version) {
                let what = "a ciphertext, and lost its proof meanwhile".to_owned();
                return Err(thrown_away(&wrapped, what, self.key_of(t)));
            }
            Ok(wrapped)
        })
    }

    /// What becomes of an encrypt.
    pub(super) fn encrypted(
        &self,
        version: KeyVersion,
        answered: Answered<Wrapped>,
    ) -> Result<Wrapped, TransitError> {
        match answered.answer {
            Some((t, wrapped)) => {
                self.count(t, "encrypt");
                Ok(wrapped)
            }
            None if answered.failed.iter().any(|(t, e)| *t == FIRST && e.is_final()) => {
                Err(self.final_at_first(answered))
            }
            None => {
                let asked: Vec<usize> = answered.failed.iter().map(|(t, _)| *t).collect();
                let not_asked = self.tiers.iter().enumerate().filter(|(t, _)| !asked.contains(t));
                let not_asked = not_asked.filter_map(|(_, tier)| {
                    let why = Why::Unproven(tier.proof().why_not(version)?);
                    Some(ClusterFailure { cluster: tier.cluster().clone(), why })
                });
                let not_asked = not_asked.collect();
                Err(self.error(failure::together(answered.failures(self), not_asked)))
            }
        }
    }

    pub(super) async fn decrypt_at(
        &self,
        order: Vec<usize>,
        ciphertext: &VaultCiphertext,
        deadline: Deadline,
        ends: fn(usize, &TransitError) -> bool,
    ) -> Answered<Plaintext> {
        let ciphertext = Arc::new(ciphertext.clone());
        let ask = |t: usize| -> BoxFuture<'static, _> {
            let (key, ciphertext) = (Arc::clone(&self.tiers[t].key), Arc::clone(&ciphertext));
            Box::pin(async move { key.decrypt(&ciphertext, deadline).await })
        };
        let answered = Round { shared: self, deadline, order, ask: &ask, ends }.run().await;
        if let Some((t, _)) = &answered.answer {
            self.count(*t, "decrypt");
        }
        answered
    }

    /// One cluster decrypted what another refused: they do not hold the same key. When one
    /// of the two is the first, the other is no replica.
    pub(super) fn compare(&self, ciphertext: &VaultCiphertext, answered: &Answered<Plaintext>) {
        let Some((able, _)) = answered.answer else { return };
        for (unable, error) in &answered.failed {
            let differs = error.refusal().is_some_and(contradicts);
            let replica = match (able, *unable) {
                (FIRST, replica) | (replica, FIRST) if differs => replica,
                _ => continue,
            };
            let number = ciphertext.version();
            let proven = self.tiers[replica].proof().proven_version(number);
            if let Some(version) = proven {
                let (able, unable) = (self.tiers[able].cluster(), self.tiers[*unable].cluster());
                let why = format!("cluster {able} decrypted what cluster {unable} could not");
                self.revoke(replica, version, why);
            }
        }
    }

    /// The replica made a ciphertext that the first cluster or itself cannot decrypt.
    pub(super) fn unmask(&self, replica: usize, wrapped: &Wrapped) -> TransitError {
        let number = wrapped.ciphertext.version();
        let proven = self.tiers[replica].proof().proven_version(number);
        if let Some(version) = proven {
            self.revoke(replica, version, "what it encrypted did not decrypt".to_owned());
        }
        let what = "a ciphertext that does not decrypt to what was encrypted".to_owned();
        thrown_away(wrapped, what, self.key_of(replica))
    }

    /// Ends a proof. A new one takes a new canary; the other replicas keep the one there is.
    pub(super) fn revoke(&self, replica: usize, version: KeyVersion, why: String) {
        let tier = &self.tiers[replica];
        if tier.proof().revoke(version, why.clone()) {
            tracing::error!(
                kek = %self.settings.name, cluster = %tier.cluster(), version = version.number, why,
                "The replica's key is not what the first cluster holds; it encrypts no longer."
            );
            self.set_proven(replica, false);
            self.wake();
        }
    }

    /// The refusal of the first cluster, or what all said.
    pub(super) fn final_at_first<T>(&self, mut answered: Answered<T>) -> TransitError {
        match answered.failed.iter().position(|(t, error)| *t == FIRST && error.is_final()) {
            Some(at) => answered.failed.swap_remove(at).1,
            None => self.error(failure::together(answered.failures(self), Vec::new())),
        }
    }

    /// `error`, which there is whenever a cluster was asked, and one always is.
    pub(super) fn error(&self, error: Option<TransitError>) -> TransitError {
        error.unwrap_or_else(|| {
            let (mount, key) = self.key_of(FIRST);
            TransitError { mount, key, cause: TransitCause::Clusters(Vec::new()) }
        })
    }

    pub(super) fn key_of(&self, t: usize) -> (String, String) {
        let there = self.settings.in_cluster(t);
        (there.mount, there.transit_key)
    }

    pub(super) fn encrypts_with(&self, version: KeyVersion) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = asked.replace(version) != Some(version);
        drop(asked);
        if is_new && self.canaries.of(version).is_none() {
            self.wake();
        }
    }

    /// A cluster is passed over from here on, or no longer.
    pub(super) fn told(&self, t: usize) {
        let (kek, cluster) = (&self.settings.name, self.tiers[t].cluster());
        match self.tiers[t].why_doubted() {
            Some(why) => tracing::warn!(
                %kek, %cluster, why, "The cluster does not answer; calls go to the others first."
            ),
            None => tracing::info!(%kek, %cluster, "The cluster answers again."),
        }
        self.wake();
    }

    /// Tells the tasks that there is something to do.
    pub(super) fn wake(&self) {
        self.work.send_modify(|n| *n = n.wrapping_add(1));
    }

    pub(super) fn count(&self, t: usize, verb: &'static str) {
        let [kek, cluster] = self.labels(t);
        metrics::add(Metric::TierCalls, 1, &[kek, cluster, KeyValue::new("verb", verb)]);
    }

    pub(super) fn set_proven(&self, t: usize, proven: bool) {
        metrics::set(Metric::ReplicaProven, f64::from(u8::from(proven)), &self.labels(t));
    }

    pub(super) fn labels(&self, t: usize) -> [KeyValue; 2] {
        let cluster = self.tiers[t].cluster().as_str().to_owned();
        let kek = self.settings.name.as_str().to_owned();
        [KeyValue::new("kek", kek), KeyValue::new("cluster", cluster)]
    }
}

/// Whether a refusal says that the cluster holds another key, or not this version.
pub(super) const fn is_about_the_key(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::WrongKey
        | Refusal::TooOld
        | Refusal::TooNew
        | Refusal::KeyNotFound
        | Refusal::KeyDeleted
        | Refusal::BelowMinimumEncryption
        | Refusal::AboveLatest
        | Refusal::Misconfigured(_) => true,
        Refusal::PolicyDenied | Refusal::BadRequest(_) => false,
    }
}

/// Whether a refusal to decrypt, of what another cluster decrypts, means other material.
pub(super) const fn contradicts(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::WrongKey | Refusal::TooNew | Refusal::KeyNotFound)
}

fn thrown_away(wrapped: &Wrapped, what: String, (mount, key): (String, String)) -> TransitError {
    let address = wrapped.address.clone();
    TransitError { mount, key, cause: TransitCause::Unacceptable { what, address } }
}
