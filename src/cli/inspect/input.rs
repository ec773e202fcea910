//! Finds the value in what people have at hand: its bytes, a listing of them in hex, or all
//! that etcdctl printed.

use std::io::{self, Read};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::stored::{Damage, Kms, Value};

/// etcd holds values of 1.5 MiB unless it is told otherwise; a listing takes five times that.
const MAX_BYTES: u64 = 32 << 20;

/// A value, and its key where that was printed too.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Input {
    /// The key in etcd.
    pub(super) key: Option<String>,
    /// What etcd holds there.
    pub(super) value: Vec<u8>,
}

/// Why there is no value to look at.
#[derive(Debug, thiserror::Error)]
pub(super) enum InputError {
    /// It could not be read.
    #[error("{from}: {cause}")]
    Read {
        /// The file, or standard input.
        from: String,
        /// What the kernel said.
        cause: io::Error,
    },
    /// It is too long.
    #[error("{0} has more than 32 MiB; give it one value, not a backup")]
    TooLong(String),
    /// Nothing came.
    #[error("there is nothing to read; etcdctl prints nothing where there is no such key")]
    Nothing,
    /// etcd has no such key.
    #[error("etcd holds nothing at {0}; keys are exact, such as /registry/secrets/NAMESPACE/NAME")]
    NoSuchKey(String),
    /// A listing that cannot be read.
    #[error("line {0} of the listing in hex cannot be read; give it whole, from its first line on")]
    Listing(usize),
    /// A listing whose order depends on the machine.
    #[error("this is hexdump's listing in words, which swaps the bytes; take `hexdump -C`")]
    Words,
    /// `--hex`, and something else than hex.
    #[error("this is not hex: write two digits for each byte, with spaces or lines between them")]
    NoHex,
    /// More than one value.
    #[error("these are {0} values; ask etcdctl for one key, without --prefix")]
    Several(usize),
}

/// What `etcdctl get --write-out=json` prints; what is empty is left out.
#[derive(Deserialize)]
struct Answer {
    header: Option<Header>,
    kvs: Option<Vec<Pair>>,
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "revision")]
    _revision: i64,
}

#[derive(Deserialize)]
struct Pair {
    key: String,
    #[serde(default)]
    value: String,
}

/// Reads `file`, or standard input, and finds the value in it.
pub(super) fn read(file: Option<&Path>, hex: bool) -> Result<Input, InputError> {
    let from = file.map_or_else(|| "standard input".into(), |path| path.display().to_string());
    let mut bytes = Vec::new();
    let mut fill = |from: &mut dyn Read| from.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    let filled = match file {
        Some(path) => std::fs::File::open(path).and_then(|mut file| fill(&mut file)),
        None => fill(&mut io::stdin().lock()),
    };
    match filled {
        Ok(length) if length as u64 > MAX_BYTES => Err(InputError::TooLong(from)),
        Ok(_) => find(&bytes, hex),
        Err(cause) => Err(InputError::Read { from, cause }),
    }
}

/// Finds the value in `bytes`, which are hex when it is said so.
pub(super) fn find(bytes: &[u8], hex: bool) -> Result<Input, InputError> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(InputError::Nothing);
    }
    let text = std::str::from_utf8(bytes).ok().filter(|text| text.is_ascii());
    let Some(text) = text else {
        return if hex { Err(InputError::NoHex) } else { Ok(printed(bytes)) };
    };
    if let Some(lines) = escaped(text) {
        return of_lines(lines?);
    }
    if is_of_words(text) {
        return Err(InputError::Words);
    }
    if let Some(bytes) = listing(text) {
        return Ok(printed(&bytes?));
    }
    if let Some(answer) = json(text) {
        return answer;
    }
    match digits(text) {
        Some(bytes) if hex || begins_encoded(text) => Ok(printed(&bytes)),
        _ if hex => Err(InputError::NoHex),
        _ => Ok(printed(bytes)),
    }
}

