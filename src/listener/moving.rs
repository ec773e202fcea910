//! A socket that can be moved while connections are open and calls run.
//!
//! The server sees one stream of connections for as long as it lives. Behind it a reload
//! puts one socket in the place of another: the new one listens before the old one is
//! closed, whoever has dialled the old one is still taken in, and connections that are open
//! stay as they are, for a kube-apiserver that dials the old path holds one for days.

use std::io;
use std::time::Duration;

use futures_util::Stream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::accept::Acceptor;
use super::connection::Connection;
use super::inherited::same_place;
use super::peer::PeerPolicy;
use super::unix::{self, BindError, BoundSocket, SocketAccess};
use crate::config::settings::{SocketAddress, SocketSettings};

/// Moves the socket and changes who may dial it.
#[derive(Debug)]
pub struct SocketControl {
    settings: SocketSettings,
    access: Option<SocketAccess>,
    /// Where systemd holds the socket, if it does.
    inherited: Option<SocketAddress>,
    changes: mpsc::Sender<Change>,
}

/// A change that can be taken into use, or dropped, which undoes it.
#[derive(Debug)]
pub struct PreparedSocket {
    settings: SocketSettings,
    how: How,
}

#[derive(Debug)]
enum How {
    /// Nothing changes.
    Same,
    /// It listens at another address.
    Elsewhere(BoundSocket),
    /// The file has another mode or owner already.
    Here(Undo),
}

/// Gives the file back its mode and owner when it is dropped.
#[derive(Debug)]
struct Undo(Option<(SocketAccess, SocketSettings)>);

/// What the accepting side is told.
#[derive(Debug)]
struct Change {
    socket: Option<BoundSocket>,
    policy: PeerPolicy,
}

struct Accepting {
    acceptor: Acceptor,
    changes: mpsc::Receiver<Change>,
    stop: CancellationToken,
}

/// Accepts from `socket`, and from what the control puts in its place, until `stop` is
/// cancelled.
pub fn accept(
    socket: BoundSocket,
    settings: &SocketSettings,
    stop: CancellationToken,
) -> (SocketControl, impl Stream<Item = io::Result<Connection>> + Send + use<>) {
    // Reloads come one after the other.
    let (sender, changes) = mpsc::channel(1);
    let control = SocketControl {
        settings: settings.clone(),
        access: socket.access(),
        inherited: socket.is_inherited().then(|| socket.address().clone()),
        changes: sender,
    };
    let acceptor = Acceptor::new(socket, PeerPolicy::new(settings), stop.clone());
    let accepting = Accepting { acceptor, changes, stop };
    let connections = futures_util::stream::unfold(accepting, |mut accepting| async move {
        let connection = accepting.next().await?;
        Some((Ok(connection), accepting))
    });
    (control, connections)
}

// === impl SocketControl ===

impl SocketControl {
    /// Does everything that `wanted` needs and that can fail. Another address is bound and
    /// listens from now on, once whoever holds its lock has let go, within `patience`.
    ///
    /// # Errors
    /// When it cannot be had; nothing has changed then.
    pub async fn prepare(
        &self,
        wanted: &SocketSettings,
        patience: Duration,
    ) -> Result<PreparedSocket, BindError> {
        let SocketSettings { address, mode, owner, group, allowed_uids: _ } = &self.settings;
        let is_there = wanted.address == *address;
        let is_so = wanted.mode == *mode && wanted.owner == *owner && wanted.group == *group;
        if let Some(held) = &self.inherited {
            // What was written may be another place, which was never served: correcting it to
            // the one that is served changes nothing.
            let is_right = is_there || same_place(held, &wanted.address);
            if !(is_right && is_so) {
                return Err(BindError::Inherited { address: held.to_string() });
            }
        }
        let how = if self.inherited.is_some() {
            How::Same
        } else if !is_there {
            How::Elsewhere(unix::bind_within(wanted, patience).await?)
        } else if !is_so {
            self.open_to(wanted)?
        } else {
            How::Same
        };
        Ok(PreparedSocket { settings: wanted.clone(), how })
    }

