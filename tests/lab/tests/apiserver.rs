//! The model of kube-apiserver, against a plugin in memory that keeps or breaks the rules.

#![allow(clippy::unwrap_used, reason = "the helpers of tests are tests too")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use lab::apiserver::{Store, v1, v2};
use lab::proto::v1beta1::key_management_service_server as v1_server;
use lab::proto::v2::key_management_service_server as v2_server;
use lab::proto::{v1beta1 as p1, v2 as p2};
use lab::{Kms, Result};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

const SECRET: &str = "/registry/secrets/default/a";

/// Turns bytes round: enough of a cipher to tell both sides apart.
#[derive(Debug, Clone, Default)]
struct Plugin(Arc<State>);

#[derive(Debug, Default)]
struct State {
    decrypts: AtomicUsize,
    encrypts: AtomicUsize,
    version: Mutex<String>,
    status_key_id: Mutex<String>,
    encrypt_key_id: Mutex<String>,
    empty_cipher: Mutex<bool>,
}

impl Plugin {
    async fn start(folder: &tempfile::TempDir) -> Result<(Self, Kms)> {
        let plugin = Self::default();
        plugin.set_version("v1beta1");
        plugin.set_key_ids("k1", "k1");
        let socket = folder.path().join("kms.sock");
        let listener = UnixListenerStream::new(UnixListener::bind(&socket)?);
        let server = tonic::transport::Server::builder()
            .add_service(v1_server::KeyManagementServiceServer::new(plugin.clone()))
            .add_service(v2_server::KeyManagementServiceServer::new(plugin.clone()));
        tokio::spawn(server.serve_with_incoming(listener));
        Ok((plugin, Kms::new(socket)))
    }

    fn set_version(&self, version: &str) {
        *self.0.version.lock().unwrap() = version.to_owned();
    }

    fn set_key_ids(&self, status: &str, encrypt: &str) {
        *self.0.status_key_id.lock().unwrap() = status.to_owned();
        *self.0.encrypt_key_id.lock().unwrap() = encrypt.to_owned();
    }

    fn decrypts(&self) -> usize {
        self.0.decrypts.load(Ordering::Relaxed)
    }

    fn encrypts(&self) -> usize {
        self.0.encrypts.load(Ordering::Relaxed)
    }

    fn turn(&self, bytes: &[u8]) -> Vec<u8> {
        bytes.iter().rev().copied().collect()
    }
}

#[tonic::async_trait]
impl v1_server::KeyManagementService for Plugin {
    async fn version(
        &self,
        _: Request<p1::VersionRequest>,
    ) -> Result<Response<p1::VersionResponse>, Status> {
        let version = self.0.version.lock().unwrap().clone();
        Ok(Response::new(p1::VersionResponse { version, ..Default::default() }))
    }

    async fn decrypt(
        &self,
        request: Request<p1::DecryptRequest>,
    ) -> Result<Response<p1::DecryptResponse>, Status> {
        self.0.decrypts.fetch_add(1, Ordering::Relaxed);
        let plain = self.turn(&request.into_inner().cipher);
        Ok(Response::new(p1::DecryptResponse { plain }))
    }

    async fn encrypt(
        &self,
        request: Request<p1::EncryptRequest>,
    ) -> Result<Response<p1::EncryptResponse>, Status> {
        let mut cipher = self.turn(&request.into_inner().plain);
        if *self.0.empty_cipher.lock().unwrap() {
            cipher.clear();
        }
        Ok(Response::new(p1::EncryptResponse { cipher }))
    }
}

#[tonic::async_trait]
impl v2_server::KeyManagementService for Plugin {
    async fn status(
        &self,
        _: Request<p2::StatusRequest>,
    ) -> Result<Response<p2::StatusResponse>, Status> {
        let key_id = self.0.status_key_id.lock().unwrap().clone();
        let (version, healthz) = ("v2".to_owned(), "ok".to_owned());
        Ok(Response::new(p2::StatusResponse { version, healthz, key_id }))
    }

    async fn decrypt(
        &self,
        request: Request<p2::DecryptRequest>,
    ) -> Result<Response<p2::DecryptResponse>, Status> {
        self.0.decrypts.fetch_add(1, Ordering::Relaxed);
        let plaintext = self.turn(&request.into_inner().ciphertext);
        Ok(Response::new(p2::DecryptResponse { plaintext }))
    }

