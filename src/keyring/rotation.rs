//! Which versions a key has and which of them encrypts, decided from what Vault said.
//!
//! Nothing here waits or asks: `SeenKey` is told what was read and when, and answers.
//!
//! *Order of what was seen.* Standbys may be behind, so a read is compared with what is
//! known by (creation time of the latest version, its number). A newer creation time wins
//! even with a lower number: the key was deleted and made again. A lower answer is taken
//! for stale, unless the active node says it three times over 60 s: Vault was restored from a
//! snapshot. Another node's answer counts only where the active one has never been heard of
//! it, and only after ten minutes: no standby that catches up is behind for so long, and
//! where nobody says which node is active there must be an end, too. After
//! a restart the newest version that was seen stands for what is known. Until something is
//! believed the key counts as unread, and encrypts only with a version that the doubted
//! answer has too.
//!
//! *Activation.* A new version encrypts only when it is `activationDelay` old by Vault's
//! clock, so that every node switches in the same second and no standby is asked to
//! decrypt with a version that it has not heard of.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::UnixSeconds;
use crate::transit::KeyMetadata;

#[cfg(test)]
mod tests;

/// How often a lower answer must come before it is believed, and over how long.
const DOUBTS: u32 = 3;
const DOUBT_SPAN: Duration = Duration::from_secs(60);
/// The same where the active node cannot be asked.
const UNCONFIRMED_SPAN: Duration = Duration::from_secs(600);

/// Transit's authenticated symmetric types: with these a wrong key is an error, never a
/// wrong plaintext.
const USABLE_TYPES: [&str; 4] =
    ["aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"];

/// What is known of one Transit key.
#[derive(Clone, Debug, Default)]
pub(crate) struct SeenKey {
    adopted: Option<Adopted>,
    /// The newest version of what was believed last, in this life or an earlier one.
    newest: Option<Activation>,
    doubt: Option<Doubt>,
    activation: Option<Activation>,
    gone: Option<String>,
}

#[derive(Clone, Debug)]
struct Adopted {
    metadata: Arc<KeyMetadata>,
    order: Order,
    since: Instant,
}

/// A lower answer that may turn out to be true.
#[derive(Clone, Debug)]
struct Doubt {
    metadata: Arc<KeyMetadata>,
    order: Order,
    since: Instant,
    times: u32,
    /// Since when, and how often, the active node has said it.
    confirmed: Option<(Instant, u32)>,
}

/// (creation time of the latest version, its number).
type Order = (UnixSeconds, u32);

/// A version, as one that encrypts. Its creation time belongs to its identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activation {
    /// Its number.
    pub version: u32,
    /// When Vault made it.
    pub created: UnixSeconds,
}

/// Who told the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Teller {
    /// Some node, which may be behind.
    Someone,
    /// The active node.
    Active,
}

/// What a read of the metadata turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Observation {
    /// The first one.
    First,
    /// Nothing newer.
    Same,
    /// The key has newer versions.
    Rotated,
    /// The key was deleted and made again: ciphertexts of the old one are lost.
    Recreated,
    /// An older state: not believed (yet).
    Stale {
        /// How often the active node has said it in a row.
        times: u32,
    },
    /// An older state that came often enough: Vault was restored from a snapshot.
    RolledBack,
}

/// Which version encrypts now, and when to ask again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The version, or why there is none.
    pub(crate) active: Result<Activation, Inactive>,
    /// When the choice may change with no further read.
    pub(crate) again: Again,
}

/// Why no version may encrypt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Inactive {
    /// The metadata was never read.
    Unread,
    /// What was read does not allow it; says what to do.
    Unusable(String),
    /// The key is gone.
    Gone(String),
}

/// When a [`Choice`] may change with no further read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// Never.
    No,
    /// When Vault's clock says this.
    At(UnixSeconds),
    /// At any time, because Vault's clock is not known.
    Always,
}

// === impl SeenKey ===

impl SeenKey {
    /// A key of which nothing is known but which version encrypted last, and which one was
    /// the newest.
    pub(crate) fn remembered(activation: Option<Activation>, newest: Option<Activation>) -> Self {
        Self { activation, newest, ..Self::default() }
    }

    /// The metadata that holds now.
    pub(crate) fn metadata(&self) -> Option<&Arc<KeyMetadata>> {
        self.adopted.as_ref().map(|a| &a.metadata)
    }

    /// The version that encrypted last.
    pub(crate) fn activation(&self) -> Option<Activation> {
        self.activation
    }

    /// The newest version that was ever believed to be there.
    pub(crate) fn newest(&self) -> Option<Activation> {
        self.newest
    }

