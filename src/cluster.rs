//! Several addresses that behave like one Vault.
//!
//! A [`Cluster`] takes an [`Operation`] and a deadline and brings one [`Answer`]. It
//! judges addresses, never bodies. From the outside in:
//!
//! ```text
//! Cluster::call       the token: attach it, renew it, get it again when it is refused
//!   retry             the next address after a fault, within a budget
//!     hedge           a second address beside one that stays silent
//!       pool          which address
//!         breaker     not an address that keeps failing
//!           trace     a span and a measurement
//!           index     makes a standby that is behind ask the active node
//!           classify  what the answer says about the address
//!             http    one request over a pooled TLS connection
//! ```
//!
//! Beside them [`probe`] asks each node what it is, and tells breaker and pool.

pub mod address;
pub mod auth;
mod authenticate;
pub mod breaker;
pub mod budget;
pub mod classify;
pub(crate) mod date;
pub mod error;
pub mod hedge;
pub mod http;
pub mod index;
pub mod operation;
pub(crate) mod path;
pub mod pool;
pub mod probe;
pub mod resolve;
pub mod retry;
pub mod stack;
pub mod step;
#[cfg(test)]
pub(crate) mod testing;
pub mod tls;
pub mod token;
pub mod trace;
pub mod words;

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::clock::{Deadline, Jitter, VaultClock};
use crate::config::settings::{ClusterName, ClusterSettings};
use crate::task::OwnedTask;

pub use error::{AttemptError, CallError, CallErrorKind, Fault};
pub use operation::{Answer, Call, Classify, Elsewhere, Operation, Verb, Verdict};
pub use stack::{Stack, StackError};
pub use token::{Lifetime, TokenState};

/// What lies below the token: finds an address that can answer.
pub trait Transport: Send + Sync + 'static {
    /// Brings the answer to `call` before its deadline.
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Answer, CallError>>;

    /// What is wrong with which address right now, for whoever cannot wait for a call's
    /// own words; empty when nothing is known to be.
    fn faults(&self) -> String {
        String::new()
    }

    /// Whether some address is not left out by its breaker.
    fn is_usable(&self) -> bool {
        true
    }

    /// What each address has to do with a call that gets no answer in time, and was not sent
    /// itself: it waited for what others were sent with.
    fn overdue(&self) -> Vec<AttemptError> {
        Vec::new()
    }

    /// Vault's wall clock, where this learns it by itself; it learns from answers too.
    fn clock(&self) -> Arc<VaultClock> {
        Arc::default()
    }
}

/// Addresses that share one storage, so one token and one key material.
///
/// Owns the task that gets the token and keeps it alive; the task ends with it.
pub struct Cluster {
    settings: Arc<ClusterSettings>,
    transport: Arc<dyn Transport>,
    clock: Arc<VaultClock>,
    link: authenticate::Link,
    token: token::TokenHandle,
    keeper: OwnedTask,
}

// === impl Transport for Stack ===

impl Transport for Stack {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Answer, CallError>> {
        Box::pin(Self::call(self, call))
    }

    fn faults(&self) -> String {
        let faults = self.addresses().into_iter().filter_map(|address| {
            address.last_fault.map(|fault| format!("{}: {fault}", address.name))
        });
        faults.collect::<Vec<_>>().join("; ")
    }

    fn is_usable(&self) -> bool {
        self.addresses().iter().any(|address| address.breaker == breaker::BreakerPhase::Closed)
    }

    fn overdue(&self) -> Vec<AttemptError> {
        Self::overdue(self)
    }

    fn clock(&self) -> Arc<VaultClock> {
        Self::clock(self)
    }
}

// === impl Cluster ===

impl Cluster {
    /// A cluster behind `transport`; begins to get its token at once. To be called within
    /// a tokio runtime.
    pub fn new(
        settings: Arc<ClusterSettings>,
        transport: Arc<dyn Transport>,
        jitter: Arc<Jitter>,
    ) -> Arc<Self> {
        let clock = transport.clock();
        let link = authenticate::Link::new(&settings, &transport, &clock);
        let (token, keeper) = {
            let method = auth::method(&settings, &link);
            token::keep(&settings, method, link.clone(), jitter)
        };
        Arc::new(Self { settings, transport, clock, link, token, keeper })
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &ClusterName {
        &self.settings.name
    }

    /// What it was made from.
    pub fn settings(&self) -> &Arc<ClusterSettings> {
        &self.settings
    }

    /// Vault's wall clock, as its answers tell it.
    pub fn clock(&self) -> &VaultClock {
        &self.clock
    }

    /// Asks with the cluster's token, at whichever address can answer first. Waits for a
    /// token while there is none.
    ///
    /// # Errors
    /// When no address could answer before `deadline`; the error names each attempt. With
    /// [`CallErrorKind::NoToken`] when there was no token to ask with, and why.
    pub async fn call(
        &self,
        operation: Operation,
        deadline: Deadline,
    ) -> Result<Answer, CallError> {
        authenticate::call(&self.link, &self.token, operation, deadline).await
    }

    /// Waits until there is a token that Vault has accepted.
    ///
    /// # Errors
    /// With [`CallErrorKind::NoToken`] when `deadline` comes first.
    pub async fn ready(&self, deadline: Deadline) -> Result<(), CallError> {
        self.token.proven(deadline).await.map_err(|why| self.no_token(why))
    }

    /// What is known of the token, for the status page, `check` and metrics.
    pub fn token_state(&self) -> TokenState {
        self.token.state()
    }

    /// Whether a call has a chance now: there is a token, and an address that is not left
    /// out.
    pub fn is_usable(&self) -> bool {
        self.token.state().has_token && self.transport.is_usable()
    }

    /// The error of a call whose deadline has come while it waited for what others had been
    /// sent with. It tells what the error of a call of its own would.
    pub fn overdue(&self) -> CallError {
        if let Some(why) = self.token.missing() {
            return self.no_token(why);
        }
        let attempts = self.transport.overdue();
        let is_silence = |a: &AttemptError| matches!(a.fault, Fault::Deadline | Fault::Silent(_));
        // as the retry layer tells an outage, whatever the moment of the deadline
        let is_outage = !attempts.iter().all(is_silence);
        let kind = if is_outage { CallErrorKind::Exhausted } else { CallErrorKind::Deadline };
        CallError { cluster: self.name().clone(), kind, attempts }
    }

    fn no_token(&self, why: String) -> CallError {
        authenticate::no_token(self.name(), why)
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("name", self.name())
            .field("token", &self.token_state())
            .field("keeper_ended", &self.keeper.is_finished())
            .finish_non_exhaustive()
    }
}
