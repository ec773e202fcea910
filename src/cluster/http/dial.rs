//! Makes TCP connections and remembers which of them have served an answer.
//!
//! A name with several IP addresses has a client for each: its [`Dial`] goes to that one
//! while URI, `Host` and SNI keep the name.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::{BoxError, Service};

/// Notices a peer that vanished without a word (power, a firewall that forgot) on an idle
/// connection: after 15 s of silence one question every 5 s, and the third without an
/// answer ends it. Left to the system, that would be nine questions in eleven minutes.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_QUESTIONS: u32 = 3;

/// Makes TCP connections to one socket address, whatever the URI says; or, without one,
/// to the host and port of the URI.
#[derive(Clone, Debug)]
pub(super) struct Dial {
    connector: HttpConnector,
    peer: Option<Uri>,
}

/// Bounds the time that a connection takes to be made, with everything that belongs to it:
/// the name's resolution, TCP and TLS. A frozen server still takes TCP connections, so
/// that only the TLS handshake shows it.
#[derive(Clone, Debug)]
pub(super) struct Within<C> {
    connector: C,
    limit: Duration,
}

/// A connection that carries its [`Served`] mark.
#[derive(Debug)]
pub(super) struct Dialled {
    stream: TokioIo<TcpStream>,
    served: Served,
}

/// Whether a connection has brought an answer. One that has, and is then found closed,
/// was closed while it lay in the pool.
#[derive(Clone, Debug, Default)]
pub(super) struct Served(Arc<AtomicBool>);

// === impl Dial ===

impl Dial {
    pub(super) fn new(peer: Option<SocketAddr>, connect_timeout: Duration) -> Self {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false); // TLS is put over it
        connector.set_nodelay(true); // requests are small and their answers are waited for
        connector.set_connect_timeout(Some(connect_timeout));
        connector.set_keepalive(Some(KEEPALIVE));
        connector.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        connector.set_keepalive_retries(Some(KEEPALIVE_QUESTIONS));
        // The connector takes an IP address in a URI as it is and asks nobody for it.
        let uri = |peer| Uri::try_from(format!("http://{peer}/"));
        let peer = peer.map(|p| uri(p).expect("a socket address is a URI's authority"));
        Self { connector, peer }
    }
}

impl Service<Uri> for Dial {
    type Response = Dialled;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = BoxFuture<'static, Result<Dialled, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.connector.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialling = self.connector.call(self.peer.clone().unwrap_or(uri));
        async move { Ok(Dialled { stream: dialling.await?, served: Served::default() }) }.boxed()
    }
}

// === impl Within ===

impl<C> Within<C> {
    pub(super) const fn new(limit: Duration, connector: C) -> Self {
        Self { connector, limit }
    }
}

impl<C> Service<Uri> for Within<C>
where
    C: Service<Uri>,
    C::Error: Into<BoxError>,
    C::Future: Send + 'static,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<C::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.connector.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = tokio::time::timeout(self.limit, self.connector.call(uri));
        async move {
            match connecting.await {
                Ok(connected) => connected.map_err(Into::into),
                Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            }
        }
        .boxed()
    }
}

// === impl Dialled ===

impl Connection for Dialled {
    fn connected(&self) -> Connected {
        self.stream.connected().extra(self.served.clone())
    }
}

impl Read for Dialled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl Write for Dialled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}

// === impl Served ===

impl Served {
    pub(super) fn mark(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn has(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
