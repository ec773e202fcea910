//! The socket that systemd holds for us (socket activation).
//!
//! systemd listens before the daemon runs and goes on while it does not: whoever dials during
//! a restart waits in the kernel's line instead of being refused. So the socket is taken as
//! it is. Its file, mode and owner are the socket unit's business: nothing here unlinks it,
//! locks it or changes its mode.

use std::fs;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;
use tokio::net::UnixListener;

use super::unix::{BindError, BoundSocket, check_folder};
use crate::config::settings::{SocketAddress, SocketSettings};

/// A socket that listens and that somebody else made; see [`take`].
#[derive(Debug)]
pub struct Inherited {
    listener: StdListener,
    address: SocketAddress,
}

/// What was handed over cannot be served, and what to write instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InheritError {
    /// More than one descriptor.
    #[error(
        "{0} sockets were handed over (LISTEN_FDS) and one can be served; keep one ListenStream= \
         in the socket unit, and one socket unit in the service's Sockets="
    )]
    Several(usize),
    /// No stream socket of the unix kind.
    #[error(
        "the inherited descriptor cannot be served: {0}; write `ListenStream=` and a path such \
         as /run/vault-kms-proxy/kms.sock in the socket unit"
    )]
    NotUnixStream(io::Error),
    /// A connection, not what accepts them.
    #[error(
        "the inherited socket does not listen, it is a single connection; write `Accept=no` in \
         the socket unit"
    )]
    NotListening,
    /// Nobody could dial it.
    #[error(
        "the inherited socket has no address that could be dialled; write `ListenStream=` and a \
         path in the socket unit"
    )]
    NoAddress,
    /// The kernel refused to tell or to change something.
    #[error("the inherited socket cannot be used: {0}")]
    Io(#[from] io::Error),
}

/// Takes the socket that `LISTEN_FDS` and `LISTEN_PID` speak of; `None` when they do not, or
/// mean another process. Call it before there are other threads and open files: it takes the
/// two variables out of the environment, so that nobody takes the descriptor twice.
///
/// # Errors
/// When what was handed over is not one listening unix stream socket.
pub fn take() -> Result<Option<Inherited>, InheritError> {
    let mut handed = ListenFd::from_env();
    match handed.len() {
        0 => return Ok(None),
        1 => {}
        several => return Err(InheritError::Several(several)),
    }
    // From here on it is closed on exec, too.
    let listener = handed.take_unix_listener(0).map_err(InheritError::NotUnixStream)?;
    listener.map(Inherited::try_new).transpose()
}

// === impl Inherited ===

