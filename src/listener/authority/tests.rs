use std::task::Waker;

use proptest::prelude::*;

use super::*;

mod client;
mod decoded;

use client::{Client, Connection, Indexing, NameForm, Style, frame};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The most that may be held back: a block, its frames' headers, and what one read brought.
const BOUND: usize = MAX_HEADER_BLOCK + 4 * 1024 + 9 + ROOM;

/// Room in the reader's buffer.
const ROOM: usize = 8 * 1024;

/// Input that comes in pieces of these sizes, over and over, and then ends or stays open.
struct Pieces {
    input: Vec<u8>,
    at: usize,
    sizes: Vec<usize>,
    turn: usize,
    stay_open: bool,
}

/// What comes out of the normaliser.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    out: Vec<u8>,
    error: Option<String>,
}

// === impl Pieces ===

impl Pieces {
    fn new(input: Vec<u8>, sizes: &[usize]) -> Self {
        Self { input, at: 0, sizes: sizes.to_vec(), turn: 0, stay_open: false }
    }
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.at == self.input.len() {
            return if self.stay_open { Poll::Pending } else { Poll::Ready(Ok(())) };
        }
        let size = self.sizes[self.turn % self.sizes.len()];
        self.turn += 1;
        let end = self.input.len().min(self.at + size.min(buf.remaining()));
        buf.put_slice(&self.input[self.at..end]);
        self.at = end;
        Poll::Ready(Ok(()))
    }
}