/// The value in what etcdctl prints: perhaps the key and a line break, the value, a line
/// break. Values may end with a line break of their own, so the last one only goes where it
/// cannot belong to the value.
fn printed(bytes: &[u8]) -> Input {
    let line = bytes.iter().position(|b| *b == b'\n').map(|end| bytes.split_at(end));
    if let Some((key, rest)) = line.filter(|(key, _)| key.starts_with(b"/"))
        && let Ok(key) = std::str::from_utf8(key)
    {
        let value = &rest[1..];
        let value = value.strip_suffix(b"\n").unwrap_or(value);
        return Input { key: Some(key.to_owned()), value: value.to_vec() };
    }
    let damaged =
        |bytes| matches!(Value::parse(bytes), Value::Kms(Kms { body: Err(Damage::NoObject), .. }));
    let value = match bytes.strip_suffix(b"\n") {
        Some(shorter) if damaged(bytes) && !damaged(shorter) => shorter,
        _ => bytes,
    };
    Input { key: None, value: value.to_vec() }
}

/// `etcdctl get --hex`: `\x2f\x72…`, a line for the key and one for the value, or the value's
/// alone.
fn escaped(text: &str) -> Option<Result<Vec<Vec<u8>>, InputError>> {
    text.starts_with("\\x").then(|| {
        let lines = text.lines().filter(|line| !line.is_empty()).enumerate();
        let decode = |(at, line): (usize, &str)| {
            let pairs = line.strip_prefix("\\x").map(|rest| rest.split("\\x").collect::<String>());
            let bytes = pairs.and_then(|pairs| hex::decode(pairs).ok());
            bytes.ok_or(InputError::Listing(at + 1))
        };
        lines.map(decode).collect()
    })
}

fn of_lines(mut lines: Vec<Vec<u8>>) -> Result<Input, InputError> {
    match (lines.len(), lines.pop()) {
        (1, Some(value)) => Ok(Input { key: None, value }),
        (2, Some(value)) => {
            let key = lines.pop().and_then(|key| String::from_utf8(key).ok());
            Ok(Input { key, value })
        }
        (0, _) | (_, None) => Err(InputError::Nothing),
        (lines, _) => Err(InputError::Several(lines / 2)),
    }
}

/// `hexdump -C` and `xxd`: an offset, pairs of digits, the same as text. A line that is only
/// a star stands for as many of the one before as the next offset leaves room for.
fn listing(text: &str) -> Option<Result<Vec<u8>, InputError>> {
    row(text.lines().next()?).filter(|(offset, _)| *offset == 0)?;
    let mut bytes: Vec<u8> = Vec::new();
    let mut starred = false;
    for (at, line) in text.lines().enumerate() {
        if line.trim_end() == "*" {
            starred = true;
            continue;
        }
        if line.trim().is_empty() {
            continue;
        }
        let Some((offset, row)) = row(line) else { return Some(Err(InputError::Listing(at + 1))) };
        if starred && offset > bytes.len() && offset as u64 <= MAX_BYTES && bytes.len() >= 16 {
            let last = bytes[bytes.len() - 16..].to_vec();
            let missing = offset - bytes.len();
            bytes.extend(last.iter().cycle().take(missing));
        }
        starred = false;
        if offset != bytes.len() {
            return Some(Err(InputError::Listing(at + 1)));
        }
        bytes.extend(row);
    }
    Some(Ok(bytes))
}

/// `hexdump` without `-C`, and `od -x`: two bytes a word, the second one first.
fn is_of_words(text: &str) -> bool {
    let mut words = text.lines().next().unwrap_or_default().split_ascii_whitespace();
    let is_first = words.next().is_some_and(|offset| offset == "0000000");
    let mut words = words.peekable();
    let is_word = |word: &str| word.len() == 4 && word.bytes().all(|b| b.is_ascii_hexdigit());
    is_first && words.peek().is_some() && words.all(is_word)
}

