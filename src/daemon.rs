//! The life of the process: bind, serve, build, reload, stop.
//!
//! The order of a start is fixed by what kube-apiserver does: it waits for whoever listens,
//! and gives up on whoever does not. So the socket is bound first and serves from then on;
//! the first [`generation`] is built in the background, however long Vault is away.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, future};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::admin::{self, AdminState};
use crate::config::load::{Loaded, Sources};
use crate::config::settings::Settings;
use crate::kms::{self, MAX_REQUEST_BYTES};
use crate::listener::accept::Acceptor;
use crate::listener::connection::Connection;
use crate::listener::inherited::Inherited;
use crate::listener::peer::PeerPolicy;
use crate::listener::unix::{self, BindError, BoundSocket};
use crate::proto::v1beta1::key_management_service_server::KeyManagementServiceServer as V1Server;
use crate::proto::v2::key_management_service_server::KeyManagementServiceServer as V2Server;
use crate::task::{OwnedTask, unbroken};
use crate::telemetry::Telemetry;

#[cfg(test)]
mod fleet;
pub mod generation;
pub mod generations;
mod identity;
mod notify;
pub mod process;
mod pulse;
pub mod reload;
pub mod signals;
mod state;

use generations::Generations;
use notify::{Notifier, Story};
use pulse::pulse;
use reload::Reloader;
use signals::{Signal, Signals};

/// How many streams one connection may have open. hyper's default of 200 is too few for
/// the lists of a starting kube-apiserver.
const MAX_CONCURRENT_STREAMS: u32 = 2_048;

/// How many calls may be cancelled before we have looked at them. Beyond it h2 ends the
/// whole connection, with every call on it. Its default of 20 guards against strangers; a
/// kube-apiserver whose clients leave all at once cancels as many calls as it may have open.
const MAX_CANCELLED_STREAMS: usize = MAX_CONCURRENT_STREAMS as usize;

/// How long a connection may be silent before it is asked whether anybody is there, and
/// how long the answer may take.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// How large a request's headers may be, all together.
const MAX_HEADER_LIST_BYTES: u32 = 32 * 1024;

/// Who hears, beside the log, what becomes of a configuration.
#[derive(Clone, Debug, Default)]
struct Told {
    notifier: Notifier,
    story: Story,
}

/// What ends the daemon before it serves, or while it does.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No signal handler.
    #[error("the signal handlers could not be installed: {0}")]
    Signals(#[source] io::Error),
    /// No socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The gRPC server ended by itself.
    #[error("the gRPC server ended: {0}")]
    Server(String),
}

/// What a daemon starts with.
#[derive(Debug)]
pub struct Start {
    /// The configuration that it runs on.
    pub loaded: Loaded,
    /// Where a reload reads it again.
    pub sources: Sources,
    /// The socket, when systemd has bound it.
    pub inherited: Option<Inherited>,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When the socket cannot be bound. Never because Vault is away.
pub async fn run(start: Start, telemetry: &Telemetry) -> Result<(), ServeError> {
    process::harden();
    let mut signals = Signals::install().map_err(ServeError::Signals)?;
    let Start { loaded: Loaded { settings, .. }, sources, inherited } = start;
    let notifier = Notifier::from_env();
    // A predecessor may hold the lock for a while; whoever stops us must not wait for it.
    let socket = tokio::select! {
        socket = socket(inherited, &settings) => match socket {
            Ok(socket) => socket,
            Err(error) => {
                notifier.failed(&error).await;
                return Err(error.into());
            }
        },
        signal = signals.terminated() => {
            tracing::info!(signal, "Stopped before the socket was bound.");
            return Ok(());
        }
    };
    let story = Story::default();
    let generations = Arc::new(Generations::default());
    let stop = CancellationToken::new();
    let admin = settings.admin.map(|address| {
        let readiness = Arc::clone(&generations) as _;
        let state = AdminState { readiness, prometheus: telemetry.prometheus().clone() };
        let stop = stop.child_token();
        let begin = move || serve_admin(address, state.clone(), stop.clone());
        OwnedTask::spawn_again("admin", begin)
    });

    let status = notifier.follow(&story, &generations);
    let told = Told { notifier: notifier.clone(), story };
    let started_with = settings.clone();
    let reloader =
        Reloader::start(sources, started_with, Arc::clone(&generations), telemetry, told);
    // The socket listens, so nobody is refused meanwhile; whoever waits in its line would only
    // be told that there are no keys yet.
    let _ = tokio::time::timeout(FIRST_BUILD, generations.tried()).await;
    let (pulse, own) = pulse();
    let mut server = start_server(&settings, socket, own, &generations, &stop);
    notifier.ready();
    let watchdog = notifier.watch(pulse);
    let grace = settings.shutdown_grace;

    loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Signal::Reload => reloader.request(),
                Signal::Terminate(name) => {
                    tracing::info!(signal = name, ?grace, "Stopping; calls in flight may finish.");
                    break;
                }
            },
            ended = &mut server => return Err(server_end(ended)),
        }
    }

    stop.cancel();
    drop((reloader, watchdog, status));
    notifier.stopping().await;
    tokio::select! {
        _ = future::join(&mut server, unbroken::stop()) => {}
        () = tokio::time::sleep(grace) => {
            if !server.is_finished() {
                tracing::warn!(
                    ?grace, "Calls were still in flight after shutdownGrace; they were cut."
                );
            }
        }
        signal = signals.terminated() => {
            tracing::warn!(signal, "Told to stop once more; calls in flight were cut.");
        }
    }
    if unbroken::is_running() {
        tracing::error!(
            "A secret ID was being unwrapped; if Vault did so, it is lost: destroy it and wrap \
             another."
        );
    }
    server.abort();
    drop(admin);
    tracing::info!("Stopped.");
    Ok(())
}

