//! The life of a cluster's token.
//!
//! One task, the `keeper`, gets it, renews it and replaces it. Callers see a
//! `TokenHandle`: they wait for a token, and they report one that was refused. However
//! many report, the task looks once and logs in once.

mod board;
mod cache;
mod keeper;
mod lease;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use self::board::{Board, board};
use self::cache::TokenCache;
use super::auth::{Method, Source};
use super::authenticate::Link;
use crate::clock::{Deadline, Jitter, UnixSeconds};
use crate::config::settings::ClusterSettings;
use crate::task::OwnedTask;

/// How long after its login a token may still be unknown to a standby: a restarted one
/// lagged by up to 2.5 s.
pub(super) const FRESH: Duration = Duration::from_secs(3);

/// What is known of a cluster's token.
#[derive(Clone, Debug)]
pub struct TokenState {
    /// There is one.
    pub has_token: bool,
    /// Vault has accepted it, by a login or a lookup.
    pub is_proven: bool,
    /// How long it lives.
    pub lifetime: Lifetime,
    /// Whether Vault says that it can be renewed.
    pub renewable: bool,
    /// When it was got, by this machine's clock.
    pub last_login: Option<UnixSeconds>,
    /// Why the last step of its life failed; `None` once one went well.
    pub last_error: Option<String>,
    /// Why the last login that was only rehearsed failed: the token works, the next one
    /// may not come. `None` once one went well.
    pub rehearsal_error: Option<String>,
}

/// How long a token lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Vault did not say: `lookup-self` is forbidden or was not answered yet.
    Unknown,
    /// It never expires (a root token).
    Unlimited,
    /// It ends unless it is renewed.
    Limited {
        /// As Vault last told it.
        ttl: Duration,
        /// When it ends if nothing happens.
        expires: Instant,
    },
}

/// The callers' side.
pub(super) struct TokenHandle {
    current: Board<Current>,
    reports: watch::Sender<Report>,
    link: Link,
}

/// A token as a call attaches it.
#[derive(Clone)]
pub(super) struct HeldToken {
    pub(super) value: Arc<SecretString>,
    /// Tells one token from the next.
    serial: u64,
    /// When a login brought it; `None` when it was there before us.
    issued: Option<Instant>,
}

/// What became of a report that a token was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// That token is gone; there is another or will be.
    Replaced,
    /// Nothing shows that it is dead.
    Alive,
    /// The deadline came first.
    NotInTime,
}

/// Everything that the task publishes, at once.
#[derive(Clone)]
struct Current {
    token: Option<HeldToken>,
    is_proven: bool,
    lifetime: Lifetime,
    renewable: bool,
    last_login: Option<UnixSeconds>,
    last_error: Option<String>,
    rehearsal_error: Option<String>,
    /// When the token ends for sure, because nobody but us can renew it.
    ends: Option<Instant>,
    /// Vault gave no token, and the next try comes then at the soonest.
    next_try: Option<Instant>,
    /// Reports up to this number have been looked into.
    settled: u64,
}

/// "The token with this serial was refused": the newest of all such reports.
#[derive(Clone, Copy, Debug, Default)]
struct Report {
    number: u64,
    serial: u64,
}

/// The handle of a token that `method` gets over `link`, and the task that keeps it. After
/// a panic the task gets another token, so that a bug does not let this one run out.
pub(super) fn keep(
    settings: &ClusterSettings,
    method: Box<dyn Method>,
    link: Link,
    jitter: Arc<Jitter>,
) -> (TokenHandle, OwnedTask) {
    let cache = TokenCache::of(settings);
    let cache = cache.filter(|_| method.source() == Source::Login);
    let (publish, current) = board(Current::default());
    let (reports, reported) = watch::channel(Report::default());
    let keeper = keeper::Keeper::new(method, cache, link.clone(), jitter, publish, reported);
    let keeper = Arc::new(Mutex::new(keeper));
    let task = OwnedTask::spawn_again("token", move || {
        let keeper = Arc::clone(&keeper);
        async move { keeper.lock().await.run().await }
    });
    (TokenHandle { current, reports, link }, task)
}

// === impl TokenState ===

impl TokenState {
    /// Time until the token ends; `None` when it does not, or nobody knows.
    pub fn remaining(&self) -> Option<Duration> {
        match self.lifetime {
            Lifetime::Unknown | Lifetime::Unlimited => None,
            Lifetime::Limited { expires, .. } => {
                Some(expires.saturating_duration_since(Instant::now()))
            }
        }
    }
}

