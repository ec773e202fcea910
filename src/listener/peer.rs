//! Who may connect: the kernel tells the user at the other end, and a list decides.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::Instant;

use crate::config::settings::SocketSettings;
use crate::kms::connection::PeerCredentials;
use crate::telemetry::metrics::{Metric, add};

/// How often one refused user is logged as a warning.
const QUIET: Duration = Duration::from_secs(60);

/// How many users are warned about in that time.
const MOST_WARNED: usize = 64;

/// The users who may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPolicy {
    allowed: BTreeSet<u32>,
}

/// A peer that may not connect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "user {} (process {}) may not connect; to allow it, write `socket.allowedUids: {advice}`",
    peer.uid,
    peer.pid.map_or_else(|| "unknown".to_owned(), |pid| pid.to_string())
)]
pub struct PeerRefused {
    /// Who it was.
    pub peer: PeerCredentials,
    /// The list that would let it in.
    pub advice: String,
}

/// Logs refusals: each is counted, and a peer that tries again and again does not fill
/// the log.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// The users that were warned about lately.
    warned: BTreeMap<u32, Instant>,
}

// === impl PeerPolicy ===

impl PeerPolicy {
    /// The configured users; without a list, root and our own.
    pub fn new(settings: &SocketSettings) -> Self {
        let ours = || vec![0, rustix::process::geteuid().as_raw()];
        let allowed = settings.allowed_uids.clone().unwrap_or_else(ours);
        Self { allowed: allowed.into_iter().collect() }
    }

    /// Whether `peer` may go on.
    ///
    /// # Errors
    /// When its user is not on the list.
    pub fn check(&self, peer: PeerCredentials) -> Result<(), PeerRefused> {
        if self.allowed.contains(&peer.uid) {
            return Ok(());
        }
        let mut list = self.allowed.clone();
        list.insert(peer.uid);
        let list: Vec<String> = list.iter().map(u32::to_string).collect();
        Err(PeerRefused { peer, advice: format!("[{}]", list.join(", ")) })
    }
}

/// Who is at the other end of `stream`.
pub(super) fn credentials(stream: &UnixStream) -> std::io::Result<PeerCredentials> {
    let peer = stream.peer_cred()?;
    // The kernel says 0 for a process that our pid namespace does not see.
    let pid = peer.pid().filter(|pid| *pid != 0);
    Ok(PeerCredentials { uid: peer.uid(), gid: peer.gid(), pid })
}

// === impl Refusals ===

impl Refusals {
    pub(super) fn report(&mut self, refused: &PeerRefused) {
        add(Metric::PeersRefused, 1, &[]);
        let PeerRefused { peer, .. } = refused;
        if self.is_new(peer.uid) {
            tracing::warn!(uid = peer.uid, pid = peer.pid, "Refused a peer: {refused}.");
        } else {
            tracing::debug!(uid = peer.uid, pid = peer.pid, "Refused a peer again: {refused}.");
        }
    }

    fn is_new(&mut self, uid: u32) -> bool {
        let now = Instant::now();
        self.warned.retain(|_, at| now.duration_since(*at) < QUIET);
        let new = self.warned.len() < MOST_WARNED && !self.warned.contains_key(&uid);
        if new {
            self.warned.insert(uid, now);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::SocketAddress;

    fn policy(allowed_uids: Option<Vec<u32>>) -> PeerPolicy {
        PeerPolicy::new(&SocketSettings {
            address: SocketAddress::Abstract("x".into()),
            mode: 0o600,
            owner: None,
            group: None,
            allowed_uids,
        })
    }

    fn peer(uid: u32) -> PeerCredentials {
        PeerCredentials { uid, gid: 7, pid: Some(4_711) }
    }

    #[test]
    fn without_a_list_root_and_our_own_user_may_connect() {
        let ours = rustix::process::geteuid().as_raw();
        assert_eq!(policy(None).check(peer(0)), Ok(()));
        assert_eq!(policy(None).check(peer(ours)), Ok(()));
        assert!(policy(None).check(peer(ours + 1)).is_err());
    }

    #[test]
    fn a_refusal_says_who_it_was_and_what_to_write() {
        let refused = policy(Some(vec![0, 998])).check(peer(65_534)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "user 65534 (process 4711) may not connect; to allow it, write \
             `socket.allowedUids: [0, 998, 65534]`"
        );
    }

    #[test]
    fn a_list_that_leaves_out_root_refuses_root() {
        assert!(policy(Some(vec![998])).check(peer(0)).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_tries_again_and_again_does_not_fill_the_log() {
        let mut refusals = Refusals::default();
        assert!(refusals.is_new(7));
        assert!(refusals.is_new(8));
        assert!(!refusals.is_new(7));
        tokio::time::advance(QUIET).await;
        assert!(refusals.is_new(7));
        assert_eq!((100..1_000).filter(|uid| refusals.is_new(*uid)).count(), MOST_WARNED - 1);
    }
}
