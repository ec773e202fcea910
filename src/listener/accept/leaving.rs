//! Sockets that a reload has put out of use, until whoever waits in their lines is taken in.
//!
//! To whoever has dialled one the connection is made, so closing it is a fault for them. But
//! while descriptors are short nobody can be taken in, and nobody waits for ever: so these
//! sockets end after [`PATIENCE`], and there are [`MAX_SOCKETS`] of them at most.

use std::collections::VecDeque;
use std::future;
use std::io;
use std::time::Duration;

use rustix::io::Errno;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep_until};

use super::Source;

/// How long a socket that was put out of use is kept for those in its line. A kube-apiserver
/// gives up a connection on which nobody answers after 20 s (gRPC's shortest time for making
/// one).
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Sockets that were put out of use; each one more closes the oldest.
pub(super) const MAX_SOCKETS: usize = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Leaving<S>(VecDeque<(S, Instant)>);

// === impl Leaving ===

impl<S> Default for Leaving<S> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<S: Source> Leaving<S> {
    /// Puts `source` out of use.
    pub(super) fn add(&mut self, mut source: S) {
        source.leave();
        if self.0.len() == MAX_SOCKETS {
            self.close_oldest("the socket was moved too often");
        }
        self.0.push_back((source, Instant::now() + PATIENCE));
    }

    /// Whoever waits, those of the oldest first; `None` when nobody is left, and nothing open.
    ///
    /// # Errors
    /// When nobody can be taken in now.
    pub(super) fn accept(&mut self) -> Option<io::Result<UnixStream>> {
        while let Some((source, _)) = self.0.front_mut() {
            match source.accept_left() {
                Ok(Some(stream)) => return Some(Ok(stream)),
                Err(error) if is_shortage(&error) => return Some(Err(error)),
                Ok(None) => drop(self.0.pop_front()),
                Err(error) => self.close_oldest(&error.to_string()),
            }
        }
        None
    }

    /// Waits until the time of the oldest is up; for ever when there is none.
    pub(super) async fn overdue(&self) {
        match self.0.front() {
            Some((_, end)) => sleep_until(*end).await,
            None => future::pending().await,
        }
    }

    /// Closes those whose time is up.
    pub(super) fn close_overdue(&mut self) {
        while self.0.front().is_some_and(|(_, end)| *end <= Instant::now()) {
            self.close_oldest("nobody could be taken in for too long");
        }
    }

    fn close_oldest(&mut self, why: &str) {
        let Some((source, _)) = self.0.pop_front() else { return };
        tracing::warn!(
            socket = source.name(),
            error = why,
            "The socket of before is closed; whoever still waited there has to dial the new one."
        );
    }
}

fn is_shortage(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS))
}
