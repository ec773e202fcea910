//! One key that several clusters hold: one Transit key to the keyring.
//!
//! The first cluster is the one that counts: its metadata decides which versions there are,
//! its clock when they are active, its refusal to encrypt is final. The others are replicas
//! of its key, or are meant to be. So:
//!
//! - *Who is asked.* The first, and the next beside it when it fails, or stays silent for
//!   `PATIENCE` or two fifths of the time left. A cluster that is known to be away (no
//!   address of it is usable, or it failed or was overtaken as a whole) is asked last, until a
//!   scout or a call finds it back: no call waits for what the one before has waited for.
//! - *Decrypt* goes to any of them: the key's types are authenticated, so a cluster with other
//!   material answers an error, never another plaintext. Its refusal is final when every
//!   cluster refuses; when one could not be asked, nobody knows.
//! - *Encrypt* goes to a replica only with proof for exactly that version: the same creation
//!   time as the first's, and a canary that the first made (`canary`) decrypted there.
//!   `keeper` makes canaries and proofs before they are needed, again with each look at the
//!   metadata. Beside each encrypt at a replica the canary is decrypted there once more, and
//!   the answer counts only when that went well: what was true a minute ago is no proof for a
//!   ciphertext of now.
//! - Until the first cluster's metadata is read, and when that tells of another key, the
//!   canary goes before an encrypt at the first cluster as well.
//! - What contradicts a proof ends it: the first cluster decrypts what the replica cannot, or
//!   the other way round, or the replica's metadata says something else.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use opentelemetry::KeyValue;
use tokio::sync::{Notify, watch};

use super::{
    KeyMetadata, KeyVersion, Refusal, TierCondition, TransitCause, TransitError, TransitKey,
    VaultCiphertext, Vouch, Wrapped,
};
use crate::clock::{Deadline, Jitter, UnixSeconds};
use crate::config::settings::{ClusterName, KekSettings};
use crate::secret::Plaintext;
use crate::task::OwnedTask;
use crate::telemetry::metrics::{self, Metric};
use asking::{Answered, Losers, PATIENCE, Round};
use failure::{ClusterFailure, Why};
use tier::Tier;

mod asking;
pub mod canary;
pub mod failure;
mod keeper;
mod proof;
mod tier;

pub use canary::{Canaries, CanaryMemory};

/// The first cluster's place.
const FIRST: usize = 0;

/// A Transit key in several clusters. Owns the tasks that keep its replicas proven.
pub struct Replicas {
    shared: Arc<Shared>,
    _tasks: Vec<OwnedTask>,
}

/// What calls and tasks share.
#[derive(Debug)]
struct Shared {
    settings: Arc<KekSettings>,
    tiers: Vec<Tier>,
    canaries: Arc<CanaryMemory>,
    /// What the first cluster said last, in this life.
    first_said: Mutex<Option<KeyMetadata>>,
    /// The version that was last encrypted with.
    asked: Mutex<Option<KeyVersion>>,
    /// How often the metadata is read, and each replica looked at.
    refresh: Duration,
    jitter: Arc<Jitter>,
    losers: Losers,
    /// Changes when there is something to do for the tasks.
    work: watch::Sender<u64>,
    news: Notify,
}

// === impl Replicas ===

impl Replicas {
    /// The key of `settings` in each of its clusters, in their order. Must be called within a
    /// tokio runtime.
    pub fn new(
        settings: Arc<KekSettings>,
        keys: Vec<Arc<dyn TransitKey>>,
        canaries: Arc<CanaryMemory>,
        refresh: Duration,
        jitter: Arc<Jitter>,
    ) -> Self {
        let shared = Arc::new(Shared {
            settings,
            tiers: keys.into_iter().map(Tier::new).collect(),
            canaries,
            first_said: Mutex::default(),
            asked: Mutex::default(),
            refresh,
            jitter,
            losers: Losers::default(),
            work: watch::Sender::new(0),
            news: Notify::new(),
        });
        let tasks = keeper::start(&shared);
        Self { shared, _tasks: tasks }
    }
}

impl TransitKey for Replicas {
    fn encrypt<'a>(
        &'a self,
        plaintext: &'a Plaintext,
        version: Option<KeyVersion>,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Wrapped, TransitError>> {
        let shared = &self.shared;
        Box::pin(async move {
            // Without a version there is nothing that could be proven.
            let Some(version) = version else {
                return shared.tiers[FIRST].key.encrypt(plaintext, None, deadline).await;
            };
            shared.encrypts_with(version);
            let plaintext = Arc::new(plaintext.clone());
            let order = shared.order(|t| t == FIRST || shared.tiers[t].may_encrypt(version));
            let answered = Round {
                shared,
                deadline,
                order,
                ask: &|t| {
                    Arc::clone(shared).encrypt_at(t, Arc::clone(&plaintext), version, deadline)
                },
                ends: |t, error| t == FIRST && error.is_final(),
            }
            .run()
            .await;
            shared.encrypted(version, answered)
        })
    }