/// One line of a listing: its offset and its bytes.
fn row(line: &str) -> Option<(usize, Vec<u8>)> {
    let end = line.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(line.len());
    let (offset, rest) = line.split_at(end);
    if !(7..=16).contains(&offset.len()) {
        return None;
    }
    let offset = usize::from_str_radix(offset, 16).ok()?;
    // What is printed beside it as text begins with a bar, or after two spaces.
    let digits = match rest.strip_prefix(": ") {
        Some(of_xxd) => of_xxd.split("  ").next()?,
        None if rest.is_empty() => "",
        None => rest.strip_prefix(' ')?.split('|').next()?,
    };
    let digits: String = digits.split_ascii_whitespace().collect();
    hex::decode(digits).ok().filter(|bytes| bytes.len() <= 32).map(|bytes| (offset, bytes))
}

fn json(text: &str) -> Option<Result<Input, InputError>> {
    let Answer { header, kvs } =
        text.starts_with('{').then(|| serde_json::from_str(text).ok())??;
    // Of a key that is not there etcdctl prints the header alone.
    let mut kvs = kvs.or(header.map(|_| Vec::new()))?;
    if kvs.len() != 1 {
        let several = InputError::Several(kvs.len());
        return Some(Err(if kvs.is_empty() { InputError::Nothing } else { several }));
    }
    let Pair { key, value } = kvs.pop()?;
    let (key, value) = (STANDARD.decode(key).ok()?, STANDARD.decode(value).ok()?);
    Some(Ok(Input { key: String::from_utf8(key).ok(), value }))
}

fn digits(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_start().strip_prefix("0x").unwrap_or(text);
    hex::decode(text.split_ascii_whitespace().collect::<String>()).ok()
}

