//! KMS v1beta1: one Encrypt for each object written, one Decrypt for each object read.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::CurrentKeyring;
use super::failure::CallFailure;
use super::stack::deadline_of;
use crate::keyring::{DecryptHints, EncryptFor};
use crate::proto::v1beta1::key_management_service_server::KeyManagementService;
use crate::proto::v1beta1::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, VersionRequest,
    VersionResponse,
};
use crate::secret::Plaintext;

/// The only version that kube-apiserver accepts from a v1 plugin.
const API_VERSION: &str = "v1beta1";

/// kube-apiserver stores the ciphertext's length in two bytes.
const MAX_CIPHERTEXT_BYTES: usize = 65_535;

/// The v1beta1 service.
pub struct Service {
    keyring: Arc<dyn CurrentKeyring>,
}

// === impl Service ===

impl Service {
    /// Answers with whatever keyring is in force when a call begins.
    pub fn new(keyring: Arc<dyn CurrentKeyring>) -> Self {
        Self { keyring }
    }

    async fn encrypt(&self, mut request: Request<EncryptRequest>) -> Result<Vec<u8>, CallFailure> {
        let deadline = deadline_of(request.extensions());
        let plaintext = Plaintext::new(std::mem::take(&mut request.get_mut().plain));
        let keyring = self.keyring.current()?;
        let encrypted = keyring.encrypt(&plaintext, EncryptFor::V1, deadline).await?;
        match encrypted.ciphertext.len() {
            0 => Err(CallFailure::Impossible("an empty ciphertext")),
            1..=MAX_CIPHERTEXT_BYTES => Ok(encrypted.ciphertext),
            _ => Err(CallFailure::Impossible("a ciphertext of more than 65,535 bytes")),
        }
    }

    async fn decrypt(&self, request: Request<DecryptRequest>) -> Result<Plaintext, CallFailure> {
        let deadline = deadline_of(request.extensions());
        let keyring = self.keyring.current()?;
        let hints = DecryptHints::default();
        Ok(keyring.decrypt(&request.get_ref().cipher, &hints, deadline).await?)
    }
}

#[tonic::async_trait]
impl KeyManagementService for Service {
    /// Needs no Vault: kube-apiserver asks it first on every connection.
    async fn version(
        &self,
        _: Request<VersionRequest>,
    ) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse {
            version: API_VERSION.into(),
            runtime_name: env!("CARGO_PKG_NAME").into(),
            runtime_version: env!("CARGO_PKG_VERSION").into(),
        }))
    }

    async fn decrypt(
        &self,
        request: Request<DecryptRequest>,
    ) -> Result<Response<DecryptResponse>, Status> {
        let plaintext = Service::decrypt(self, request).await?;
        Ok(Response::new(DecryptResponse { plain: plaintext.expose().to_vec() }))
    }

    async fn encrypt(
        &self,
        request: Request<EncryptRequest>,
    ) -> Result<Response<EncryptResponse>, Status> {
        let cipher = Service::encrypt(self, request).await?;
        Ok(Response::new(EncryptResponse { cipher }))
    }
}
