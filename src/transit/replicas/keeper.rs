//! The tasks that bring a silent first cluster back, make canaries, and look at replicas.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::canary::CANARY;
use super::judging::{contradicts, is_about_the_key};
use super::proof::Finding;
use super::{FIRST, Shared};
use crate::clock::Deadline;
use crate::secret::Plaintext;
use crate::task::OwnedTask;
use crate::transit::{KeyMetadata, KeyVersion, Refusal, TransitCause, TransitError, Wrapped};

/// The time that one step of a task has; an election is over by then.
const WITHIN: Duration = Duration::from_secs(5);
/// The wait after a look that brought nothing; it doubles from there.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The longest wait while a cluster does not answer.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// The least between two looks, whatever calls find out.
const GAP: Duration = Duration::from_millis(100);
/// So many versions are kept proven: those from the one in use to the newest.
const MOST_VERSIONS: usize = 16;

/// Starts the tasks: one for each replica, one for the first.
pub(super) fn start(shared: &Arc<Shared>) -> Vec<OwnedTask> {
    let scouted = Arc::clone(shared);
    let scout = move || scout(Arc::clone(&scouted));
    let scout = OwnedTask::spawn_again("cluster scout", scout);
    let looks = (FIRST + 1..shared.tiers.len()).map(|replica| {
        let shared = Arc::clone(shared);
        let begin = move || keep_proven(Arc::clone(&shared), replica);
        OwnedTask::spawn_again("replica proof", begin)
    });
    std::iter::once(scout).chain(looks).collect()
}

/// Asks the first cluster again and again while calls pass it over, and not otherwise.
async fn scout(shared: Arc<Shared>) {
    let mut work = shared.work.subscribe();
    let mut wait = FIRST_WAIT;
    loop {
        if shared.tiers[FIRST].why_doubted().is_none() {
            wait = FIRST_WAIT;
            if work.changed().await.is_err() {
                return;
            }
            continue;
        }
        tokio::time::sleep(shared.jitter.around(wait)).await;
        wait = (wait * 2).min(LONGEST_WAIT);
        // What it brings is noted where it is read.
        let _ = shared.read_first(false, Deadline::after(WITHIN)).await;
    }
}

/// Keeps one replica proven for the versions that encrypt or soon will.
async fn keep_proven(shared: Arc<Shared>, replica: usize) {
    let mut work = shared.work.subscribe();
    let mut wait = FIRST_WAIT;
    loop {
        work.mark_unchanged();
        let is_done = shared.look_at(replica).await;
        let next = if is_done {
            wait = FIRST_WAIT;
            shared.refresh
        } else {
            let this = wait;
            wait = (wait * 2).min(LONGEST_WAIT).min(shared.refresh.max(FIRST_WAIT));
            this
        };
        let soonest = Instant::now() + GAP;
        tokio::select! {
            biased;
            changed = work.changed() => match changed {
                Ok(()) => tokio::time::sleep_until(soonest).await,
                Err(_) => return,
            },
            () = tokio::time::sleep(shared.jitter.around(next)) => {}
        }
    }
}

// === impl Shared: the first cluster ===

impl Shared {
    /// Reads the first cluster's metadata; what it says of versions counts from here on.
    pub(super) async fn read_first(
        &self,
        at_active: bool,
        deadline: Deadline,
    ) -> Result<KeyMetadata, TransitError> {
        let first = &self.tiers[FIRST];
        let began = Instant::now();
        let result = match at_active {
            true => first.key.read_at_active(deadline).await,
            false => first.key.read(deadline).await,
        };
        let is_news = match &result {
            Ok(metadata) => {
                let mut said = self.first_said.lock().unwrap_or_else(PoisonError::into_inner);
                if said.replace(metadata.clone()).as_ref() != Some(metadata) {
                    self.wake();
                }
                drop(said);
                first.trust(began.elapsed())
            }
            Err(error) => {
                self.heed(error);
                first.failed(error, began.elapsed())
            }
        };
        if is_news {
            self.told(FIRST);
        }
        result
    }

