//! One unwrap at a time for each place where a secret id is kept: in this process, in which
//! two generations may use one place for a while, and among processes.

use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::Memory;
use super::kept::folder;

/// What this process knows of each place. It outlives a generation, for a secret id that
/// could not be written may be nowhere else. One entry for each path ever configured.
static PLACES: LazyLock<Mutex<HashMap<PathBuf, Shared>>> = LazyLock::new(Mutex::default);

/// Whoever holds it is the only one in this process that unwraps into the place.
pub(super) type Shared = Arc<tokio::sync::Mutex<Memory>>;

/// What is known of the place at `path`, shared by all that keep a secret id there.
pub(super) fn shared(path: &Path) -> Shared {
    let mut places = PLACES.lock().expect("no code panics while it holds this lock");
    Arc::clone(places.entry(path.to_owned()).or_default())
}

/// Keeps other processes from unwrapping into the place until it is dropped. Its file,
/// `<place>.lock`, stays.
#[derive(Debug)]
pub(super) struct FileLock {
    _file: File,
}

// === impl FileLock ===

impl FileLock {
    /// The lock of the place at `path`, whose folder is made if need be; `None` while
    /// somebody else has it.
    pub(super) fn try_at(path: &Path) -> io::Result<Option<Self>> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder(path))?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".lock");
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(flags);
        let file = options.open(folder(path).join(name))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            // Removed between our open and our lock: the next to come locks another file.
            Ok(()) if file.metadata()?.nlink() == 0 => Ok(None),
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}
