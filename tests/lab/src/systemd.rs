//! What systemd does for a service with a socket: it listens before the service runs and
//! while it does not, hands the socket over at each start, and hears what the service says.

use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UnixDatagram;
use tokio::task::JoinHandle;

use crate::daemon::DaemonBuilder;
use crate::process::temporary_folder;
use crate::{Result, eventually, fail};

/// A socket unit, and the ear of its service. It restarts nothing by itself.
#[derive(Debug)]
pub struct Systemd {
    listener: UnixListener,
    socket: PathBuf,
    notify: PathBuf,
    heard: Arc<Mutex<Vec<String>>>,
    ear: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

// === impl Systemd ===

impl Systemd {
    /// Listens, with mode 0600.
    pub fn start() -> Result<Self> {
        let folder = temporary_folder("systemd-")?;
        let socket = folder.path().join("kms.sock");
        let listener = UnixListener::bind(&socket)?;
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
        let notify = folder.path().join("notify");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ear = tokio::spawn(listen(UnixDatagram::bind(&notify)?, Arc::clone(&heard)));
        Ok(Self { listener, socket, notify, heard, ear, _folder: folder })
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The same daemon as its service: configured with the same socket, started with it.
    pub fn service(&self, daemon: DaemonBuilder) -> Result<DaemonBuilder> {
        let daemon = self.start_with(daemon, OwnedFd::from(self.listener.try_clone()?));
        Ok(daemon.socket(&self.socket))
    }

    /// The same daemon, started with this descriptor instead.
    pub fn start_with(&self, daemon: DaemonBuilder, descriptor: OwnedFd) -> DaemonBuilder {
        daemon.inherit(descriptor).env("NOTIFY_SOCKET", &self.notify)
    }

    /// Everything that was said, a line each.
    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until a line that comes after the first `mark` ones begins with `words`; answers it.
    pub async fn hears(&self, mark: usize, words: &str, within: Duration) -> Result<String> {
        let what = format!("systemd hears {words:?}");
        let heard = eventually(&what, within, || async {
            let said = self.heard();
            Ok(said.iter().skip(mark).find(|line| line.starts_with(words)).cloned())
        });
        match heard.await {
            Ok(line) => Ok(line),
            Err(error) => fail!("{error}; it heard {:?}", self.heard()),
        }
    }
}

async fn listen(socket: UnixDatagram, heard: Arc<Mutex<Vec<String>>>) {
    let mut text = vec![0; 8_192];
    while let Ok(length) = socket.recv(&mut text).await {
        let said = String::from_utf8_lossy(&text[..length]).into_owned();
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.extend(said.lines().map(str::to_owned));
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        self.ear.abort();
    }
}
