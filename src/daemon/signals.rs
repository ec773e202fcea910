//! Signals as a stream of what they mean.

use std::io;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

/// What an operator asks of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGHUP: take the configuration anew.
    Reload,
    /// SIGTERM or SIGINT, by name: stop.
    Terminate(&'static str),
}

/// The installed handlers.
#[derive(Debug)]
pub struct Signals {
    hangup: Stream,
    terminate: Stream,
    interrupt: Stream,
}

// === impl Signals ===

impl Signals {
    /// Installs the handlers; from here on SIGHUP no longer ends the process.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn install() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one. Several of a kind that come at once may count as one.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.hangup.recv() => Signal::Reload,
            _ = self.terminate.recv() => Signal::Terminate("SIGTERM"),
            _ = self.interrupt.recv() => Signal::Terminate("SIGINT"),
        }
    }

    /// Waits until the process is told to stop, and says by which signal. A SIGHUP that
    /// comes meanwhile waits for [`Self::next`].
    pub async fn terminated(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
