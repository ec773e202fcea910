//! What another plugin for Vault leaves behind: real ciphertexts, in its form.

use std::path::Path;

use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use crate::proto::v1beta1::key_management_service_server as server_v1;
use crate::proto::v2::key_management_service_server as server_v2;
use crate::proto::{v1beta1 as v1, v2};
use crate::{Admin, Context, Result};

/// Its key_id: a time, which names neither a key nor a version.
const KEY_ID: &str = "1710744203";

/// A fake of vault-kubernetes-kms: it serves KMS v1 and v2 on a socket, wraps with a real
/// Transit key, and answers what Transit answers, `vault:vN:…`.
#[derive(Debug)]
pub struct OtherPlugin {
    stop: oneshot::Sender<()>,
    served: JoinHandle<()>,
}

#[derive(Debug, Clone)]
struct Service {
    admin: Admin,
    key: String,
}

// === impl OtherPlugin ===

impl OtherPlugin {
    /// Serves `key` at `socket`.
    pub fn start(admin: &Admin, key: &str, socket: &Path) -> Result<Self> {
        let listener = UnixListener::bind(socket).context(socket.display())?;
        let service = Service { admin: admin.clone(), key: key.to_owned() };
        let server = tonic::transport::Server::builder()
            .add_service(server_v1::KeyManagementServiceServer::new(service.clone()))
            .add_service(server_v2::KeyManagementServiceServer::new(service));
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            let incoming = UnixListenerStream::new(listener);
            let _ = server.serve_with_incoming_shutdown(incoming, stopped).await;
        });
        Ok(Self { stop, served })
    }

    /// Stops it. Its socket's file stays, as after a kill.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.served.await;
    }
}

// === impl Service ===

impl Service {
    async fn encrypt(&self, plain: &[u8]) -> std::result::Result<Vec<u8>, Status> {
        let made = self.admin.encrypt(&self.key, plain).await;
        made.map(String::into_bytes).map_err(|error| Status::unavailable(error.to_string()))
    }

    async fn decrypt(&self, cipher: &[u8]) -> std::result::Result<Vec<u8>, Status> {
        let cipher = String::from_utf8_lossy(cipher);
        let plain = self.admin.decrypt(&self.key, &cipher).await;
        plain.map_err(|error| Status::unavailable(error.to_string()))
    }
}

type Answer<T> = std::result::Result<Response<T>, Status>;

#[tonic::async_trait]
impl server_v1::KeyManagementService for Service {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        let name = "vault-kubernetes-kms".to_owned();
        let (version, runtime_version) = ("v1beta1".to_owned(), "1.0.0".to_owned());
        Ok(Response::new(v1::VersionResponse { version, runtime_name: name, runtime_version }))
    }

    async fn encrypt(&self, request: Request<v1::EncryptRequest>) -> Answer<v1::EncryptResponse> {
        let cipher = self.encrypt(&request.get_ref().plain).await?;
        Ok(Response::new(v1::EncryptResponse { cipher }))
    }

    async fn decrypt(&self, request: Request<v1::DecryptRequest>) -> Answer<v1::DecryptResponse> {
        let plain = self.decrypt(&request.get_ref().cipher).await?;
        Ok(Response::new(v1::DecryptResponse { plain }))
    }
}

#[tonic::async_trait]
impl server_v2::KeyManagementService for Service {
    async fn status(&self, _: Request<v2::StatusRequest>) -> Answer<v2::StatusResponse> {
        let (version, healthz) = ("v2".to_owned(), "ok".to_owned());
        Ok(Response::new(v2::StatusResponse { version, healthz, key_id: KEY_ID.to_owned() }))
    }

    async fn encrypt(&self, request: Request<v2::EncryptRequest>) -> Answer<v2::EncryptResponse> {
        let ciphertext = self.encrypt(&request.get_ref().plaintext).await?;
        let key_id = KEY_ID.to_owned();
        Ok(Response::new(v2::EncryptResponse { ciphertext, key_id, annotations: [].into() }))
    }

    async fn decrypt(&self, request: Request<v2::DecryptRequest>) -> Answer<v2::DecryptResponse> {
        let plaintext = self.decrypt(&request.get_ref().ciphertext).await?;
        Ok(Response::new(v2::DecryptResponse { plaintext }))
    }
}