    /// What the first cluster said of versions holds no longer when it refuses a read because
    /// there is no such key.
    fn heed(&self, error: &TransitError) {
        if let Some(Refusal::KeyNotFound | Refusal::KeyDeleted | Refusal::Misconfigured(_)) =
            error.refusal()
        {
            self.first_said.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
    }

    /// Whether the first cluster has exactly `version`, asked anew. Where it has not, a token
    /// that may `create` would make a new key by encrypting.
    async fn has_now(&self, version: KeyVersion) -> bool {
        let key = &self.tiers[FIRST].key;
        let read = match key.read_at_active(Deadline::after(WITHIN)).await {
            // the active node is away, or no node says which one it is
            Err(error) if error.is_outage() => key.read(Deadline::after(WITHIN)).await,
            read => read,
        };
        match read {
            Ok(key) => !key.soft_deleted && key.version(version.number) == Some(version),
            Err(error) => {
                self.heed(&error);
                false
            }
        }
    }

    /// The versions that a replica must be proven for, in their order: from the one that
    /// encrypts to the newest, which soon will. Those with a canary, while the first cluster
    /// has said nothing yet.
    pub(super) fn wanted(&self) -> Vec<KeyVersion> {
        let asked = *self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let said = self.first_said.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(key) = said.as_ref() else { return self.canaries.versions() };
        // At the start it is not known yet which one encrypts: most likely one of two.
        let from = asked.map_or(key.latest_version.saturating_sub(1), |asked| asked.number);
        let may = |number: &u32| *number >= from && key.may_encrypt(*number);
        let mut wanted: Vec<_> = key.versions.keys().copied().filter(may).collect();
        let most = wanted.len().saturating_sub(MOST_VERSIONS);
        wanted.drain(..most);
        let mut wanted: Vec<_> = wanted.into_iter().filter_map(|n| key.version(n)).collect();
        let in_use = asked.filter(|asked| key.version(asked.number) == Some(*asked));
        wanted.extend(in_use.filter(|version| !wanted.contains(version)));
        wanted.sort_unstable();
        wanted
    }

    /// Has the first cluster make the canaries that are wanted; whether all are there.
    async fn make_canaries(&self, wanted: &[KeyVersion]) -> bool {
        // Several tasks may make the same one: either serves.
        let first = &self.tiers[FIRST];
        let mut complete = true;
        for version in wanted {
            let is_revoked = self.tiers.iter().any(|tier| tier.proof().is_revoked(*version));
            if self.canaries.of(*version).is_some() && !is_revoked {
                continue;
            }
            if !first.serves() {
                return false;
            }
            if !self.has_now(*version).await {
                complete = false;
                continue;
            }
            let canary = Plaintext::new(CANARY.to_vec());
            let made = first.key.encrypt(&canary, Some(*version), Deadline::after(WITHIN)).await;
            match made {
                // Between the look and the encrypt the key may have been deleted, and then
                // another one was made: its canary would prove the wrong material.
                Ok(Wrapped { ciphertext, .. })
                    if ciphertext.version() == version.number && self.has_now(*version).await =>
                {
                    self.canaries.keep(*version, ciphertext);
                    self.tiers.iter().for_each(|tier| tier.proof().renew(*version));
                }
                Ok(_) | Err(_) => complete = false,
            }
        }
        self.canaries.retain(wanted);
        complete
    }
}

// === impl Shared: replicas ===

impl Shared {
    /// Looks at one replica; whether nothing is left to be tried soon.
    async fn look_at(&self, replica: usize) -> bool {
        let tier = &self.tiers[replica];
        let wanted = self.wanted();
        let has_canaries = self.make_canaries(&wanted).await;
        let before = self.newest_of(replica);
        let began = Instant::now();
        let answered = match tier.key.read(Deadline::after(WITHIN)).await {
            Ok(metadata) => {
                if tier.trust(began.elapsed()) {
                    self.told(replica);
                }
                let mut found = Vec::with_capacity(wanted.len());
                for version in &wanted {
                    found.push((*version, self.find(replica, *version, &metadata).await));
                }
                let settled = found.iter().all(|(_, finding)| finding.is_some());
                tier.proof().replace(found);
                settled
            }
            Err(error) => {
                if tier.failed(&error, began.elapsed()) {
                    self.told(replica);
                }
                let why = error.cause.to_string();
                if error.is_final() {
                    tier.proof().refuse(&why);
                } else {
                    tier.proof().miss(why);
                }
                error.is_final()
            }
        };
        self.tell(replica, before);
        self.news.notify_one();
        answered && has_canaries && !wanted.is_empty()
    }

