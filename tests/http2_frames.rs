//! HTTP/2 frames written by hand, over a real socket, into a real tonic server: what
//! kube-apiservers of every age send as `:authority`, and what no client library sends.

#![allow(clippy::unwrap_used)] // helpers of tests, which clippy does not know as such

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status};
use vault_kms_proxy::config::settings::{SocketAddress, SocketSettings};
use vault_kms_proxy::kms::connection::ConnectionInfo;
use vault_kms_proxy::listener::accept::Acceptor;
use vault_kms_proxy::listener::peer::PeerPolicy;
use vault_kms_proxy::listener::unix;
use vault_kms_proxy::proto::v1beta1::key_management_service_server::{
    KeyManagementService, KeyManagementServiceServer,
};
use vault_kms_proxy::proto::v1beta1::{
    DecryptRequest, DecryptResponse, EncryptRequest, EncryptResponse, VersionRequest,
    VersionResponse,
};

/// How long any answer may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(10);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// The method that every test calls.
const PATH: &[u8] = b"/v1beta1.KeyManagementService/Version";

/// `:authority` in Huffman's code.
const AUTHORITY_HUFFMAN: &[u8] = b"\xb8\x3b\x53\x39\xec\x32\x7d\x7f";

/// Every form in which kube-apiservers and other clients name a socket.
const AUTHORITIES: [&[u8]; 5] =
    [b"/run/kms.sock", b"%2Frun%2Fkms.sock", b"@kms", b"localhost", b"unix:///run/kms.sock"];

/// Answers Version with the peer's user and the number of its connection.
struct Stub;

#[tonic::async_trait]
impl KeyManagementService for Stub {
    async fn version(
        &self,
        request: Request<VersionRequest>,
    ) -> Result<Response<VersionResponse>, Status> {
        let info = request.extensions().get::<Arc<ConnectionInfo>>();
        Ok(Response::new(VersionResponse {
            version: request.get_ref().version.clone(),
            runtime_name: info.map_or_else(String::new, |info| format!("uid {}", info.peer.uid)),
            runtime_version: info.map_or_else(String::new, |info| info.id.to_string()),
        }))
    }

    async fn decrypt(
        &self,
        _: Request<DecryptRequest>,
    ) -> Result<Response<DecryptResponse>, Status> {
        Err(Status::unimplemented("the stub only knows Version"))
    }

    async fn encrypt(
        &self,
        _: Request<EncryptRequest>,
    ) -> Result<Response<EncryptResponse>, Status> {
        Err(Status::unimplemented("the stub only knows Version"))
    }
}

/// A server that stops when this is dropped.
struct Running {
    dir: tempfile::TempDir,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    /// Behind our listener.
    async fn start(allowed_uids: Option<Vec<u32>>) -> Self {
        let (dir, path) = folder();
        let settings = SocketSettings {
            address: SocketAddress::Path(path),
            mode: 0o600,
            owner: None,
            group: None,
            allowed_uids,
        };
        let stop = CancellationToken::new();
        let socket = unix::bind(&settings).await.unwrap();
        let acceptor = Acceptor::new(socket, PeerPolicy::new(&settings), stop.clone());
        Self::serve(dir, stop, acceptor.into_stream())
    }

    /// Behind a plain listener, as it would be without `:authority` being looked after.
    fn start_without_normaliser() -> Self {
        let (dir, path) = folder();
        let listener = tokio::net::UnixListener::bind(path).unwrap();
        let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
        Self::serve(dir, CancellationToken::new(), incoming)
    }

    fn serve<I>(
        dir: tempfile::TempDir,
        stop: CancellationToken,
        incoming: impl Stream<Item = io::Result<I>> + Send + 'static,
    ) -> Self
    where
        I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Connected + Send + Unpin + 'static,
    {
        let stopped = stop.clone().cancelled_owned();
        let server = Server::builder()
            .add_service(KeyManagementServiceServer::new(Stub))
            .serve_with_incoming_shutdown(incoming, stopped);
        let task = tokio::spawn(async move { server.await.unwrap() });
        Self { dir, stop, task }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("kms.sock")
    }

    async fn connect(&self) -> Client {
        Client::connect(&self.path()).await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        self.task.abort();
    }
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kms.sock");
    (dir, path)
}

/// A client made of frames.
struct Client {
    stream: UnixStream,
    decoder: loona_hpack::Decoder<'static>,
    answers: BTreeMap<u32, Answer>,
}

/// What came for one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Answer {
    grpc_status: Option<String>,
    data: Vec<u8>,
    /// The error code of RST_STREAM.
    reset: Option<u32>,
    ended: bool,
}

