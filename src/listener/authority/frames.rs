//! Finds the header blocks in what an HTTP/2 client sends (RFC 9113, sections 3.4 and 4).

use super::MAX_HEADER_BLOCK;
use super::block::{Malformed, Scanner};

/// What every client sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Length of a frame's header.
const HEAD: usize = 9;

/// Payload of the frames that are written here: what every receiver must accept.
const MAX_PAYLOAD: usize = 16_384;

/// Frame headers of one header block. Together with [`MAX_HEADER_BLOCK`] it bounds what
/// a connection can make us hold; far more than `h2` tolerates of CONTINUATION frames.
const MAX_FRAMING: usize = 4 * 1024;

const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// Where a connection is.
#[derive(Debug)]
pub(super) struct Frames {
    state: State,
    scanner: Scanner,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the preface, of which so much has passed.
    Preface(usize),
    /// Before a frame.
    Frame,
    /// In the payload of a frame that is none of ours, of which so much is left.
    Payload(usize),
    /// Beyond an error after which the server ends the connection: all passes.
    Lost,
}

/// What to do with the bytes that were shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// So many at the beginning, at least one, go on as they are.
    Pass(usize),
    /// Show the same bytes again when there are at least so many.
    Wait(usize),
    /// These frames take the place of so many bytes at the beginning.
    Replace { length: usize, frames: Vec<u8> },
}

/// A header block, or its frames, are longer than any client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request's header block is longer than {MAX_HEADER_BLOCK} bytes")]
pub(super) struct HeaderBlockTooLarge;

#[derive(Clone, Copy, Debug)]
struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    /// With the reserved bit, as it came.
    stream: [u8; 4],
}

/// A HEADERS frame's payload, taken apart.
struct Payload<'a> {
    priority: &'a [u8],
    fragment: &'a [u8],
}

// === impl Frames ===

impl Frames {
    pub(super) fn new() -> Self {
        Self { state: State::Preface(0), scanner: Scanner::default() }
    }

    /// Decides about the beginning of `bytes`, which are not empty.
    pub(super) fn step(&mut self, bytes: &[u8]) -> Result<Step, HeaderBlockTooLarge> {
        match self.state {
            State::Preface(passed) => {
                let length = bytes.len().min(PREFACE.len() - passed);
                let end = passed + length;
                self.state = if bytes[..length] != PREFACE[passed..end] {
                    State::Lost
                } else if end == PREFACE.len() {
                    State::Frame
                } else {
                    State::Preface(end)
                };
                Ok(Step::Pass(length))
            }
            State::Frame => {
                let Some(head) = Head::read(bytes) else { return Ok(Step::Wait(HEAD)) };
                match head.kind {
                    HEADERS => self.header_block(bytes, head),
                    // A client may not send these here, and they would carry HPACK.
                    PUSH_PROMISE | CONTINUATION => Ok(self.lose(bytes.len())),
                    _ => {
                        self.enter_payload(head.length);
                        Ok(Step::Pass(HEAD))
                    }
                }
            }
            State::Payload(left) => {
                let length = bytes.len().min(left);
                self.enter_payload(left - length);
                Ok(Step::Pass(length))
            }
            State::Lost => Ok(Step::Pass(bytes.len())),
        }
    }

    const fn enter_payload(&mut self, left: usize) {
        self.state = if left == 0 { State::Frame } else { State::Payload(left) };
    }

    const fn lose(&mut self, length: usize) -> Step {
        self.state = State::Lost;
        Step::Pass(length)
    }

    /// Decides about a whole header block: a HEADERS frame and what continues it.
    fn header_block(&mut self, bytes: &[u8], first: Head) -> Result<Step, HeaderBlockTooLarge> {
        let mut continued = Vec::new();
        let mut head = first;
        let mut end = HEAD + first.length;
        let mut carried = first.length;
        loop {
            if carried > MAX_HEADER_BLOCK || end - carried > MAX_FRAMING {
                return Err(HeaderBlockTooLarge);
            }
            if bytes.len() < end {
                return Ok(Step::Wait(end));
            }
            if head.flags & END_HEADERS != 0 {
                break;
            }
            let Some(next) = Head::read(&bytes[end..]) else { return Ok(Step::Wait(end + HEAD)) };
            if next.kind != CONTINUATION || next.stream != first.stream {
                return Ok(self.lose(bytes.len()));
            }
            continued.push(end + HEAD..end + HEAD + next.length);
            end += HEAD + next.length;
            carried += next.length;
            head = next;
        }

        let Some(payload) = Payload::read(&bytes[HEAD..HEAD + first.length], first.flags) else {
            return Ok(self.lose(end));
        };
        let joined;
        let block = if continued.is_empty() {
            payload.fragment
        } else {
            let rest = continued.into_iter().map(|range| &bytes[range]);
            joined = std::iter::once(payload.fragment).chain(rest).collect::<Vec<_>>().concat();
            &joined
        };
        match self.scanner.scan(block) {
            Ok(None) => Ok(Step::Pass(end)),
            Ok(Some(block)) => {
                Ok(Step::Replace { length: end, frames: write(first, payload.priority, &block) })
            }
            Err(Malformed) => Ok(self.lose(end)),
        }
    }
}

/// Writes a header block in as few frames as it takes, without padding.
fn write(first: Head, priority: &[u8], block: &[u8]) -> Vec<u8> {
    let mut frames = Vec::with_capacity(block.len() + priority.len() + 4 * HEAD);
    let (mut fragment, mut rest) = block.split_at(block.len().min(MAX_PAYLOAD - priority.len()));
    let mut head = Head {
        length: priority.len() + fragment.len(),
        flags: first.flags & (END_STREAM | PRIORITY),
        ..first
    };
    let mut before = priority;
    loop {
        if rest.is_empty() {
            head.flags |= END_HEADERS;
        }
        head.write(&mut frames);
        frames.extend_from_slice(before);
        frames.extend_from_slice(fragment);
        if rest.is_empty() {
            return frames;
        }
        before = &[];
        (fragment, rest) = rest.split_at(rest.len().min(MAX_PAYLOAD));
        head = Head { length: fragment.len(), kind: CONTINUATION, flags: 0, ..first };
    }
}

// === impl Head ===

impl Head {
    fn read(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, kind, flags, stream @ ..] = *bytes.first_chunk::<HEAD>()?;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        Some(Self { length, kind, flags, stream })
    }

    fn write(self, out: &mut Vec<u8>) {
        let length = u32::try_from(self.length).expect("a payload has at most 16,384 bytes");
        out.extend_from_slice(&length.to_be_bytes()[1..]);
        out.extend_from_slice(&[self.kind, self.flags]);
        out.extend_from_slice(&self.stream);
    }
}

// === impl Payload ===

impl<'a> Payload<'a> {
    /// `None` when the padding or the priority do not fit.
    fn read(payload: &'a [u8], flags: u8) -> Option<Self> {
        let (padding, payload) = if flags & PADDED == 0 {
            (0, payload)
        } else {
            let (padding, payload) = payload.split_first()?;
            (usize::from(*padding), payload)
        };
        let priority = if flags & PRIORITY == 0 { 0 } else { 5 };
        let (priority, payload) = payload.split_at_checked(priority)?;
        let fragment = &payload[..payload.len().checked_sub(padding)?];
        Some(Self { priority, fragment })
    }
}
