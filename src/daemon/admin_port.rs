//! The admin port, which a reload can move: the new one is bound before the old one closes.
//!
//! But for one that contains the old one or lies in it, as `0.0.0.0:9480` contains
//! `127.0.0.1:9480`: the kernel gives no port twice. Then the old one closes first, and is bound
//! again when the new one cannot be, or is not wanted in the end.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, AdminState};
use crate::task::OwnedTask;

/// How often a port that could not be bound is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// How long a port of ours may take to be free after it was closed, and how often that is tried.
const FREE_WITHIN: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(10);

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
pub(super) struct PreparedPort {
    // Dropped in this order: the port is free when the one before it is bound again.
    next: Option<(SocketAddr, TcpListener)>,
    /// What was closed for it, and comes back when this is dropped.
    before: Option<Closed>,
}

/// Holds a port closed.
type Closed = oneshot::Sender<Infallible>;

#[derive(Debug)]
struct Serving {
    stop: CancellationToken,
    _task: OwnedTask,
}

/// How a port comes to be served.
#[derive(Debug, Default)]
enum Begin {
    /// It is bound, as soon as that is possible.
    #[default]
    Bind,
    /// It is bound already.
    Bound(TcpListener),
    /// It is bound once nobody holds it closed any more.
    Reopen(oneshot::Receiver<Infallible>),
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
        port.serving = address.map(|address| port.serve(address, Begin::Bind));
        port
    }

    /// Binds `wanted`; `None` when nothing changes.
    ///
    /// # Errors
    /// When it cannot be bound; nothing has changed then.
    pub(super) async fn prepare(
        &mut self,
        wanted: Option<SocketAddr>,
    ) -> io::Result<Option<PreparedPort>> {
        if wanted == self.address {
            return Ok(None);
        }
        let Some(address) = wanted else {
            return Ok(Some(PreparedPort { next: None, before: None }));
        };
        let (listener, before) = match TcpListener::bind(address).await {
            Ok(listener) => (listener, None),
            Err(error) => {
                let in_the_way = self.address.filter(|ours| overlap(*ours, address));
                let Some(ours) = in_the_way.filter(|_| is_taken(&error)) else {
                    return Err(error);
                };
                let before = self.close(ours);
                // When it fails, `before` is dropped, and what was served is served again.
                (bind_freed(address).await?, Some(before))
            }
        };
        Ok(Some(PreparedPort { next: Some((address, listener)), before }))
    }

    /// Gives the port `ours` up until what this returns is dropped.
    fn close(&mut self, ours: SocketAddr) -> Closed {
        let (closed, reopens) = oneshot::channel();
        let again = self.serve(ours, Begin::Reopen(reopens));
        self.leaving = self.serving.replace(again);
        if let Some(last) = &self.leaving {
            last.stop.cancel();
        }
        closed
    }

    /// Serves what was prepared, and no longer what was served before.
    pub(super) fn commit(&mut self, prepared: PreparedPort) {
        let PreparedPort { next, before } = prepared;
        self.address = next.as_ref().map(|(address, _)| *address);
        let next = next.map(|(address, listener)| self.serve(address, Begin::Bound(listener)));
        let last = std::mem::replace(&mut self.serving, next);
        if let Some(last) = &last {
            last.stop.cancel();
        }
        if before.is_none() {
            self.leaving = last;
        }
        if self.address.is_none() {
            tracing::info!("/livez, /readyz and /metrics are served no longer.");
        }
    }

    fn serve(&self, address: SocketAddr, begin: Begin) -> Serving {
        let stop = self.stop.child_token();
        let (state, until) = (self.state.clone(), stop.clone());
        // Of a task that has panicked the port is free again.
        let begin = Arc::new(Mutex::new(begin));
        let begin = move || {
            let begin = std::mem::take(&mut *begin.lock().unwrap_or_else(PoisonError::into_inner));
            serve(address, begin, state.clone(), until.clone())
        };
        Serving { stop, _task: OwnedTask::spawn_again("admin", begin) }
    }
}