impl Inherited {
    fn try_new(listener: StdListener) -> Result<Self, InheritError> {
        if !socket_acceptconn(&listener).map_err(io::Error::from)? {
            return Err(InheritError::NotListening);
        }
        let local = listener.local_addr()?;
        let name = || local.as_abstract_name().and_then(|name| std::str::from_utf8(name).ok());
        let address = match local.as_pathname() {
            Some(path) => SocketAddress::Path(path.to_owned()),
            None => SocketAddress::Abstract(name().ok_or(InheritError::NoAddress)?.to_owned()),
        };
        // systemd never accepts from it, so it does not mind.
        listener.set_nonblocking(true)?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub const fn address(&self) -> &SocketAddress {
        &self.address
    }

    /// Serves it in the place of the configured one. Where the two differ the inherited one
    /// is what systemd keeps alive, and what was decided last; it is told, and served.
    ///
    /// # Errors
    /// When anybody may dial it, or the runtime cannot watch it.
    pub fn into_bound(self, settings: &SocketSettings) -> Result<BoundSocket, BindError> {
        let Self { listener, address } = self;
        match &address {
            SocketAddress::Path(path) => look_at(path),
            SocketAddress::Abstract(name) if settings.allowed_uids.is_none() => {
                return Err(BindError::AbstractForAnybody { name: name.clone() });
            }
            SocketAddress::Abstract(_) => {}
        }
        if !same_place(&address, &settings.address) {
            tracing::warn!(
                inherited = %address, configured = %settings.address,
                "The inherited socket is served and socket.path is not: kube-apiserver must dial \
                 the inherited one. Write the same path in both, in socket.path and in the socket \
                 unit's ListenStream=."
            );
        }
        let io =
            |source| BindError::Io { action: "watch", path: address.to_string().into(), source };
        let listener = UnixListener::from_std(listener).map_err(io)?;
        tracing::info!(socket = %address, "The socket is inherited and listens.");
        Ok(BoundSocket::inherited(listener, address))
    }
}

/// Warns about what the socket unit has left open. It does not refuse: the socket listens
/// already, and a control plane without its KMS is worse.
fn look_at(path: &Path) {
    let socket = path.display();
    if let Err(error) = check_folder(path) {
        tracing::error!(%socket, "The inherited socket is not safe where it is: {error}.");
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {
            let mode = meta.mode() & 0o777;
            if mode & 0o006 != 0 {
                tracing::warn!(
                    %socket, mode = format_args!("{mode:04o}"),
                    "Every user of this machine may dial the inherited socket, and only \
                     socket.allowedUids keeps them out; write `SocketMode=0600` in the socket unit."
                );
            }
        }
        Ok(_) | Err(_) => tracing::error!(
            %socket,
            "The inherited socket's file is gone, so nobody can dial it; restart the socket unit."
        ),
    }
}

/// Whether both lead to the same socket, `/var/run` being `/run`.
pub(super) fn same_place(one: &SocketAddress, other: &SocketAddress) -> bool {
    let inode = |address: &SocketAddress| match address {
        SocketAddress::Path(path) => fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino())),
        SocketAddress::Abstract(_) => None,
    };
    one == other || inode(one).is_some_and(|there| inode(other) == Some(there))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::SocketAddr;

    use super::*;

    fn settings(address: SocketAddress, allowed_uids: Option<Vec<u32>>) -> SocketSettings {
        SocketSettings { address, mode: 0o600, owner: None, group: None, allowed_uids }
    }

    #[tokio::test]
    async fn it_is_served_where_it_is_and_its_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kms.sock");
        let inherited = Inherited::try_new(StdListener::bind(&path).unwrap()).unwrap();
        assert_eq!(*inherited.address(), SocketAddress::Path(path.clone()));
        let elsewhere = SocketAddress::Path("/nowhere/kms.sock".into());
        let mut bound = inherited.into_bound(&settings(elsewhere, None)).unwrap();
        assert!(bound.is_inherited());
        let _dialled = tokio::net::UnixStream::connect(&path).await.unwrap();
        assert!(bound.listener().accept().await.is_ok());
        bound.remove_if_ours();
        drop(bound);
        assert!(path.exists(), "the socket unit's file was removed");
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(names.len(), 1, "a lock was made beside it: {names:?}");
    }

    #[tokio::test]
    async fn an_abstract_one_needs_the_list_of_users() {
        let name = format!("vault-kms-proxy-inherited-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let bind = || Inherited::try_new(StdListener::bind_addr(&address).unwrap()).unwrap();
        let wanted = SocketAddress::Abstract(name.clone());
        let refused = bind().into_bound(&settings(wanted.clone(), None)).unwrap_err();
        assert!(matches!(refused, BindError::AbstractForAnybody { .. }), "{refused}");
        assert!(bind().into_bound(&settings(wanted, Some(vec![0]))).is_ok());
    }

    #[test]
    fn a_path_through_a_link_is_the_same_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kms.sock");
        let _listener = StdListener::bind(&path).unwrap();
        std::os::unix::fs::symlink(folder.path(), folder.path().join("run")).unwrap();
        let at = |path: std::path::PathBuf| SocketAddress::Path(path);
        assert!(same_place(&at(path.clone()), &at(folder.path().join("run/kms.sock"))));
        assert!(!same_place(&at(path), &at(folder.path().join("run/other.sock"))));
    }
}
