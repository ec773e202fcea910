//! The life of the process: bind, serve, build, reload, stop.
//!
//! The order of a start is fixed by what kube-apiserver does: it waits for whoever listens,
//! and gives up on whoever does not. So the socket is bound first and serves from then on;
//! the first [`generation`] is built in the background, however long Vault is away.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, future};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::admin::AdminState;
use crate::config::load::{Loaded, Sources};
use crate::config::outline::Outline;
use crate::config::settings::Settings;
use crate::kms::services::Services;
use crate::kms::{self, CurrentKeyring};
use crate::listener::connection::Connection;
use crate::listener::inherited::Inherited;
use crate::listener::moving;
use crate::listener::unix::{self, BindError, BoundSocket};
use crate::task::unbroken;
use crate::telemetry::Telemetry;

mod admin_port;
#[cfg(test)]
mod fleet;
pub mod generation;
pub mod generations;
mod identity;
pub mod kept;
mod notify;
pub mod process;
mod pulse;
pub mod reload;
pub mod signals;
mod state;
mod told;
mod watch;

use admin_port::AdminPort;
use generations::Generations;
use kept::Chosen;
use notify::Notifier;
use pulse::pulse;
use reload::{Parts, Reloader};
use signals::{Signal, Signals};
use told::Told;

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
    pub chosen: Chosen,
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
    let Start { chosen: Chosen { loaded, fallback, accepted, watch }, sources, inherited } = start;
    let Loaded { settings, written, .. } = loaded;
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
    let started_with = Outline::of(&settings);
    let generations = Arc::new(Generations::new(started_with, &sources));
    let stop = CancellationToken::new();
    let readiness = Arc::clone(&generations) as _;
    let state = AdminState { readiness, prometheus: telemetry.prometheus().clone() };
    let admin = AdminPort::start(settings.admin, state, stop.child_token());
    let told = Told::new(notifier.clone(), Arc::clone(&generations));
    let status = told.follow();
    let told = told.runs(&settings, &sources, written, fallback.as_ref());
    let address = socket.address().clone();
    let (socket, connections) = moving::accept(socket, &settings.socket, stop.child_token());
    let reloader = Reloader::start(Parts {
        sources,
        settings: settings.clone(),
        accepted,
        watch,
        generations: Arc::clone(&generations),
        telemetry: telemetry.clone(),
        socket,
        admin,
        told,
    });
    // The socket listens, so nobody is refused meanwhile; whoever waits in its line would only
    // be told that there are no keys yet.
    let _ = tokio::time::timeout(FIRST_BUILD, generations.tried()).await;
    let (pulse, own) = pulse();
    tracing::info!(socket = %address, "Serving KMS v1beta1 and v2.");
    let connections = futures_util::stream::select(connections, own);
    let mut server = start_server(&settings, connections, &generations, &stop);
    notifier.ready();
    let watchdog = notifier.watch(pulse);

    let grace = loop {
        tokio::select! {
            signal = signals.next() => match signal {
                Signal::Reload => reloader.request(),
                Signal::Terminate(name) => {
                    let running = generations.current();
                    let grace =
                        running.map_or(settings.shutdown_grace, |running| running.shutdown_grace());
                    tracing::info!(signal = name, ?grace, "Stopping; calls in flight may finish.");
                    break grace;
                }
            },
            ended = &mut server => return Err(server_end(ended)),
        }
    };

    stop.cancel();
    drop((watchdog, status));
    let state = reloader.stop();
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
    if let Some(state) = state {
        state.finish().await;
    }
    tracing::info!("Stopped.");
    Ok(())
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
    connections: impl Stream<Item = io::Result<Connection>> + Send + 'static,
    generations: &Arc<Generations>,
    stop: &CancellationToken,
) -> JoinHandle<Result<(), tonic::transport::Error>> {
    let keyring = Arc::clone(generations) as Arc<dyn CurrentKeyring>;
    let services = Services::new(&keyring, settings.keyring.status.version);
    let server = Server::builder()
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_LIST_BYTES)
        .http2_max_pending_accept_reset_streams(Some(MAX_CANCELLED_STREAMS))
        // A peer that went away without a word must not hold a connection for ever.
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .layer(kms::stack::layers(&settings.kms));
    let stopped = stop.clone().cancelled_owned();
    tokio::spawn(server.serve_with_incoming_shutdown(services, connections, stopped))
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

/// How often a first generation that could not be built is tried again.
pub(crate) const FIRST_BUILD_RETRY: Duration = Duration::from_secs(5);