    /// What is found of `version` at a replica with this metadata; `None` when it could
    /// not be asked.
    async fn find(
        &self,
        replica: usize,
        version: KeyVersion,
        metadata: &KeyMetadata,
    ) -> Option<Finding> {
        let (first, number) = (self.tiers[FIRST].cluster(), version.number);
        match metadata.version(number) {
            Some(there) if there == version => {}
            Some(_) => {
                return Some(Finding::Impostor(format!(
                    "its v{number} was made at another time than that of cluster {first}, so \
                     it is another key of the same name; restore a backup of cluster {first}'s"
                )));
            }
            None => {
                return Some(Finding::Lacking(format!(
                    "it has no v{number}; restore a backup of cluster {first}'s key there"
                )));
            }
        }
        if !metadata.may_encrypt(number) || metadata.derived || metadata.soft_deleted {
            return Some(Finding::Lacking(format!("its v{number} may not encrypt there")));
        }
        if self.canaries.of(version).is_none() || self.tiers[replica].proof().is_revoked(version) {
            return Some(Finding::Lacking(format!(
                "cluster {first} has not made a canary with v{number} yet"
            )));
        }
        match self.decrypt_canary(replica, version).await {
            Ok(()) => Some(Finding::Proven),
            // it went while it was to be asked
            Err(_) if self.canaries.of(version).is_none() => None,
            Err(error) => match error.refusal() {
                Some(refusal) if contradicts(refusal) => Some(Finding::Impostor(format!(
                    "it cannot decrypt what cluster {first} encrypts with v{number}, so it is \
                     another key of the same name ({})",
                    error.cause
                ))),
                Some(_) => Some(Finding::Lacking(error.cause.to_string())),
                None if error.is_outage() => None,
                None => Some(Finding::Impostor(error.cause.to_string())),
            },
        }
    }

    /// Looks at a replica's material beside an encrypt.
    pub(super) async fn look_again(
        &self,
        replica: usize,
        version: KeyVersion,
        deadline: Deadline,
    ) -> Result<(), TransitError> {
        let decrypted = self.decrypt_canary_by(replica, version, deadline).await;
        if let Err(error) = &decrypted
            && !error.is_outage()
            && error.refusal().is_none_or(is_about_the_key)
            && self.canaries.of(version).is_some()
        {
            let why = format!("it decrypts its canary no longer: {}", error.cause);
            self.revoke(replica, version, why);
        }
        decrypted
    }

    async fn decrypt_canary(
        &self,
        replica: usize,
        version: KeyVersion,
    ) -> Result<(), TransitError> {
        self.decrypt_canary_by(replica, version, Deadline::after(WITHIN)).await
    }

    pub(super) async fn decrypt_canary_by(
        &self,
        replica: usize,
        version: KeyVersion,
        deadline: Deadline,
    ) -> Result<(), TransitError> {
        let refused = |what: String| {
            let (mount, key) = self.key_of(replica);
            let address = format!("cluster {}", self.tiers[replica].cluster());
            TransitError { mount, key, cause: TransitCause::Unacceptable { what, address } }
        };
        let Some(canary) = self.canaries.of(version) else {
            let number = version.number;
            return Err(refused(format!("with v{number}, whose canary is gone by now")));
        };
        let back = self.tiers[replica].key.decrypt(&canary, deadline).await?;
        if back.expose() == CANARY {
            return Ok(());
        }
        Err(refused("something else than the canary that the first cluster encrypted".into()))
    }

    /// What was found of the newest version.
    fn newest_of(&self, replica: usize) -> Option<(KeyVersion, Finding)> {
        self.tiers[replica].proof().newest().map(|(version, finding)| (version, finding.clone()))
    }

    fn tell(&self, replica: usize, before: Option<(KeyVersion, Finding)>) {
        let Some((version, finding)) = self.newest_of(replica) else { return };
        self.set_proven(replica, matches!(finding, Finding::Proven));
        if before.is_some_and(|before| before == (version, finding.clone())) {
            return;
        }
        let (kek, cluster) = (&self.settings.name, self.tiers[replica].cluster());
        let version = version.number;
        match finding {
            Finding::Proven => tracing::info!(
                %kek, %cluster, version, "The replica is proven; it may encrypt when it must."
            ),
            Finding::Impostor(why) => tracing::error!(
                %kek, %cluster, version, why,
                "The replica is none: it only decrypts, and nothing that the first cluster made."
            ),
            Finding::Lacking(why) => tracing::warn!(
                %kek, %cluster, version, why, "The replica is not proven; it only decrypts."
            ),
        }
    }
}