/// One frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A string literal of less than 127 bytes.
fn text(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

/// The block of a Version call, with `:authority` as it is given.
fn block(authority: &[u8]) -> Vec<u8> {
    let content_type = [&[0x0f, 31 - 15][..], &text(b"application/grpc")].concat();
    let te = [&[0][..], &text(b"te"), &text(b"trailers")].concat();
    let path = [&[0x04][..], &text(PATH)].concat();
    [&[0x83, 0x86][..], &path, authority, &content_type, &te].concat()
}

/// `:authority` as most clients write it: static name, plain value, into the table.
fn usual(value: &[u8]) -> Vec<u8> {
    [&[0x41][..], &text(value)].concat()
}

/// The body of a Version call: VersionRequest { version: "v1beta1" }.
fn body(stream: u32) -> Vec<u8> {
    frame(DATA, END_STREAM, stream, b"\0\0\0\0\x09\x0a\x07v1beta1")
}

/// A whole call in two frames.
fn call(stream: u32, authority: &[u8]) -> Vec<u8> {
    [frame(HEADERS, END_HEADERS, stream, &block(authority)), body(stream)].concat()
}

impl Client {
    async fn connect(path: &Path) -> Self {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
        Self { stream, decoder: loona_hpack::Decoder::new(), answers: BTreeMap::new() }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Reads until `stream` has its answer.
    async fn answer(&mut self, stream: u32) -> Answer {
        let wait = async {
            loop {
                if let Some(answer) = self.answers.get(&stream).filter(|a| a.ended) {
                    return answer.clone();
                }
                self.read_frame().await.expect("the connection lasts until the answer");
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("an answer in time")
    }

    /// Reads until the server closes the connection.
    async fn wait_for_end(&mut self) {
        let wait = async { while self.read_frame().await.is_ok() {} };
        tokio::time::timeout(PATIENCE, wait).await.expect("the connection ends in time");
    }

    async fn read_frame(&mut self) -> io::Result<()> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, s0, s1, s2, s3] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.stream.read_exact(&mut payload).await?;
        let answer = self.answers.entry(u32::from_be_bytes([s0, s1, s2, s3])).or_default();
        match kind {
            SETTINGS if flags & ACK == 0 => {
                self.stream.write_all(&frame(SETTINGS, ACK, 0, &[])).await?;
            }
            HEADERS => {
                assert_eq!(flags & (END_HEADERS | PADDED | PRIORITY), END_HEADERS);
                for (name, value) in self.decoder.decode(&payload).unwrap() {
                    if name == b"grpc-status" {
                        answer.grpc_status = Some(String::from_utf8(value).unwrap());
                    }
                }
                answer.ended |= flags & END_STREAM != 0;
            }
            DATA => {
                answer.data.extend(payload);
                answer.ended |= flags & END_STREAM != 0;
            }
            RST_STREAM => {
                answer.reset = Some(u32::from_be_bytes(payload.try_into().unwrap()));
                answer.ended = true;
            }
            GOAWAY => return Err(io::ErrorKind::ConnectionAborted.into()),
            _ => {}
        }
        Ok(())
    }
}

#[track_caller]
fn assert_ok(answer: &Answer, what: impl std::fmt::Debug) {
    assert_eq!(answer.grpc_status.as_deref(), Some("0"), "{what:?}: {answer:?}");
    let says = |text: &str| answer.data.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(says("v1beta1"), "{what:?}: {answer:?}");
    let uid = format!("uid {}", rustix::process::geteuid().as_raw());
    assert!(says(&uid), "{what:?}: {answer:?}");
}

#[tokio::test]
async fn every_form_of_authority_is_answered() {
    let server = Running::start(None).await;
    for authority in AUTHORITIES {
        let mut client = server.connect().await;
        client.send(&call(1, &usual(authority))).await;
        assert_ok(&client.answer(1).await, authority.escape_ascii().to_string());
    }
}

#[tokio::test]
async fn without_the_normaliser_the_server_resets_calls_that_name_a_path() {
    let server = Running::start_without_normaliser();
    for authority in AUTHORITIES {
        let mut client = server.connect().await;
        client.send(&call(1, &usual(authority))).await;
        let answer = client.answer(1).await;
        let refused = ![&b"@kms"[..], b"localhost"].contains(&authority);
        let reset = refused.then_some(1); // PROTOCOL_ERROR
        assert_eq!(answer.reset, reset, "{}", authority.escape_ascii());
    }
}

#[tokio::test]
async fn many_streams_share_one_connection_and_its_table() {
    let server = Running::start(None).await;
    let mut client = server.connect().await;
    // Into the table, then only referred to, with other entries put before it.
    client.send(&call(1, &usual(b"/run/kms.sock"))).await;
    let filler = |n: u8| [&[0x40][..], &text(b"x"), &text(&[b'a' + n; 9])].concat();
    for n in 0..20 {
        let stream = 3 + 2 * u32::from(n);
        let bytes = [&block(&[0x80 | (62 + n)])[..], &filler(n)].concat();
        client.send(&frame(HEADERS, END_HEADERS, stream, &bytes)).await;
        client.send(&body(stream)).await;
    }
    for stream in (1..=41).step_by(2) {
        assert_ok(&client.answer(stream).await, stream);
    }
}

#[tokio::test]
async fn every_way_to_write_the_field_is_understood() {
    let server = Running::start(None).await;
    let mut client = server.connect().await;
    let path = text(b"/run/kms.sock");
    let name = text(b":authority");
    let huffman_name = [&[0x88][..], AUTHORITY_HUFFMAN].concat();
    let huffman_path = [&[0x85][..], b"\x60\xb6\xa9\x81\xff"].concat(); // "/run/"
    let ways = [
        [&[0x01][..], &path].concat(),                // not indexed
        [&[0x11][..], &path].concat(),                // never indexed
        [&[0x00][..], &name, &path].concat(),         // the name spelled out
        [&[0x10][..], &huffman_name, &path].concat(), // in Huffman's code
        [&[0x40][..], &huffman_name, &path].concat(), // and into the table
        [&[0x7e][..], &path].concat(),                // the name by its place there
        [&[0x0f, 62 - 15][..], &path].concat(),       // once more, not indexed
        [&[0x41][..], &huffman_path].concat(),        // the value in Huffman's code
        [&[0xbe][..]].concat(),                       // all by its place in the table
    ];
    for (number, way) in (0_u32..).zip(&ways) {
        let stream = 1 + 2 * number;
        client.send(&call(stream, way)).await;
        assert_ok(&client.answer(stream).await, way.escape_ascii().to_string());
    }
    // A resized table comes first in the block and forgets all.
    let resized = [&[0x20, 0x3f, 0xe1, 0x1f][..], &block(&usual(b"/x"))].concat();
    client.send(&frame(HEADERS, END_HEADERS, 99, &resized)).await;
    client.send(&body(99)).await;
    assert_ok(&client.answer(99).await, "resized");
}

#[tokio::test]
async fn padding_priority_and_continuation_come_through_byte_by_byte() {
    let server = Running::start(None).await;
    let mut client = server.connect().await;
    let block = block(&usual(b"/run/kms.sock"));
    let mut bytes = frame(0x77, 0xff, 0, b"a frame of a type that nobody knows");
    for (stream, cut) in [(1, 3), (3, 45), (5, block.len())] {
        let (head, tail) = block.split_at(cut);
        let padded = [&[4_u8][..], &[0, 0, 0, 0, 16], head, &[0; 4]].concat();
        bytes.extend(frame(HEADERS, PADDED | PRIORITY, stream, &padded));
        bytes.extend(frame(CONTINUATION, 0, stream, &[]));
        bytes.extend(frame(CONTINUATION, END_HEADERS, stream, tail));
        bytes.extend(body(stream));
    }
    for byte in bytes {
        client.send(&[byte]).await;
        tokio::task::yield_now().await;
    }
    for stream in [1, 3, 5] {
        assert_ok(&client.answer(stream).await, stream);
    }
}

#[tokio::test]
async fn a_hostile_connection_ends_and_disturbs_no_other() {
    let server = Running::start(None).await;
    let mut good = server.connect().await;
    let endless = frame(CONTINUATION, 0, 1, &[0; 16_384]);
    let hostile: [&[u8]; 5] = [
        &[frame(HEADERS, 0, 1, &[0; 16_384]), endless.clone(), endless].concat(),
        b"\xff\xff\xff\x01\x04\0\0\0\x01", // a giant frame
        &frame(HEADERS, END_HEADERS, 1, &[0xff; 64]), // a giant integer
        &frame(HEADERS, END_HEADERS, 1, &[0x41, 0x84, 0xff, 0xff, 0xff, 0xff]),
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\0\0\0\0", // TLS, where none is spoken
    ];
    for bytes in hostile {
        let mut client = server.connect().await;
        let _ = client.stream.write_all(bytes).await; // it may be cut off half-way
        client.wait_for_end().await;
    }
    good.send(&call(1, &usual(b"/run/kms.sock"))).await;
    assert_ok(&good.answer(1).await, "the connection that was open all the time");
}

#[tokio::test]
async fn a_peer_that_is_not_on_the_list_is_cut_off() {
    let us = rustix::process::geteuid().as_raw();
    let server = Running::start(Some(vec![us + 1])).await;
    let mut stream = UnixStream::connect(server.path()).await.unwrap();
    let read = tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("an end in time");
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn the_socket_goes_when_the_server_stops() {
    let mut server = Running::start(None).await;
    let path = server.path();
    assert!(path.exists());
    server.stop.cancel();
    tokio::time::timeout(PATIENCE, &mut server.task).await.expect("an end in time").unwrap();
    assert!(!path.exists());
}