/// People and load balancers look at the admin port, kube-apiserver does not: while it
/// cannot be bound, calls are served without it.
async fn serve_admin(address: SocketAddr, state: AdminState, stop: CancellationToken) {
    let mut told = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if !told => {
                told = true;
                tracing::error!(
                    %address, %error,
                    "The admin port cannot be bound; /livez, /readyz and /metrics are not served \
                     until it can. Free it, or set admin.listen to another one or to off."
                );
            }
            Err(_) => {}
        }
        tokio::time::sleep(ADMIN_BIND_RETRY).await;
    };
    let address = listener.local_addr().unwrap_or(address);
    tracing::info!(%address, "Serving /livez, /readyz and /metrics.");
    admin::serve(listener, state, stop).await;
}

/// The inherited socket, or the configured one.
async fn socket(
    inherited: Option<Inherited>,
    settings: &Settings,
) -> Result<BoundSocket, BindError> {
    match inherited {
        Some(inherited) => inherited.into_bound(&settings.socket),
        None => unix::bind(&settings.socket).await,
    }
}

fn start_server(
    settings: &Settings,
    socket: BoundSocket,
    own: impl Stream<Item = io::Result<Connection>> + Send + 'static,
    generations: &Arc<Generations>,
    stop: &CancellationToken,
) -> JoinHandle<Result<(), tonic::transport::Error>> {
    let v1 = kms::v1::Service::new(Arc::clone(generations) as _);
    let v2 = kms::v2::Service::new(Arc::clone(generations) as _, settings.keyring.status.version);
    let router = Server::builder()
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_LIST_BYTES)
        .http2_max_pending_accept_reset_streams(Some(MAX_CANCELLED_STREAMS))
        // A peer that went away without a word must not hold a connection for ever.
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .layer(kms::stack::layers(&settings.kms))
        .add_service(V1Server::new(v1).max_decoding_message_size(MAX_REQUEST_BYTES))
        .add_service(V2Server::new(v2).max_decoding_message_size(MAX_REQUEST_BYTES));
    tracing::info!(socket = %socket.address(), "Serving KMS v1beta1 and v2.");
    let policy = PeerPolicy::new(&settings.socket);
    let connections = Acceptor::new(socket, policy, stop.child_token()).into_stream();
    let connections = futures_util::stream::select(connections, own);
    let stopped = stop.clone().cancelled_owned();
    tokio::spawn(router.serve_with_incoming_shutdown(connections, stopped))
}

fn server_end(
    ended: Result<Result<(), tonic::transport::Error>, tokio::task::JoinError>,
) -> ServeError {
    ServeError::Server(match ended {
        Ok(Ok(())) => "it stopped accepting".into(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    })
}

/// How long callers wait for the first generation, which takes reading a few files and no
/// Vault.
const FIRST_BUILD: Duration = Duration::from_secs(1);

/// How often an admin port that could not be bound is tried again.
const ADMIN_BIND_RETRY: Duration = Duration::from_secs(5);

/// How often a first generation that could not be built is tried again.
pub(crate) const FIRST_BUILD_RETRY: Duration = Duration::from_secs(5);
