//! The message that kube-apiserver stores for KMS v2, read where it lies:
//! `encryptedData = 1`, `keyID = 2`, `encryptedDEKSource = 3`, `annotations = 4` (a map of
//! string to bytes), `encryptedDEKSourceType = 5`. Fields that later versions may add are
//! passed over, and of one that stands there twice the last counts, as protobuf has it.

use super::{Body, Damage};

/// How the data key follows from what the plugin unwraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// It is the key: KMS v1, and v2 up to Kubernetes 1.27.
    Key,
    /// It is a seed, from which each object's key is derived.
    Seed,
    /// A number that no kube-apiserver up to 1.34 writes.
    Unknown(u64),
}

/// The annotations of a KMS v2 value, read where they lie.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Annotations<'a> {
    object: &'a [u8],
}

/// A field: its number and what it holds.
type Field<'a> = (u64, Content<'a>);

#[derive(Clone, Copy)]
enum Content<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// A fixed-width number, of which we have none.
    Fixed,
}

/// The fields of a message, one after the other; ends after the first that is no field.
struct Fields<'a> {
    rest: &'a [u8],
}

/// Reads the whole message.
pub(super) fn parse(object: &[u8]) -> Result<Body<'_>, Damage> {
    let annotations = Annotations { object };
    let mut body =
        Body { ciphertext: &[], data: &[], source: Source::Key, key_id: "", annotations };
    for field in (Fields { rest: object }) {
        match field? {
            (1, Content::Bytes(data)) => body.data = data,
            (2, Content::Bytes(text)) => body.key_id = utf8(text)?,
            (3, Content::Bytes(ciphertext)) => body.ciphertext = ciphertext,
            (4, Content::Bytes(entry)) => drop(annotation(entry)?),
            (5, Content::Number(number)) => body.source = Source::of(number),
            (1..=5, _) => return Err(Damage::NoObject),
            _ => {}
        }
    }
    if body.ciphertext.is_empty() { Err(Damage::NoDataKey) } else { Ok(body) }
}

fn annotation(entry: &[u8]) -> Result<(&str, &[u8]), Damage> {
    let (mut name, mut value) = ("", &[][..]);
    for field in (Fields { rest: entry }) {
        match field? {
            (1, Content::Bytes(text)) => name = utf8(text)?,
            (2, Content::Bytes(bytes)) => value = bytes,
            (1..=2, _) => return Err(Damage::NoObject),
            _ => {}
        }
    }
    Ok((name, value))
}

fn utf8(bytes: &[u8]) -> Result<&str, Damage> {
    std::str::from_utf8(bytes).map_err(|_| Damage::NoObject)
}

// === impl Source ===

impl Source {
    const fn of(number: u64) -> Self {
        match number {
            0 => Self::Key,
            1 => Self::Seed,
            other => Self::Unknown(other),
        }
    }
}

// === impl Annotations ===

impl<'a> Annotations<'a> {
    /// Each name and its value, in the order in which they are stored.
    pub fn iter(self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        // Both were checked by `parse`.
        Fields { rest: self.object }.map_while(Result::ok).filter_map(|field| match field {
            (4, Content::Bytes(entry)) => annotation(entry).ok(),
            _ => None,
        })
    }

    /// The value of `name`.
    pub fn get(self, name: &str) -> Option<&'a [u8]> {
        self.iter().filter(|(known, _)| *known == name).last().map(|(_, value)| value)
    }
}

impl std::fmt::Debug for Annotations<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter().map(|(name, _)| name)).finish()
    }
}

// === impl Fields ===

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Damage>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field().ok_or(Damage::NoObject);
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<Field<'a>> {
        let key = self.number()?;
        let content = match key & 7 {
            0 => Content::Number(self.number()?),
            1 => self.bytes(8).map(|_| Content::Fixed)?,
            2 => {
                let length = self.number()?;
                Content::Bytes(self.bytes(length)?)
            }
            5 => self.bytes(4).map(|_| Content::Fixed)?,
            _ => return None, // groups, which nobody writes, and what is no field
        };
        // There is no field 0.
        (key >> 3 > 0).then_some((key >> 3, content))
    }

    /// A number of seven bits a byte, the lowest first, ten bytes at the most.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn bytes(&mut self, length: u64) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(usize::try_from(length).ok()?)?;
        self.rest = rest;
        Some(bytes)
    }
}