    /// Why the key is known to be gone.
    pub(crate) fn gone(&self) -> Option<&str> {
        self.gone.as_deref()
    }

    /// Vault says for good that there is no such key. Holds until the next good read.
    pub(crate) fn lose(&mut self, why: String) {
        self.gone.get_or_insert(why);
    }

    /// Takes in what was read at `now`.
    ///
    /// # Errors
    /// When the answer contradicts itself; nothing is changed then.
    pub(crate) fn observe(
        &mut self,
        read: KeyMetadata,
        teller: Teller,
        now: Instant,
    ) -> Result<Observation, &'static str> {
        let created = read.versions.get(&read.latest_version);
        let created = created
            .ok_or("Vault answered metadata with no creation time for the latest version")?;
        let newest = Activation { version: read.latest_version, created: *created };
        let (order, read) = (newest.order(), Arc::new(read));
        self.gone = None;
        let before = [self.activation, self.newest].into_iter().flatten();
        let is_older = before.map(|before| before.order()).max().is_some_and(|b| order < b);
        let observation = match &self.adopted {
            None if is_older => self.doubt(&read, order, teller, now),
            None => Observation::First,
            Some(known) if order == known.order => Observation::Same,
            Some(known) if order > known.order => {
                let same_key = read.latest_version > known.order.1
                    && known.metadata.versions.iter().all(|(version, created)| {
                        read.versions.get(version).is_none_or(|again| again == created)
                    });
                if same_key { Observation::Rotated } else { Observation::Recreated }
            }
            Some(_) => self.doubt(&read, order, teller, now),
        };
        if matches!(observation, Observation::Stale { .. }) {
            return Ok(observation);
        }
        self.doubt = None;
        let since = match &self.adopted {
            Some(known) if observation == Observation::Same => known.since,
            _ => now,
        };
        self.adopted = Some(Adopted { metadata: read, order, since });
        self.newest = Some(newest);
        Ok(observation)
    }

    /// Whether an older state was told that may turn out to be true.
    pub(crate) const fn is_in_doubt(&self) -> bool {
        self.doubt.is_some()
    }

    fn doubt(
        &mut self,
        read: &Arc<KeyMetadata>,
        order: Order,
        teller: Teller,
        now: Instant,
    ) -> Observation {
        let metadata = Arc::clone(read);
        let mut doubt = match self.doubt.take() {
            Some(doubt) if doubt.order == order => Doubt { metadata, ..doubt },
            _ => Doubt { metadata, order, since: now, times: 0, confirmed: None },
        };
        doubt.times += 1;
        if teller == Teller::Active {
            let (since, times) = doubt.confirmed.unwrap_or((now, 0));
            doubt.confirmed = Some((since, times + 1));
        }
        let (since, times, span) = match doubt.confirmed {
            Some((since, times)) => (since, times, DOUBT_SPAN),
            None => (doubt.since, doubt.times, UNCONFIRMED_SPAN),
        };
        if times >= DOUBTS && now - since >= span {
            return Observation::RolledBack;
        }
        let times = doubt.confirmed.map_or(0, |(_, times)| times);
        self.doubt = Some(doubt);
        Observation::Stale { times }
    }

    /// Decides which version encrypts, and remembers it: a later choice never goes back to
    /// an older version of the same key while the remembered one may still encrypt.
    ///
    /// `vault_now` is Vault's clock. While it is unknown, the age of a version is the time
    /// for which it was watched, so that an old version is never mistaken for the newest
    /// one that is old enough: a key_id that goes back would cost an apiserver its start.
    pub(crate) fn choose(
        &mut self,
        pin: Option<u32>,
        delay: Duration,
        vault_now: Option<UnixSeconds>,
        now: Instant,
    ) -> Choice {
        let seen_before =
            self.adopted.is_some() || self.activation.is_some() || self.newest.is_some();
        if let Some(why) = self.gone.as_ref().filter(|_| seen_before) {
            return Choice { active: Err(Inactive::Gone(why.clone())), again: Again::No };
        }
        let Some(Adopted { metadata: key, since, .. }) = &self.adopted else {
            return self.choose_unread(pin, delay, vault_now);
        };
        if let Some(inactive) = unusable(key) {
            return Choice { active: Err(inactive), again: Again::No };
        }
        let may = key.versions.iter().filter(|(version, _)| key.may_encrypt(**version));
        let may = may.map(|(version, created)| Activation { version: *version, created: *created });
        let Some(lowest) = may.clone().next() else {
            let why = format!(
                "no version may encrypt: latest is v{}, min_encryption_version {}",
                key.latest_version, key.min_encryption_version
            );
            return Choice { active: Err(Inactive::Unusable(why)), again: Again::No };
        };
        let remembered = self.activation.filter(|a| may.clone().any(|m| m == *a));
        if let Some(pin) = pin {
            let Some(pinned) = may.clone().find(|m| m.version == pin) else {
                let why = format!(
                    "activeVersion pins v{pin}, which the key does not have or which may not \
                     encrypt (latest v{}, min_encryption_version {}); correct or remove it",
                    key.latest_version, key.min_encryption_version
                );
                return Choice { active: Err(Inactive::Unusable(why)), again: Again::No };
            };
            // A pin that goes back, in an emergency, does not undo what was activated.
            if remembered.is_none_or(|r| r.version < pin) {
                self.activation = Some(pinned);
            }
            return Choice { active: Ok(pinned), again: Again::No };
        }
        let old_enough = match vault_now {
            Some(at) => may.clone().rfind(|m| m.created.plus(delay) <= at),
            None => may.clone().next_back().filter(|_| now - *since >= delay),
        };
        let newest = [old_enough, remembered].into_iter().flatten().max_by_key(|a| a.version);
        let active = match (newest, vault_now) {
            (Some(newest), _) => newest,
            (None, Some(_)) => lowest,
            (None, None) => {
                let why = format!(
                    "Vault's clock is not known yet (no answer carried a `Date`); the latest \
                     version encrypts when it was watched for {delay:?}"
                );
                return Choice { active: Err(Inactive::Unusable(why)), again: Again::Always };
            }
        };
        let next = may.filter(|m| m.version > active.version).map(|m| m.created.plus(delay)).min();
        let again = match (next, vault_now) {
            (None, _) => Again::No,
            (Some(next), Some(_)) => Again::At(next),
            (Some(_), None) => Again::Always,
        };
        self.activation = Some(active);
        Choice { active: Ok(active), again }
    }

    /// The choice while nothing is believed yet in this life. What an earlier one saw comes of
    /// age all the same, for that is when every other node switches. An older state that is
    /// doubted is one of the same key when it has the version that is due: that one encrypts.
    fn choose_unread(
        &mut self,
        pin: Option<u32>,
        delay: Duration,
        vault_now: Option<UnixSeconds>,
    ) -> Choice {
        let mut again = Again::No;
        let newer =
            self.newest.filter(|newest| self.activation.is_none_or(|a| a.is_below(*newest)));
        if let (Some(newer), Some(now), None) = (newer, vault_now, pin) {
            let due = newer.created.plus(delay);
            if due <= now {
                self.activation = Some(newer);
            } else {
                again = Again::At(due);
            }
        }
        let key = self.doubt.as_ref().map(|doubt| &doubt.metadata);
        let key = key.filter(|key| unusable(key).is_none());
        let last = key.zip(self.activation).and_then(|(key, last)| {
            let version = key.version(pin.unwrap_or(last.version))?;
            let it = Activation { version: version.number, created: version.created };
            let is_the_same_key = key.version(last.version)?.created == last.created;
            (is_the_same_key && key.may_encrypt(it.version)).then_some(it)
        });
        Choice { active: last.ok_or(Inactive::Unread), again }
    }
}

