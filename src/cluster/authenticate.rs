//! The outermost layer of a cluster: every call gets the token, and a refused token gets
//! one more chance.
//!
//! A 403 has three causes. The token is dead: it is got again, once for all callers. The
//! node has not heard of it yet (a standby a moment after the login): the call is
//! repeated after a pause. The policy forbids it, in words that leave doubt: the token
//! task asks Vault whether the token lives, and no login follows.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header;
use secrecy::SecretString;
use tokio::time::Instant;

use super::operation::AddressName;
use super::token::{Settled, TokenHandle};
use super::{Answer, Call, CallError, CallErrorKind, Operation, Transport, date};
use crate::clock::{Deadline, TimeSource, Told, VaultClock};
use crate::config::settings::{ClusterName, ClusterSettings};

/// Pauses before a call with a token younger than [`super::token::FRESH`] is repeated: a
/// standby learns of a new token within 130 ms, a restarted one within 2.5 s.
const WHILE_FRESH: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(400),
    Duration::from_millis(900),
];

/// The transport of one cluster, as everything that asks through it sees it.
#[derive(Clone)]
pub(super) struct Link {
    name: ClusterName,
    namespace: Option<String>,
    addresses: Vec<String>,
    transport: Arc<dyn Transport>,
    clock: Arc<VaultClock>,
}

/// Sends `operation` with the token; see the module.
pub(super) async fn call(
    link: &Link,
    tokens: &TokenHandle,
    operation: Operation,
    deadline: Deadline,
) -> Result<Answer, CallError> {
    let operation = Arc::new(operation);
    let mut pauses = WHILE_FRESH.iter();
    let mut is_repeated = false;
    loop {
        let held = tokens.held(deadline).await.map_err(|why| no_token(link.name(), why))?;
        let token = Some(Arc::clone(&held.value));
        let refused = match link.send(Arc::clone(&operation), token, deadline).await {
            Err(error) if matches!(error.kind, CallErrorKind::TokenRefused) => error,
            outcome => return outcome,
        };
        if let (true, Some(pause)) = (held.is_fresh(), pauses.next()) {
            if deadline.remaining() <= *pause {
                return Err(refused);
            }
            tokio::time::sleep(*pause).await;
            continue;
        }
        if is_repeated || tokens.refused(&held, deadline).await == Settled::NotInTime {
            return Err(refused);
        }
        is_repeated = true;
    }
}

/// The error of a call that had no token to go with.
pub(super) fn no_token(cluster: &ClusterName, why: String) -> CallError {
    CallError { cluster: cluster.clone(), kind: CallErrorKind::NoToken(why), attempts: Vec::new() }
}

// === impl Link ===

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Link {
    pub(super) fn new(
        settings: &ClusterSettings,
        transport: &Arc<dyn Transport>,
        clock: &Arc<VaultClock>,
    ) -> Self {
        let names = settings.addresses.iter().map(AddressName::of);
        Self {
            name: settings.name.clone(),
            namespace: settings.auth_namespace.clone(),
            addresses: names.map(|name| name.to_string()).collect(),
            transport: Arc::clone(transport),
            clock: Arc::clone(clock),
        }
    }

    pub(super) const fn name(&self) -> &ClusterName {
        &self.name
    }

    /// The names of the configured addresses.
    pub(super) fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// Why there is no answer yet, as far as is known.
    pub(super) fn silence(&self) -> String {
        match self.transport.faults() {
            faults if faults.is_empty() => {
                format!("{} has not answered yet", self.addresses.join(", "))
            }
            faults => faults,
        }
    }

    /// The namespace where logins happen and tokens live.
    pub(super) const fn namespace(&self) -> Option<&String> {
        self.namespace.as_ref()
    }

    /// Sends one call and learns Vault's time from its answer.
    pub(super) async fn send(
        &self,
        operation: Arc<Operation>,
        token: Option<Arc<SecretString>>,
        deadline: Deadline,
    ) -> Result<Answer, CallError> {
        let began = Instant::now();
        let answer = self.transport.call(Call { operation, token, deadline }).await?;
        self.learn_time(&answer, began.elapsed());
        Ok(answer)
    }

    fn learn_time(&self, answer: &Answer, took: Duration) {
        let date = answer.headers.get(header::DATE).and_then(|value| value.to_str().ok());
        if let Some(time) = date.and_then(date::http) {
            let node = answer.address.as_str();
            self.clock.learn(Told { node, time, took, source: TimeSource::Date });
        }
    }
}

#[cfg(test)]
mod tests;