/// Begins with the digits of `k8s:enc:`, which nothing else does.
fn begins_encoded(text: &str) -> bool {
    let compact = text.split_ascii_whitespace().flat_map(str::chars).take(16);
    compact.collect::<String>().eq_ignore_ascii_case("6b38733a656e633a")
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &[u8] = b"k8s:enc:kms:v1:vault:\x00\x0ckube:v1:QQ==object";
    /// As V1, with a message that a line break after it would damage.
    const V2: &[u8] = b"k8s:enc:kms:v2:p:\x0a\x06object\x1a\x0ckube:v1:AAEC\x28\x01";

    fn found(bytes: &[u8]) -> Input {
        find(bytes, false).unwrap()
    }

    fn bare(value: &[u8]) -> Input {
        Input { key: None, value: value.to_vec() }
    }

    fn keyed(value: &[u8]) -> Input {
        Input { key: Some("/registry/secrets/a".into()), value: value.to_vec() }
    }

    #[test]
    fn a_value_is_taken_as_it_is_and_as_etcdctl_prints_it() {
        assert_eq!(found(V1), bare(V1));
        assert_eq!(found(V2), bare(V2));
        assert_eq!(found(&[V2, b"\n"].concat()), bare(V2));
        for value in [V1, V2] {
            assert_eq!(found(&[b"/registry/secrets/a\n", value, b"\n"].concat()), keyed(value));
        }
        assert_eq!(found(b"{\"kind\":\"Secret\"}"), bare(b"{\"kind\":\"Secret\"}"));
        assert_eq!(found(b"k8s\x00\x0a"), bare(b"k8s\x00\x0a"));
    }

    #[test]
    fn etcdctls_hex_and_json_are_known_by_their_looks() {
        let escape = |bytes: &[u8]| -> String {
            bytes.iter().map(|b| format!("\\x{b:02x}")).chain(["\n".into()]).collect()
        };
        let value = escape(V2);
        assert_eq!(found(value.as_bytes()), bare(V2));
        let both = escape(b"/registry/secrets/a") + &value;
        assert_eq!(found(both.as_bytes()), keyed(V2));
        let two = both.clone() + &both;
        assert!(matches!(find(two.as_bytes(), false), Err(InputError::Several(2))));
        let json = serde_json::json!({
            "header": { "revision": 7 },
            "kvs": [{ "key": STANDARD.encode("/registry/secrets/a"), "value": STANDARD.encode(V2) }],
            "count": 1,
        });
        assert_eq!(found(json.to_string().as_bytes()), keyed(V2));
        assert!(matches!(find(b"{\"kvs\":[]}", false), Err(InputError::Nothing)));
        let none = b"{\"header\":{\"cluster_id\":14841639068965178418,\"revision\":7}}\n";
        assert!(matches!(find(none, false), Err(InputError::Nothing)));
        let empty = b"{\"header\":{\"revision\":7},\"kvs\":[{\"key\":\"L2E=\"}],\"count\":1}";
        assert_eq!(found(empty), Input { key: Some("/a".into()), value: Vec::new() });
    }

    #[test]
    fn listings_are_read_with_their_stars() {
        // As hexdump -C and xxd print `k8s:enc:kms:v1:p:`, a length, and 64 times a.
        let hexdump = "\
00000000  6b 38 73 3a 65 6e 63 3a  6b 6d 73 3a 76 31 3a 70  |k8s:enc:kms:v1:p|
00000010  3a 00 40 61 61 61 61 61  61 61 61 61 61 61 61 61  |:.@aaaaaaaaaaaaa|
00000020  61 61 61 61 61 61 61 61  61 61 61 61 61 61 61 61  |aaaaaaaaaaaaaaaa|
*
00000050  61 61 61                                          |aaa|
00000053
";
        let value = [&b"k8s:enc:kms:v1:p:\x00\x40"[..], &[b'a'; 64]].concat();
        assert_eq!(found(hexdump.as_bytes()), bare(&value));
        let xxd = "\
00000000: 6b38 733a 656e 633a 6b6d 733a 7631 3a70  k8s:enc:kms:v1:p
00000010: 3a00 0161                                :..a
";
        assert_eq!(found(xxd.as_bytes()), bare(b"k8s:enc:kms:v1:p:\x00\x01a"));
        let words = "0000000 386b 3a73 6e65 3a63 6d6b 3a73 3176 703a\n0000010\n";
        assert!(matches!(find(words.as_bytes(), false), Err(InputError::Words)));
        let cut = hexdump.replace("00000010  ", "00000011  ");
        assert!(matches!(find(cut.as_bytes(), false), Err(InputError::Listing(2))));
        let odd = hexdump.replace("3a 00 40", "3a 0 40");
        assert!(matches!(find(odd.as_bytes(), false), Err(InputError::Listing(2))));
    }

    #[test]
    fn digits_alone_are_hex_when_they_spell_the_prefix_or_one_says_so() {
        let digits = hex::encode(V2);
        assert_eq!(found(digits.as_bytes()), bare(V2));
        assert_eq!(found(format!("0x{digits}\n").as_bytes()).value.len(), V2.len() * 2 + 3);
        assert_eq!(find(format!("0x{digits}\n").as_bytes(), true).unwrap(), bare(V2));
        assert_eq!(found(b"abcd"), bare(b"abcd"));
        assert_eq!(find(b"ab\ncd", true).unwrap(), bare(b"\xab\xcd"));
        for bad in [&b"abc"[..], b"xy", b"\xff"] {
            assert!(matches!(find(bad, true), Err(InputError::NoHex)));
        }
        assert!(matches!(find(b" \n", false), Err(InputError::Nothing)));
    }

    proptest::proptest! {
        #[test]
        fn no_input_makes_it_panic(
            head in "(\\\\x|00000000(: |  )|\\{\"kvs\":|/registry\\n|[0-9a-f]{0,8}|\\*\n)",
            tail in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60),
            text in "[0-9a-f \n*|:\\\\x]{0,60}",
            hex in proptest::prelude::any::<bool>(),
        ) {
            let _ = find(&[head.as_bytes(), &tail].concat(), hex);
            let _ = find(format!("{head}{text}").as_bytes(), hex);
        }
    }
}
