//! The `:authority` normaliser, on the bytes that a kube-apiserver sends.

use std::hint::black_box;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use criterion::{Criterion, Throughput};
use tokio::io::{AsyncRead, ReadBuf};
use vault_kms_proxy::listener::authority::Normalised;

const REQUESTS: u32 = 100;

/// What h2 reads at once.
const ROOM: usize = 8 * 1024;

/// A stored ciphertext with its KEK's name, in a gRPC message.
const MESSAGE: usize = 110;

/// Where the first request's fields are in the table that it leaves behind, newest first.
const TIMEOUT: u8 = 62;
const TE: u8 = 63;
const AGENT: u8 = 64;
const CONTENT: u8 = 65;
const AUTHORITY: u8 = 66;
const PATH: u8 = 67;

pub(crate) fn all(c: &mut Criterion) {
    let sound = connection("localhost", Repeats::Indexed);
    let path = connection("/run/vault-kms-proxy/kms.sock", Repeats::Indexed);
    let spelt = connection("/run/vault-kms-proxy/kms.sock", Repeats::Spelt);
    assert_eq!(through(&sound), sound, "a valid :authority passes as it came");
    for connection in [&path, &spelt] {
        let read = through(connection);
        assert!(!contains(&read, b"/run/"), "a path is rewritten wherever it is spelt out");
        assert!(contains(&read, b"/v1beta1.KeyManagementService/Decrypt"), "and nothing else");
    }

    let mut group = c.benchmark_group("normaliser");
    group.throughput(Throughput::Elements(REQUESTS.into()));
    group.bench_function("none", |b| b.iter(|| drain(&mut &sound[..])));
    for (name, connection) in [
        ("valid authority", &sound),
        ("socket path, indexed after the first", &path),
        ("socket path in every request", &spelt),
    ] {
        group.bench_function(name, |b| b.iter(|| drain(&mut Normalised::new(&connection[..]))));
    }
    group.finish();
}

/// How requests after the first send `:authority`.
#[derive(Clone, Copy, PartialEq)]
enum Repeats {
    /// By its place in the table, as Go does.
    Indexed,
    /// Anew, as gRPC's C core may.
    Spelt,
}

/// What a client sends on one connection.
fn connection(authority: &str, repeats: Repeats) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut bytes, 4, 0, 0, &[]);
    for number in 0..REQUESTS {
        let block = if number == 0 { first(authority) } else { later(authority, repeats) };
        let stream = 1 + 2 * number;
        frame(&mut bytes, 1, 0x4, stream, &block); // HEADERS, END_HEADERS
        frame(&mut bytes, 0, 0x1, stream, &[0; MESSAGE]); // DATA, END_STREAM
    }
    bytes
}

fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("a small frame");
    bytes.extend_from_slice(&length.to_be_bytes()[1..]);
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
}

/// `POST`, `http`, and literals that go into the table.
fn first(authority: &str) -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    for (named, value) in [
        (&[0x44][..], "/v1beta1.KeyManagementService/Decrypt"),
        (&[0x41], authority),
        (&[0x5f], "application/grpc"),
        (&[0x7a], "grpc-go/1.72.0"),
        (b"\x40\x02te", "trailers"),
        (b"\x40\x0cgrpc-timeout", "2999998u"),
    ] {
        literal(&mut block, named, value);
    }
    block
}

/// The same by their places, but for the time that is left.
fn later(authority: &str, repeats: Repeats) -> Vec<u8> {
    let mut block = vec![0x83, 0x86, 0x80 | PATH];
    match repeats {
        Repeats::Indexed => block.push(0x80 | AUTHORITY),
        Repeats::Spelt => literal(&mut block, &[0x01], authority),
    }
    block.extend_from_slice(&[0x80 | CONTENT, 0x80 | AGENT, 0x80 | TE]);
    // Not to go into the table; the name's place needs two bytes.
    literal(&mut block, &[0x0f, TIMEOUT - 0x0f], "2999713u");
    block
}

/// A field, not Huffman-coded.
fn literal(block: &mut Vec<u8>, named: &[u8], value: &str) {
    block.extend_from_slice(named);
    block.push(u8::try_from(value.len()).expect("a short value"));
    block.extend_from_slice(value.as_bytes());
}

fn through(connection: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    read_all(&mut Normalised::new(connection), |part| all.extend_from_slice(part));
    all
}

fn drain(stream: &mut (impl AsyncRead + Unpin)) {
    read_all(stream, |part| {
        black_box(part);
    });
}

fn read_all(stream: &mut (impl AsyncRead + Unpin), mut take: impl FnMut(&[u8])) {
    let mut context = Context::from_waker(Waker::noop());
    let mut room = [0; ROOM];
    loop {
        let mut buffer = ReadBuf::new(&mut room);
        match Pin::new(&mut *stream).poll_read(&mut context, &mut buffer) {
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => return,
            Poll::Ready(Ok(())) => take(buffer.filled()),
            other => panic!("bytes in memory are there at once: {other:?}"),
        }
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
