//! One KEK: a Transit key, what is known of it, and the two things it does.
//!
//! Calls read one snapshot of what is known (`View`) and hold no lock while they wait.
//! `calling` holds Encrypt and Decrypt; `watching` the tasks that keep the snapshot fresh
//! and the active version proven.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::condition::{KekCondition, Saying, Seen};
use super::memory::KekMemory;
use super::rotation::{Activation, Again, Choice, Inactive};
use super::{KeyId, KeyringError, key_id};
use crate::clock::{Deadline, Jitter};
use crate::config::settings::{KekName, KekSettings, RotationSettings, StatusSettings};
use crate::task::OwnedTask;
use crate::telemetry::metrics::{self, Metric};
use crate::transit::{KeyMetadata, KeyVersion, TransitError, TransitKey, Vouch};

mod calling;
pub(crate) mod watching;

pub(crate) use calling::{Compared, Verified, Verify};
pub(crate) use watching::keep_proven;

/// One configured KEK of a generation. Owns the task that watches its key.
#[derive(Debug)]
pub struct Kek {
    core: Arc<Core>,
    _watch: OwnedTask,
}

/// What the KEK's calls and its tasks share.
#[derive(Debug)]
pub(crate) struct Core {
    settings: Arc<KekSettings>,
    transit: Arc<dyn TransitKey>,
    memory: Arc<KekMemory>,
    rotation: RotationSettings,
    jitter: Arc<Jitter>,
    view: watch::Sender<Arc<View>>,
    reads: watch::Sender<Reads>,
    read_now: Notify,
    prove_now: Notify,
    unpinned: AtomicBool,
    begun: Instant,
}

/// How long the first read goes before what a replica vouches for.
const VOUCHED_AFTER: Duration = Duration::from_secs(1);

/// What a call needs to know, as one value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct View {
    metadata: Option<Arc<KeyMetadata>>,
    active: Result<Active, Inactive>,
    /// The version that an earlier process encrypted with, while this one has not read the
    /// key. Status may name it; nothing is encrypted with it.
    before: Option<Active>,
    again: Again,
    unpinned: bool,
}

/// The version that encrypts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Active {
    pub(crate) version: KeyVersion,
    pub(crate) key_id: KeyId,
}

/// How far the reads of the metadata are.
#[derive(Debug, Default)]
struct Reads {
    started: u64,
    finished: u64,
    good: u64,
    error: Option<String>,
    refused: bool,
}

// === impl Kek ===

impl Kek {
    /// Starts to watch the key behind `transit`. `memory` is the one that was kept for
    /// this key, or a new one. Must be called within a tokio runtime.
    pub fn new(
        settings: Arc<KekSettings>,
        transit: Arc<dyn TransitKey>,
        memory: Arc<KekMemory>,
        rotation: RotationSettings,
        jitter: Arc<Jitter>,
    ) -> Arc<Self> {
        let nothing = View {
            metadata: None,
            active: Err(Inactive::Unread),
            before: None,
            again: Again::No,
            unpinned: false,
        };
        let core = Arc::new(Core {
            settings,
            transit,
            memory,
            rotation,
            jitter,
            view: watch::Sender::new(Arc::new(nothing)),
            reads: watch::Sender::new(Reads::default()),
            read_now: Notify::new(),
            prove_now: Notify::new(),
            unpinned: AtomicBool::new(false),
            begun: Instant::now(),
        });
        // What an earlier generation learnt serves from the first moment.
        core.reconsider();
        let watched = Arc::clone(&core);
        let begin = move || watching::run(Arc::clone(&watched));
        let watch = OwnedTask::spawn_again("key metadata watch", begin);
        Arc::new(Self { core, _watch: watch })
    }

    /// Its name.
    pub fn name(&self) -> &KekName {
        &self.core.settings.name
    }

    /// What it was made from.
    pub fn settings(&self) -> &Arc<KekSettings> {
        &self.core.settings
    }

    /// Whether its active version encrypts and decrypts, asked anew.
    ///
    /// # Errors
    /// When it does not by `deadline`.
    pub async fn prove(&self, deadline: Deadline) -> Result<(), KeyringError> {
        self.core.prove(deadline).await
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }
}

// === impl Core ===

impl Core {
    /// What is known now. A version whose time has come is activated by whoever asks
    /// first, so that every node switches in the same second.
    pub(crate) fn current(&self) -> Arc<View> {
        let view = self.view.borrow().clone();
        let due = match view.again {
            Again::No => false,
            Again::At(time) => self.transit.vault_now().is_some_and(|now| now >= time),
            Again::Always => true,
        };
        if due { self.reconsider() } else { view }
    }

    /// What Status may say now.
    pub(crate) fn status(
        &self,
        settings: &StatusSettings,
    ) -> Result<(String, KeyId), KeyringError> {
        let view = self.current();
        let kek = &self.settings.name;
        let (why, refused) = match (&view.active, &view.before) {
            (Err(Inactive::Unread), Some(_)) => (self.why_unread(), self.reads.borrow().refused),
            _ => (None, false),
        };
        let (active, seen) = match (&view.active, &view.before) {
            (Ok(active), _) => (active, Seen::Here),
            (Err(Inactive::Unread), Some(active)) => {
                (active, Seen::Before { why: why.as_deref(), refused })
            }
            (Err(inactive), _) => return Err(self.not_active(inactive)),
        };
        let now = Instant::now();
        match self.memory.with(|m| m.proofs.say(active.version.number, seen, now, settings)) {
            Saying::Ok => Ok(("ok".into(), active.key_id.clone())),
            Saying::Reason(why) => Ok((format!("KEK `{kek}`: {why}"), active.key_id.clone())),
            Saying::Lost(why) => Err(KeyringError::Lost { kek: kek.clone(), why }),
        }
    }

