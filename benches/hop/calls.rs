//! Whole calls, over a Vault that answers at once.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use futures_util::future::join_all;
use futures_util::{StreamExt as _, stream};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Server};
use vault_kms_proxy::clock::Deadline;
use vault_kms_proxy::keyring::{DecryptHints, Keyring};
use vault_kms_proxy::kms::services::Services;
use vault_kms_proxy::kms::{self, CurrentKeyring, NotServing};
use vault_kms_proxy::listener::connection::Connection;
use vault_kms_proxy::proto::v1beta1::DecryptRequest;
use vault_kms_proxy::proto::v1beta1::key_management_service_client::KeyManagementServiceClient;
use vault_kms_proxy::secret::Plaintext;
use vault_kms_proxy::transit::{TransitKey as _, VaultCiphertext};

use crate::vault::{Inside, payload};

const SEED: [u8; 32] = [7; 32];

/// kube-apiserver's, less what the daemon keeps for itself.
const DEADLINE: Duration = Duration::from_millis(2_950);

struct Fixed(Arc<Keyring>);

/// One decrypt, each bench with a layer more.
pub(crate) fn decrypt(c: &mut Criterion) {
    let runtime = runtime();
    let inside = &runtime.block_on(Inside::start());
    let mut group = c.benchmark_group("decrypt");

    let ciphertext = &ciphertext(SEED);
    group.bench_function("Transit verb and the cluster's stack", |b| {
        b.to_async(&runtime).iter(|| async {
            let plaintext = inside.key.decrypt(ciphertext, deadline()).await.expect("an answer");
            assert_eq!(plaintext.expose(), SEED);
        });
    });
    let (stored, hints) = (&format!("kube:v1:{}", payload(&SEED)), &DecryptHints::default());
    group.bench_function("the keyring above it", |b| {
        b.to_async(&runtime).iter(|| async {
            let plaintext = inside.keyring.decrypt(stored.as_bytes(), hints, deadline());
            assert_eq!(plaintext.await.expect("an answer").expose(), SEED);
        });
    });
    let bare = runtime.block_on(serve(inside, Ok));
    let listener = runtime.block_on(serve(inside, Connection::to_ourselves));
    for (name, client) in [("gRPC above it", bare), ("the listener's stream below", listener)] {
        group.bench_function(name, |b| {
            b.to_async(&runtime).iter(|| async {
                let cipher = stored.clone().into_bytes();
                let request = DecryptRequest { version: "v1beta1".to_owned(), cipher };
                let answer = client.clone().decrypt(request).await.expect("an answer");
                assert_eq!(answer.into_inner().plain, SEED);
            });
        });
    }
    group.finish();
}

/// Many at once, of which no two ask the same.
pub(crate) fn together(c: &mut Criterion) {
    let runtime = runtime();
    let inside = &runtime.block_on(Inside::start());
    let mut group = c.benchmark_group("together");
    for callers in [16_u8, 64, 190] {
        group.throughput(Throughput::Elements(callers.into()));
        let seeds: Vec<[u8; 32]> = (0..callers).map(|caller| [caller; 32]).collect();
        let stored: Vec<_> = seeds.iter().map(|seed| ciphertext(*seed)).collect();
        group.bench_function(format!("{callers} decrypts"), |b| {
            b.to_async(&runtime).iter(|| async {
                let all = stored.iter().map(|one| inside.key.decrypt(one, deadline()));
                for (plaintext, seed) in join_all(all).await.into_iter().zip(&seeds) {
                    assert_eq!(plaintext.expect("an answer").expose(), seed);
                }
            });
        });
        let plaintexts: Vec<_> = seeds.iter().map(|s| Plaintext::new(s.to_vec())).collect();
        group.bench_function(format!("{callers} encrypts"), |b| {
            b.to_async(&runtime).iter(|| async {
                let all = plaintexts.iter().map(|one| inside.key.encrypt(one, None, deadline()));
                for (wrapped, stored) in join_all(all).await.into_iter().zip(&stored) {
                    assert!(wrapped.expect("an answer").ciphertext == *stored);
                }
            });
        });
    }
    group.finish();
}

fn runtime() -> Runtime {
    // One thread, so that who runs where is not measured.
    Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn deadline() -> Deadline {
    Deadline::after(DEADLINE)
}

fn ciphertext(seed: [u8; 32]) -> VaultCiphertext {
    VaultCiphertext::try_new(1, &payload(&seed)).expect("Transit's form")
}

/// A client of the services at the other end of a socket pair.
async fn serve<C>(
    inside: &Inside,
    accept: impl FnOnce(UnixStream) -> io::Result<C>,
) -> KeyManagementServiceClient<Channel>
where
    C: Connected + AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (near, far) = UnixStream::pair().expect("a socket pair");
    let accepted = accept(far).expect("a connection");
    let connections = stream::once(async { Ok::<_, io::Error>(accepted) }).chain(stream::pending());
    let keyring = Arc::new(Fixed(Arc::clone(&inside.keyring))) as Arc<dyn CurrentKeyring>;
    let services = Services::new(&keyring, inside.settings.keyring.status.version);
    let server = Server::builder().layer(kms::stack::layers(&inside.settings.kms));
    tokio::spawn(server.serve_with_incoming(services, connections));
    let mut near = Some(near);
    let dial = tower::service_fn(move |_: http::Uri| {
        let near = near.take().map(TokioIo::new);
        async move { near.ok_or_else(|| io::Error::other("it was dialled before")) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(dial).await.expect("a channel");
    KeyManagementServiceClient::new(channel)
}

// === impl Fixed ===

impl CurrentKeyring for Fixed {
    fn current(&self) -> Result<Arc<Keyring>, NotServing> {
        Ok(Arc::clone(&self.0))
    }
}