    fn decrypt<'a>(
        &'a self,
        ciphertext: &'a VaultCiphertext,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Plaintext, TransitError>> {
        let shared = &self.shared;
        Box::pin(async move {
            let answered =
                shared.decrypt_at(shared.order(|_| true), ciphertext, deadline, |_, _| false);
            let answered = answered.await;
            shared.compare(ciphertext, &answered);
            match answered.answer {
                Some((_, plaintext)) => Ok(plaintext),
                None => Err(shared.error(failure::of_decrypt(answered.failures(shared)))),
            }
        })
    }

    /// Where the first cluster made it, it is asked first and its refusal is final; a replica
    /// that decrypts it serves as well. Where a replica made it, the first cluster is the
    /// better judge, and else the replica itself, whose material was compared beside.
    fn verify<'a>(
        &'a self,
        plaintext: &'a Plaintext,
        wrapped: &'a Wrapped,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<bool, TransitError>> {
        let shared = &self.shared;
        Box::pin(async move {
            let made_at = shared.tiers.iter().position(|t| *t.cluster() == wrapped.cluster);
            let made_at = made_at.unwrap_or(FIRST);
            let ciphertext = &wrapped.ciphertext;
            if made_at == FIRST {
                let ends = |t: usize, error: &TransitError| t == FIRST && error.is_final();
                let order = shared.order(|_| true);
                let answered = shared.decrypt_at(order, ciphertext, deadline, ends).await;
                shared.compare(ciphertext, &answered);
                return match answered.answer {
                    Some((_, back)) => Ok(back == *plaintext),
                    None => Err(shared.final_at_first(answered)),
                };
            }
            let refuses =
                |_: usize, error: &TransitError| error.refusal().is_some_and(is_about_the_key);
            let order = shared.order(|t| t == FIRST || t == made_at);
            let answered = shared.decrypt_at(order, ciphertext, deadline, refuses).await;
            let is_refused = answered.failed.iter().any(|(t, error)| refuses(*t, error));
            match &answered.answer {
                Some((_, back)) if *back == *plaintext && !is_refused => Ok(true),
                None if !is_refused => {
                    Err(shared.error(failure::together(answered.failures(shared), Vec::new())))
                }
                _ => Err(shared.unmask(made_at, wrapped)),
            }
        })
    }

    fn read(&self, deadline: Deadline) -> BoxFuture<'_, Result<KeyMetadata, TransitError>> {
        Box::pin(self.shared.read_first(false, deadline))
    }

    fn read_at_active(
        &self,
        deadline: Deadline,
    ) -> BoxFuture<'_, Result<KeyMetadata, TransitError>> {
        Box::pin(self.shared.read_first(true, deadline))
    }

    fn encrypt_capabilities(
        &self,
        deadline: Deadline,
    ) -> BoxFuture<'_, Result<Vec<String>, TransitError>> {
        self.shared.tiers[FIRST].key.encrypt_capabilities(deadline)
    }

    fn vault_now(&self) -> Option<UnixSeconds> {
        self.shared.tiers[FIRST].key.vault_now()
    }

    fn cluster(&self) -> &ClusterName {
        self.shared.tiers[FIRST].cluster()
    }

    fn is_usable(&self) -> bool {
        self.shared.tiers.iter().any(|tier| tier.key.is_usable())
    }

    fn trouble(&self) -> Option<String> {
        self.shared.tiers[FIRST].key.trouble()
    }

    fn vouches_for(&self, version: KeyVersion) -> Vouch {
        let replicas = &self.shared.tiers[FIRST + 1..];
        if replicas.iter().any(|tier| tier.may_encrypt(version)) {
            Vouch::Yes
        } else if self.shared.canaries.of(version).is_some()
            && replicas.iter().any(|tier| !tier.proof().is_looked_at())
        {
            Vouch::Pending
        } else {
            Vouch::No
        }
    }

    fn news(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.shared.news.notified())
    }

    fn tiers(&self) -> Vec<TierCondition> {
        let wanted = self.shared.wanted().into_iter().next_back();
        let condition = |(t, tier): (usize, &Tier)| TierCondition {
            cluster: tier.cluster().clone(),
            passed_over: tier.passed_over(),
            unproven: match wanted {
                _ if t == FIRST => None,
                Some(version) => tier.proof().why_not(version),
                None => Some("the first cluster's key was not read yet".to_owned()),
            },
        };
        self.shared.tiers.iter().enumerate().map(condition).collect()
    }
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replicas").field("shared", &self.shared).finish_non_exhaustive()
    }
}

