//! What the `:authority` normaliser costs a call: two servers in this process on one keyring,
//! one behind the daemon's own listener, one on the bare sockets.
//!
//! Everything that this needs of the crate is part of its library, which only its own
//! binary, its tests and its benches use.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use lab::{Config, Error, Kms, Result, eventually};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;
use vault_kms_proxy::clock::Jitter;
use vault_kms_proxy::cluster::tls::LoadedTls;
use vault_kms_proxy::cluster::{Cluster, Stack};
use vault_kms_proxy::config::load::{Flags, Sources, load};
use vault_kms_proxy::config::settings::Settings;
use vault_kms_proxy::keyring::Keyring;
use vault_kms_proxy::keyring::kek::Kek;
use vault_kms_proxy::keyring::memory::KekMemory;
use vault_kms_proxy::kms::connection::{ConnectionInfo, PeerCredentials};
use vault_kms_proxy::kms::services::Services;
use vault_kms_proxy::kms::{self, CurrentKeyring, NotServing};
use vault_kms_proxy::listener::{moving, unix};
use vault_kms_proxy::transit::{HttpTransitKey, TransitVerdicts};

use crate::measure::Measured;
use crate::side::{Side, Sides};

/// Calls of one side before the other has its turn.
const TURN: usize = 20;

/// The one keyring of both servers.
struct Fixed(Arc<Keyring>);

/// An accepted connection as it comes.
struct Bare(UnixStream, Arc<ConnectionInfo>);

/// Decrypts as one caller, without the normaliser and with it in turn.
pub(crate) async fn take_turns(
    sides: &Sides,
    config: &Config,
    seconds: f64,
) -> Result<[Measured; 2]> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("config.yaml");
    std::fs::write(&file, config.to_string())?;
    let (without, with) = (folder.path().join("without.sock"), folder.path().join("with.sock"));
    let flags = Flags { socket: Some(with.display().to_string()), ..Flags::default() };
    let sources = Sources { file: Some(file), flags, ..Sources::default() };
    let settings = load(&sources).map_err(|p| Error::new(p.to_string()))?.settings;
    let keyring = keyring(&settings)?;

    let stop = CancellationToken::new();
    let socket = unix::bind(&settings.socket).await?;
    let (_control, connections) = moving::accept(socket, &settings.socket, stop.clone());
    serve(&settings, &keyring, connections, stop.clone());
    serve(&settings, &keyring, bare(&without)?, stop.clone());
    let both = [ready(sides, &without).await?, ready(sides, &with).await?];

    let mut measured = [Measured::new(), Measured::new()];
    let wanted = Duration::from_secs_f64(seconds);
    let mut round = 0;
    while measured.iter().any(|side| side.busy < wanted) {
        for (side, measured) in both.iter().zip(&mut measured) {
            let begin = Instant::now();
            for turn in 0..TURN {
                let start = Instant::now();
                side.decrypt((round + turn) % side.len()).await?;
                measured.record(start.elapsed())?;
            }
            measured.busy += begin.elapsed();
        }
        round += TURN;
    }
    stop.cancel();
    Ok(measured)
}

async fn ready(sides: &Sides, socket: &Path) -> Result<Side> {
    let side = sides.v1(Kms::new(socket));
    let patience = Duration::from_secs(15);
    eventually("a server in this process answers", patience, || async {
        side.decrypt(0).await?;
        Ok(Some(()))
    })
    .await?;
    Ok(side)
}

/// The keyring as a generation of the daemon builds it.
fn keyring(settings: &Settings) -> Result<Arc<Keyring>> {
    let jitter = Arc::new(Jitter::from_entropy());
    let of_cluster = &settings.clusters[0];
    let tls = LoadedTls::read(&of_cluster.tls)?;
    let verdicts = Arc::new(TransitVerdicts);
    let stack = Stack::try_new(of_cluster, &tls, verdicts, Arc::clone(&jitter))?;
    let cluster = Cluster::new(Arc::clone(of_cluster), Arc::new(stack), Arc::clone(&jitter));
    let kek = Arc::clone(&settings.keyring.keks[0]);
    let transit = Arc::new(HttpTransitKey::new(cluster, &kek));
    let rotation = settings.keyring.rotation.clone();
    let kek = Kek::new(kek, transit, Arc::new(KekMemory::new()), rotation, jitter);
    Ok(Keyring::new(settings.keyring.clone(), vec![kek]))
}

fn serve<C>(
    settings: &Settings,
    keyring: &Arc<Keyring>,
    connections: impl Stream<Item = io::Result<C>> + Send + 'static,
    stop: CancellationToken,
) where
    C: Connected<ConnectInfo = Arc<ConnectionInfo>> + AsyncRead + AsyncWrite,
    C: Send + Unpin + 'static,
{
    let keyring = Arc::new(Fixed(Arc::clone(keyring))) as Arc<dyn CurrentKeyring>;
    let services = Services::new(&keyring, settings.keyring.status.version);
    let server = tonic::transport::Server::builder().layer(kms::stack::layers(&settings.kms));
    let stopped = stop.cancelled_owned();
    tokio::spawn(server.serve_with_incoming_shutdown(services, connections, stopped));
}

fn bare(socket: &Path) -> Result<impl Stream<Item = io::Result<Bare>> + Send + use<>> {
    let listener = UnixListenerStream::new(UnixListener::bind(socket)?);
    Ok(listener.map(|stream| {
        let peer = PeerCredentials { uid: 0, gid: 0, pid: None };
        Ok(Bare(stream?, Arc::new(ConnectionInfo::new(0, peer))))
    }))
}

// === impl Fixed ===

impl CurrentKeyring for Fixed {
    fn current(&self) -> Result<Arc<Keyring>, NotServing> {
        Ok(Arc::clone(&self.0))
    }
}

// === impl Bare ===

impl Connected for Bare {
    type ConnectInfo = Arc<ConnectionInfo>;

    fn connect_info(&self) -> Self::ConnectInfo {
        Arc::clone(&self.1)
    }
}

impl AsyncRead for Bare {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Bare {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
