//! HPACK's integers and strings (RFC 7541, section 5).

use std::borrow::Cow;

use super::huffman;

/// Octets of an integer beside its prefix. `h2` takes no more, and so no integer
/// overflows.
const MAX_INTEGER_OCTETS: u32 = 4;

/// Reads a header block from its beginning. Every method answers `None` for what is
/// malformed or cut off.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    block: &'a [u8],
    at: usize,
}

/// A string as it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Text<'a> {
    huffman: bool,
    sent: &'a [u8],
}

/// Writes a string literal, plainly: shorter is not worth the work.
pub(super) fn write_string(out: &mut Vec<u8>, text: &[u8]) {
    write_integer(out, 0, 7, text.len());
    out.extend_from_slice(text);
}

/// Writes an integer behind the bits that its first octet already has.
pub(super) fn write_integer(out: &mut Vec<u8>, first: u8, prefix_bits: u32, value: usize) {
    let max = (1_usize << prefix_bits) - 1;
    if value < max {
        out.push(first | value.to_le_bytes()[0]);
        return;
    }
    out.push(first | max.to_le_bytes()[0]);
    let mut rest = value - max;
    while rest >= 0x80 {
        out.push(rest.to_le_bytes()[0] | 0x80);
        rest >>= 7;
    }
    out.push(rest.to_le_bytes()[0]);
}

// === impl Reader ===

impl<'a> Reader<'a> {
    pub(super) const fn new(block: &'a [u8]) -> Self {
        Self { block, at: 0 }
    }

    pub(super) const fn position(&self) -> usize {
        self.at
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.block.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    /// An integer in the lowest `prefix_bits` of this octet and in those that follow.
    pub(super) fn integer(&mut self, prefix_bits: u32) -> Option<usize> {
        let max = (1_usize << prefix_bits) - 1;
        let mut value = usize::from(self.next()?) & max;
        if value < max {
            return Some(value);
        }
        for octet in 0..MAX_INTEGER_OCTETS {
            let byte = self.next()?;
            value += usize::from(byte & 0x7f) << (7 * octet);
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    pub(super) fn string(&mut self) -> Option<Text<'a>> {
        let huffman = self.peek()? & 0x80 != 0;
        let length = self.integer(7)?;
        let sent = self.block[self.at..].get(..length)?;
        self.at += length;
        Some(Text { huffman, sent })
    }
}

// === impl Text ===

impl<'a> Text<'a> {
    /// How long it is without Huffman's code.
    pub(super) fn decoded_len(self) -> Option<usize> {
        if !self.huffman {
            return Some(self.sent.len());
        }
        let mut length = 0;
        huffman::decode(self.sent, |_| length += 1)?;
        Some(length)
    }

    /// Its bytes.
    pub(super) fn decode(self) -> Option<Cow<'a, [u8]>> {
        if !self.huffman {
            return Some(Cow::Borrowed(self.sent));
        }
        let mut text = Vec::with_capacity(2 * self.sent.len());
        huffman::decode(self.sent, |byte| text.push(byte))?;
        Some(Cow::Owned(text))
    }

    /// Whether its bytes are `text`.
    pub(super) fn decodes_to(self, text: &[u8]) -> bool {
        if !self.huffman {
            return self.sent == text;
        }
        // Each byte takes 5 to 30 bits, so a text much shorter or longer is not decoded.
        let bits = 8 * self.sent.len();
        (5 * text.len()..=30 * text.len() + 7).contains(&bits)
            && self.decode().is_some_and(|decoded| decoded == text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_those_of_rfc_7541_c_1() {
        for (bits, value, octets) in
            [(5, 10, &[10_u8][..]), (5, 1_337, &[31, 154, 10]), (8, 42, &[42])]
        {
            let mut written = Vec::new();
            write_integer(&mut written, 0, bits, value);
            assert_eq!(written, octets);
            assert_eq!(Reader::new(octets).integer(bits), Some(value));
        }
    }

    #[test]
    fn an_integer_survives_at_every_edge() {
        for bits in 4..=7 {
            for value in [0, 1, 14, 15, 16, 126, 127, 128, 254, 255, 16_384, 1 << 20, 1 << 27] {
                let mut written = Vec::new();
                write_integer(&mut written, 0, bits, value);
                let mut reader = Reader::new(&written);
                assert_eq!((reader.integer(bits), reader.peek()), (Some(value), None));
                written.pop();
                assert_eq!(Reader::new(&written).integer(bits), None);
            }
        }
    }

    #[test]
    fn giant_integers_and_cut_strings_are_malformed() {
        assert_eq!(Reader::new(&[0x7f; 64]).integer(7), Some(0x7f + 0x7f));
        assert_eq!(Reader::new(&[0xff; 64]).integer(7), None);
        assert_eq!(Reader::new(&[0xff; 64]).string(), None);
        assert_eq!(Reader::new(&[0x7f, 0xff, 0xff, 0xff, 0x7f, b'a']).string(), None);
        assert_eq!(Reader::new(&[2, b'a']).string(), None);
        assert_eq!(Reader::new(&[]).string(), None);
    }
}