    async fn encrypt(
        &self,
        request: Request<p2::EncryptRequest>,
    ) -> Result<Response<p2::EncryptResponse>, Status> {
        self.0.encrypts.fetch_add(1, Ordering::Relaxed);
        let key_id = self.0.encrypt_key_id.lock().unwrap().clone();
        let ciphertext = self.turn(&request.into_inner().plaintext);
        Ok(Response::new(p2::EncryptResponse { ciphertext, key_id, ..Default::default() }))
    }
}

#[tokio::test]
async fn v1_objects_are_read_by_a_restarted_apiserver() -> Result {
    let folder = tempfile::tempdir()?;
    let (plugin, kms) = Plugin::start(&folder).await?;
    let mut server = v1::Server::new(kms.v1(), "vault");
    let mut store = Store::new();
    server.health().await?;
    server.write(&mut store, SECRET, b"password").await?;
    assert!(store[SECRET].starts_with(b"k8s:enc:kms:v1:vault:\x00\x20"));

    let before = plugin.decrypts();
    assert_eq!(server.read(&store, SECRET).await?.value, b"password");
    assert_eq!(plugin.decrypts(), before, "its own data keys are cached");
    server.restart();
    assert_eq!(server.read(&store, SECRET).await?.value, b"password");
    assert_eq!(plugin.decrypts(), before + 1);

    // etcd's key is authenticated: a value moved to another key does not open.
    let moved = store[SECRET].clone();
    store.insert("/registry/secrets/default/b".to_owned(), moved);
    assert!(server.read(&store, "/registry/secrets/default/b").await.is_err());
    Ok(())
}

#[tokio::test]
async fn v1_rules_that_a_plugin_breaks_are_named() -> Result {
    let folder = tempfile::tempdir()?;
    let (plugin, kms) = Plugin::start(&folder).await?;
    *plugin.0.empty_cipher.lock().unwrap() = true;
    let mut server = v1::Server::new(kms.v1(), "vault");
    let error = server.write(&mut Store::new(), SECRET, b"x").await.unwrap_err().to_string();
    assert!(error.contains("data loss"), "{error}");

    plugin.set_version("v2");
    server.health().await.unwrap_err();
    server.restart();
    let error = server.health().await.unwrap_err().to_string();
    assert!(error.contains("\"v1beta1\""), "{error}");
    Ok(())
}

#[tokio::test]
async fn v2_encrypts_once_for_each_key_id_and_knows_stale_objects() -> Result {
    let folder = tempfile::tempdir()?;
    let (plugin, kms) = Plugin::start(&folder).await?;
    let mut server = v2::Server::new(kms.v2(), "vault");
    let mut store = Store::new();
    for _ in 0..5 {
        server.write(&mut store, SECRET, b"password").await?;
        server.probe().await?;
    }
    assert_eq!(plugin.encrypts(), 1);
    assert!(store[SECRET].starts_with(b"k8s:enc:kms:v2:vault:"));
    assert!(!server.read(&store, SECRET).await?.stale);
    assert_eq!(plugin.decrypts(), 0);

    plugin.set_key_ids("k2", "k2");
    assert_eq!(server.probe().await?, "k2");
    assert_eq!(plugin.encrypts(), 2);
    server.restart();
    server.probe().await?;
    let object = server.read(&store, SECRET).await?;
    assert_eq!((object.value.as_slice(), object.stale), (b"password".as_slice(), true));
    assert_eq!(plugin.decrypts(), 1);
    Ok(())
}

#[tokio::test]
async fn v2_throws_an_answer_away_whose_key_id_is_not_that_of_the_status() -> Result {
    let folder = tempfile::tempdir()?;
    let (plugin, kms) = Plugin::start(&folder).await?;
    plugin.set_key_ids("k1", "k2");
    let mut server = v2::Server::new(kms.v2(), "vault");
    let error = server.probe().await.unwrap_err().to_string();
    assert!(error.contains("\"k2\"") && error.contains("\"k1\""), "{error}");
    assert_eq!(server.key_id(), None);
    Ok(())
}
