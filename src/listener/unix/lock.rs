//! The lock file beside the socket.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use tokio::time::Instant;

use super::file::kind_of;
use super::{BindError, POLL};

/// A lock that is held until this is dropped. The file stays.
#[derive(Debug)]
pub(super) struct LockFile {
    _file: File,
}

// === impl LockFile ===

impl LockFile {
    /// Locks `<socket>.lock`, waiting up to `patience` for whoever holds it.
    pub(super) async fn acquire(socket: &Path, patience: Duration) -> Result<Self, BindError> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let until = Instant::now() + patience;
        let mut waited = false;
        loop {
            let mut file = open(&path)?;
            let io = |source| BindError::Io { action: "lock", path: path.clone(), source };
            let holder = match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // Somebody may have removed the file between our open and our lock, and
                // the next one to come would then lock another file.
                Ok(()) if is_at(&file, &path).map_err(io)? => {
                    write_pid(&mut file).map_err(io)?;
                    return Ok(Self { _file: file });
                }
                Ok(()) | Err(Errno::INTR) => "another process".to_owned(),
                Err(Errno::WOULDBLOCK) => holder(&mut file),
                Err(errno) => return Err(io(errno.into())),
            };
            if Instant::now() >= until {
                return Err(BindError::Locked { lock: path, holder, waited: patience });
            }
            if !waited {
                waited = true;
                let lock = path.display();
                tracing::info!(%lock, %holder, "Waiting for the socket's lock.");
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Opens the file, or makes it for our eyes only. A symbolic link is not followed, and a
/// pipe is not waited for.
fn open(path: &Path) -> Result<File, BindError> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
    let io = |source| BindError::Io { action: "open lock", path: path.to_owned(), source };
    let not_file = |meta: &Metadata| BindError::LockNotFile {
        lock: path.to_owned(),
        kind: kind_of(meta.file_type()),
    };
    let file = options.open(path).map_err(|source| match path.symlink_metadata() {
        Ok(meta) if !meta.is_file() => not_file(&meta),
        _ => io(source),
    })?;
    let meta = file.metadata().map_err(io)?;
    if meta.is_file() { Ok(file) } else { Err(not_file(&meta)) }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match path.symlink_metadata() {
        Ok(there) => Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// For the message of whoever waits; nothing depends on it.
fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let pid = file.take(32).read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
    pid.map_or_else(|| "another process".to_owned(), |pid: u32| format!("process {pid}"))
}
