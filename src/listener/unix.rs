//! Binding the socket: nothing that answers is stolen, nothing is open wider than asked.
//!
//! A lock file beside the socket says who may touch it. It is locked for as long as the
//! socket is ours and never unlinked: whoever unlinked it could leave two processes with a
//! lock each. The kernel lets go of the lock when a process ends in whatever way.

mod file;
mod lock;
mod names;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind as bind_fd, listen, socket_with,
};
use tokio::net::UnixListener;
use tokio::time::Instant;

pub use self::file::SocketAccess;
use self::file::SocketFile;
pub(super) use self::file::check_parent as check_folder;
use self::lock::LockFile;
use crate::config::settings::{SocketAddress, SocketSettings};

/// How long a restart waits for its predecessor to let go of the socket.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// The longest path or abstract name that fits into `sockaddr_un`, whose `sun_path` has
/// 108 bytes on Linux, one of them for the end or the beginning.
pub const LONGEST_ADDRESS: usize = 107;

/// Connections that wait in the kernel until they are accepted. The kernel cuts it to
/// `net.core.somaxconn`, which is 4,096 on today's Linux.
const BACKLOG: i32 = 1_024;

/// How often a name or a lock that is in use is tried again.
const POLL: Duration = Duration::from_millis(50);

/// A socket that listens and is ours. When it is dropped its file is removed, if that is
/// still the one that was made here, and then the lock is let go.
#[derive(Debug)]
pub struct BoundSocket {
    // Fields are dropped in this order. The file goes while the listener still holds its
    // inode: until then no other file can have the same inode number.
    file: Option<OwnedFile>,
    listener: UnixListener,
    address: SocketAddress,
    is_inherited: bool,
}

#[derive(Debug)]
struct OwnedFile {
    file: SocketFile,
    _lock: LockFile,
}

/// Why the socket could not be bound, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The path does not fit into `sockaddr_un`.
    #[error(
        "socket path {path} has {length} bytes and the kernel takes at most {LONGEST_ADDRESS}; \
         configure a shorter socket.path"
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// The abstract name is empty or does not fit into `sockaddr_un`.
    #[error(
        "abstract socket name @{name} has {length} bytes and must have 1 to {LONGEST_ADDRESS}; \
         configure another socket.path"
    )]
    BadAbstractName {
        /// The name.
        name: String,
        /// Its length in bytes.
        length: usize,
    },
    /// Anybody in the same network namespace may dial an abstract socket.
    #[error(
        "abstract socket @{name} has no file whose mode could keep anybody out; list who may \
         connect, for example `socket.allowedUids: [0]`"
    )]
    AbstractForAnybody {
        /// The name.
        name: String,
    },
    /// There is no folder to put the socket into.
    #[error("folder {parent} of socket {path} does not exist; create it: `mkdir -m 0755 {parent}`")]
    NoParent {
        /// The socket.
        path: PathBuf,
        /// The folder.
        parent: PathBuf,
    },
    /// The path goes through something that is no folder.
    #[error("{parent} is not a folder, so socket {path} cannot be in it; change socket.path")]
    ParentNotFolder {
        /// The socket.
        path: PathBuf,
        /// What is no folder.
        parent: PathBuf,
    },
    /// Anybody may put another socket in the place of ours.
    #[error(
        "folder {parent} of socket {path} is writable by every user (mode {mode:04o}), who could \
         put another socket in the place of this one; run `chmod o-w {parent}`"
    )]
    ParentWritable {
        /// The socket.
        path: PathBuf,
        /// The folder.
        parent: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Another process of ours has the socket.
    #[error(
        "lock {lock} is still held by {holder} after {} s; stop that process, or give this one \
         another socket.path", waited.as_secs()
    )]
    Locked {
        /// The lock file.
        lock: PathBuf,
        /// The process that holds it, as far as it said.
        holder: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The lock's path holds something that is no file.
    #[error("lock {lock} is {kind}; remove it, because only a plain file can be locked")]
    LockNotFile {
        /// The lock file.
        lock: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The path holds something else, which is not ours to remove.
    #[error("{path} exists and is {kind}, not a socket; remove it or change socket.path")]
    NotSocket {
        /// The path.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// Somebody answers at the path.
    #[error(
        "another process answers at {address}; stop it (`ss -xlp` names it) or change socket.path"
    )]
    InUse {
        /// The address.
        address: String,
    },
    /// No such user or group.
    #[error(
        "{kind} `{name}` of socket {path} is not in {database}; write its number in socket.{kind}"
    )]
    UnknownName {
        /// The socket.
        path: PathBuf,
        /// `owner` or `group`.
        kind: &'static str,
        /// The name.
        name: String,
        /// The file that was searched.
        database: &'static str,
    },
    /// We may not give the socket to that user or group.
    #[error(
        "cannot give socket {path} to {to}: {source}; run as root or with CAP_CHOWN, be a member \
         of that group, or leave out socket.owner and socket.group"
    )]
    Chown {
        /// The socket.
        path: PathBuf,
        /// User and group.
        to: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// systemd holds the socket.
    #[error(
        "{address} is inherited from systemd, so where it is and who may dial it is written in \
         the socket unit; change that back here, or change both and restart both"
    )]
    Inherited {
        /// The address.
        address: String,
    },
    /// Anything else that the kernel refused.
    #[error("cannot {action} {path}: {source}{}", advice(source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Binds and listens, waiting up to [`LOCK_PATIENCE`] for a predecessor to let go.
