//! The real [`TransitKey`]: verbs over a [`Cluster`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use http::Method;
use zeroize::Zeroizing;

use super::wire::{self, Wrong};
use super::{
    KeyMetadata, KeyVersion, TransitCause, TransitError, TransitKey, VaultCiphertext, Wrapped,
    verdict,
};
use crate::clock::{Deadline, UnixSeconds};
use crate::cluster::{Answer, CallErrorKind, Cluster, Operation, Verb, path};
use crate::config::settings::{ClusterName, KekSettings};
use crate::secret::Plaintext;

/// One Transit key, asked over HTTP.
///
/// This is the seam for batching: `encrypt` and `decrypt` each become an entry of a batch
/// per path and verb, with everything below unchanged.
pub struct HttpTransitKey {
    cluster: Arc<Cluster>,
    mount: String,
    key: String,
    namespace: Option<String>,
    /// The path as policies write it: without `/v1/` and not encoded.
    encrypt_policy_path: String,
    encrypt_path: String,
    decrypt_path: String,
    read_path: String,
    /// Nonce length of the key's type; 0 until its metadata was read.
    nonce: AtomicUsize,
}

// === impl HttpTransitKey ===

impl HttpTransitKey {
    /// The key of `kek` in `cluster`; asks nothing yet.
    pub fn new(cluster: Arc<Cluster>, kek: &KekSettings) -> Self {
        let (mount, key) = (kek.mount.clone(), kek.transit_key.clone());
        let namespace = kek.namespace.clone().or_else(|| cluster.settings().namespace.clone());
        let path_of =
            |verb| format!("/v1/{}/{verb}/{}", path::encode(&mount), path::encode_segment(&key));
        Self {
            encrypt_policy_path: format!("{mount}/encrypt/{key}"),
            encrypt_path: path_of("encrypt"),
            decrypt_path: path_of("decrypt"),
            read_path: path_of("keys"),
            nonce: AtomicUsize::new(0),
            cluster,
            mount,
            key,
            namespace,
        }
    }

    async fn read_key(
        &self,
        needs_active: bool,
        deadline: Deadline,
    ) -> Result<KeyMetadata, TransitError> {
        let operation =
            Operation { needs_active, ..self.operation(Verb::ReadKey, &self.read_path, None) };
        let answer = self.send(operation, deadline).await?;
        let metadata =
            wire::key_answer(&answer.body).map_err(|wrong| self.unacceptable(&answer, wrong))?;
        let nonce = wire::nonce_length(&metadata.key_type).unwrap_or(0);
        self.nonce.store(nonce, Ordering::Relaxed);
        Ok(metadata)
    }

    async fn ask(
        &self,
        verb: Verb,
        path: &str,
        body: Option<Zeroizing<Vec<u8>>>,
        deadline: Deadline,
    ) -> Result<Answer, TransitError> {
        self.send(self.operation(verb, path, body), deadline).await
    }

    fn operation(&self, verb: Verb, path: &str, body: Option<Zeroizing<Vec<u8>>>) -> Operation {
        Operation {
            needs_active: false,
            verb,
            method: if body.is_some() { Method::POST } else { Method::GET },
            path: path.to_owned(),
            namespace: self.namespace.clone(),
            body,
        }
    }

    async fn send(&self, operation: Operation, deadline: Deadline) -> Result<Answer, TransitError> {
        let verb = operation.verb;
        match self.cluster.call(operation, deadline).await {
            Ok(answer) if answer.status.is_success() => Ok(answer),
            Ok(answer) => Err(self.refused(verb, &answer)),
            Err(mut error) => match error.kind {
                CallErrorKind::Agreed(answer) if answer.status.is_success() => Ok(*answer),
                CallErrorKind::Agreed(answer) => Err(self.refused(verb, &answer)),
                kind => {
                    error.kind = kind;
                    Err(self.failed(TransitCause::Unavailable(error)))
                }
            },
        }
    }

    fn refused(&self, verb: Verb, answer: &Answer) -> TransitError {
        let refusal = verdict::refusal(verb, answer);
        self.failed(TransitCause::Refused { refusal, address: answer.address.to_string() })
    }

    fn unacceptable(&self, answer: &Answer, Wrong(what): Wrong) -> TransitError {
        self.failed(TransitCause::Unacceptable { what, address: answer.address.to_string() })
    }

    fn failed(&self, cause: TransitCause) -> TransitError {
        TransitError { mount: self.mount.clone(), key: self.key.clone(), cause }
    }
}

impl TransitKey for HttpTransitKey {
    fn encrypt<'a>(
        &'a self,
        plaintext: &'a Plaintext,
        version: Option<KeyVersion>,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Wrapped, TransitError>> {
        Box::pin(async move {
            let version = version.map(|version| version.number);
            let body = wire::encrypt_request(plaintext, version);
            let answer = self.ask(Verb::Encrypt, &self.encrypt_path, Some(body), deadline).await?;
            let nonce = Some(self.nonce.load(Ordering::Relaxed)).filter(|n| *n > 0);
            let ciphertext = wire::encrypt_answer(&answer.body, plaintext, version, nonce)
                .map_err(|wrong| self.unacceptable(&answer, wrong))?;
            let cluster = self.cluster.name().clone();
            Ok(Wrapped { ciphertext, address: answer.address.to_string(), cluster })
        })
    }

    fn decrypt<'a>(
        &'a self,
        ciphertext: &'a VaultCiphertext,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Plaintext, TransitError>> {
        Box::pin(async move {
            let body = wire::decrypt_request(ciphertext);
            let answer = self.ask(Verb::Decrypt, &self.decrypt_path, Some(body), deadline).await?;
            wire::decrypt_answer(&answer.body).map_err(|wrong| self.unacceptable(&answer, wrong))
        })
    }

    fn read(&self, deadline: Deadline) -> BoxFuture<'_, Result<KeyMetadata, TransitError>> {
        Box::pin(self.read_key(false, deadline))
    }

    fn read_at_active(
        &self,
        deadline: Deadline,
    ) -> BoxFuture<'_, Result<KeyMetadata, TransitError>> {
        Box::pin(self.read_key(true, deadline))
    }

    fn encrypt_capabilities(
        &self,
        deadline: Deadline,
    ) -> BoxFuture<'_, Result<Vec<String>, TransitError>> {
        Box::pin(async move {
            let body = wire::capabilities_request(&self.encrypt_policy_path);
            let path = "/v1/sys/capabilities-self";
            let answer = self.ask(Verb::Capabilities, path, Some(body), deadline).await?;
            wire::capabilities_answer(&answer.body, &self.encrypt_policy_path)
                .map_err(|wrong| self.unacceptable(&answer, wrong))
        })
    }

    fn vault_now(&self) -> Option<UnixSeconds> {
        self.cluster.clock().now()
    }

    fn cluster(&self) -> &ClusterName {
        self.cluster.name()
    }

    fn is_usable(&self) -> bool {
        self.cluster.is_usable()
    }

    fn trouble(&self) -> Option<String> {
        let token = self.cluster.token_state();
        let error = token.last_error.filter(|_| !token.has_token)?;
        Some(format!("cluster {}: no token: {error}", self.cluster.name()))
    }
}

impl fmt::Debug for HttpTransitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpTransitKey")
            .field("cluster", self.cluster.name())
            .field("mount", &self.mount)
            .field("key", &self.key)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
