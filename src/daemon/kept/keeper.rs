//! Writes the copy of what is accepted, until it is written.
//!
//! A copy that is older than what runs is worse than none: the next start would compare the
//! file with it, or run it. So where the new one cannot be written the old one goes, and both
//! are tried again.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

use super::{FILE, head};
use crate::config::load::Sources;
use crate::config::written::Written;
use crate::daemon::state::replace;
use crate::task::OwnedTask;

/// The wait before a copy that could not be written is tried again; it doubles from there.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The longest of these waits.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Keeps each accepted configuration in the place of the one before.
#[derive(Debug)]
pub(in crate::daemon) struct Keeper {
    accepted: watch::Sender<Option<Written>>,
    _task: OwnedTask,
}

/// Where it is kept, and of which file.
#[derive(Clone, Debug)]
struct Place {
    folder: PathBuf,
    file: PathBuf,
}

// === impl Keeper ===

impl Keeper {
    /// Keeps what is accepted from the file of `sources` in `folder`; `None` without a file.
    pub(in crate::daemon) fn start(folder: PathBuf, sources: &Sources) -> Option<Self> {
        let place = Place { folder, file: sources.file.clone()? };
        let (accepted, seen) = watch::channel(None);
        let begin = move || keep(place.clone(), seen.clone());
        Some(Self { accepted, _task: OwnedTask::spawn_again("accepted configuration", begin) })
    }

    /// Keeps this from now on.
    pub(in crate::daemon) fn keep(&self, written: Written) {
        self.accepted.send_replace(Some(written));
    }
}

async fn keep(place: Place, mut seen: watch::Receiver<Option<Written>>) {
    let mut has_secret = false;
    let mut retry = None;
    seen.mark_changed();
    loop {
        let next = async {
            match retry {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = seen.changed() => if changed.is_err() { return },
            () = next => {}
        }
        let Some(written) = seen.borrow_and_update().clone() else { continue };
        let had_secret = std::mem::replace(&mut has_secret, written.without_secret().is_none());
        if has_secret && !had_secret {
            tracing::warn!(
                "The configuration holds a secret, so no copy of it is kept in stateDir, and with \
                 a broken file the daemon could not start. Put the secret into a file of its own: \
                 tokenFile, secretIDFile, wrappedSecretIDFile or passwordFile."
            );
        }
        let at = place.clone();
        let done = tokio::task::spawn_blocking(move || at.keep(&written)).await;
        match done {
            Ok(Ok(())) => {
                if retry.take().is_some() {
                    let folder = place.folder.display();
                    tracing::info!(%folder, "The accepted configuration is kept again.");
                }
            }
            Ok(Err(error)) => {
                if retry.is_none() {
                    tracing::warn!(
                        folder = %place.folder.display(), %error,
                        "The accepted configuration cannot be kept, which is tried again; with a \
                         broken file the next start would fail. Make stateDir a folder that the \
                         daemon may write."
                    );
                }
                let longer = |wait: Duration| (wait * 2).min(LONGEST_RETRY);
                retry = Some(retry.map_or(FIRST_RETRY, longer));
            }
            Err(_) => return, // the runtime ends
        }
    }
}

// === impl Place ===

impl Place {
    fn keep(&self, written: &Written) -> io::Result<()> {
        let kept = self.folder.join(FILE);
        let Some(text) = written.without_secret() else { return remove(&kept) };
        let text = format!("{}\n{text}", head(&self.file));
        replace(&self.folder, FILE, text.as_bytes()).inspect_err(|_| {
            // Why it cannot be written says more than why the older one stays.
            let _ = remove(&kept);
        })
    }
}

/// What was kept before is older than what runs.
fn remove(kept: &Path) -> io::Result<()> {
    match std::fs::remove_file(kept) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load;

    const PATIENCE: Duration = Duration::from_secs(600);

    /// A file and what was accepted from it.
    fn accepted(folder: &Path) -> (Sources, Written) {
        let file = folder.join("vkp.yaml");
        let text = "keyNames: [kube]\naddr: https://127.0.0.1:1\n";
        replace(folder, "vkp.yaml", text.as_bytes()).unwrap();
        let environment = [("VAULT_KMS_PROXY_AUTH__TOKEN", "s.one")];
        let pairs = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let sources = Sources { file: Some(file), environment: pairs.into(), ..Sources::default() };
        let written = load::load(&sources).unwrap_or_else(|e| panic!("{e}")).written.unwrap();
        (sources, written)
    }

    async fn until(holds: impl Fn() -> bool) {
        let soon = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, soon).await.expect("it comes true");
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_that_cannot_be_written_is_tried_again_and_no_older_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (sources, written) = accepted(folder.path());
        let state = folder.path().join("state");
        let kept = state.join(FILE);
        replace(&state, FILE, b"an older one").unwrap();
        let in_the_way = state.join(format!(".{FILE}.new"));
        std::fs::create_dir_all(&in_the_way).unwrap();

        let keeper = Keeper::start(state, &sources).unwrap();
        keeper.keep(written);
        until(|| !kept.exists()).await;
        std::fs::remove_dir(&in_the_way).unwrap();
        until(|| kept.exists()).await;
        let text = std::fs::read_to_string(&kept).unwrap();
        assert!(text.contains("\"kube\""), "{text}");
    }
}