    /// For `/readyz` and the status page.
    pub(crate) fn condition(&self) -> KekCondition {
        let view = self.current();
        let inactive = view.active.as_ref().err().map(|i| self.not_active(i).to_string());
        let read_error = self.reads.borrow().error.clone();
        self.memory.with(|m| KekCondition {
            name: self.settings.name.clone(),
            cluster: self.transit.cluster().clone(),
            tiers: self.transit.tiers(),
            latest_version: view.metadata.as_ref().map(|m| m.latest_version),
            active: view.active.as_ref().ok().map(|a| (a.version.number, a.key_id.clone())),
            inactive,
            proof_age: m.proofs.age(Instant::now()),
            read_error,
            proof_error: m.proofs.failure().map(ToOwned::to_owned),
        })
    }

    /// Chooses the active version anew and tells of what changed.
    fn reconsider(&self) -> Arc<View> {
        let vault_now = self.transit.vault_now();
        // The memory's lock makes one change at a time of reading, choosing and storing.
        self.memory.with(|m| {
            let (pin, delay) = (self.settings.active_version, self.rotation.activation_delay);
            let Choice { active, again } = m.key.choose(pin, delay, vault_now, Instant::now());
            match &active {
                Ok(chosen) => m.active = Some(*chosen),
                // What an earlier process saw may have come of age.
                Err(Inactive::Unread) if pin.is_none() => {
                    m.active = m.key.activation().or(m.active)
                }
                // Read and found wanting; that Vault's clock is not known yet passes.
                Err(Inactive::Unusable(_)) if again == Again::No => m.active = None,
                Err(_) => {}
            }
            // Under another pin than the one that was in force, it would not be the active one.
            let last = m.active.filter(|a| pin.is_none_or(|pin| pin == a.version));
            let (active, again) = match (active, last) {
                (Err(Inactive::Unread), Some(last)) => self.vouched(last),
                (active, _) => (active, again),
            };
            let named = |chosen: Activation| Active {
                version: KeyVersion { number: chosen.version, created: chosen.created },
                key_id: key_id::of(&self.settings, chosen.version, chosen.created),
            };
            let view = Arc::new(View {
                metadata: m.key.metadata().cloned(),
                before: last.filter(|_| active == Err(Inactive::Unread)).map(named),
                active: active.map(named),
                again,
                unpinned: self.unpinned.load(Ordering::Relaxed),
            });
            let before = self.view.borrow().clone();
            if *before == *view {
                return before;
            }
            if before.active != view.active {
                self.tell_active(&view, &mut m.told);
            }
            self.view.send_replace(view.clone());
            view
        })
    }

    /// What encrypts while the metadata was never read in this life, but the version that
    /// encrypted `last`, before it, is remembered: that version, as soon as a replica vouches
    /// for it. An answer of the first cluster goes before, so its first read is waited for
    /// as long as the first cluster is given everywhere.
    fn vouched(&self, last: Activation) -> (Result<Activation, Inactive>, Again) {
        let is_early = self.begun.elapsed() < VOUCHED_AFTER && self.reads.borrow().finished == 0;
        let version = KeyVersion { number: last.version, created: last.created };
        match self.transit.vouches_for(version) {
            Vouch::No => (Err(Inactive::Unread), Again::No),
            Vouch::Yes if !is_early => (Ok(last), Again::Always),
            Vouch::Yes | Vouch::Pending => (Err(Inactive::Unread), Again::Always),
        }
    }

    fn tell_active(&self, view: &View, told: &mut Option<KeyId>) {
        let kek = &self.settings.name;
        match &view.active {
            // An earlier generation told of it.
            Ok(Active { key_id, .. }) if told.as_ref() == Some(key_id) => {}
            Ok(Active { version, key_id }) => {
                let version = version.number;
                *told = Some(key_id.clone());
                metrics::set(Metric::ActiveKeyVersion, f64::from(version), &self.label());
                tracing::info!(%kek, version, key_id = key_id.as_str(), "The key version is active.");
            }
            Err(Inactive::Unread) => {}
            Err(Inactive::Unusable(why) | Inactive::Gone(why)) => {
                *told = None;
                tracing::error!(%kek, why, "No version of the key may encrypt.");
            }
        }
    }

    fn not_active(&self, inactive: &Inactive) -> KeyringError {
        let kek = self.settings.name.clone();
        match inactive {
            Inactive::Unread => {
                let unread = || "its metadata has not been read yet".to_owned();
                KeyringError::NotReady { kek, why: self.why_unread().unwrap_or_else(unread) }
            }
            Inactive::Unusable(why) => KeyringError::NotReady { kek, why: why.clone() },
            Inactive::Gone(why) => KeyringError::Lost { kek, why: why.clone() },
        }
    }

    /// Why the metadata was not read, as far as is known: what the last read met, or what
    /// the first one is waiting for.
    fn why_unread(&self) -> Option<String> {
        let met = self.reads.borrow().error.clone();
        let met = met.map(|error| format!("its metadata could not be read: {error}"));
        met.or_else(|| {
            let trouble = self.transit.trouble()?;
            Some(format!("its metadata has not been read yet: {trouble}"))
        })
    }

    fn failed(&self, source: TransitError) -> KeyringError {
        KeyringError::Transit { kek: self.settings.name.clone(), source: Box::new(source) }
    }

    fn label(&self) -> [KeyValue; 1] {
        [KeyValue::new("kek", self.settings.name.as_str().to_owned())]
    }
}