// === impl TokenHandle ===

impl TokenHandle {
    /// The token, waiting for one until `deadline`; otherwise the reason why there is none,
    /// at once when there will be none by then.
    pub(super) async fn held(&self, deadline: Deadline) -> Result<HeldToken, String> {
        let token_or_never = |c: &Current| match c.usable() {
            Some(held) => Some(Some(held.clone())),
            None => c.next_try.is_some_and(|at| at > deadline.instant()).then_some(None),
        };
        let now = self.current.read(token_or_never);
        let outcome = match now {
            Some(outcome) => Some(outcome),
            None => self.wait(deadline, token_or_never).await,
        };
        outcome.flatten().ok_or_else(|| self.reason())
    }

    /// Waits until Vault has accepted the token; otherwise the reason why it has not.
    pub(super) async fn proven(&self, deadline: Deadline) -> Result<(), String> {
        let proven = |c: &Current| (c.usable().is_some() && c.is_proven).then_some(());
        self.wait(deadline, proven).await.ok_or_else(|| self.reason())
    }

    /// Reports that `held` was refused and waits for what comes of it; answers at once
    /// when it has been replaced since.
    pub(super) async fn refused(&self, held: &HeldToken, deadline: Deadline) -> Settled {
        if self.current.read(|current| current.is_beyond(held)) {
            return Settled::Replaced;
        }
        let mut number = 0;
        self.reports.send_modify(|report| {
            report.number += 1;
            report.serial = report.serial.max(held.serial);
            number = report.number;
        });
        let outcome = |c: &Current| match c {
            _ if c.is_beyond(held) => Some(Settled::Replaced),
            _ if c.settled >= number => Some(Settled::Alive),
            _ => None,
        };
        self.wait(deadline, outcome).await.unwrap_or(Settled::NotInTime)
    }

    /// What is known now.
    pub(super) fn state(&self) -> TokenState {
        self.current.read(|current| TokenState {
            has_token: current.usable().is_some(),
            is_proven: current.is_proven,
            lifetime: current.lifetime,
            renewable: current.renewable,
            last_login: current.last_login,
            last_error: current.last_error.clone(),
            rehearsal_error: current.rehearsal_error.clone(),
        })
    }

    /// Why there is no token now, when there is none.
    pub(super) fn missing(&self) -> Option<String> {
        let has_token = self.current.read(|current| current.usable().is_some());
        (!has_token).then(|| self.reason())
    }

    async fn wait<T>(&self, deadline: Deadline, pick: impl Fn(&Current) -> Option<T>) -> Option<T> {
        tokio::time::timeout_at(deadline.instant(), self.current.wait_for(pick)).await.ok()?.ok()
    }

    fn reason(&self) -> String {
        if self.current.is_abandoned() {
            return "the task that keeps it has ended; restart the daemon".to_owned();
        }
        let (error, has_expired) = self.current.read(|current| {
            let has_expired = current.token.is_some() && current.usable().is_none();
            (current.last_error.clone(), has_expired)
        });
        let error = error.unwrap_or_else(|| self.link.silence());
        if has_expired {
            return format!("the last one has expired, and there is no other yet: {error}");
        }
        error
    }
}

// === impl HeldToken ===

impl HeldToken {
    /// A standby may not know it yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.issued.is_some_and(|at| at.elapsed() < FRESH)
    }
}

// === impl Current ===

impl Current {
    /// The token, unless its time is up: Vault refuses it then, and nodes without a leader
    /// do not even say so.
    fn usable(&self) -> Option<&HeldToken> {
        let has_ended = self.ends.is_some_and(|ends| ends <= Instant::now());
        self.token.as_ref().filter(|_| !has_ended)
    }

    /// Whether `held` is not the token any more.
    fn is_beyond(&self, held: &HeldToken) -> bool {
        self.token.as_ref().is_none_or(|token| token.serial != held.serial)
    }
}

impl Default for Current {
    fn default() -> Self {
        Self {
            token: None,
            is_proven: false,
            lifetime: Lifetime::Unknown,
            renewable: false,
            last_login: None,
            last_error: None,
            rehearsal_error: None,
            ends: None,
            next_try: None,
            settled: 0,
        }
    }
}

impl fmt::Debug for HeldToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HeldToken(#{})", self.serial)
    }
}

#[cfg(test)]
mod tests;
