//! What the services know about the connection that a call came on.

use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::keyring::KeyId;

/// One connection of kube-apiserver, shared by all its calls.
///
/// The server puts it, in an `Arc`, among the extensions of each request.
#[derive(Debug)]
pub struct ConnectionInfo {
    /// Who is at the other end.
    pub peer: PeerCredentials,
    /// Tells connections apart in logs; counts up from 1 and is never used again.
    pub id: u64,
    reported: Mutex<Option<Reported>>,
}

/// The process at the other end, as the kernel saw it when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Its user; 65534 when that user does not exist in our user namespace.
    pub uid: u32,
    /// Its group, under the same rule.
    pub gid: u32,
    /// Its process id; `None` when it lives outside our pid namespace.
    pub pid: Option<i32>,
}

/// The key_id that Status last told this connection.
#[derive(Clone, Debug)]
struct Reported {
    at: Instant,
    key_id: KeyId,
}

// === impl ConnectionInfo ===

impl ConnectionInfo {
    /// The connection `id` with `peer`, which was told no key_id yet.
    pub const fn new(id: u64, peer: PeerCredentials) -> Self {
        Self { peer, id, reported: Mutex::new(None) }
    }

    /// Notes that Status has just told this connection `key_id`.
    pub fn remember(&self, key_id: KeyId) {
        let mut reported = self.reported.lock().expect("no code panics while it holds this lock");
        *reported = Some(Reported { at: Instant::now(), key_id });
    }

    /// The key_id that Status last told this connection, if that was at most `max_age` ago.
    pub fn recent(&self, max_age: Duration) -> Option<KeyId> {
        let reported = self.reported.lock().expect("no code panics while it holds this lock");
        reported.as_ref().filter(|r| r.at.elapsed() <= max_age).map(|r| r.key_id.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reported_key_id_is_forgotten_when_it_is_too_old() {
        let info = ConnectionInfo::new(1, PeerCredentials { uid: 0, gid: 0, pid: Some(1) });
        let max_age = Duration::from_secs(30);
        assert_eq!(info.recent(max_age), None);
        info.remember(KeyId::from("kube:v1:00".to_owned()));
        info.remember(KeyId::from("kube:v2:00".to_owned()));
        tokio::time::advance(max_age).await;
        assert_eq!(info.recent(max_age), Some(KeyId::from("kube:v2:00".to_owned())));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(info.recent(max_age), None);
    }
}