/// What the server writes is thrown away.
impl AsyncWrite for Pieces {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Reads to the end through the normaliser, and looks what it holds after every read.
fn normalise_all(input: &[u8], sizes: &[usize], room: usize) -> Outcome {
    let mut stream = Normalised::new(Pieces::new(input.to_vec(), sizes));
    let mut outcome = Outcome { out: Vec::new(), error: None };
    let mut memory = vec![0; room];
    loop {
        let mut buf = ReadBuf::new(&mut memory);
        let read =
            Pin::new(&mut stream).poll_read(&mut Context::from_waker(Waker::noop()), &mut buf);
        assert!(stream.held.len() <= BOUND, "holds {}", stream.held.len());
        assert!(stream.ready.len() <= 2 * BOUND, "ready {}", stream.ready.len());
        match read {
            Poll::Ready(Ok(())) if buf.filled().is_empty() => return outcome,
            Poll::Ready(Ok(())) => outcome.out.extend_from_slice(buf.filled()),
            Poll::Ready(Err(error)) => {
                outcome.error = Some(error.to_string());
                return outcome;
            }
            Poll::Pending => unreachable!("the input is never pending"),
        }
    }
}

/// One request as [`client`] writes it, plainly.
fn request(authority: &[u8], style: Style) -> Vec<u8> {
    let mut connection = Connection::default();
    connection.request(authority, style);
    connection.bytes
}

fn plain(indexing: Indexing, name: NameForm) -> Style {
    Style { indexing, name, huffman: false, whole: false }
}

#[test]
fn a_path_is_rewritten_to_the_same_length_in_the_same_representation() {
    let mut block = vec![0x83, 0x86, 0x41, 11];
    block.extend_from_slice(b"/run/x.sock\x44\x02/a");
    let mut input = PREFACE.to_vec();
    input.extend(frame(1, 0x5, 1, &block));
    let outcome = normalise_all(&input, &[usize::MAX], ROOM);
    let expected = String::from_utf8_lossy(&input).replace("/run/x.sock", "-run-x.sock");
    assert_eq!(String::from_utf8_lossy(&outcome.out), expected);
    assert_eq!(outcome.error, None);
}

#[test]
fn what_the_server_accepts_passes_byte_for_byte() {
    let good = ["localhost", "@name", "kms.example:443", "[::1]:8", "a%40b@c", "-run-x.sock"];
    for authority in good {
        for indexing in Indexing::ALL {
            for name in NameForm::ALL {
                for huffman in [false, true] {
                    let style = Style { indexing, name, huffman, whole: false };
                    let input = request(authority.as_bytes(), style);
                    for sizes in [&[usize::MAX][..], &[1], &[7, 2]] {
                        assert_eq!(normalise_all(&input, sizes, ROOM).out, input, "{authority}");
                    }
                }
            }
        }
    }
}

#[test]
fn nothing_is_copied_while_nothing_is_to_rewrite() {
    let mut connection = Connection::default();
    for _ in 0..10 {
        connection.request(b"localhost", plain(Indexing::Incremental, NameForm::Indexed));
        connection.bytes.extend(frame(0, 0, 1, &[7; 300]));
    }
    let mut stream = Normalised::new(Pieces::new(connection.bytes.clone(), &[usize::MAX]));
    let mut memory = vec![0; connection.bytes.len()];
    let mut buf = ReadBuf::new(&mut memory);
    let read = Pin::new(&mut stream).poll_read(&mut Context::from_waker(Waker::noop()), &mut buf);
    assert!(matches!(read, Poll::Ready(Ok(()))));
    assert_eq!(buf.filled(), connection.bytes);
    assert_eq!((stream.held.capacity(), stream.ready.capacity()), (0, 0));
}

#[test]
fn the_name_may_be_one_that_the_client_put_into_the_table_itself() {
    let mut client = Client::default();
    let mut first = vec![0x83, 0x86, 0x84];
    // A literal name goes into the table, then its place there names another value.
    client.field(&mut first, b":authority", b"good", plain(Indexing::Incremental, NameForm::Plain));
    let second = [&[0x83, 0x86, 0x84, 0x0f, 62 - 15, 6][..], b"/r/x.s"].concat();
    let mut input = PREFACE.to_vec();
    input.extend(frame(1, 0x5, 1, &first));
    input.extend(frame(1, 0x5, 3, &second));
    let out = normalise_all(&input, &[usize::MAX], ROOM).out;
    assert!(out.ends_with(b"-r-x.s"), "{}", out.escape_ascii());
}

#[test]
fn a_long_block_is_split_again_and_keeps_priority_and_end_of_stream() {
    let mut client = Client::default();
    let mut block = vec![0x83, 0x86, 0x84];
    let style = plain(Indexing::Without, NameForm::Indexed);
    client.field(&mut block, b":authority", b"/run/x.sock", style);
    client.field(&mut block, b"x-long", &[b'x'; 20_000], style);
    let priority = [0x80, 0, 0, 0, 15];
    let (head, tail) = block.split_at(10);
    let mut input = PREFACE.to_vec();
    // padded, with priority, end of stream, no end of headers
    let padded = [&[3][..], &priority, head, &[0; 3]].concat();
    input.extend(frame(1, 0x29, 1, &padded));
    input.extend(frame(9, 0x4, 1, tail));
    let out = normalise_all(&input, &[usize::MAX], ROOM).out;

    let first = &out[PREFACE.len()..];
    assert_eq!(first[..9], [0, 0x40, 0, 1, 0x21, 0, 0, 0, 1]);
    assert_eq!(first[9..14], priority);
    let second = &first[9 + 16_384..];
    let rest = block.len() + 5 - 16_384;
    assert_eq!(second[..9], [0, (rest >> 8) as u8, rest as u8, 9, 4, 0, 0, 0, 1]);
    assert_eq!(second.len(), 9 + rest);
    let rewritten = [&first[14..9 + 16_384], &second[9..]].concat();
    let expected = block.escape_ascii().to_string().replace("/run/x.sock", "-run-x.sock");
    assert_eq!(rewritten.escape_ascii().to_string(), expected);
}

#[test]
fn more_headers_than_any_client_sends_end_the_connection() {
    let big = [0; 16_384];
    let begin = [PREFACE, &frame(6, 0, 0, &[0; 8])].concat();
    let endless = [&begin[..], &frame(1, 0, 1, &big), &frame(9, 0, 1, &big).repeat(9)].concat();
    let empty = [&begin[..], &frame(1, 0, 1, &[]), &frame(9, 0, 1, &[]).repeat(9_000)].concat();
    let giant = [&begin[..], &[0xff, 0xff, 0xff, 1, 4, 0, 0, 0, 1], &[0; 99_999]].concat();
    for input in [endless, empty, giant] {
        for sizes in [&[usize::MAX][..], &[1]] {
            let outcome = normalise_all(&input, sizes, ROOM);
            assert_eq!(outcome.out, begin, "what came before goes on");
            assert_eq!(
                outcome.error.as_deref(),
                Some("a request's header block is longer than 32768 bytes")
            );
        }
    }
}

#[test]
fn what_is_malformed_goes_on_as_it_came_and_so_does_all_after_it() {
    let authority = [&[0x41, 11][..], b"/run/x.sock"].concat();
    let tail = frame(1, 0x5, 3, &authority);
    for malformed in [
        frame(1, 0x5, 1, &[&authority[..], &[0x80]].concat()), // index 0
        frame(1, 0x5, 1, &[&authority[..], &[0xbf, 0x80]].concat()), // beyond the table
        frame(1, 0x5, 1, &[&authority[..], &[0x20]].concat()), // resized too late
        frame(1, 0x5, 1, &[&[0x3f, 0xe2, 0x1f][..], &authority].concat()), // resized to 4,097
        frame(1, 0x5, 1, &authority[..9]),                     // cut
        frame(1, 0x5, 1, &[0x41, 0x84, 0xff, 0xff, 0xff, 0xff]), // the end symbol
        frame(1, 0xd, 1, &[&[200][..], &authority].concat()),  // more padding than payload
        frame(1, 0x25, 1, &[0; 4]),                            // no room for the priority
        [frame(1, 1, 1, &authority), frame(0, 0, 1, &[])].concat(), // not continued
        [frame(1, 1, 1, &authority), frame(9, 4, 5, &[])].concat(), // by another stream
        frame(9, 4, 1, &authority),                            // continues nothing
        frame(5, 4, 1, &authority),                            // a promise by a client
    ] {
        let input = [PREFACE, &malformed, &tail].concat();
        for sizes in [&[usize::MAX][..], &[1]] {
            let outcome = normalise_all(&input, sizes, ROOM);
            assert_eq!(outcome, Outcome { out: input.clone(), error: None });
        }
    }
    let other = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec();
    assert_eq!(normalise_all(&other, &[3], ROOM).out, other);
}

#[test]
fn a_peer_that_stops_in_the_middle_of_anything_is_left_to_the_server() {
    let style = plain(Indexing::Incremental, NameForm::Indexed);
    let input = request(b"/run/x.sock", style);
    for end in 0..input.len() {
        let outcome = normalise_all(&input[..end], &[5], ROOM);
        assert_eq!(outcome, Outcome { out: input[..end].to_vec(), error: None });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn random_bytes_never_panic_and_never_pile_up(
        bytes in proptest::collection::vec(any::<u8>(), 0..3_000),
        sizes in proptest::collection::vec(1_usize..600, 1..5),
    ) {
        normalise_all(&bytes, &sizes, ROOM);
        normalise_all(&[PREFACE, &bytes].concat(), &sizes, ROOM);
        let headers = [PREFACE, &frame(1, 0x5, 1, &bytes), &bytes].concat();
        normalise_all(&headers, &sizes, ROOM);
    }

    #[test]
    fn damaged_traffic_never_panics_and_reads_the_same_in_any_pieces(
        traffic in client::traffic(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        sizes in proptest::collection::vec(1_usize..600, 1..5),
        room in 1_usize..3_000,
    ) {
        let mut input = client::write(&traffic);
        for (place, byte) in damage {
            let place = place.index(input.len());
            input[place] = byte;
        }
        let whole = normalise_all(&input, &[usize::MAX], ROOM);
        prop_assert_eq!(&normalise_all(&input, &sizes, room), &whole);
        prop_assert_eq!(&normalise_all(&input, &[1], 1), &whole);
    }
}