    fn open_to(&self, wanted: &SocketSettings) -> Result<How, BindError> {
        let Some(access) = &self.access else { return Ok(How::Same) };
        // A failure half way is undone like a change that is not wanted in the end.
        let undo = Undo(Some((access.clone(), self.settings.clone())));
        access.set(wanted)?;
        Ok(How::Here(undo))
    }

    /// Takes what was prepared into use.
    pub async fn commit(&mut self, prepared: PreparedSocket) {
        let PreparedSocket { settings, how } = prepared;
        let socket = match how {
            How::Elsewhere(socket) => {
                self.access = socket.access();
                Some(socket)
            }
            How::Here(mut undo) => {
                undo.0 = None;
                None
            }
            How::Same if settings == self.settings => return,
            How::Same => None,
        };
        let policy = PeerPolicy::new(&settings);
        self.settings = settings;
        // An error means that the server stops, and takes its socket with it.
        let _ = self.changes.send(Change { socket, policy }).await;
    }
}

// === impl Undo ===

impl Drop for Undo {
    fn drop(&mut self) {
        let Some((access, before)) = self.0.take() else { return };
        if let Err(error) = access.set(&before) {
            tracing::error!(%error, "The socket's file could not get back its mode and owner.");
        }
    }
}

// === impl Accepting ===

impl Accepting {
    async fn next(&mut self) -> Option<Connection> {
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                Some(change) = self.changes.recv() => {
                    self.acceptor.change(change.socket, change.policy);
                }
                connection = self.acceptor.accept() => return connection,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use futures_util::{FutureExt as _, StreamExt as _};
    use tokio::net::UnixStream;

    use super::*;

    fn at(path: &Path, mode: u32) -> SocketSettings {
        let address = SocketAddress::Path(path.to_owned());
        SocketSettings { address, mode, owner: None, group: None, allowed_uids: None }
    }

    /// The next connection, and no wait without end for one that is lost.
    async fn next(
        connections: &mut (impl Stream<Item = io::Result<Connection>> + Unpin),
    ) -> Connection {
        let next = tokio::time::timeout(Duration::from_secs(20), connections.next()).await;
        next.expect("a connection was lost").unwrap().unwrap()
    }

    fn mode_of(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn whoever_has_dialled_the_old_socket_is_still_taken_in() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old.sock"), folder.path().join("new.sock"));
        let settings = at(&old, 0o600);
        let socket = unix::bind(&settings).await.unwrap();
        let (mut control, connections) = accept(socket, &settings, CancellationToken::new());
        let mut connections = std::pin::pin!(connections);
        let first = UnixStream::connect(&old).await.unwrap();
        next(&mut connections).await;

        let prepared = control.prepare(&at(&new, 0o600), Duration::ZERO).await.unwrap();
        let early = UnixStream::connect(&new).await.unwrap();
        let waiting =
            [UnixStream::connect(&old).await.unwrap(), UnixStream::connect(&old).await.unwrap()];
        control.commit(prepared).await;
        for _ in 0..3 {
            next(&mut connections).await;
        }
        assert!(connections.next().now_or_never().is_none(), "nobody else has dialled");
        assert!(!old.exists(), "its file is gone");
        assert!(UnixStream::connect(&old).await.is_err());
        let late = UnixStream::connect(&new).await.unwrap();
        next(&mut connections).await;
        drop((first, early, waiting, late));

        // The way back is free, its lock too.
        let prepared = control.prepare(&at(&old, 0o600), Duration::ZERO).await.unwrap();
        control.commit(prepared).await;
        let back = UnixStream::connect(&old).await.unwrap();
        next(&mut connections).await;
        drop(back);
    }

    #[tokio::test]
    async fn a_move_that_is_not_taken_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old.sock"), folder.path().join("new.sock"));
        let settings = at(&old, 0o600);
        let socket = unix::bind(&settings).await.unwrap();
        let (control, _connections) = accept(socket, &settings, CancellationToken::new());
        drop(control.prepare(&at(&new, 0o600), Duration::ZERO).await.unwrap());
        assert!(!new.exists() && old.exists());

        let prepared = control.prepare(&at(&old, 0o660), Duration::ZERO).await.unwrap();
        assert_eq!(mode_of(&old), 0o660);
        drop(prepared);
        assert_eq!(mode_of(&old), 0o600);
        let nobody = SocketSettings { group: Some("no such group".into()), ..at(&old, 0o660) };
        let error = control.prepare(&nobody, Duration::ZERO).await.unwrap_err();
        assert!(error.to_string().contains("no such group"), "{error}");
        assert_eq!(mode_of(&old), 0o600);
    }

