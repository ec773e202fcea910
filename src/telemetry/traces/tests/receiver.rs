//! Real OTLP receivers: over gRPC, over HTTP, and over HTTP with TLS.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::config::settings::OtlpProtocol;
use crate::task::OwnedTask;

/// What arrived.
#[derive(Clone, Default)]
pub(super) struct Inbox(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

pub(super) struct Receiver {
    pub(super) address: SocketAddr,
    pub(super) inbox: Inbox,
    _task: Option<OwnedTask>,
}

/// A certificate for 127.0.0.1 that is its own authority.
pub(super) struct Certificate {
    pub(super) cert: String,
    pub(super) key: String,
}

impl Certificate {
    pub(super) fn make() -> Self {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        Self { cert: made.cert.pem(), key: made.signing_key.serialize_pem() }
    }
}

impl Inbox {
    fn put(&self, request: ExportTraceServiceRequest) {
        self.0.lock().unwrap().push(request);
    }

    pub(super) fn spans(&self) -> Vec<Span> {
        let requests = self.0.lock().unwrap();
        let resources = requests.iter().flat_map(|r| &r.resource_spans);
        resources.flat_map(|r| &r.scope_spans).flat_map(|s| s.spans.clone()).collect()
    }

    pub(super) fn resource(&self) -> Vec<KeyValue> {
        let requests = self.0.lock().unwrap();
        requests[0].resource_spans[0].resource.clone().unwrap().attributes
    }
}

/// An attribute's value, as text.
pub(super) fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|a| a.key == key)?;
    match found.value.clone()?.value? {
        Value::StringValue(text) => Some(text),
        Value::IntValue(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}

#[tonic::async_trait]
impl TraceService for Inbox {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.put(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Receiver {
    pub(super) async fn start(protocol: OtlpProtocol) -> Self {
        match protocol {
            OtlpProtocol::Grpc => Self::grpc(None).await,
            OtlpProtocol::Http => Self::http().await,
        }
    }

    pub(super) async fn grpc(certificate: Option<&Certificate>) -> Self {
        let (listener, address) = bind().await;
        let inbox = Inbox::default();
        let mut server = Server::builder();
        if let Some(Certificate { cert, key }) = certificate {
            let identity = Identity::from_pem(cert, key);
            server = server.tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
        }
        let serve = server
            .add_service(TraceServiceServer::new(inbox.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let task = OwnedTask::spawn("grpc receiver", async { serve.await.unwrap() });
        Self { address, inbox, _task: Some(task) }
    }

    async fn http() -> Self {
        let (listener, address) = bind().await;
        let inbox = Inbox::default();
        let arrived = inbox.clone();
        let take = async move |body: Bytes| {
            arrived.put(ExportTraceServiceRequest::decode(body).unwrap());
        };
        let router = axum::Router::new().route("/v1/traces", axum::routing::post(take));
        let serve = async move { axum::serve(listener, router).await.unwrap() };
        Self { address, inbox, _task: Some(OwnedTask::spawn("http receiver", serve)) }
    }

    /// Takes one request over TLS, on a thread that ends with it or with the test.
    pub(super) fn https(certificate: &Certificate) -> Self {
        use rustls::pki_types::pem::PemObject;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let chain = vec![CertificateDer::from_pem_slice(certificate.cert.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let config = Arc::new(config);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let inbox = Inbox::default();
        let arrived = inbox.clone();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let tls = rustls::ServerConnection::new(config).unwrap();
            let mut stream = BufReader::new(rustls::StreamOwned::new(tls, stream));
            let mut length = 0;
            loop {
                let mut line = String::new();
                stream.read_line(&mut line).unwrap();
                let line = line.trim().to_ascii_lowercase();
                if let Some(n) = line.strip_prefix("content-length:") {
                    length = n.trim().parse().unwrap();
                }
                if line.is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            arrived.put(ExportTraceServiceRequest::decode(&*body).unwrap());
            let stream = stream.get_mut();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
            stream.flush().unwrap();
        });
        Self { address, inbox, _task: None }
    }
}

async fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}
