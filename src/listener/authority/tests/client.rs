//! An HTTP/2 client that writes whatever HPACK and the frames allow.

use std::collections::VecDeque;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::huffman;
use super::super::wire::{write_integer, write_string};
use super::PREFACE;

/// How one field is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) indexing: Indexing,
    pub(super) name: NameForm,
    /// The value in Huffman's code.
    pub(super) huffman: bool,
    /// As an indexed field, where the table holds it whole.
    pub(super) whole: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Indexing {
    Incremental,
    Without,
    Never,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NameForm {
    /// By the lowest index, or plainly where the tables do not hold it.
    Indexed,
    /// By the highest index: in the dynamic table, if it is there.
    IndexedLast,
    Plain,
    Huffman,
}

/// The client's side of the dynamic table.
pub(super) struct Client {
    table: VecDeque<(Vec<u8>, Vec<u8>)>,
    max_size: usize,
}

/// One connection from its preface.
pub(super) struct Connection {
    pub(super) bytes: Vec<u8>,
    client: Client,
    next_stream: u32,
}

/// One request and how it is written.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) authority: Vec<u8>,
    pub(super) headers: Vec<(&'static str, String)>,
    styles: Vec<Style>,
    resizes: Vec<usize>,
    padding: Option<u8>,
    priority: bool,
    cuts: Vec<prop::sample::Index>,
    before: Vec<Other>,
}

/// Frames that are none of the normaliser's.
#[derive(Clone, Debug)]
enum Other {
    Ping,
    WindowUpdate,
    Priority,
    Unknown(Vec<u8>),
}

const STATIC: [(&[u8], &[u8]); 8] = [
    (b":authority", b""),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":scheme", b"http"),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"te", b""),
    (b"user-agent", b""),
];
const STATIC_INDEX: [usize; 8] = [1, 3, 4, 6, 31, 32, 0, 58];

/// One frame.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The bytes of a connection that sends these requests.
pub(super) fn write(requests: &[Request]) -> Vec<u8> {
    let mut connection = Connection::default();
    for request in requests {
        connection.write(request);
    }
    connection.bytes
}

// === impl Indexing, NameForm ===

impl Indexing {
    pub(super) const ALL: [Self; 3] = [Self::Incremental, Self::Without, Self::Never];
}

impl NameForm {
    pub(super) const ALL: [Self; 4] =
        [Self::Indexed, Self::IndexedLast, Self::Plain, Self::Huffman];
}

// === impl Client ===

impl Default for Client {
    fn default() -> Self {
        Self { table: VecDeque::new(), max_size: 4_096 }
    }
}

impl Client {
    pub(super) fn resize(&mut self, block: &mut Vec<u8>, max_size: usize) {
        write_integer(block, 0x20, 5, max_size);
        self.max_size = max_size;
        self.evict(0);
    }

    pub(super) fn field(&mut self, block: &mut Vec<u8>, name: &[u8], value: &[u8], style: Style) {
        if style.whole
            && let Some(index) = self.indices(|n, v| (n, v) == (name, value)).next()
        {
            return write_integer(block, 0x80, 7, index);
        }
        let index = match style.name {
            NameForm::Indexed => self.indices(|n, _| n == name).next(),
            NameForm::IndexedLast => self.indices(|n, _| n == name).last(),
            NameForm::Plain | NameForm::Huffman => None,
        };
        let (first, bits) = match style.indexing {
            Indexing::Incremental => (0x40, 6),
            Indexing::Without => (0, 4),
            Indexing::Never => (0x10, 4),
        };
        write_integer(block, first, bits, index.unwrap_or(0));
        if index.is_none() {
            string(block, name, style.name == NameForm::Huffman);
        }
        string(block, value, style.huffman);
        if style.indexing == Indexing::Incremental {
            let size = name.len() + value.len() + 32;
            self.evict(size);
            if size <= self.max_size {
                self.table.push_front((name.to_vec(), value.to_vec()));
            }
        }
    }

    /// The indices whose entries match.
    fn indices(
        &self,
        matches: impl Fn(&[u8], &[u8]) -> bool + Copy,
    ) -> impl Iterator<Item = usize> {
        let fixed = STATIC.iter().zip(STATIC_INDEX);
        let fixed = fixed.filter(move |((n, v), i)| *i > 0 && matches(n, v)).map(|(_, i)| i);
        let own = self.table.iter().enumerate();
        fixed.chain(own.filter(move |(_, (n, v))| matches(n, v)).map(|(i, _)| 62 + i))
    }

    fn evict(&mut self, room: usize) {
        let size = |(n, v): &(Vec<u8>, Vec<u8>)| n.len() + v.len() + 32;
        while !self.table.is_empty()
            && self.table.iter().map(size).sum::<usize>() + room > self.max_size
        {
            self.table.pop_back();
        }
    }
}

fn string(block: &mut Vec<u8>, text: &[u8], huffman: bool) {
    if huffman {
        let sent = huffman::encode(text);
        write_integer(block, 0x80, 7, sent.len());
        block.extend(sent);
    } else {
        write_string(block, text);
    }
}

// === impl Connection ===

impl Default for Connection {
    fn default() -> Self {
        let bytes = [PREFACE, &frame(4, 0, 0, &[])].concat();
        Self { bytes, client: Client::default(), next_stream: 1 }
    }
}

