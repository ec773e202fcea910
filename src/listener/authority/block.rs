//! Finds `:authority` values in a header block, and rewrites those that have no form of an
//! authority (RFC 7541, section 6).

use http::uri::Authority;

use super::table::Table;
use super::wire::{Reader, write_string};

const NAME: &[u8] = b":authority";

/// Reads the header blocks of one connection, in their order.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    table: Table,
}

/// The block is not HPACK, or refers to what is not there. The server will say so; what
/// comes after it on this connection means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// A block with some values replaced.
#[derive(Debug, Default)]
struct Rewriting {
    out: Vec<u8>,
    /// How much of the block has been written.
    copied: usize,
}

// === impl Scanner ===

impl Scanner {
    /// The block to send on in the place of `block`; `None` when it is good as it is.
    pub(super) fn scan(&mut self, block: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
        self.try_scan(block).ok_or(Malformed)
    }

    fn try_scan(&mut self, block: &[u8]) -> Option<Option<Vec<u8>>> {
        let mut reader = Reader::new(block);
        let mut rewriting: Option<Rewriting> = None;
        let mut may_resize = true;
        while let Some(first) = reader.peek() {
            if first & 0x80 != 0 {
                // An entry that was good, or made good, when it came in.
                self.table.name(reader.integer(7)?)?;
            } else if first & 0xe0 == 0x20 {
                // Only at the beginning of a block.
                let size = reader.integer(5)?;
                may_resize.then(|| self.table.resize(size))??;
                continue;
            } else {
                let indexed = first & 0xc0 == 0x40;
                self.literal(block, &mut reader, indexed, &mut rewriting)?;
            }
            may_resize = false;
        }
        Some(rewriting.map(|r| r.finish(block)))
    }

    fn literal(
        &mut self,
        block: &[u8],
        reader: &mut Reader<'_>,
        indexed: bool,
        rewriting: &mut Option<Rewriting>,
    ) -> Option<()> {
        let index = reader.integer(if indexed { 6 } else { 4 })?;
        let name = if index == 0 {
            let name = reader.string()?;
            // A name is measured only when the table will hold it.
            let length = if indexed { name.decoded_len()? } else { 0 };
            super::table::Name { length, is_authority: name.decodes_to(NAME) }
        } else {
            self.table.name(index)?
        };

        let start = reader.position();
        let value = reader.string()?;
        if indexed {
            self.table.insert(name, value.decoded_len()?);
        }
        if name.is_authority {
            let mut text = value.decode()?.into_owned();
            if !text.is_empty() && Authority::try_from(text.as_slice()).is_err() {
                normalise(&mut text);
                let rewriting = rewriting.get_or_insert_default();
                rewriting.replace(block, start, reader.position(), &text);
            }
        }
        Some(())
    }
}

/// Leaves the length as it is, and nothing that an authority could not hold.
fn normalise(text: &mut [u8]) {
    for byte in text {
        if !byte.is_ascii_alphanumeric() && *byte != b'.' {
            *byte = b'-';
        }
    }
}

// === impl Rewriting ===

impl Rewriting {
    /// Writes the string `text` in the place of what is at `start..end`.
    fn replace(&mut self, block: &[u8], start: usize, end: usize, text: &[u8]) {
        self.out.extend_from_slice(&block[self.copied..start]);
        write_string(&mut self.out, text);
        self.copied = end;
    }

    fn finish(mut self, block: &[u8]) -> Vec<u8> {
        self.out.extend_from_slice(&block[self.copied..]);
        self.out
    }
}

#[cfg(test)]
mod tests {
    use super::super::huffman::encode;
    use super::*;

    fn scan(scanner: &mut Scanner, parts: &[&[u8]]) -> Option<Vec<u8>> {
        scanner.scan(&parts.concat()).unwrap()
    }

    #[test]
    fn the_table_counts_names_and_values_as_they_are_without_huffmans_code() {
        let mut scanner = Scanner::default();
        let (name, value) = (encode(b"x-name"), encode(b"00000000000000000000"));
        let lengths = [0x80 | name.len() as u8, 0x80 | value.len() as u8];
        scan(&mut scanner, &[&[0x40], &lengths[..1], &name, &lengths[1..], &value]);
        assert_eq!(scanner.table.size(), 6 + 20 + 32);
        scan(&mut scanner, &[&[0x7e], &lengths[1..], &value]);
        assert_eq!(scanner.table.size(), 2 * (6 + 20 + 32));
        // Not indexed: not counted.
        scan(&mut scanner, &[&[0x0f, 62 - 15], &lengths[1..], &value]);
        assert_eq!(scanner.table.size(), 2 * (6 + 20 + 32));
        scan(&mut scanner, &[b"\x41\x0b/run/x.sock"]);
        assert_eq!(scanner.table.size(), 2 * (6 + 20 + 32) + 10 + 11 + 32);
    }

    #[test]
    fn only_the_value_of_authority_is_looked_at() {
        let mut scanner = Scanner::default();
        assert_eq!(scan(&mut scanner, &[b"\x44\x02/a\0\x01x\x02/a\x0f\x17\x02/a"]), None);
        let rewritten = scan(&mut scanner, &[b"\x44\x02/a\x01\x02/a\0\x01x\x02/a"]);
        assert_eq!(rewritten.unwrap(), b"\x44\x02/a\x01\x02-a\0\x01x\x02/a");
    }

    #[test]
    fn an_empty_authority_is_left_to_the_server() {
        assert_eq!(scan(&mut Scanner::default(), &[b"\x41\0"]), None);
        assert_eq!(scan(&mut Scanner::default(), &[b"\x81"]), None);
    }
}
