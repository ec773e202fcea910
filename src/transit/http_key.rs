//! The real [`TransitKey`]: verbs over a [`Cluster`]. Encrypts and decrypts that come together
//! are sent together.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use http::Method;
use zeroize::Zeroizing;

use super::batch::{Batcher, Turn};
use super::wire::{self, Wrong};
use super::{
    KeyMetadata, KeyVersion, TransitCause, TransitError, TransitKey, VaultCiphertext, Wrapped,
    verdict,
};
use crate::clock::{Deadline, UnixSeconds};
use crate::cluster::{Answer, CallErrorKind, Cluster, Operation, Verb, path};
use crate::config::settings::{ClusterName, KekSettings};
use crate::secret::Plaintext;
use batched::{Decrypts, Encrypts, Sealing};

mod batched;

/// One Transit key, asked over HTTP. Owns the tasks that send its batches.
pub struct HttpTransitKey {
    key: Arc<Key>,
    encrypts: Batcher<Encrypts>,
    decrypts: Batcher<Decrypts>,
}

/// The key's single requests.
struct Key {
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
        let key = Arc::new(Key {
            encrypt_policy_path: format!("{mount}/encrypt/{key}"),
            encrypt_path: path_of("encrypt"),
            decrypt_path: path_of("decrypt"),
            read_path: path_of("keys"),
            nonce: AtomicUsize::new(0),
            cluster,
            mount,
            key,
            namespace,
        });
        let encrypts = Batcher::new(Encrypts::new(Arc::clone(&key)));
        let decrypts = Batcher::new(Decrypts { key: Arc::clone(&key) });
        Self { key, encrypts, decrypts }
    }
}

// === impl Key ===

impl Key {
    async fn encrypt(
        &self,
        plaintext: &Plaintext,
        version: Option<u32>,
        deadline: Deadline,
    ) -> Result<Wrapped, TransitError> {
        let body = wire::encrypt_request(plaintext, version);
        let answer = self.ask(Verb::Encrypt, &self.encrypt_path, Some(body), deadline).await?;
        let ciphertext = wire::encrypt_answer(&answer.body, plaintext, version, self.nonce())
            .map_err(|wrong| self.unacceptable(&answer, wrong))?;
        Ok(self.wrapped(ciphertext, &answer))
    }

    async fn decrypt(
        &self,
        ciphertext: &VaultCiphertext,
        deadline: Deadline,
    ) -> Result<Plaintext, TransitError> {
        let body = wire::decrypt_request(ciphertext);
        let answer = self.ask(Verb::Decrypt, &self.decrypt_path, Some(body), deadline).await?;
        wire::decrypt_answer(&answer.body).map_err(|wrong| self.unacceptable(&answer, wrong))
    }

    /// Nonce length of the key's type, once that is known.
    fn nonce(&self) -> Option<usize> {
        Some(self.nonce.load(Ordering::Relaxed)).filter(|n| *n > 0)
    }

    fn wrapped(&self, ciphertext: VaultCiphertext, by: &Answer) -> Wrapped {
        let cluster = self.cluster.name().clone();
        Wrapped { ciphertext, address: by.address.to_string(), cluster }
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
                    Err(self.failed(TransitCause::Unavailable(Arc::new(error))))
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
            match self.encrypts.turn().await {
                Turn::Alone(_slot) => self.key.encrypt(plaintext, version, deadline).await,
                Turn::Together(place) => {
                    let sealing = || Sealing { plaintext: plaintext.clone(), version };
                    self.encrypts.wait(sealing, deadline, place).await
                }
            }
        })
    }

    fn decrypt<'a>(
        &'a self,
        ciphertext: &'a VaultCiphertext,
        deadline: Deadline,
    ) -> BoxFuture<'a, Result<Plaintext, TransitError>> {
        Box::pin(async move {
            match self.decrypts.turn().await {
                Turn::Alone(_slot) => self.key.decrypt(ciphertext, deadline).await,
                Turn::Together(place) => {
                    self.decrypts.wait(|| ciphertext.clone(), deadline, place).await
                }
            }
        })
    }

    fn read(&self, deadline: Deadline) -> BoxFuture<'_, Result<KeyMetadata, TransitError>> {
        Box::pin(self.key.read_key(false, deadline))
    }

    fn read_at_active(
        &self,
        deadline: Deadline,
    ) -> BoxFuture<'_, Result<KeyMetadata, TransitError>> {
        Box::pin(self.key.read_key(true, deadline))
    }

    fn encrypt_capabilities(
        &self,
        deadline: Deadline,
    ) -> BoxFuture<'_, Result<Vec<String>, TransitError>> {
        Box::pin(async move {
            let key = &self.key;
            let body = wire::capabilities_request(&key.encrypt_policy_path);
            let path = "/v1/sys/capabilities-self";
            let answer = key.ask(Verb::Capabilities, path, Some(body), deadline).await?;
            wire::capabilities_answer(&answer.body, &key.encrypt_policy_path)
                .map_err(|wrong| key.unacceptable(&answer, wrong))
        })
    }

    fn vault_now(&self) -> Option<UnixSeconds> {
        self.key.cluster.clock().now()
    }

    fn cluster(&self) -> &ClusterName {
        self.key.cluster.name()
    }

    fn is_usable(&self) -> bool {
        self.key.cluster.is_usable()
    }

    fn trouble(&self) -> Option<String> {
        let token = self.key.cluster.token_state();
        let error = token.last_error.filter(|_| !token.has_token)?;
        Some(format!("cluster {}: no token: {error}", self.key.cluster.name()))
    }
}

impl fmt::Debug for HttpTransitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpTransitKey")
            .field("cluster", self.key.cluster.name())
            .field("mount", &self.key.mount)
            .field("key", &self.key.key)
            .field("namespace", &self.key.namespace)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