impl Connection {
    /// A request in one frame.
    pub(super) fn request(&mut self, authority: &[u8], style: Style) {
        self.write(&Request {
            authority: authority.to_vec(),
            headers: Vec::new(),
            styles: vec![style],
            resizes: Vec::new(),
            padding: None,
            priority: false,
            cuts: Vec::new(),
            before: Vec::new(),
        });
    }

    fn write(&mut self, request: &Request) {
        let stream = self.next_stream;
        self.next_stream += 2;
        for other in &request.before {
            self.bytes.extend(other.frame());
        }
        let mut block = Vec::new();
        for size in &request.resizes {
            self.client.resize(&mut block, *size);
        }
        let mut styles = request.styles.iter().copied().cycle();
        let pseudo: [(&[u8], &[u8]); 4] = [
            (b":method", b"POST"),
            (b":authority", &request.authority),
            (b":scheme", b"http"),
            (b":path", b"/v2.KeyManagementService/Status"),
        ];
        let headers = request.headers.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes()));
        for (name, value) in pseudo.into_iter().chain(headers) {
            let style = styles.next().expect("there is at least one style");
            self.client.field(&mut block, name, value, style);
        }
        self.frames(stream, &block, request);
    }

    fn frames(&mut self, stream: u32, block: &[u8], request: &Request) {
        let mut cuts: Vec<usize> =
            request.cuts.iter().map(|cut| cut.index(block.len() + 1)).collect();
        // Fragments of at most what every receiver takes, less padding and priority.
        cuts.extend((0..=block.len()).step_by(16_000).skip(1));
        cuts.push(block.len());
        cuts.sort_unstable();
        let mut from = 0;
        for (number, cut) in cuts.iter().enumerate() {
            let end_headers = if number + 1 == cuts.len() { 0x4 } else { 0 };
            let fragment = &block[from..*cut];
            from = *cut;
            if number > 0 {
                self.bytes.extend(frame(9, end_headers, stream, fragment));
                continue;
            }
            let padding = request.padding.map(|p| (vec![p], vec![0; usize::from(p)]));
            let (before, after) = padding.unwrap_or_default();
            let priority: &[u8] = if request.priority { &[0, 0, 0, 0, 200] } else { &[] };
            let flags = 0x1
                | end_headers
                | if request.padding.is_some() { 0x8 } else { 0 }
                | if request.priority { 0x20 } else { 0 };
            let payload = [&before, priority, fragment, &after].concat();
            self.bytes.extend(frame(1, flags, stream, &payload));
        }
    }
}

// === impl Other ===

impl Other {
    fn frame(&self) -> Vec<u8> {
        match self {
            Self::Ping => frame(6, 0, 0, &[1; 8]),
            Self::WindowUpdate => frame(8, 0, 0, &[0, 0, 0, 9]),
            Self::Priority => frame(2, 0, 99, &[0, 0, 0, 0, 9]),
            Self::Unknown(payload) => frame(0xee, 0xff, 3, payload),
        }
    }
}

// === strategies ===

fn style() -> impl Strategy<Value = Style> {
    let indexing = prop::sample::select(Indexing::ALL.to_vec());
    let name = prop::sample::select(NameForm::ALL.to_vec());
    (indexing, name, any::<bool>(), any::<bool>())
        .prop_map(|(indexing, name, huffman, whole)| Style { indexing, name, huffman, whole })
}

fn authority() -> impl Strategy<Value = Vec<u8>> {
    let known = ["/run/kms.sock", "%2Frun%2Fkms.sock", "@name", "localhost", "/a", "kms:443", "@"];
    prop_oneof![
        4 => prop::sample::select(known.to_vec()).prop_map(|text| text.as_bytes().to_vec()),
        2 => "[!-~]{1,60}".prop_map(String::into_bytes),
        1 => "/[a-z/]{1,3000}".prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 1..40),
    ]
}

fn headers() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let name =
        prop::sample::select(vec!["user-agent", "content-type", "grpc-timeout", "cookie", "x"]);
    let value = prop_oneof![6 => "[ -~]{0,40}", 1 => "[ -~]{1000,3000}"];
    vec((name, value), 0..6)
}

fn other() -> impl Strategy<Value = Other> {
    prop_oneof![
        Just(Other::Ping),
        Just(Other::WindowUpdate),
        Just(Other::Priority),
        vec(any::<u8>(), 0..300).prop_map(Other::Unknown),
    ]
}

/// The requests of one connection.
pub(super) fn traffic() -> impl Strategy<Value = Vec<Request>> {
    let size = prop::sample::select(vec![0_usize, 42, 60, 100, 300, 4_096]);
    let request = (
        authority(),
        headers(),
        vec(style(), 1..12),
        vec(size, 0..2),
        proptest::option::weighted(0.3, any::<u8>()),
        any::<bool>(),
        vec(any::<prop::sample::Index>(), 0..4),
        vec(other(), 0..3),
    );
    let request = request.prop_map(
        |(authority, headers, styles, resizes, padding, priority, cuts, before)| Request {
            authority,
            headers,
            styles,
            resizes,
            padding,
            priority,
            cuts,
            before,
        },
    );
    vec(request, 1..8)
}
