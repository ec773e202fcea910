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
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, watch};

use super::{
    KeyMetadata, KeyVersion, TierCondition, TransitError, TransitKey, VaultCiphertext, Vouch,
    Wrapped,
};
use crate::clock::{Deadline, Jitter, UnixSeconds};
use crate::config::settings::{ClusterName, KekSettings};
use crate::secret::Plaintext;
use crate::task::OwnedTask;
use asking::{Losers, PATIENCE, Round};
use judging::is_about_the_key;
use tier::Tier;

mod asking;
pub mod canary;
pub mod failure;
mod judging;
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

    fn decrypt_at_first<'a>(
        &'a self,
        ciphertext: &'a VaultCiphertext,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Plaintext, TransitError>> {
        self.shared.tiers[FIRST].key.decrypt(ciphertext, deadline)
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
