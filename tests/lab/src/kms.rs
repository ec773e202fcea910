//! A client on the daemon's socket, with kube-apiserver's deadline.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::proto::{v1beta1, v2};
use crate::{Result, fail};

/// What kube-apiserver grants a call.
pub const APISERVER_TIMEOUT: Duration = Duration::from_secs(3);

/// One connection to a KMS plugin, made at the first call and made again when it broke.
/// Clones share it; [`Kms::fresh`] makes another.
#[derive(Debug, Clone)]
pub struct Kms {
    socket: PathBuf,
    authority: String,
    timeout: Duration,
    channel: Channel,
}

/// KMS v1 (`v1beta1`).
#[derive(Debug, Clone)]
pub struct V1(Kms);

/// KMS v2.
#[derive(Debug, Clone)]
pub struct V2(Kms);

// === impl Kms ===

impl Kms {
    /// A client of the socket at this path; `@name` is an abstract one. Needs a tokio
    /// runtime; connects at the first call.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        let socket = socket.into();
        let authority = "localhost".to_owned();
        let channel = channel(&socket, &authority);
        Self { socket, authority, timeout: APISERVER_TIMEOUT, channel }
    }

    /// The same client with another deadline for each call, sent as `grpc-timeout`.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The same client with another `:authority` (one that `http::Uri` takes) and its own
    /// connection.
    #[must_use]
    pub fn authority(mut self, authority: &str) -> Self {
        authority.clone_into(&mut self.authority);
        self.fresh()
    }

    /// The same client with a connection of its own.
    #[must_use]
    pub fn fresh(&self) -> Self {
        Self { channel: channel(&self.socket, &self.authority), ..self.clone() }
    }

    /// Speaks KMS v1.
    pub fn v1(&self) -> V1 {
        V1(self.clone())
    }

    /// Speaks KMS v2.
    pub fn v2(&self) -> V2 {
        V2(self.clone())
    }

    /// The connection, for a call that this client does not know.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }
}

fn channel(socket: &Path, authority: &str) -> Channel {
    let socket = socket.to_owned();
    let uri = format!("http://{authority}");
    let endpoint =
        Endpoint::from_shared(uri).unwrap_or_else(|_| Endpoint::from_static("http://localhost"));
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: http::Uri| {
        let socket = socket.clone();
        async move { connect(&socket).await.map(TokioIo::new) }
    }))
}

/// Connects to a unix socket; a path that starts with `@` is an abstract name.
pub async fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    let Some(name) = socket.to_str().and_then(|path| path.strip_prefix('@')) else {
        return UnixStream::connect(socket).await;
    };
    let address = SocketAddr::from_abstract_name(name)?;
    let stream = std::os::unix::net::UnixStream::connect_addr(&address)?;
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

// === impl V1 ===

impl V1 {
    /// Asks for the plugin's version.
    pub async fn version(&self) -> Result<v1beta1::VersionResponse, Status> {
        let request = self.0.request(v1beta1::VersionRequest { version: "v1beta1".to_owned() });
        self.client().version(request).await.map(tonic::Response::into_inner)
    }

    /// Encrypts.
    pub async fn encrypt(&self, plain: &[u8]) -> Result<Vec<u8>, Status> {
        let message =
            v1beta1::EncryptRequest { version: "v1beta1".to_owned(), plain: plain.to_vec() };
        let answer = self.client().encrypt(self.0.request(message)).await?;
        Ok(answer.into_inner().cipher)
    }

    /// Decrypts.
    pub async fn decrypt(&self, cipher: &[u8]) -> Result<Vec<u8>, Status> {
        let message =
            v1beta1::DecryptRequest { version: "v1beta1".to_owned(), cipher: cipher.to_vec() };
        let answer = self.client().decrypt(self.0.request(message)).await?;
        Ok(answer.into_inner().plain)
    }

    fn client(
        &self,
    ) -> v1beta1::key_management_service_client::KeyManagementServiceClient<Channel> {
        v1beta1::key_management_service_client::KeyManagementServiceClient::new(self.0.channel())
    }
}

// === impl V2 ===

impl V2 {
    /// Asks for the plugin's status.
    pub async fn status(&self) -> Result<v2::StatusResponse, Status> {
        let request = self.0.request(v2::StatusRequest {});
        self.client().status(request).await.map(tonic::Response::into_inner)
    }

    /// Encrypts.
    pub async fn encrypt(
        &self,
        plaintext: &[u8],
        uid: &str,
    ) -> Result<v2::EncryptResponse, Status> {
        let message = v2::EncryptRequest { plaintext: plaintext.to_vec(), uid: uid.to_owned() };
        let answer = self.client().encrypt(self.0.request(message)).await?;
        Ok(answer.into_inner())
    }

    /// Decrypts what [`V2::encrypt`] answered.
    pub async fn decrypt(&self, made: &v2::EncryptResponse, uid: &str) -> Result<Vec<u8>, Status> {
        self.decrypt_request(v2::DecryptRequest {
            ciphertext: made.ciphertext.clone(),
            uid: uid.to_owned(),
            key_id: made.key_id.clone(),
            annotations: made.annotations.clone(),
        })
        .await
    }

    /// Decrypts anything.
    pub async fn decrypt_request(&self, message: v2::DecryptRequest) -> Result<Vec<u8>, Status> {
        let answer = self.client().decrypt(self.0.request(message)).await?;
        Ok(answer.into_inner().plaintext)
    }

    /// Waits until `Status` says `ok`, and answers it.
    pub async fn wait_ok(&self, within: Duration) -> Result<v2::StatusResponse> {
        crate::eventually("KMS v2 Status says ok", within, || async {
            let status = self.status().await?;
            if status.healthz != "ok" {
                fail!("healthz is {:?}", status.healthz);
            }
            Ok(Some(status))
        })
        .await
    }

    /// Waits until `Status` says `ok` with another key_id than this one, and answers it.
    pub async fn wait_other_key_id(
        &self,
        than: &str,
        within: Duration,
    ) -> Result<v2::StatusResponse> {
        crate::eventually("KMS v2 Status names another key_id", within, || async {
            let status = self.status().await?;
            Ok((status.healthz == "ok" && status.key_id != than).then_some(status))
        })
        .await
    }

    fn client(&self) -> v2::key_management_service_client::KeyManagementServiceClient<Channel> {
        v2::key_management_service_client::KeyManagementServiceClient::new(self.0.channel())
    }
}
