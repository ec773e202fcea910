//! Dials a KMS plugin's socket, for commands that act as a kube-apiserver.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream as StdUnixStream};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use crate::config::settings::SocketAddress;

/// Opens one connection to `socket` and speaks gRPC on it; the `:authority` is `localhost`.
///
/// # Errors
/// When nobody listens there or this user may not connect.
pub async fn dial(socket: &SocketAddress) -> io::Result<Channel> {
    let stream = open(socket).await?;
    let mut once = Some(stream);
    let connector = tower::service_fn(move |_| {
        // The channel asks again only after the connection has ended.
        let stream = once.take().ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted));
        std::future::ready(stream.map(TokioIo::new))
    });
    let endpoint = Endpoint::from_static("http://localhost");
    endpoint.connect_with_connector(connector).await.map_err(io::Error::other)
}

async fn open(socket: &SocketAddress) -> io::Result<UnixStream> {
    match socket {
        SocketAddress::Path(path) => UnixStream::connect(path).await,
        SocketAddress::Abstract(name) => {
            let address = SocketAddr::from_abstract_name(name)?;
            // A unix socket's connect does not wait for a network.
            let stream = StdUnixStream::connect_addr(&address)?;
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        }
    }
}
