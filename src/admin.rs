//! What an operator and a scraper may ask over HTTP, on a loopback address:
//!
//! - `/livez`: the process runs; never depends on Vault.
//! - `/readyz`: what works and what does not, one line each.
//! - `/metrics`: every metric as Prometheus text.
//! - `/configz`: the configuration that runs, as JSON and without secrets, and how the last
//!   reload ended.
//!
//! It must never cost the daemon its calls, so everything is bounded: connections, the
//! size of a request's head, and the time that a connection may take from its first byte
//! to its last. Every answer closes its connection.

pub mod health;
mod metrics;
pub mod running;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::telemetry::PrometheusText;

pub use health::{Check, Readiness};
pub use running::{LastReload, Running};

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 32;
/// Bytes of a request's head, the least that hyper allows.
const LARGEST_HEAD: usize = 8_192;
/// How long a request's head may take to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may last in all.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// How long answers may take to get out once the end is asked for.
const FAREWELL: Duration = Duration::from_secs(1);
/// The pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What the endpoints answer from.
#[derive(Clone, Debug)]
pub struct AdminState {
    /// Knows what works and what runs.
    pub readiness: Arc<dyn Readiness>,
    /// Knows the metrics.
    pub prometheus: PrometheusText,
}

/// Serves the endpoints on `listener` until `stop` is cancelled.
pub fn serve(
    listener: TcpListener,
    state: AdminState,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send {
    serve_with(listener, router(state), stop, HEAD_TIMEOUT, CONNECTION_TIMEOUT)
}

async fn serve_with(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
    head_timeout: Duration,
    connection_timeout: Duration,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    let mut accept_fails = false;
    let next = async || {
        // Closed never: the semaphore lives as long as this function.
        let permit = Arc::clone(&permits).acquire_owned().await.ok();
        (permit, listener.accept().await)
    };
    loop {
        let (permit, accepted) = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            next = next() => next,
        };
        match accepted {
            Ok((stream, _)) => {
                accept_fails = false;
                let answer = answer(stream, router.clone(), head_timeout);
                connections.spawn(async move {
                    let _ = tokio::time::timeout(connection_timeout, answer).await;
                    drop(permit);
                });
            }
            Err(error) => {
                if !std::mem::replace(&mut accept_fails, true) {
                    tracing::warn!(%error, "The admin endpoints cannot accept connections.");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // The port is free for another while answers are on their way.
    drop(listener);
    let finish = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(FAREWELL, finish).await;
}

/// One connection, one request.
async fn answer(stream: TcpStream, router: Router, head_timeout: Duration) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(LARGEST_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = connection.await {
        tracing::debug!(%error, "An admin connection ended badly.");
    }
}

fn router(state: AdminState) -> Router {
    Router::new()
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
        .route("/metrics", get(metrics::metrics))
        .route("/configz", get(running::running))
        .method_not_allowed_fallback(async || {
            (StatusCode::METHOD_NOT_ALLOWED, TEXT, "Only GET is served here.\n")
        })
        .fallback(async || {
            (StatusCode::NOT_FOUND, TEXT, "Served here: /livez, /readyz, /metrics, /configz.\n")
                .into_response()
        })
        .with_state(state)
}

/// Plain text, and never out of a cache.
const TEXT: [(header::HeaderName, &str); 2] =
    [(header::CONTENT_TYPE, "text/plain; charset=utf-8"), (header::CACHE_CONTROL, "no-store")];

#[cfg(test)]
mod tests;
