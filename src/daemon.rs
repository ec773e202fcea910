//! The life of the process: bind, serve, build, reload, stop.
//!
//! The order of a start is fixed by what kube-apiserver does: it waits for whoever listens,
//! and gives up on whoever does not. So the socket is bound first and serves from then on;
//! the first [`generation`] is built in the background, however long Vault is away.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::admin::AdminState;
use crate::config::load::{Loaded, Sources};
use crate::config::outline::Outline;
use crate::config::settings::Settings;
use crate::kms::{self, MAX_REQUEST_BYTES};
use crate::listener::moving::{self, SocketControl};
use crate::listener::unix::{self, BindError, BoundSocket};
use crate::proto::v1beta1::key_management_service_server::KeyManagementServiceServer as V1Server;
use crate::proto::v2::key_management_service_server::KeyManagementServiceServer as V2Server;
use crate::telemetry::Telemetry;

mod admin_port;
#[cfg(test)]
mod fleet;
pub mod generation;
pub mod generations;
mod identity;
pub mod process;
pub mod reload;
pub mod signals;
mod state;
mod watch;

use admin_port::AdminPort;
use generations::Generations;
use reload::{Parts, Reloader};
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

/// What ends the daemon before it serves, or while it does.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No signal handler.
    #[error("the signal handlers could not be installed: {0}")]
    Signals(#[source] std::io::Error),
    /// No socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The gRPC server ended by itself.
    #[error("the gRPC server ended: {0}")]
    Server(String),
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When the socket cannot be bound. Never because Vault is away.
pub async fn run(
    loaded: Loaded,
    sources: Sources,
    telemetry: &Telemetry,
) -> Result<(), ServeError> {
    process::harden();
    let mut signals = Signals::install().map_err(ServeError::Signals)?;
    let settings = loaded.settings;
    // A predecessor may hold the lock for a while; whoever stops us must not wait for it.
    let socket = tokio::select! {
        socket = unix::bind(&settings.socket) => socket?,
        signal = signals.terminated() => {
            tracing::info!(signal, "Stopped before the socket was bound.");
            return Ok(());
        }
    };
    let started_with = Outline::of(&settings);
    let generations = Arc::new(Generations::new(started_with, &sources));
    let stop = CancellationToken::new();
    let readiness = Arc::clone(&generations) as _;
    let state = AdminState { readiness, prometheus: telemetry.prometheus().clone() };
    let admin = AdminPort::start(settings.admin, state, stop.child_token());
    let (mut server, socket) = start_server(&settings, socket, &generations, &stop);
    let grace = settings.shutdown_grace;
    let reloader = Reloader::start(Parts {
        sources,
        settings,
        generations: Arc::clone(&generations),
        telemetry: telemetry.clone(),
        socket,
        admin,
    });

    let grace = loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Signal::Reload => reloader.request(),
                Signal::Terminate(name) => {
                    let running = generations.current();
                    let grace = running.map_or(grace, |running| running.shutdown_grace());
                    tracing::info!(signal = name, ?grace, "Stopping; calls in flight may finish.");
                    break grace;
                }
            },
            ended = &mut server => return Err(server_end(ended)),
        }
    };

    stop.cancel();
    drop(reloader);
    tokio::select! {
        _ = &mut server => {}
        () = tokio::time::sleep(grace) => {
            tracing::warn!(
                ?grace, "Calls were still in flight after shutdownGrace; they were cut."
            );
        }
        signal = signals.terminated() => {
            tracing::warn!(signal, "Told to stop once more; calls in flight were cut.");
        }
    }
    server.abort();
    tracing::info!("Stopped.");
    Ok(())
}

fn start_server(
    settings: &Settings,
    socket: BoundSocket,
    generations: &Arc<Generations>,
    stop: &CancellationToken,
) -> (JoinHandle<Result<(), tonic::transport::Error>>, SocketControl) {
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
    let (control, connections) = moving::accept(socket, &settings.socket, stop.child_token());
    let stopped = stop.clone().cancelled_owned();
    (tokio::spawn(router.serve_with_incoming_shutdown(connections, stopped)), control)
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

/// How often a first generation that could not be built is tried again.
pub(crate) const FIRST_BUILD_RETRY: Duration = Duration::from_secs(5);
