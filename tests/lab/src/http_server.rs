//! A small HTTP server on loopback, for the fake Vault and the trace receiver.

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::Result;

/// A running server; ends when dropped.
#[derive(Debug)]
pub(crate) struct HttpServer {
    address: SocketAddr,
    _task: JoinSet<()>,
}

/// The handler's wish to break the connection instead of answering.
#[derive(Debug)]
pub(crate) struct Hangup;

impl std::fmt::Display for Hangup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the connection is broken on purpose")
    }
}

impl std::error::Error for Hangup {}

impl HttpServer {
    /// Serves HTTP/1.1 and HTTP/2 on a free port of 127.0.0.1.
    pub(crate) async fn start<H, F>(tls: Option<rustls::ServerConfig>, handler: H) -> Result<Self>
    where
        H: Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Response<Full<Bytes>>, Hangup>> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let acceptor = tls.map(|mut config| {
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            TlsAcceptor::from(Arc::new(config))
        });
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    Some(_ended) = connections.join_next() => {}
                    Ok((stream, _)) = listener.accept() => {
                        connections.spawn(serve(stream, acceptor.clone(), handler.clone()));
                    }
                }
            }
        });
        Ok(Self { address, _task: task })
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn serve<H, F>(stream: TcpStream, acceptor: Option<TlsAcceptor>, handler: H)
where
    H: Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<Response<Full<Bytes>>, Hangup>> + Send + 'static,
{
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<Incoming>| {
        let handler = handler.clone();
        async move {
            let (head, body) = request.into_parts();
            // An unreadable body ends as an empty one: what was received is what counts.
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            handler(Request::from_parts(head, body)).await
        }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    // A client that goes away is its own affair.
    let _ = match acceptor {
        None => builder.serve_connection(TokioIo::new(stream), service).await,
        Some(acceptor) => match acceptor.accept(stream).await {
            Ok(stream) => builder.serve_connection(TokioIo::new(stream), service).await,
            Err(_) => Ok(()),
        },
    };
}
