//! The accept loop: it goes on whatever the kernel answers, until it is told to stop.
//!
//! A loop that ends at the first EMFILE leaves a control plane without its KMS; one that
//! tries again at once burns a core and makes the shortage worse. This one waits, a little
//! longer each time.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::Stream;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::peer::{PeerPolicy, Refusals, credentials};
use super::unix::BoundSocket;
use crate::kms::connection::ConnectionInfo;

mod leaving;
#[cfg(test)]
mod tests;

use leaving::Leaving;

/// Connections that are open at once. A kube-apiserver opens one for each provider that
/// its encryption configuration names; further ones wait in the kernel.
pub const MAX_CONNECTIONS: usize = 256;

const SHORTEST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Connection ids are unique in the process, also when a reload moves the socket.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Accepts connections from a socket. It owns the socket: when it is dropped, the socket
/// is removed and closed.
#[derive(Debug)]
pub struct Acceptor<S = BoundSocket> {
    source: S,
    /// What was accepted from before.
    leaving: Leaving<S>,
    policy: PeerPolicy,
    refusals: Refusals,
    places: Arc<Semaphore>,
    backoff: Backoff,
    stop: CancellationToken,
}

/// Where connections come from: the socket, or a test.
trait Source: Send {
    fn accept(&mut self) -> impl Future<Output = io::Result<UnixStream>> + Send;

    /// Nobody shall come any more.
    fn leave(&mut self) {}

    /// Whoever has come before it was left; `None` when nobody waits any more.
    fn accept_left(&mut self) -> io::Result<Option<UnixStream>> {
        Ok(None)
    }

    /// What people call it.
    fn name(&self) -> String {
        String::new()
    }
}

/// Pauses that double from [`SHORTEST_PAUSE`] to [`LONGEST_PAUSE`].
#[derive(Debug, Default)]
struct Backoff {
    last: Option<Duration>,
}

// === impl Acceptor ===

impl Acceptor {
    /// Accepts up to [`MAX_CONNECTIONS`] at once from `socket`, until `stop` is cancelled.
    pub fn new(socket: BoundSocket, policy: PeerPolicy, stop: CancellationToken) -> Self {
        Self::from_source(socket, policy, MAX_CONNECTIONS, stop)
    }

    /// With another bound on open connections.
    #[must_use]
    pub fn with_max_connections(mut self, max: usize) -> Self {
        self.places = Arc::new(Semaphore::new(max));
        self
    }

    /// The connections, for tonic's `serve_with_incoming_shutdown`. The stream holds no
    /// error, ends only when it is told to stop, and takes the socket with it.
    pub fn into_stream(self) -> impl Stream<Item = io::Result<Connection>> + Send {
        futures_util::stream::unfold(self, |mut acceptor| async move {
            let connection = acceptor.accept().await?;
            Some((Ok(connection), acceptor))
        })
    }
}

#[allow(private_bounds)] // the trait is a seam for tests, not part of the promise
impl<S: Source> Acceptor<S> {
    fn from_source(source: S, policy: PeerPolicy, max: usize, stop: CancellationToken) -> Self {
        Self {
            source,
            leaving: Leaving::default(),
            policy,
            refusals: Refusals::default(),
            places: Arc::new(Semaphore::new(max)),
            backoff: Backoff::default(),
            stop,
        }
    }

    /// The next connection of a peer that may connect; `None` when it was told to stop.
    pub async fn accept(&mut self) -> Option<Connection> {
        let stop = self.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => None,
            connection = self.accept_unless_stopped() => Some(connection),
        }
    }

    /// Asks `policy` from now on, and accepts from `source` if there is one. Whoever has
    /// dialled the source before it is still accepted.
    pub(super) fn change(&mut self, source: Option<S>, policy: PeerPolicy) {
        self.policy = policy;
        if let Some(source) = source {
            self.leaving.add(std::mem::replace(&mut self.source, source));
        }
    }

    async fn accept_unless_stopped(&mut self) -> Connection {
        loop {
            let place = tokio::select! {
                biased;
                place = self.place() => place,
                () = self.leaving.overdue() => {
                    self.leaving.close_overdue();
                    continue;
                }
            };
            let accepted = match self.leaving.accept() {
                Some(left) => left,
                None => self.source.accept().await,
            };
            let stream = match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    self.wait_after(&error).await;
                    self.leaving.close_overdue();
                    continue;
                }
            };
            self.backoff.reset();
            let Ok(peer) = credentials(&stream) else { continue };
            if let Err(refused) = self.policy.check(peer) {
                self.refusals.report(&refused);
                continue;
            }
            let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(
                connection = id,
                uid = peer.uid,
                pid = peer.pid,
                "Accepted a connection."
            );
            return Connection::new(stream, ConnectionInfo::new(id, peer), place);
        }
    }

    /// Room for one more connection.
    async fn place(&self) -> OwnedSemaphorePermit {
        let places = Arc::clone(&self.places);
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            return place;
        }
        tracing::warn!("All connections that may be open are open; new ones wait for one to end.");
        places.acquire_owned().await.expect("this semaphore is never closed")
    }

    async fn wait_after(&mut self, error: &io::Error) {
        let errno = Errno::from_io_error(error);
        if matches!(errno, Some(Errno::CONNABORTED | Errno::INTR)) {
            return; // the peer has gone already; the next one may be there
        }
        let first = self.backoff.is_fresh();
        let pause = self.backoff.next();
        if first {
            let advice = match errno {
                Some(Errno::MFILE) => "; raise this process's limit of open files (LimitNOFILE=)",
                Some(Errno::NFILE) => "; raise the system's limit of open files (fs.file-max)",
                Some(Errno::NOMEM | Errno::NOBUFS) => "; free memory on this machine",
                _ => "",
            };
            tracing::warn!(%error, "Cannot accept connections; trying again{advice}.");
        }
        tokio::time::sleep(pause).await;
    }
}

// === impl Source for BoundSocket ===

impl Source for BoundSocket {
    async fn accept(&mut self) -> io::Result<UnixStream> {
        self.listener().accept().await.map(|(stream, _)| stream)
    }

    fn leave(&mut self) {
        self.give_up_file();
    }

    fn accept_left(&mut self) -> io::Result<Option<UnixStream>> {
        // Not tokio's: it may not have heard yet that somebody waits.
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let stream = loop {
            match rustix::net::accept_with(self.listener(), flags) {
                Ok(stream) => break stream,
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        };
        UnixStream::from_std(stream.into()).map(Some)
    }

    fn name(&self) -> String {
        self.address().to_string()
    }
}

// === impl Backoff ===

impl Backoff {
    const fn is_fresh(&self) -> bool {
        self.last.is_none()
    }

    fn next(&mut self) -> Duration {
        let pause = self.last.map_or(SHORTEST_PAUSE, |last| (last * 2).min(LONGEST_PAUSE));
        self.last = Some(pause);
        pause
    }

    fn reset(&mut self) {
        if self.last.take().is_some() {
            tracing::info!("Accepting connections again.");
        }
    }
}
