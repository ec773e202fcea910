//! Makes the `:authority` of old kube-apiservers one that the server accepts.
//!
//! kube-apiserver's KMS v1 client, and its v2 client before Kubernetes 1.32, send the
//! socket's path as `:authority`: `/run/kms.sock` or `%2Frun%2Fkms.sock`. The `h2` crate
//! takes neither for an authority and resets the stream before any service sees the call.
//! [`Normalised`] stands between the socket and the server and rewrites such a value:
//! every byte outside `[A-Za-z0-9.]` becomes `-`.
//!
//! The value keeps its *decoded* length, and its field keeps its kind of indexing and the
//! form of its name. HPACK counts decoded lengths, so the client's table and the server's
//! evict the same entries at the same time, and every later reference means the same on
//! both sides. So nothing but that value is ever written anew: the server's own decoder
//! remains the only one whose opinion counts, and what it would refuse is passed on to it
//! as it came. A header block without such a value passes byte for byte, in the buffer
//! that it was read into.
//!
//! * `frames` finds the header blocks in the byte stream;
//! * `block` finds the value in a header block;
//! * `table` shadows the dynamic table, as far as that needs it;
//! * `wire` and `huffman` read HPACK's integers and strings.

mod block;
mod frames;
mod huffman;
mod table;
mod wire;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::frames::{Frames, HeaderBlockTooLarge, Step};
use crate::telemetry::metrics::{Metric, add};

/// The longest header block that is taken in; a longer one ends the connection.
pub const MAX_HEADER_BLOCK: usize = 32 * 1024;

/// A stream whose read side has no `:authority` that the server would refuse for its form.
#[derive(Debug)]
pub struct Normalised<S> {
    stream: S,
    frames: Frames,
    /// The beginning of a frame header or header block whose end has not come yet.
    held: BytesMut,
    /// How long `held` must be before it is worth another look.
    wait_for: usize,
    /// Bytes that the reader may have, before anything new is read.
    ready: BytesMut,
    end: Option<End>,
    rewritten: bool,
}

/// Why nothing more is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The peer has closed its side.
    Eof,
    /// The peer sends more headers than any client needs.
    TooLarge,
}

// === impl Normalised ===

impl<S> Normalised<S> {
    /// Wraps the server's side of a connection, before anything was read from it.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            frames: Frames::new(),
            held: BytesMut::new(),
            wait_for: 0,
            ready: BytesMut::new(),
            end: None,
            rewritten: false,
        }
    }

    /// Sorts what was read: says how many bytes at its beginning may stay where they are,
    /// and puts what comes after them into `ready` and `held`.
    fn sort(&mut self, bytes: &[u8]) -> usize {
        let mut stay = None; // where the first replacement begins
        let mut at = 0;
        while at < bytes.len() {
            match self.frames.step(&bytes[at..]) {
                Ok(Step::Pass(length)) => {
                    if stay.is_some() {
                        self.ready.extend_from_slice(&bytes[at..at + length]);
                    }
                    at += length;
                }
                Ok(Step::Replace { length, frames }) => {
                    stay.get_or_insert(at);
                    self.ready.extend_from_slice(&frames);
                    at += length;
                    self.count();
                }
                Ok(Step::Wait(length)) => {
                    self.held.extend_from_slice(&bytes[at..]);
                    self.wait_for = length;
                    break;
                }
                Err(HeaderBlockTooLarge) => {
                    tracing::warn!("Ending a connection: {HeaderBlockTooLarge}.");
                    self.end = Some(End::TooLarge);
                    break;
                }
            }
        }
        stay.unwrap_or(at)
    }

    fn sort_held(&mut self) {
        let mut held = std::mem::take(&mut self.held);
        let stay = self.sort(&held);
        if stay > 0 {
            held.truncate(stay);
            held.extend_from_slice(&self.ready);
            self.ready = held;
        }
    }

    fn count(&mut self) {
        add(Metric::AuthoritiesRewritten, 1, &[]);
        if !self.rewritten {
            self.rewritten = true;
            tracing::debug!("The peer sends the socket's path as :authority; it is rewritten.");
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Normalised<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if !this.ready.is_empty() {
                let length = this.ready.len().min(buf.remaining());
                buf.put_slice(&this.ready[..length]);
                this.ready.advance(length);
                if this.ready.is_empty() {
                    this.ready = BytesMut::new(); // an idle connection keeps no buffer
                }
                return Poll::Ready(Ok(()));
            }
            match this.end {
                Some(End::Eof) => return Poll::Ready(Ok(())),
                Some(End::TooLarge) => {
                    let error = io::Error::new(io::ErrorKind::InvalidData, HeaderBlockTooLarge);
                    return Poll::Ready(Err(error));
                }
                None => {}
            }
            let start = buf.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
            let read = &buf.filled()[start..];
            if read.is_empty() {
                // What never came to its end is for the server to judge.
                this.ready = std::mem::take(&mut this.held);
                this.end = Some(End::Eof);
            } else if this.held.is_empty() {
                let stay = this.sort(read);
                buf.set_filled(start + stay);
                if stay > 0 {
                    return Poll::Ready(Ok(()));
                }
            } else {
                // The reader's buffer lends its room; what is read belongs behind `held`.
                this.held.extend_from_slice(read);
                buf.set_filled(start);
                if this.held.len() >= this.wait_for {
                    this.sort_held();
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Normalised<S> {
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

#[cfg(test)]
mod tests;
