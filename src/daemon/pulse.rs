//! Whether the daemon answers: it asks itself, as kube-apiserver would.
//!
//! A connection is handed to the server beside those of the socket, and `Version` is asked
//! on it. The answer has been through the loop that takes connections in, a task of the
//! runtime, the HTTP/2 server and every layer of the stack; it needs no Vault. The server
//! treats it like any other, but that it is never traced.

use std::io;
use std::time::Duration;

use futures_util::Stream;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;

use crate::listener::connection::Connection;
use crate::proto::v1beta1::VersionRequest;
use crate::proto::v1beta1::key_management_service_client::KeyManagementServiceClient;

/// A trace that its beginner did not sample is sampled by nobody (W3C Trace Context).
const NOT_SAMPLED: &str = "00-76756c742d6b6d732d70726f78790001-70756c7365000001-00";

/// Asks the server that reads the other end.
#[derive(Debug)]
pub(super) struct Pulse {
    connections: mpsc::Sender<UnixStream>,
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoPulse {
    /// The server takes no connections any more.
    #[error("the server has ended")]
    Ended,
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// No connection could be made.
    #[error("no connection to itself: {0}")]
    Connection(#[from] io::Error),
    /// It failed on the way.
    #[error("{0}")]
    Transport(#[from] tonic::transport::Error),
    /// An error was answered.
    #[error("it answers with an error: {0}")]
    Answer(#[from] tonic::Status),
}

/// The two ends: who asks, and the connections that the server must serve.
pub(super) fn pulse() -> (Pulse, impl Stream<Item = io::Result<Connection>> + Send) {
    let (connections, taken) = mpsc::channel(1);
    let incoming = futures_util::stream::unfold(taken, |mut taken| async move {
        loop {
            // One that cannot be looked at is not answered, which is what it is for.
            if let Ok(connection) = Connection::to_ourselves(taken.recv().await?) {
                return Some((Ok(connection), taken));
            }
        }
    });
    (Pulse { connections }, incoming)
}

// === impl Pulse ===

impl Pulse {
    /// Waits for an answer for so long.
    ///
    /// # Errors
    /// When there is none, or a wrong one.
    pub(super) async fn feel(&self, within: Duration) -> Result<(), NoPulse> {
        match tokio::time::timeout(within, self.ask()).await {
            Ok(answer) => answer,
            Err(_) => Err(NoPulse::Silent(within)),
        }
    }

    async fn ask(&self) -> Result<(), NoPulse> {
        let (ours, theirs) = UnixStream::pair()?;
        self.connections.send(theirs).await.map_err(|_| NoPulse::Ended)?;
        let mut once = Some(ours);
        let connector = tower::service_fn(move |_| {
            let stream = once.take().ok_or(io::Error::from(io::ErrorKind::ConnectionAborted));
            std::future::ready(stream.map(TokioIo::new))
        });
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(connector).await?;
        let mut request = tonic::Request::new(VersionRequest { version: "v1beta1".to_owned() });
        request.metadata_mut().insert("traceparent", MetadataValue::from_static(NOT_SAMPLED));
        KeyManagementServiceClient::new(channel).version(request).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::StreamExt as _;
    use tonic::transport::Server;

    use super::*;
    use crate::daemon::generations::Generations;
    use crate::proto::v1beta1::key_management_service_server::KeyManagementServiceServer;

    const WITHIN: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_server_that_serves_has_one_whether_there_is_a_vault_or_not() {
        let (pulse, incoming) = pulse();
        let service = crate::kms::v1::Service::new(Arc::new(Generations::default()) as _);
        let router = Server::builder().add_service(KeyManagementServiceServer::new(service));
        let server = tokio::spawn(router.serve_with_incoming(incoming));
        for _ in 0..3 {
            pulse.feel(WITHIN).await.unwrap();
        }
        server.abort();
        assert!(server.await.is_err());
        assert!(matches!(pulse.feel(WITHIN).await, Err(NoPulse::Ended)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_takes_nobody_in_has_none() {
        let (pulse, _incoming) = pulse();
        let felt = pulse.feel(WITHIN).await;
        assert!(matches!(felt, Err(NoPulse::Silent(_))), "{felt:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_nobody_answers_is_none() {
        let (pulse, incoming) = pulse();
        let mut incoming = Box::pin(incoming);
        let stuck = async {
            let _held = incoming.next().await;
            std::future::pending::<()>().await;
        };
        let felt = tokio::select! {
            felt = pulse.feel(WITHIN) => felt,
            () = stuck => unreachable!("it never ends"),
        };
        assert!(matches!(felt, Err(NoPulse::Silent(_))), "{felt:?}");
    }
}
