//! What kube-apiserver calls: KMS v1beta1 and KMS v2, on one socket.
//!
//! [`stack`] bounds every call in number and time, [`services`] picks the service, [`v1`] and
//! [`v2`] read the messages, [`failure`] is the only place where an error becomes a gRPC code.
//! [`connection`] is what is remembered of the connection that a call came on, [`codec`] how
//! large the buffers are that messages are read and written in.

use std::sync::Arc;

use crate::keyring::Keyring;

pub mod codec;
pub mod connection;
pub mod failure;
pub mod services;
pub mod stack;
pub mod v1;
pub mod v2;

/// Where a call finds the keyring of the generation that it begins with.
pub trait CurrentKeyring: Send + Sync + 'static {
    /// The keyring in force, or why there is none yet.
    fn current(&self) -> Result<Arc<Keyring>, NotServing>;
}

/// There is no generation yet, and why.
#[derive(Clone, Debug, thiserror::Error)]
#[error("vault-kms-proxy is starting: {0}")]
pub struct NotServing(pub String);

/// The largest message that is read. An Encrypt carries at most a seed and a uid, a
/// Decrypt at most 65,535 bytes of ciphertext (v1) or 1 KiB and 32 KiB of annotations (v2).
pub const MAX_REQUEST_BYTES: usize = 256 * 1024;
