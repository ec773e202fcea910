//! The file that keeps an unwrapped secret id, for its owner's eyes only.

use std::borrow::Cow;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep};
use zeroize::Zeroizing;

use super::lock::FileLock;
use super::owner::Owner;
use crate::blocking;
use crate::cluster::auth::{AuthError, READ_TIMEOUT};

/// The form of the file.
const FORMAT: u32 = 2;

/// More than a secret id in its form takes, with 64 addresses; written ahead, so that a full
/// disk shows before anything is unwrapped.
const ROOM: usize = 32 * 1024;

/// How long another process may take to unwrap: a look, an unwrap and the file.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);

/// How often its lock is tried meanwhile.
const LOCK_POLL: Duration = Duration::from_millis(50);

/// How the name of a file ends that has not taken its place yet.
const NEXT: &str = ".new";

/// Tells apart the files that one process makes.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);

/// Where a secret id is kept.
#[derive(Clone, Debug)]
pub(super) struct Keep {
    path: PathBuf,
}

/// A secret id that was unwrapped.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// The wrapping token that it came out of.
    pub(super) came_from: Digest,
    /// Whom it may be shown to.
    pub(super) owner: Owner,
    pub(super) secret_id: SecretString,
}

/// Tells one wrapping token from another without holding any.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Digest(String);

/// A file beside its place, open and with room for what is to come.
#[derive(Debug)]
pub(super) struct Place {
    file: Option<File>,
    next: PathBuf,
    path: PathBuf,
    /// Held until the last byte is written, even when nobody waits for that any more.
    _lock: FileLock,
}

/// The file's content.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Content<'a> {
    format: u32,
    /// The SHA-256 of the wrapping token.
    came_from: Digest,
    owner: Owner,
    #[serde(borrow)]
    secret_id: Cow<'a, str>,
}

// === impl Keep ===

impl Keep {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What is kept; that there is nothing yet is no error.
    pub(super) async fn read(&self) -> Result<Option<Kept>, AuthError> {
        let path = self.path.clone();
        self.blocking(move || try_read(&path)).await
    }

    /// The lock of the place, for which whoever has it is waited.
    pub(super) async fn lock(&self) -> Result<FileLock, AuthError> {
        let until = Instant::now() + LOCK_PATIENCE;
        loop {
            let path = self.path.clone();
            if let Some(lock) = self.blocking(move || FileLock::try_at(&path)).await? {
                return Ok(lock);
            }
            if Instant::now() >= until {
                let why = format!(
                    "the lock beside it is held by another unwrap for {} s already; no other \
                     process may use the same stateDir",
                    LOCK_PATIENCE.as_secs()
                );
                return Err(AuthError::File { path: self.path.clone(), why });
            }
            sleep(LOCK_POLL).await;
        }
    }

    /// Makes sure that something can be kept.
    pub(super) async fn prepare(&self, lock: FileLock) -> Result<Place, AuthError> {
        let path = self.path.clone();
        self.blocking(move || Place::make(path, lock)).await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, AuthError> {
        blocking(&self.path, work).await.map_err(|error| self.failed(&error))
    }

    pub(super) fn failed(&self, error: &io::Error) -> AuthError {
        let why = format!("the unwrapped secret ID cannot be kept there: {error}");
        AuthError::File { path: self.path.clone(), why }
    }
}

/// Does `work` at `path` where it may block, and waits for it no longer than for any other
/// file.
async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    blocking::at(path, READ_TIMEOUT, work).await.unwrap_or_else(|why| Err(io::Error::other(why)))
}

fn try_read(path: &Path) -> io::Result<Option<Kept>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = Zeroizing::new(Vec::with_capacity(ROOM));
    file.take(ROOM as u64).read_to_end(&mut text)?;
    let broken = || io::Error::other("its content is broken; remove it and wrap another");
    let content: Content<'_> = serde_json::from_slice(&text).map_err(|_| broken())?;
    if content.format != FORMAT {
        return Err(broken());
    }
    Ok(Some(Kept {
        came_from: content.came_from,
        owner: content.owner,
        secret_id: content.secret_id.into_owned().into(),
    }))
}

// === impl Digest ===

impl Digest {
    pub(super) fn of(token: &SecretString) -> Self {
        Self(hex::encode(Sha256::digest(token.expose_secret())))
    }
}

// === impl Place ===

impl Place {
    fn make(path: PathBuf, lock: FileLock) -> io::Result<Self> {
        sweep(&path)?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
        name.push(format!(".{}-{number}{NEXT}", std::process::id()));
        let next = folder(&path).join(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
        let room = file.write_all(&[b' '; ROOM]).and_then(|()| file.sync_all());
        // From here on the file goes again, unless it takes its place.
        let place = Self { file: Some(file), next, path, _lock: lock };
        room.map(|()| place)
    }

    /// Puts `kept` in its place, so that after a crash at any moment the file before it or
    /// this one is there whole.
    pub(super) async fn keep(mut self, kept: &Kept) -> io::Result<()> {
        let content = Content {
            format: FORMAT,
            came_from: kept.came_from.clone(),
            owner: kept.owner.clone(),
            secret_id: kept.secret_id.expose_secret().into(),
        };
        // Padded to the room that is there already.
        let mut text = Zeroizing::new(Vec::with_capacity(ROOM));
        serde_json::to_writer(&mut *text, &content)?;
        text.push(b'\n');
        let room = text.len().max(ROOM - 1);
        text.resize(room, b' ');
        text.push(b'\n');
        let path = self.path.clone();
        let work = move || {
            let mut file = self.file.take().ok_or_else(|| io::Error::other("it is closed"))?;
            file.rewind()?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&self.next, &self.path)?;
            File::open(folder(&self.path))?.sync_all()
        };
        blocking(&path, work).await
    }
}

impl Drop for Place {
    /// Takes away what did not take its place.
    fn drop(&mut self) {
        if self.file.is_some() {
            let _ = std::fs::remove_file(&self.next);
        }
    }
}

/// Takes away what a crash left beside `path`: it may hold a secret id. Whoever has the
/// lock is the only one that has such a file.
fn sweep(path: &Path) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    for entry in std::fs::read_dir(folder(path))? {
        let entry = entry?;
        let there = entry.file_name();
        let there = there.to_string_lossy();
        let rest = there.strip_prefix(&*name);
        if rest.is_some_and(|rest| rest.starts_with('.') && rest.ends_with(NEXT)) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

pub(super) fn folder(path: &Path) -> &Path {
    path.parent().unwrap_or_else(|| Path::new("/"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_file_system_that_gives_no_answer_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept");
        // To open it waits for whoever writes.
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let keep = Keep::new(path.clone());
        let reading = tokio::spawn(async move { keep.read().await });
        tokio::task::yield_now().await;
        tokio::time::advance(READ_TIMEOUT + Duration::from_millis(1)).await;
        tokio::task::yield_now().await;
        let is_given_up = reading.is_finished();
        drop(OpenOptions::new().write(true).open(&path).unwrap());
        assert!(is_given_up);
        let error = reading.await.unwrap().unwrap_err().to_string();
        assert!(error.contains("no answer from its file system"), "{error}");
    }
}
