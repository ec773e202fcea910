//! One accepted connection, as the gRPC server reads and writes it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::Connected;

use super::authority::Normalised;
use crate::kms::connection::ConnectionInfo;

/// A connection of a peer that may connect, with an `:authority` that the server accepts.
#[derive(Debug)]
pub struct Connection {
    stream: Normalised<UnixStream>,
    info: Arc<ConnectionInfo>,
    /// Makes room for another connection when this one ends.
    _place: OwnedSemaphorePermit,
}

// === impl Connection ===

impl Connection {
    pub(super) fn new(
        stream: UnixStream,
        info: ConnectionInfo,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self { stream: Normalised::new(stream), info: Arc::new(info), _place: place }
    }

    /// One that does not come from the socket: the other end is in this process. It takes
    /// nobody's place.
    ///
    /// # Errors
    /// When the kernel does not tell who we are.
    pub fn to_ourselves(stream: UnixStream) -> io::Result<Self> {
        let info = ConnectionInfo::new(0, super::peer::credentials(&stream)?);
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().map_err(io::Error::other)?;
        Ok(Self::new(stream, info, place))
    }

    /// What the services see of it.
    pub const fn info(&self) -> &Arc<ConnectionInfo> {
        &self.info
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<ConnectionInfo>;

    fn connect_info(&self) -> Self::ConnectInfo {
        Arc::clone(&self.info)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
