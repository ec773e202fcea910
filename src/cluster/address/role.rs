//! What a node is within its Vault cluster, as its `sys/health` says.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// For how long it counts that an address has said that it is a standby: ten probes of an
/// idle daemon, of which one at least meets a standby where there is one to meet.
const OF_LATE: Duration = Duration::from_secs(300);

/// What a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Role {
    /// Nothing has told it: not asked yet, not reached, or its health is not to be had.
    /// It may serve as well as any other.
    #[default]
    Unknown,
    /// The one that writes, and knows everything first.
    Active,
    /// One that serves by itself what it can read, or hands on to the active node.
    Standby,
    /// Vault Enterprise's name for a standby that serves by itself.
    PerformanceStandby,
    /// It has no key to its storage.
    Sealed,
    /// It has no storage yet.
    Uninitialised,
    /// Its cluster is a copy that serves nobody until it is promoted.
    DrSecondary,
    /// It was taken out of its cluster.
    Removed,
}

/// An address's role, shared by its prober, which writes it, and by everyone who chooses.
#[derive(Clone, Default)]
pub struct RoleCell(Arc<Shared>);

#[derive(Default)]
struct Shared {
    known: Mutex<Known>,
    doubted: Notify,
}

#[derive(Clone, Copy, Default)]
struct Known {
    role: Role,
    at: Option<Instant>,
    /// When it last said that it is a standby.
    stood_by: Option<Instant>,
    /// It has answered a call with a redirect, and none with an answer since.
    redirects: bool,
}

// === impl Role ===

impl Role {
    /// The word that status and log lines use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Active => "active",
            Self::Standby => "standby",
            Self::PerformanceStandby => "performance standby",
            Self::Sealed => "sealed",
            Self::Uninitialised => "not initialised",
            Self::DrSecondary => "disaster recovery secondary",
            Self::Removed => "removed from its cluster",
        }
    }

    /// Whether a node of this role may answer a call.
    pub const fn can_serve(self) -> bool {
        match self {
            Self::Unknown | Self::Active | Self::Standby | Self::PerformanceStandby => true,
            Self::Sealed | Self::Uninitialised | Self::DrSecondary | Self::Removed => false,
        }
    }

    pub(crate) const fn as_metric(self) -> f64 {
        match self {
            Self::Unknown => 0.0,
            Self::Active => 1.0,
            Self::Standby => 2.0,
            Self::PerformanceStandby => 3.0,
            Self::Sealed => 4.0,
            Self::Uninitialised => 5.0,
            Self::DrSecondary => 6.0,
            Self::Removed => 7.0,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl RoleCell ===

impl RoleCell {
    /// What it was when it was last asked.
    pub fn get(&self) -> Role {
        self.lock().role
    }

    /// Takes in what it is now; what it was, if that was something else.
    pub fn set(&self, role: Role) -> Option<Role> {
        let mut known = self.lock();
        let was = known.role;
        known.role = role;
        known.at = Some(Instant::now());
        known.hear(role);
        if was == role {
            return None;
        }
        known.redirects = false;
        Some(was)
    }

    /// Takes in what it says to somebody else than its prober.
    pub fn hear(&self, role: Role) {
        self.lock().hear(role);
    }

    /// Whether it has said within five minutes that it is a standby. An address that says so
    /// and is active too may be a load balancer's, with many nodes behind it.
    pub fn stood_by_of_late(&self) -> bool {
        self.lock().stood_by.is_some_and(|at| at.elapsed() < OF_LATE)
    }

    /// When the role was last told. Of two nodes that say that they are active, the later
    /// is right.
    pub fn told_at(&self) -> Option<Instant> {
        self.lock().at
    }

    /// Whether it sends calls on to the active node instead of serving them.
    pub fn redirects(&self) -> bool {
        self.lock().redirects
    }

    /// It has answered a call, so it can serve, whatever it was a moment ago.
    pub fn served(&self) {
        let mut known = self.lock();
        known.redirects = false;
        if !known.role.can_serve() {
            known.role = Role::Unknown;
        }
    }

    /// It has answered a call with a redirect.
    pub fn redirected(&self) {
        self.lock().redirects = true;
    }

    /// What it answered to a call speaks of another role, so a look is due.
    pub fn doubt(&self) {
        self.0.doubted.notify_one();
    }

    /// Waits for the next doubt; one that came before counts.
    pub async fn doubted(&self) {
        self.0.doubted.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().expect("no code panics while it holds this lock")
    }
}

// === impl Known ===

impl Known {
    fn hear(&mut self, role: Role) {
        if matches!(role, Role::Standby | Role::PerformanceStandby) {
            self.stood_by = Some(Instant::now());
        }
    }
}

impl fmt::Debug for RoleCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RoleCell({})", self.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_proves_a_node_fit() {
        let role = RoleCell::default();
        role.redirected();
        assert_eq!((role.set(Role::Sealed), role.set(Role::Sealed)), (Some(Role::Unknown), None));
        assert!(!role.redirects(), "another role, another behaviour");
        role.served();
        assert_eq!(role.get(), Role::Unknown);
        role.set(Role::Standby);
        role.redirected();
        role.set(Role::Standby);
        assert!(role.redirects());
        role.served();
        assert_eq!((role.get(), role.redirects()), (Role::Standby, false));
    }
}
