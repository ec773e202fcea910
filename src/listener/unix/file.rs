//! The socket's file: what may be in its place, how it is made, when it is removed.

use std::fs::{self, FileType, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, chmod, chownat, fchmod};
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, bind, connect};

use super::names::Ownership;
use super::{BindError, new_socket};
use crate::config::settings::SocketSettings;

/// A socket file that was made here.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    id: FileId,
}

/// The file of a socket that listens, for whoever changes its mode and owner.
#[derive(Clone, Debug)]
pub struct SocketAccess {
    path: PathBuf,
    id: FileId,
}

/// What stays the same when a file is renamed, and differs when it is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

/// Refuses a folder in which anybody could replace our socket.
pub(in crate::listener) fn check_parent(path: &Path) -> Result<(), BindError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let meta = fs::metadata(&parent).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => {
            BindError::NoParent { path: path.to_owned(), parent: parent.clone() }
        }
        io::ErrorKind::NotADirectory => {
            BindError::ParentNotFolder { path: path.to_owned(), parent: parent.clone() }
        }
        _ => BindError::Io { action: "look at folder", path: parent.clone(), source },
    })?;
    if !meta.is_dir() {
        return Err(BindError::ParentNotFolder { path: path.to_owned(), parent });
    }
    let mode = meta.mode() & 0o7777;
    let sticky = mode & 0o1000 != 0;
    if mode & 0o002 != 0 && !sticky {
        return Err(BindError::ParentWritable { path: path.to_owned(), parent, mode });
    }
    warn_about(&parent, &meta, mode);
    Ok(())
}

fn warn_about(parent: &Path, meta: &Metadata, mode: u32) {
    let folder = parent.display();
    if mode & 0o002 != 0 {
        // Nobody but us can remove our socket there, but anybody can be first at its path.
        tracing::warn!(
            %folder,
            "Every user may create files in the socket's folder; use a folder of its own."
        );
    } else if mode & 0o1020 == 0o020 {
        tracing::warn!(
            %folder,
            group = meta.gid(),
            "The folder's group could replace the socket; run `chmod g-w` on it."
        );
    }
    let us = rustix::process::geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != us {
        tracing::warn!(
            %folder,
            owner = meta.uid(),
            "The folder's owner could replace the socket; give the folder to root."
        );
    }
}

/// Removes what a crash left at `path`; refuses everything else that is there.
pub(super) fn clear_the_way(path: &Path) -> Result<(), BindError> {
    let io = |action| move |source| BindError::Io { action, path: path.to_owned(), source };
    let meta = match path.symlink_metadata() {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("look at")(error)),
    };
    if !meta.file_type().is_socket() {
        let kind = kind_of(meta.file_type());
        return Err(BindError::NotSocket { path: path.to_owned(), kind });
    }
    let in_use = || BindError::InUse { address: path.display().to_string() };
    match try_connect(path) {
        Err(Errno::CONNREFUSED) => {}
        Err(Errno::NOENT) => return Ok(()),
        // A full backlog, and a socket of another type, belong to somebody who lives.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => return Err(in_use()),
        // What we may not ask may be alive.
        Err(errno) => return Err(io("connect to")(errno.into())),
    }
    match fs::remove_file(path) {
        Ok(()) => {
            tracing::info!(socket = %path.display(), "Removed a socket file that nobody serves.");
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io("remove the dead socket")(error)),
    }
}

/// Connects without waiting for room in the backlog.
fn try_connect(path: &Path) -> Result<(), Errno> {
    connect(&new_socket()?, &SocketAddrUnix::new(path)?)
}

/// A file's type in words.
pub(super) fn kind_of(file_type: FileType) -> &'static str {
    if file_type.is_dir() {
        "a folder"
    } else if file_type.is_symlink() {
        "a symbolic link"
    } else if file_type.is_file() {
        "a plain file"
    } else if file_type.is_socket() {
        "a socket"
    } else if file_type.is_fifo() {
        "a named pipe"
    } else {
        "a device"
    }
}

// === impl SocketFile ===

