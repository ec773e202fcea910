//! What outlives the process: what is known of each KEK.
//!
//! `stateDir` keeps a small file for two reasons. The active version follows from Vault's
//! clock and what Vault knows, so a restart comes to the same one by itself, but for two
//! cases: Vault's clock was set back, or no answer has told it yet; and a key_id that goes
//! back costs a kube-apiserver its start. And a restart while Vault is away must not turn
//! what Status says into an error: kube-apiserver would stop writing, for no reason but
//! the restart.
//!
//! The file says what an earlier process saw, and is believed for the very same key only.
//! Nothing is encrypted on its word: it can only choose among versions that Vault still has
//! and still lets encrypt. So a lost or wrong file does little harm: it is told, and the
//! daemon goes on without.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::settings::{KekName, KekSettings};
use crate::keyring::memory::KekMemory;
use crate::task::OwnedTask;
use crate::transit::replicas::{Canaries, CanaryMemory};

mod canaries;
mod file;
#[cfg(test)]
mod tests;

use file::Entry;
pub(super) use file::{State, replace};

/// How often a file that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(30);
/// How often the file is written when nothing but the time of the proofs has changed: a
/// restart takes a proof for older than it is by that much at most.
const PROOFS_EVERY: Duration = Duration::from_secs(30);
/// The least between two writes, however often something changes, but for the version that
/// encrypts.
const GAP: Duration = Duration::from_secs(1);

/// The time that the last write has.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// KEKs, and what is known of each.
pub(super) type Memories = Vec<(Arc<KekSettings>, Arc<KekMemory>)>;

/// Keeps the file up to date with the KEKs that it is told to follow.
#[derive(Clone, Debug)]
pub(super) struct StateKeeper {
    followed: watch::Sender<Followed>,
    has_ended: watch::Receiver<bool>,
    _task: Arc<OwnedTask>,
}

/// What the file is made of.
#[derive(Clone, Debug, Default)]
struct Followed {
    memories: Arc<Memories>,
    sections: BTreeMap<String, Value>,
    /// The process ends: what is not written yet is to be, once and at once.
    is_last: bool,
}

/// What was written, and when.
struct Written {
    state: State,
    at: Instant,
}

async fn keep(folder: PathBuf, mut following: watch::Receiver<Followed>) {
    let mut written: Option<Written> = None;
    let mut failing = false;
    loop {
        let followed = following.borrow_and_update().clone();
        let memories = followed.memories.iter();
        let mut keks: Vec<_> = memories.map(|(_, memory)| memory.snapshots()).collect();
        let seen = followed.memories.iter().zip(&mut keks);
        let entries =
            seen.filter_map(|((kek, _), seen)| Entry::of(kek, seen.borrow_and_update().clone()));
        let (sections, is_last) = (followed.sections, followed.is_last);
        let now = State { keks: entries.collect(), sections, ..State::default() };
        // Nothing known is nothing to say: it must not wipe out what an earlier run knew.
        let is_worth_it = !now.keks.is_empty();
        let mut due = match &written {
            Some(last) if last.state == now => None,
            _ if is_last => is_worth_it.then(Instant::now),
            Some(last) if last.state.is_but_for_proofs(&now) => Some(last.at + PROOFS_EVERY),
            // A process that is killed now must not come back with the version before.
            Some(last) if last.state.has_other_versions(&now) => is_worth_it.then(Instant::now),
            Some(last) => is_worth_it.then(|| last.at + GAP),
            None => is_worth_it.then(Instant::now),
        };
        if due.is_some_and(|due| due <= Instant::now()) {
            due = None;
            let (to, state) = (folder.clone(), now.clone());
            match tokio::task::spawn_blocking(move || state.write(&to)).await {
                Ok(Ok(())) => {
                    written = Some(Written { state: now, at: Instant::now() });
                    if std::mem::take(&mut failing) {
                        tracing::info!(folder = %folder.display(), "The state is kept again.");
                    }
                }
                Ok(Err(error)) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(
                            folder = %folder.display(), %error,
                            "The state cannot be kept; a restart begins without it. Make \
                             stateDir a folder that the daemon may write."
                        );
                    }
                    due = Some(Instant::now() + RETRY);
                }
                Err(_) => due = Some(Instant::now() + RETRY), // the runtime ends
            }
        }
        if is_last {
            return;
        }
        // While it cannot be written, its changes are no reason to try sooner.
        let waits_for_changes = !failing;
        let changes = keks.iter_mut().map(|seen| Box::pin(seen.changed()));
        let changes: Vec<_> = changes.collect();
        tokio::select! {
            changed = following.changed() => if changed.is_err() { return },
            () = any(changes), if waits_for_changes => {}
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
    }
}

/// Waits for the first of `changes`; for ever when there are none.
async fn any(changes: Vec<impl Future + Unpin>) {
    if changes.is_empty() {
        return future::pending().await;
    }
    future::select_all(changes).await;
}

// === impl StateKeeper ===

impl StateKeeper {
    /// Starts to keep the state in `folder`, of no KEK for now. The sections of other parts
    /// begin as `earlier` has them.
    pub(super) fn start(folder: PathBuf, earlier: &State) -> Self {
        let first = Followed { sections: earlier.sections.clone(), ..Followed::default() };
        let (followed, following) = watch::channel(first);
        let (ended, has_ended) = watch::channel(false);
        let ended = Arc::new(ended);
        let begin = move || {
            let (folder, following, ended) = (folder.clone(), following.clone(), ended.clone());
            async move {
                keep(folder, following).await;
                ended.send_replace(true);
            }
        };
        let task = Arc::new(OwnedTask::spawn_again("state", begin));
        Self { followed, has_ended, _task: task }
    }

    /// Writes what is known by now, for the last time. A disk that does not answer is not
    /// waited for.
    pub(super) async fn finish(mut self) {
        self.followed.send_modify(|followed| followed.is_last = true);
        let ended = self.has_ended.wait_for(|ended| *ended);
        let _ = tokio::time::timeout(LAST_WRITE, ended).await;
    }

    /// Follows these from now on, and no others.
    pub(super) fn follow(&self, memories: Memories) {
        self.followed.send_modify(|followed| followed.memories = Arc::new(memories));
    }

    /// Keeps `content` as the section `name`, until it is given another.
    pub(super) fn put(&self, name: &str, content: Value) {
        self.followed.send_modify(|followed| {
            followed.sections.insert(name.to_owned(), content);
        });
    }

    /// Keeps the canaries of these KEKs, and no others, as long as the task lives.
    pub(super) fn keep_canaries(&self, kept: Vec<(KekName, Arc<CanaryMemory>)>) -> OwnedTask {
        let state = self.clone();
        OwnedTask::spawn_again("canaries", move || {
            let state = state.clone();
            canaries::follow(kept.clone(), move |section| state.put(canaries::SECTION, section))
        })
    }
}

impl State {
    /// The canaries of the KEK `name` that an earlier process kept, when `origin` made them.
    pub(super) fn canaries(&self, name: &KekName, origin: &str) -> Canaries {
        canaries::read(self.section(canaries::SECTION), name, origin)
    }
}