async fn serve(address: SocketAddr, begin: Begin, state: AdminState, stop: CancellationToken) {
    let binding = async {
        match begin {
            Begin::Bound(listener) => return listener,
            Begin::Bind => {}
            Begin::Reopen(reopens) => drop(reopens.await),
        }
        bind(address).await
    };
    let listener = tokio::select! {
        biased;
        () = stop.cancelled() => return,
        listener = binding => listener,
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

/// Binds what a port of ours has just been closed for.
async fn bind_freed(address: SocketAddr) -> io::Result<TcpListener> {
    let until = Instant::now() + FREE_WITHIN;
    loop {
        match TcpListener::bind(address).await {
            Err(error) if is_taken(&error) && Instant::now() < until => {}
            bound => return bound,
        }
        tokio::time::sleep(POLL).await;
    }
}

fn is_taken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

/// Whether the kernel would not give both at once to those who do not share.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let holds = |this: IpAddr, that: IpAddr| match this {
        IpAddr::V4(ip) => ip.is_unspecified() && that.is_ipv4(),
        // It listens for IPv4 too, where the machine says so.
        IpAddr::V6(ip) => ip.is_unspecified(),
    };
    let (here, there) = (one.ip().to_canonical(), other.ip().to_canonical());
    one.port() == other.port() && (here == there || holds(here, there) || holds(there, here))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;
    use crate::admin::{Check, Readiness, Running};

    /// Is never asked.
    #[derive(Debug)]
    struct Nothing;

    impl Readiness for Nothing {
        fn checks(&self) -> Vec<Check> {
            Vec::new()
        }

        fn running(&self) -> Running {
            unreachable!("nobody asks for the configuration")
        }
    }

    fn start(address: SocketAddr) -> AdminPort {
        let prometheus = crate::telemetry::metrics::install().unwrap();
        let state = AdminState { readiness: Arc::new(Nothing), prometheus };
        AdminPort::start(Some(address), state, CancellationToken::new())
    }

    /// A port that nobody has.
    async fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
    }

    fn at(ip: &str, port: u16) -> SocketAddr {
        SocketAddr::new(ip.parse().unwrap(), port)
    }

    async fn is_served(address: SocketAddr) -> bool {
        let asked = async {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            io::Result::Ok(answer.starts_with("HTTP/1.1 200"))
        };
        asked.await.unwrap_or(false)
    }

    #[track_caller]
    fn becomes(address: SocketAddr, served: bool) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        async move {
            let look = async {
                while is_served(address).await != served {
                    tokio::time::sleep(POLL).await;
                }
            };
            let seen = tokio::time::timeout(Duration::from_secs(20), look).await;
            assert!(seen.is_ok(), "{place}: {address} is not served: {served}");
        }
    }

    #[tokio::test]
    async fn a_port_moves_to_an_address_that_contains_it_and_back() {
        let port = free_port().await;
        let (narrow, beside) = (at("127.0.0.1", port), at("127.0.0.2", port));
        let mut admin = start(narrow);
        becomes(narrow, true).await;
        let mut wide = vec![at("0.0.0.0", port)];
        if TcpListener::bind("[::]:0").await.is_ok() {
            wide.push(at("::", port));
        }
        for wide in wide {
            let prepared = admin.prepare(Some(wide)).await.unwrap().unwrap();
            admin.commit(prepared);
            becomes(beside, true).await;
            let prepared = admin.prepare(Some(narrow)).await.unwrap().unwrap();
            admin.commit(prepared);
            becomes(beside, false).await;
            becomes(narrow, true).await;
        }
    }

    #[tokio::test]
    async fn a_move_that_fails_or_is_not_taken_leaves_the_port_where_it_was() {
        let port = free_port().await;
        let (narrow, wide) = (at("127.0.0.1", port), at("0.0.0.0", port));
        let mut admin = start(narrow);
        becomes(narrow, true).await;

        drop(admin.prepare(Some(wide)).await.unwrap());
        becomes(narrow, true).await;
        assert!(!is_served(at("127.0.0.2", port)).await);

        // Somebody else holds a part of it.
        let other = TcpListener::bind(at("127.0.0.3", port)).await.unwrap();
        let error = admin.prepare(Some(wide)).await.unwrap_err();
        assert!(is_taken(&error), "{error}");
        becomes(narrow, true).await;
        drop(other);
        let prepared = admin.prepare(Some(wide)).await.unwrap().unwrap();
        admin.commit(prepared);
        becomes(at("127.0.0.3", port), true).await;
    }

    #[test]
    fn addresses_overlap_when_one_contains_the_other() {
        let overlaps = |one: &str, other: &str| {
            let (one, other) = (one.parse().unwrap(), other.parse().unwrap());
            assert_eq!(overlap(one, other), overlap(other, one));
            overlap(one, other)
        };
        assert!(overlaps("127.0.0.1:9", "0.0.0.0:9"));
        assert!(overlaps("127.0.0.1:9", "[::]:9"));
        assert!(overlaps("[::1]:9", "[::]:9"));
        assert!(overlaps("0.0.0.0:9", "[::]:9"));
        assert!(!overlaps("127.0.0.1:9", "0.0.0.0:8"));
        assert!(!overlaps("127.0.0.1:9", "127.0.0.2:9"));
        assert!(!overlaps("[::1]:9", "0.0.0.0:9"));
    }
}
