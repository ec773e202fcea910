//! HPACK's Huffman code (RFC 7541, section 5.2 and appendix B), read only.
//!
//! The code is canonical: among codes of one length, higher symbols have higher codes, and
//! a longer code begins above all shorter ones. So the lengths of the codes say
//! everything, and a symbol is found by counting.

/// The code's end: it may not appear, but its first bits fill up the last octet.
const EOS: u16 = 256;

const SYMBOLS: usize = 257;
const LONGEST: usize = 30;

/// Length of each symbol's code, in bits.
#[rustfmt::skip] // sixteen in a row, so that a symbol is found by its digits
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
     6, 10, 10, 12, 13,  6,  8, 11, 10, 10,  8, 11,  8,  6,  6,  6,
     5,  5,  5,  6,  6,  6,  6,  6,  6,  6,  7,  8, 15,  6, 12, 10,
    13,  6,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,  7,
     7,  7,  7,  7,  7,  7,  7,  7,  8,  7,  8, 13, 19, 13, 14,  6,
    15,  5,  6,  5,  6,  5,  6,  6,  6,  5,  7,  7,  6,  6,  6,  5,
     6,  7,  6,  5,  5,  6,  7,  7,  7,  7,  7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// The codes of one length.
#[derive(Clone, Copy)]
struct Row {
    /// The lowest code.
    first_code: u32,
    /// How many there are.
    count: u32,
    /// Where their symbols begin in [`BY_CODE`].
    begin: u32,
}

/// The codes by their length.
const ROWS: [Row; LONGEST + 1] = rows();

/// The symbols, in the order of their codes.
const BY_CODE: [u16; SYMBOLS] = by_code();

const fn rows() -> [Row; LONGEST + 1] {
    let mut rows = [Row { first_code: 0, count: 0, begin: 0 }; LONGEST + 1];
    let mut symbol = 0;
    while symbol < SYMBOLS {
        rows[LENGTHS[symbol] as usize].count += 1;
        symbol += 1;
    }
    let mut length = 1;
    while length <= LONGEST {
        let shorter = rows[length - 1];
        rows[length].first_code = (shorter.first_code + shorter.count) << 1;
        rows[length].begin = shorter.begin + shorter.count;
        length += 1;
    }
    // Every sequence of bits is a code or the beginning of one.
    assert!(rows[LONGEST].first_code + rows[LONGEST].count == 1 << LONGEST);
    rows
}

const fn by_code() -> [u16; SYMBOLS] {
    let mut sorted = [0; SYMBOLS];
    let mut at = 0;
    let mut length = 1;
    while length <= LONGEST {
        let mut symbol = 0;
        while symbol < SYMBOLS {
            if LENGTHS[symbol] as usize == length {
                sorted[at] = symbol as u16;
                at += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    sorted
}

/// Calls `each` for every byte of the text; `None` when `sent` is not in the code, and
/// then the bytes so far mean nothing.
pub(super) fn decode(sent: &[u8], mut each: impl FnMut(u8)) -> Option<()> {
    let mut code = 0_u32;
    let mut length = 0;
    for byte in sent {
        for bit in (0..8).rev() {
            code = code << 1 | u32::from(byte >> bit & 1);
            length += 1;
            let row = ROWS.get(length)?;
            if let Some(offset) = code.checked_sub(row.first_code)
                && offset < row.count
            {
                match BY_CODE[(row.begin + offset) as usize] {
                    EOS => return None,
                    symbol => each(symbol.to_le_bytes()[0]),
                }
                (code, length) = (0, 0);
            }
        }
    }
    let filled_up_with_ones = length < 8 && code == (1 << length) - 1;
    filled_up_with_ones.then_some(())
}

/// What [`decode`] reads, for tests.
#[cfg(test)]
pub(super) fn encode(text: &[u8]) -> Vec<u8> {
    let mut bits = String::new();
    for symbol in text {
        let length = usize::from(LENGTHS[usize::from(*symbol)]);
        let row = ROWS[length];
        let begin = row.begin as usize;
        let place = BY_CODE[begin..].iter().position(|s| *s == u16::from(*symbol)).unwrap();
        let code = row.first_code + u32::try_from(place).unwrap();
        bits.push_str(&format!("{code:0length$b}"));
    }
    while !bits.len().is_multiple_of(8) {
        bits.push('1');
    }
    bits.as_bytes()
        .chunks(8)
        .map(|octet| u8::from_str_radix(std::str::from_utf8(octet).unwrap(), 2).unwrap())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(sent: &[u8]) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        decode(sent, |byte| text.push(byte))?;
        Some(text)
    }

    #[test]
    fn the_examples_of_rfc_7541_c_4_and_c_6_decode() {
        for (sent, text) in [
            ("f1e3c2e5f23a6ba0ab90f4ff", "www.example.com"),
            ("a8eb10649cbf", "no-cache"),
            ("25a849e95bb8e8b4bf", "custom-value"),
            ("d07abe941054d444a8200595040b8166e082a62d1bff", "Mon, 21 Oct 2013 20:13:21 GMT"),
        ] {
            assert_eq!(decoded(&hex::decode(sent).unwrap()).unwrap(), text.as_bytes());
            assert_eq!(hex::encode(encode(text.as_bytes())), sent);
        }
    }

    #[test]
    fn every_byte_has_its_code() {
        let text: Vec<u8> = (0..=255).collect();
        assert_eq!(decoded(&encode(&text)).unwrap(), text);
    }

    #[test]
    fn bad_padding_and_the_end_symbol_are_malformed() {
        assert_eq!(decoded(&[]), Some(Vec::new()));
        assert_eq!(decoded(&[0xff]), None, "eight bits of padding");
        assert_eq!(decoded(&[0xff; 4]), None, "the end symbol");
        assert_eq!(decoded(&[0x1f]), Some(b"a".to_vec()));
        assert_eq!(decoded(&[0x1e]), None, "padding that is not all ones");
    }

    proptest! {
        #[test]
        fn an_independent_decoder_agrees_about_any_bytes(sent: Vec<u8>) {
            let theirs = loona_hpack::huffman::HuffmanDecoder::new().decode(&sent).ok();
            prop_assert_eq!(decoded(&sent), theirs);
        }

        #[test]
        fn an_independent_decoder_agrees_about_any_text(text: Vec<u8>) {
            let theirs = loona_hpack::huffman::HuffmanDecoder::new().decode(&encode(&text));
            prop_assert_eq!(theirs.unwrap(), text);
        }
    }
}
