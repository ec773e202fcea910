//! KMS v2: Encrypt at start and when the key changes, Status often, Decrypt for each seed.

use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};

use super::CurrentKeyring;
use super::connection::ConnectionInfo;
use super::failure::CallFailure;
use super::stack::deadline_of;
use crate::config::settings::StatusVersion;
use crate::keyring::{DecryptHints, EncryptFor, Encrypted};
use crate::proto::v2::key_management_service_server::KeyManagementService;
use crate::proto::v2::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, StatusRequest, StatusResponse,
};
use crate::secret::Plaintext;

/// kube-apiserver refuses longer ciphertexts and key_ids.
const MAX_FIELD_BYTES: usize = 1024;

/// How long a key_id that Status reported binds the Encrypt that follows. kube-apiserver
/// asks for both in one probe; half a minute covers a slow one.
const REPORTED_KEY_ID_AGE: Duration = Duration::from_secs(30);

/// The v2 service.
pub struct Service {
    keyring: Arc<dyn CurrentKeyring>,
    version: StatusVersion,
}

// === impl Service ===

impl Service {
    /// Answers with whatever keyring is in force when a call begins; Status says `version`
    /// for as long as the process lives.
    pub fn new(keyring: Arc<dyn CurrentKeyring>, version: StatusVersion) -> Self {
        Self { keyring, version }
    }

    fn status(&self, request: &Request<StatusRequest>) -> Result<StatusResponse, CallFailure> {
        let report = self.keyring.current()?.status()?;
        let key_id = report.key_id.as_str().to_owned();
        if let Some(connection) = connection_of(request) {
            connection.remember(report.key_id);
        }
        Ok(StatusResponse {
            version: self.version.as_str().into(),
            healthz: report.healthz,
            key_id,
        })
    }

    async fn encrypt(
        &self,
        mut request: Request<EncryptRequest>,
    ) -> Result<EncryptResponse, CallFailure> {
        let deadline = deadline_of(request.extensions());
        let plaintext = Plaintext::new(std::mem::take(&mut request.get_mut().plaintext));
        let reported = connection_of(&request).and_then(|c| c.recent(REPORTED_KEY_ID_AGE));
        let keyring = self.keyring.current()?;
        let Encrypted { ciphertext, key_id, annotations } =
            keyring.encrypt(&plaintext, EncryptFor::V2 { reported }, deadline).await?;
        if !(1..=MAX_FIELD_BYTES).contains(&ciphertext.len()) {
            return Err(CallFailure::Impossible("a ciphertext of no or more than 1,024 bytes"));
        }
        Ok(EncryptResponse { ciphertext, key_id: key_id.as_str().to_owned(), annotations })
    }

    async fn decrypt(
        &self,
        mut request: Request<DecryptRequest>,
    ) -> Result<Plaintext, CallFailure> {
        let deadline = deadline_of(request.extensions());
        let DecryptRequest { ciphertext, key_id, annotations, uid: _ } =
            std::mem::take(request.get_mut());
        let keyring = self.keyring.current()?;
        Ok(keyring.decrypt(&ciphertext, &DecryptHints { key_id, annotations }, deadline).await?)
    }
}

#[tonic::async_trait]
impl KeyManagementService for Service {
    /// Answers from memory; never waits for Vault.
    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(Service::status(self, &request)?))
    }

    async fn decrypt(
        &self,
        request: Request<DecryptRequest>,
    ) -> Result<Response<DecryptResponse>, Status> {
        let plaintext = Service::decrypt(self, request).await?;
        Ok(Response::new(DecryptResponse { plaintext: plaintext.expose().to_vec() }))
    }

    async fn encrypt(
        &self,
        request: Request<EncryptRequest>,
    ) -> Result<Response<EncryptResponse>, Status> {
        Ok(Response::new(Service::encrypt(self, request).await?))
    }
}

/// The connection that a request came on; `None` only where a test calls without one.
fn connection_of<T>(request: &Request<T>) -> Option<&ConnectionInfo> {
    request.extensions().get::<Arc<ConnectionInfo>>().map(AsRef::as_ref)
}