// === impl Activation ===

impl Activation {
    const fn order(&self) -> Order {
        (self.created, self.version)
    }

    fn is_below(self, other: Self) -> bool {
        self.order() < other.order()
    }
}

/// Why no version of this key may encrypt, and what to do; for commands that show it.
pub fn why_unusable(key: &KeyMetadata) -> Option<String> {
    match unusable(key)? {
        Inactive::Unread => None,
        Inactive::Unusable(why) | Inactive::Gone(why) => Some(why),
    }
}

/// Whether a ciphertext of another key is an error, never another plaintext. RSA pads so that
/// it notices, too.
pub(crate) fn refuses_a_wrong_key(key: &KeyMetadata) -> bool {
    USABLE_TYPES.contains(&key.key_type.as_str()) || key.key_type.starts_with("rsa-")
}

/// Why this key must not be used, and what to do.
fn unusable(key: &KeyMetadata) -> Option<Inactive> {
    if key.soft_deleted {
        return Some(Inactive::Gone("the key was deleted (soft); restore it in Vault".into()));
    }
    if !USABLE_TYPES.contains(&key.key_type.as_str()) {
        return Some(Inactive::Unusable(format!(
            "the key's type is `{}`; make one of type aes256-gcm96 (usable types: {})",
            key.key_type.escape_default(),
            USABLE_TYPES.join(", ")
        )));
    }
    // A convergent key is a derived one.
    key.derived.then(|| {
        Inactive::Unusable("the key is derived (or convergent); make one with derived=false".into())
    })
}
