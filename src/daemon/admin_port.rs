//! The admin port, which a reload can move: the new one is bound before the old one closes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, AdminState};
use crate::task::OwnedTask;

/// How often a port that could not be bound is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Serves the admin endpoints where the configuration says.
#[derive(Debug)]
pub(super) struct AdminPort {
    state: AdminState,
    stop: CancellationToken,
    address: Option<SocketAddr>,
    serving: Option<Serving>,
    /// Answers that are on their way out at the port before.
    leaving: Option<Serving>,
}

/// A port that is bound and not served yet, or that there shall be none.
#[derive(Debug)]
pub(super) struct PreparedPort(Option<(SocketAddr, TcpListener)>);

#[derive(Debug)]
struct Serving {
    stop: CancellationToken,
    _task: OwnedTask,
}

// === impl AdminPort ===

impl AdminPort {
    /// Serves at `address` until `stop` is cancelled, or nowhere. A port that is taken is
    /// tried again and again, for nothing beside the calls may stop them.
    pub(super) fn start(
        address: Option<SocketAddr>,
        state: AdminState,
        stop: CancellationToken,
    ) -> Self {
        let mut port = Self { state, stop, address, serving: None, leaving: None };
        port.serving = address.map(|address| port.serve(address, None));
        port
    }

    /// Binds `wanted`; `None` when nothing changes.
    ///
    /// # Errors
    /// When it cannot be bound; nothing has changed then.
    pub(super) async fn prepare(
        &self,
        wanted: Option<SocketAddr>,
    ) -> std::io::Result<Option<PreparedPort>> {
        if wanted == self.address {
            return Ok(None);
        }
        Ok(Some(PreparedPort(match wanted {
            Some(address) => Some((address, TcpListener::bind(address).await?)),
            None => None,
        })))
    }

    /// Serves what was prepared, and no longer what was served before.
    pub(super) fn commit(&mut self, prepared: PreparedPort) {
        let PreparedPort(next) = prepared;
        self.address = next.as_ref().map(|(address, _)| *address);
        let next = next.map(|(address, listener)| self.serve(address, Some(listener)));
        self.leaving = std::mem::replace(&mut self.serving, next);
        if let Some(last) = &self.leaving {
            last.stop.cancel();
        }
        if self.address.is_none() {
            tracing::info!("/livez, /readyz and /metrics are served no longer.");
        }
    }

    fn serve(&self, address: SocketAddr, bound: Option<TcpListener>) -> Serving {
        let stop = self.stop.child_token();
        let (state, until) = (self.state.clone(), stop.clone());
        // Of a task that has panicked the port is free again.
        let bound = Arc::new(Mutex::new(bound));
        let begin = move || {
            let bound = bound.lock().unwrap_or_else(PoisonError::into_inner).take();
            serve(address, bound, state.clone(), until.clone())
        };
        Serving { stop, _task: OwnedTask::spawn_again("admin", begin) }
    }
}

async fn serve(
    address: SocketAddr,
    bound: Option<TcpListener>,
    state: AdminState,
    stop: CancellationToken,
) {
    let listener = match bound {
        Some(listener) => listener,
        None => tokio::select! {
            listener = bind(address) => listener,
            () = stop.cancelled() => return,
        },
    };
    let address = listener.local_addr().unwrap_or(address);
    tracing::info!(%address, "Serving /livez, /readyz and /metrics.");
    admin::serve(listener, state, stop).await;
}

/// People and load balancers look at the admin port, kube-apiserver does not: while it
/// cannot be bound, calls are served without it.
async fn bind(address: SocketAddr) -> TcpListener {
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
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
        tokio::time::sleep(RETRY).await;
    }
}