impl SocketFile {
    /// Makes the file with its final mode and owner. Nobody can connect until the socket
    /// listens, which is the caller's next step.
    pub(super) fn bind(
        path: &Path,
        mode: Mode,
        owner: Ownership,
    ) -> Result<(Self, OwnedFd), BindError> {
        let io = |action| {
            move |errno: Errno| BindError::Io {
                action,
                path: path.to_owned(),
                source: errno.into(),
            }
        };
        let fd = new_socket().map_err(io("make a socket for"))?;
        // Linux makes the file with the mode of the socket less the umask, so it is never
        // wider than asked, whatever the umask is; chmod below adds what the umask took.
        fchmod(&fd, mode).map_err(io("prepare the mode of"))?;
        let address = SocketAddrUnix::new(path).map_err(io("use"))?;
        bind(&fd, &address).map_err(|errno| match errno {
            Errno::ADDRINUSE => BindError::InUse { address: path.display().to_string() },
            errno => io("bind")(errno),
        })?;
        let meta = path.symlink_metadata();
        let meta = meta.map_err(|source| BindError::Io {
            action: "look at",
            path: path.to_owned(),
            source,
        })?;
        // From here on a failure removes the file again.
        let file = Self { path: path.to_owned(), id: FileId::of(&meta) };
        if owner.user.is_some() || owner.group.is_some() {
            chownat(CWD, path, owner.user, owner.group, AtFlags::SYMLINK_NOFOLLOW).map_err(
                |errno| BindError::Chown {
                    path: path.to_owned(),
                    to: format!(
                        "user {} and group {}",
                        owner.user.map_or(meta.uid(), |uid| uid.as_raw()),
                        owner.group.map_or(meta.gid(), |gid| gid.as_raw())
                    ),
                    source: errno.into(),
                },
            )?;
        }
        if meta.permissions().mode() & 0o7777 != mode.as_raw_mode() {
            chmod(path, mode).map_err(io("set the mode of"))?;
        }
        Ok((file, fd))
    }

    pub(super) fn access(&self) -> SocketAccess {
        SocketAccess { path: self.path.clone(), id: self.id }
    }

    /// Removes the file if nobody has put another one in its place.
    pub(super) fn remove_if_ours(&mut self) {
        let path = self.path.display();
        match self.path.symlink_metadata() {
            Ok(meta) if FileId::of(&meta) == self.id => match fs::remove_file(&self.path) {
                Ok(()) => tracing::debug!(socket = %path, "Removed the socket file."),
                Err(error) => {
                    tracing::warn!(socket = %path, %error, "Could not remove the socket file.");
                }
            },
            Ok(_) => {
                tracing::warn!(socket = %path, "Another process has replaced the socket file; it stays.");
            }
            Err(_) => {}
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove_if_ours();
    }
}

// === impl SocketAccess ===

impl SocketAccess {
    /// Gives the file the mode and the owner that `settings` name; the daemon's own user and
    /// group where they name none. While both change, the file is never wider than one of
    /// the two allows.
    ///
    /// # Errors
    /// When there is no such user or group, another file has taken the place of ours, or the
    /// kernel refuses.
    pub(in crate::listener) fn set(&self, settings: &SocketSettings) -> Result<(), BindError> {
        let Self { path, id } = self;
        let Ownership { user, group } = Ownership::look_up(path, settings)?;
        let user = user.unwrap_or_else(rustix::process::geteuid);
        let group = group.unwrap_or_else(rustix::process::getegid);
        let io = |action| move |source| BindError::Io { action, path: path.clone(), source };
        let meta = path.symlink_metadata().map_err(io("look at"))?;
        if FileId::of(&meta) != *id {
            return Err(BindError::InUse { address: path.display().to_string() });
        }
        let wanted = settings.mode & 0o777;
        let set = |mode| {
            let done = chmod(path, Mode::from_raw_mode(mode)).map_err(io::Error::from);
            done.map_err(io("set the mode of"))
        };
        if (meta.uid(), meta.gid()) != (user.as_raw(), group.as_raw()) {
            set(meta.mode() & wanted)?;
            let owner = (Some(user), Some(group));
            chownat(CWD, path, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| {
                BindError::Chown {
                    path: path.clone(),
                    to: format!("user {} and group {}", user.as_raw(), group.as_raw()),
                    source: errno.into(),
                }
            })?;
        }
        set(wanted)
    }
}

// === impl FileId ===

impl FileId {
    fn of(meta: &Metadata) -> Self {
        Self { device: meta.dev(), inode: meta.ino() }
    }
}
