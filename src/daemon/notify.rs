//! What systemd is told: that the socket listens, what Vault and reloads do, that the daemon
//! is alive (sd_notify(3)).
//!
//! Messages go through a task of their own, in order, one datagram each. Nothing here ever
//! waits for systemd: when it does not take them, calls go on and messages are lost.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram as StdDatagram};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::UnixDatagram;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};

use super::pulse::Pulse;
use crate::clock::monotonic_usec;
use crate::task::OwnedTask;

mod status;

pub(super) use status::Story;

/// Messages that wait for systemd; it reads many times as many in a second as are sent.
const LINE: usize = 64;
/// How long the last word may take to leave, when the process ends.
const LAST_WORD: Duration = Duration::from_secs(1);
/// How long one datagram may take while systemd does not read: it is lost then.
const DATAGRAM: Duration = Duration::from_secs(5);
/// No status is longer; systemd shows a line.
const LONGEST_STATUS: usize = 512;

/// Tells systemd, when it listens.
#[derive(Clone, Debug, Default)]
pub(super) struct Notifier {
    line: Option<mpsc::Sender<Message>>,
    _task: Option<Arc<OwnedTask>>,
    /// How often it wants to hear that the daemon is alive.
    watchdog: Option<Duration>,
}

#[derive(Debug)]
struct Message {
    text: String,
    /// Is told when it has left.
    sent: Option<oneshot::Sender<()>>,
}

/// The environment's word on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Variables {
    socket: Option<OsString>,
    watchdog_usec: Option<String>,
    watchdog_pid: Option<String>,
}

// === impl Notifier ===

impl Notifier {
    /// Tells whoever `NOTIFY_SOCKET` names; nobody where it names nobody.
    pub(super) fn from_env() -> Self {
        let text = |name| std::env::var(name).ok();
        Self::new(&Variables {
            socket: std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()),
            watchdog_usec: text("WATCHDOG_USEC"),
            watchdog_pid: text("WATCHDOG_PID"),
        })
    }

    fn new(variables: &Variables) -> Self {
        let Some(socket) = &variables.socket else { return Self::default() };
        let to = match address(socket) {
            Ok(to) => to,
            Err(error) => {
                tracing::warn!(?socket, %error, "NOTIFY_SOCKET cannot be used; systemd is not told.");
                return Self::default();
            }
        };
        let (line, waiting) = mpsc::channel(LINE);
        let task = OwnedTask::spawn("notify", send_all(to, waiting));
        Self { line: Some(line), _task: Some(Arc::new(task)), watchdog: variables.watchdog() }
    }

    /// The socket listens, or a reload is over.
    pub(super) fn ready(&self) {
        self.tell("READY=1".to_owned());
    }

    /// A reload begins. systemd compares the time with that of its own signal
    /// (`Type=notify-reload`).
    pub(super) fn reloading(&self) {
        self.tell(format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_usec()));
    }

    /// What `systemctl status` shows.
    fn status(&self, text: &str) {
        self.tell(format!("STATUS={}", one_line(text)));
    }

    /// The end; waits a moment until it was taken.
    pub(super) async fn stopping(&self) {
        self.last_word("STOPPING=1\nSTATUS=Stopping; calls in flight may finish.".to_owned()).await;
    }

    /// The daemon cannot serve; waits as [`Self::stopping`] does.
    pub(super) async fn failed(&self, why: &dyn std::error::Error) {
        self.last_word(format!("STATUS={}", one_line(&why.to_string()))).await;
    }

    async fn last_word(&self, text: String) {
        let Some(line) = &self.line else { return };
        let (sent, taken) = oneshot::channel();
        if line.try_send(Message { text, sent: Some(sent) }).is_ok() {
            let _ = tokio::time::timeout(LAST_WORD, taken).await;
        }
    }

    /// Whether anybody is told.
    pub(super) const fn is_heard(&self) -> bool {
        self.line.is_some()
    }

    /// Keeps the watchdog quiet as long as the daemon answers itself; `None` when systemd
    /// has none for us.
    pub(super) fn watch(&self, pulse: Pulse) -> Option<OwnedTask> {
        let limit = self.watchdog?;
        let told = self.clone();
        tracing::info!(?limit, "systemd watches whether the daemon answers itself.");
        let pulse = Arc::new(pulse);
        Some(OwnedTask::spawn_again("watchdog", move || {
            keep_quiet(told.clone(), Arc::clone(&pulse), limit)
        }))
    }

    fn tell(&self, text: String) {
        let Some(line) = &self.line else { return };
        // A full line means that systemd has not read for a while; it is not waited for.
        if line.try_send(Message { text, sent: None }).is_err() {
            tracing::debug!("systemd does not read; a message to it was lost.");
        }
    }
}

