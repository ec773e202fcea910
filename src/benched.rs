//! What `benches/hop` reaches of the inside, and nothing else.
//!
//! Hidden, and no promise to anybody: the library is there for this project's own binary, tests
//! and benches. No feature guards it, so that `cargo bench` and `cargo clippy` see all benches
//! as they are; the binary uses none of it, so none of it is linked.

use std::sync::Arc;

use tower::Service;

use crate::clock::Jitter;
use crate::cluster::address::Address;
use crate::cluster::operation::Attempt;
use crate::cluster::{Answer, AttemptError, Stack};
use crate::config::settings::{ClusterSettings, KekName};
use crate::keyring::DecryptHints;
use crate::keyring::envelope::Reader;

/// Whether a ciphertext of KMS v1 has a form that can be read with these KEKs.
pub fn reads(ciphertext: &[u8], keks: &[KekName]) -> bool {
    Reader { keks, bao: None }.read(ciphertext, &DecryptHints::default()).is_ok()
}

/// A cluster's whole stack over transports that `node` makes.
pub fn stack<T>(
    settings: &ClusterSettings,
    jitter: &Arc<Jitter>,
    node: impl Fn(&Address) -> T,
) -> Stack
where
    T: Service<Attempt, Response = Answer, Error = AttemptError> + Clone + Send + Sync + 'static,
    T::Future: Send + 'static,
{
    Stack::modelled(settings, jitter, node)
}
