//! What outlives the process: the version that each KEK encrypted with last.
//!
//! The active version follows from Vault's clock and what Vault knows, so a restart comes
//! to the same one by itself, but for two cases: Vault's clock was set back, or no answer
//! has told it yet. A key_id that goes back costs a kube-apiserver its start. So
//! `stateDir` keeps a small file that says where each KEK was. It can only choose among
//! versions that Vault still has and still lets encrypt, so a lost or wrong file does no
//! harm: it is told, and the daemon goes on without.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::identity::KekIdentity;
use crate::clock::UnixSeconds;
use crate::config::settings::{ClusterName, KekName};
use crate::keyring::memory::KekMemory;
use crate::keyring::rotation::Activation;
use crate::task::OwnedTask;

#[cfg(test)]
mod tests;

/// The version that each KEK encrypted with last.
pub(super) type Activations = BTreeMap<KekIdentity, Activation>;

const FILE: &str = "activations.json";
/// What is written before it takes the file's place.
const NEXT: &str = ".activations.json.new";
/// A thousand KEKs take a quarter of it.
const MAX_BYTES: u64 = 1 << 20;
/// The form of the file.
const FORMAT: u32 = 1;
/// How often a file that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(30);

type Memories = Vec<(KekIdentity, Arc<KekMemory>)>;

/// Keeps the file up to date with the KEKs that it is told to follow.
#[derive(Debug)]
pub(super) struct StateKeeper {
    followed: watch::Sender<Arc<Memories>>,
    _task: OwnedTask,
}

/// The file's content.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    format: u32,
    keks: Vec<Entry>,
}

/// One KEK in the file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    name: String,
    clusters: Vec<String>,
    namespace: Option<String>,
    mount: String,
    transit_key: String,
    version: u32,
    created: i64,
}

/// Reads what an earlier process left in `folder`. What cannot be read is told and left
/// out; that there is nothing yet is no news.
pub(super) fn read(folder: &Path) -> Activations {
    let path = folder.join(FILE);
    match try_read(&path) {
        Ok(activations) => activations,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Activations::new(),
        Err(error) => {
            tracing::warn!(
                file = %path.display(), %error,
                "The state of an earlier run cannot be used; the active versions are chosen \
                 without it. The file is written anew."
            );
            Activations::new()
        }
    }
}

fn try_read(path: &Path) -> io::Result<Activations> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_BYTES).read_to_end(&mut text)?;
    let content: Content = serde_json::from_slice(&text)?;
    if content.format != FORMAT {
        let why = format!("its format is {}, and this version reads {FORMAT}", content.format);
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(content.keks.into_iter().filter_map(Entry::read).collect())
}

/// Puts `activations` in the place of what `folder` holds, so that after a crash at any
/// moment either of them is there whole.
fn write(folder: &Path, activations: &Activations) -> io::Result<()> {
    let keks = activations.iter().map(|(kek, activation)| Entry::of(kek, *activation)).collect();
    let text = serde_json::to_vec_pretty(&Content { format: FORMAT, keks })?;
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let next = folder.join(NEXT);
    match std::fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
    file.write_all(&text)?;
    file.sync_all()?;
    std::fs::rename(&next, folder.join(FILE))?;
    File::open(folder)?.sync_all()
}

async fn keep(folder: PathBuf, mut followed: watch::Receiver<Arc<Memories>>) {
    let mut written = None;
    let mut failing = false;
    loop {
        let memories = Arc::clone(&followed.borrow_and_update());
        let mut keks: Vec<_> = memories.iter().map(|(_, memory)| memory.activations()).collect();
        let now: Activations = memories
            .iter()
            .zip(&mut keks)
            .filter_map(|((kek, _), seen)| Some((kek.clone(), (*seen.borrow_and_update())?)))
            .collect();
        let mut retry = None;
        // Nothing known is nothing to say: it must not wipe out what an earlier run knew.
        if !now.is_empty() && written.as_ref() != Some(&now) {
            let (to, text) = (folder.clone(), now.clone());
            match tokio::task::spawn_blocking(move || write(&to, &text)).await {
                Ok(Ok(())) => {
                    written = Some(now);
                    if std::mem::take(&mut failing) {
                        tracing::info!(folder = %folder.display(), "The state is kept again.");
                    }
                }
                Ok(Err(error)) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(
                            folder = %folder.display(), %error,
                            "The state cannot be kept; a restart chooses the active versions \
                             without it. Make stateDir a folder that the daemon may write."
                        );
                    }
                    retry = Some(RETRY);
                }
                Err(_) => retry = Some(RETRY), // the runtime ends
            }
        }
        let changes = keks.iter_mut().map(|seen| Box::pin(seen.changed()));
        let changes: Vec<_> = changes.collect();
        tokio::select! {
            changed = followed.changed() => if changed.is_err() { return },
            () = any(changes) => {}
            () = tokio::time::sleep(retry.unwrap_or(Duration::MAX)), if retry.is_some() => {}
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
    /// Starts to keep the state in `folder`, of no KEK for now.
    pub(super) fn start(folder: PathBuf) -> Self {
        let (followed, following) = watch::channel(Arc::default());
        let begin = move || keep(folder.clone(), following.clone());
        Self { followed, _task: OwnedTask::spawn_again("state", begin) }
    }

    /// Follows these from now on, and no others.
    pub(super) fn follow(&self, memories: Memories) {
        self.followed.send_replace(Arc::new(memories));
    }
}

// === impl Entry ===

impl Entry {
    fn of(kek: &KekIdentity, activation: Activation) -> Self {
        Self {
            name: kek.name.as_str().to_owned(),
            clusters: kek.clusters.iter().map(|c| c.as_str().to_owned()).collect(),
            namespace: kek.namespace.clone(),
            mount: kek.mount.clone(),
            transit_key: kek.transit_key.clone(),
            version: activation.version,
            created: activation.created.0,
        }
    }

    /// `None` for a name that no configuration can hold.
    fn read(self) -> Option<(KekIdentity, Activation)> {
        let clusters = self.clusters.iter().map(|name| ClusterName::try_new(name).ok());
        let identity = KekIdentity {
            name: KekName::try_new(&self.name).ok()?,
            clusters: clusters.collect::<Option<_>>()?,
            namespace: self.namespace,
            mount: self.mount,
            transit_key: self.transit_key,
        };
        let created = UnixSeconds(self.created);
        Some((identity, Activation { version: self.version, created }))
    }
}