///
/// # Errors
/// When the place is not fit for a socket, somebody else has it, or the kernel refuses.
pub async fn bind(settings: &SocketSettings) -> Result<BoundSocket, BindError> {
    bind_within(settings, LOCK_PATIENCE).await
}

/// [`bind`], with another patience.
///
/// # Errors
/// As [`bind`].
pub async fn bind_within(
    settings: &SocketSettings,
    patience: Duration,
) -> Result<BoundSocket, BindError> {
    let (file, fd) = match &settings.address {
        SocketAddress::Path(path) => {
            let (file, fd) = bind_path(path, settings, patience).await?;
            (Some(file), fd)
        }
        SocketAddress::Abstract(name) => (None, bind_abstract(name, settings, patience).await?),
    };
    let address = settings.address.clone();
    let io = |action| {
        let path = PathBuf::from(Shown(&address).to_string());
        move |source| BindError::Io { action, path, source }
    };
    listen(&fd, BACKLOG).map_err(io::Error::from).map_err(io("listen on"))?;
    let listener = UnixListener::from_std(fd.into()).map_err(io("watch"))?;
    tracing::info!(socket = %Shown(&address), "The socket listens.");
    Ok(BoundSocket { file, listener, address, is_inherited: false })
}

// The calls of the file system in here are few, short and on local disks, and are made at
// start and when a reload moves the socket: not worth a thread.
async fn bind_path(
    path: &Path,
    settings: &SocketSettings,
    patience: Duration,
) -> Result<(OwnedFile, OwnedFd), BindError> {
    let length = path.as_os_str().len();
    if length > LONGEST_ADDRESS {
        return Err(BindError::PathTooLong { path: path.to_owned(), length });
    }
    let owner = names::Ownership::look_up(path, settings)?;
    file::check_parent(path)?;
    let lock = LockFile::acquire(path, patience).await?;
    file::clear_the_way(path)?;
    let (file, fd) = SocketFile::bind(path, Mode::from_raw_mode(settings.mode & 0o777), owner)?;
    Ok((OwnedFile { file, _lock: lock }, fd))
}

async fn bind_abstract(
    name: &str,
    settings: &SocketSettings,
    patience: Duration,
) -> Result<OwnedFd, BindError> {
    if name.is_empty() || name.len() > LONGEST_ADDRESS {
        return Err(BindError::BadAbstractName { name: name.to_owned(), length: name.len() });
    }
    if settings.allowed_uids.is_none() {
        return Err(BindError::AbstractForAnybody { name: name.to_owned() });
    }
    let io = |source: rustix::io::Errno| BindError::Io {
        action: "bind",
        path: PathBuf::from(format!("@{name}")),
        source: source.into(),
    };
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).map_err(io)?;
    let until = Instant::now() + patience;
    let fd = new_socket().map_err(io)?;
    loop {
        match bind_fd(&fd, &address) {
            Ok(()) => return Ok(fd),
            Err(rustix::io::Errno::ADDRINUSE) if Instant::now() < until => {
                tokio::time::sleep(POLL).await;
            }
            Err(rustix::io::Errno::ADDRINUSE) => {
                return Err(BindError::InUse { address: format!("@{name}") });
            }
            Err(errno) => return Err(io(errno)),
        }
    }
}

fn new_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => "; run as a user who may write there",
        io::ErrorKind::ReadOnlyFilesystem => "; put socket.path on a writable file system",
        io::ErrorKind::StorageFull => "; free some space there",
        _ => "",
    }
}

/// An address as an operator writes it.
struct Shown<'a>(&'a SocketAddress);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            SocketAddress::Path(path) => write!(f, "{}", path.display()),
            SocketAddress::Abstract(name) => write!(f, "@{name}"),
        }
    }
}

// === impl BoundSocket ===

impl BoundSocket {
    /// One that somebody else made and keeps; its file is none of ours.
    pub(super) const fn inherited(listener: UnixListener, address: SocketAddress) -> Self {
        Self { file: None, listener, address, is_inherited: true }
    }

    /// Whether it came from systemd, so that it stays where it is while the daemon runs.
    pub const fn is_inherited(&self) -> bool {
        self.is_inherited
    }

    /// Where it listens.
    pub const fn address(&self) -> &SocketAddress {
        &self.address
    }

    /// What accepts.
    pub(super) const fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// The way to change its file's mode and owner; `None` when it has no file of ours.
    pub(super) fn access(&self) -> Option<SocketAccess> {
        self.file.as_ref().map(|owned| owned.file.access())
    }

    /// Removes the socket's file, if it is still the one that was made here. The listener
    /// stays. Dropping does the same.
    pub fn remove_if_ours(&mut self) {
        if let Some(owned) = &mut self.file {
            owned.file.remove_if_ours();
        }
    }

    /// Removes the file like [`Self::remove_if_ours`] and lets go of its lock, so that another
    /// socket may take its place. Whoever has dialled is still accepted.
    pub(super) fn give_up_file(&mut self) {
        self.file = None;
    }
}

#[cfg(test)]
mod tests;