    #[tokio::test]
    async fn what_systemd_holds_stays_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kms.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let settings = at(&path, 0o600);
        let socket = BoundSocket::inherited(listener, settings.address.clone());
        let (mut control, _connections) = accept(socket, &settings, CancellationToken::new());
        for wanted in [at(&folder.path().join("other.sock"), 0o600), at(&path, 0o660)] {
            let error = control.prepare(&wanted, Duration::ZERO).await.unwrap_err();
            assert!(error.to_string().contains("the socket unit"), "{error}");
        }
        let users = SocketSettings { allowed_uids: Some(vec![0, 7]), ..settings };
        let prepared = control.prepare(&users, Duration::ZERO).await.unwrap();
        control.commit(prepared).await;
    }

    #[tokio::test]
    async fn a_path_that_is_not_the_inherited_one_can_be_corrected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kms.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let socket = BoundSocket::inherited(listener, SocketAddress::Path(path.clone()));
        let wrong = at(&folder.path().join("wrong.sock"), 0o600);
        let (mut control, connections) = accept(socket, &wrong, CancellationToken::new());
        let mut connections = std::pin::pin!(connections);
        // Nowhere else, and the message names where it is.
        let other = at(&folder.path().join("other.sock"), 0o600);
        let error = control.prepare(&other, Duration::ZERO).await.unwrap_err().to_string();
        assert!(error.starts_with(&path.display().to_string()), "{error}");

        let prepared = control.prepare(&at(&path, 0o600), Duration::ZERO).await.unwrap();
        control.commit(prepared).await;
        let _dialled = UnixStream::connect(&path).await.unwrap();
        next(&mut connections).await;
        assert!(control.prepare(&wrong, Duration::ZERO).await.is_err(), "no way back");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing was bound");
    }

    #[tokio::test]
    async fn a_socket_is_moved_back_while_somebody_waits_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old.sock"), folder.path().join("new.sock"));
        let settings = at(&old, 0o600);
        let socket = unix::bind(&settings).await.unwrap();
        let (mut control, connections) = accept(socket, &settings, CancellationToken::new());
        let mut connections = std::pin::pin!(connections);
        let mut waiting = vec![UnixStream::connect(&old).await.unwrap()];
        let there = control.prepare(&at(&new, 0o600), Duration::ZERO).await.unwrap();
        control.commit(there).await;
        waiting.push(UnixStream::connect(&new).await.unwrap());
        next(&mut connections).await;
        let back = control.prepare(&settings, Duration::ZERO).await.unwrap();
        control.commit(back).await;
        waiting.push(UnixStream::connect(&old).await.unwrap());
        for _ in 0..2 {
            next(&mut connections).await;
        }
        assert!(connections.next().now_or_never().is_none(), "nobody else has dialled");
        assert!(!new.exists() && old.exists());
    }

    #[tokio::test]
    async fn another_list_of_users_holds_for_the_next_connection() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kms.sock");
        let us = rustix::process::geteuid().as_raw();
        let nobody = SocketSettings { allowed_uids: Some(vec![us + 1]), ..at(&path, 0o600) };
        let socket = unix::bind(&nobody).await.unwrap();
        let (mut control, connections) = accept(socket, &nobody, CancellationToken::new());
        let mut connections = std::pin::pin!(connections);
        let _refused = UnixStream::connect(&path).await.unwrap();
        assert!(connections.next().now_or_never().is_none());
        let somebody = SocketSettings { allowed_uids: Some(vec![us]), ..at(&path, 0o600) };
        let prepared = control.prepare(&somebody, Duration::ZERO).await.unwrap();
        control.commit(prepared).await;
        let _accepted = UnixStream::connect(&path).await.unwrap();
        next(&mut connections).await;
    }
}