/// Says that all is well whenever it is: a call went all the way through the server. A timer
/// alone would go on ticking in a daemon that answers nobody.
///
/// A quarter of `limit` after one call the next is made, beside it when it has not been
/// answered, so that one that is slow or lost does not end a daemon that answers others.
async fn keep_quiet(told: Notifier, pulse: Arc<Pulse>, limit: Duration) {
    let (mut is_well, mut answered) = (true, Instant::now());
    let mut begin = tokio::time::interval(limit / 4);
    begin.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut felt = FuturesUnordered::new();
    loop {
        tokio::select! {
            _ = begin.tick() => felt.push(pulse.feel(limit / 2)),
            Some(felt) = felt.next() => match felt {
                Ok(()) => {
                    answered = Instant::now();
                    told.tell("WATCHDOG=1".to_owned());
                    if !std::mem::replace(&mut is_well, true) {
                        tracing::info!("The daemon answers itself again.");
                    }
                }
                Err(_) if answered.elapsed() < limit / 2 => {}
                Err(why) if std::mem::replace(&mut is_well, false) => tracing::error!(
                    "The daemon does not answer itself: {why}; unless that changes, systemd \
                     restarts it. Please report this bug."
                ),
                Err(_) => {}
            },
        }
    }
}

async fn send_all(to: SocketAddr, mut waiting: mpsc::Receiver<Message>) {
    let mut failing = false;
    while let Some(Message { text, sent }) = waiting.recv().await {
        let result = tokio::time::timeout(DATAGRAM, send(&to, &text)).await;
        match result.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(()) => failing = false,
            Err(error) if !std::mem::replace(&mut failing, true) => {
                tracing::warn!(%error, "systemd cannot be told; the calls go on without it.");
            }
            Err(_) => {}
        }
        if let Some(sent) = sent {
            let _ = sent.send(());
        }
    }
}

/// Each over a socket of its own: the other end may have been made anew.
async fn send(to: &SocketAddr, text: &str) -> io::Result<()> {
    let socket = StdDatagram::unbound()?;
    socket.connect_addr(to)?;
    socket.set_nonblocking(true)?;
    UnixDatagram::from_std(socket)?.send(text.as_bytes()).await.map(drop)
}

/// `@name` is an abstract one; the other kinds that systemd knows are for machines.
fn address(socket: &OsString) -> io::Result<SocketAddr> {
    match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(socket),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no path and no @name")),
    }
}

fn one_line(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(LONGEST_STATUS).map(plain).collect()
}

// === impl Variables ===

impl Variables {
    /// systemd's watchdog, when it is meant for this process.
    fn watchdog(&self) -> Option<Duration> {
        let ours = std::process::id();
        let is_ours = |pid: &String| pid.parse() == Ok(ours);
        if !self.watchdog_pid.as_ref().is_none_or(is_ours) {
            return None;
        }
        let usec = self.watchdog_usec.as_ref()?.parse().ok().filter(|usec| *usec > 0)?;
        Some(Duration::from_micros(usec))
    }
}

#[cfg(test)]
mod tests;