// === impl Shared ===

impl Shared {
    /// The clusters that `may` be asked: those that serve, then those that are passed over,
    /// in their order.
    fn order(&self, may: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.tiers.len()).filter(|t| may(*t)).collect();
        order.sort_by_key(|t| !self.tiers[*t].serves());
        order
    }

    /// Whether the first cluster said in this life that it has `version`. One whose number it
    /// did not tell is newer than that answer, and it refuses a number that it has not.
    fn is_said(&self, version: KeyVersion) -> bool {
        let said = self.first_said.lock().unwrap_or_else(PoisonError::into_inner);
        said.as_ref()
            .is_some_and(|key| key.version(version.number).is_none_or(|there| there == version))
    }

    /// Encrypts at one cluster. What a replica answers counts only when its canary decrypts
    /// beside it.
    fn encrypt_at(
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
    fn encrypted(
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

    async fn decrypt_at(
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
    fn compare(&self, ciphertext: &VaultCiphertext, answered: &Answered<Plaintext>) {
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
    fn unmask(&self, replica: usize, wrapped: &Wrapped) -> TransitError {
        let number = wrapped.ciphertext.version();
        let proven = self.tiers[replica].proof().proven_version(number);
        if let Some(version) = proven {
            self.revoke(replica, version, "what it encrypted did not decrypt".to_owned());
        }
        let what = "a ciphertext that does not decrypt to what was encrypted".to_owned();
        thrown_away(wrapped, what, self.key_of(replica))
    }

    /// Ends a proof. A new one takes a new canary; the other replicas keep the one there is.
    fn revoke(&self, replica: usize, version: KeyVersion, why: String) {
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
    fn final_at_first<T>(&self, mut answered: Answered<T>) -> TransitError {
        match answered.failed.iter().position(|(t, error)| *t == FIRST && error.is_final()) {
            Some(at) => answered.failed.swap_remove(at).1,
            None => self.error(failure::together(answered.failures(self), Vec::new())),
        }
    }

    /// `error`, which there is whenever a cluster was asked, and one always is.
    fn error(&self, error: Option<TransitError>) -> TransitError {
        error.unwrap_or_else(|| {
            let (mount, key) = self.key_of(FIRST);
            TransitError { mount, key, cause: TransitCause::Clusters(Vec::new()) }
        })
    }

    fn key_of(&self, t: usize) -> (String, String) {
        let there = self.settings.in_cluster(t);
        (there.mount, there.transit_key)
    }

    fn encrypts_with(&self, version: KeyVersion) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = asked.replace(version) != Some(version);
        drop(asked);
        if is_new && self.canaries.of(version).is_none() {
            self.wake();
        }
    }

    /// A cluster is passed over from here on, or no longer.
    fn told(&self, t: usize) {
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
    fn wake(&self) {
        self.work.send_modify(|n| *n = n.wrapping_add(1));
    }

    fn count(&self, t: usize, verb: &'static str) {
        let [kek, cluster] = self.labels(t);
        metrics::add(Metric::TierCalls, 1, &[kek, cluster, KeyValue::new("verb", verb)]);
    }

    fn set_proven(&self, t: usize, proven: bool) {
        metrics::set(Metric::ReplicaProven, f64::from(u8::from(proven)), &self.labels(t));
    }

    fn labels(&self, t: usize) -> [KeyValue; 2] {
        let cluster = self.tiers[t].cluster().as_str().to_owned();
        let kek = self.settings.name.as_str().to_owned();
        [KeyValue::new("kek", kek), KeyValue::new("cluster", cluster)]
    }
}

/// Whether a refusal says that the cluster holds another key, or not this version.
const fn is_about_the_key(refusal: &Refusal) -> bool {
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
const fn contradicts(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::WrongKey | Refusal::TooNew | Refusal::KeyNotFound)
}

fn thrown_away(wrapped: &Wrapped, what: String, (mount, key): (String, String)) -> TransitError {
    let address = wrapped.address.clone();
    TransitError { mount, key, cause: TransitCause::Unacceptable { what, address } }
}
