//! Many encrypts or decrypts as one request, and their answers.
//!
//! Each item carries its own `key_version` (one at the top counts for nothing in a batch) and
//! a `reference`, which Vault and OpenBao repeat in the item's answer. An answer counts only
//! when its references are exactly those that were sent: an item that got another item's
//! answer would be another object's key.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Deserialize;
use zeroize::{Zeroize as _, Zeroizing};

use super::{Wrong, checked, data, decoded, encoded_len, push_encoded};
use crate::secret::Plaintext;
use crate::transit::VaultCiphertext;

/// How every batch begins.
pub(super) const HEAD: &str = "{\"batch_input\":[";

const TAIL: &str = "]}";

/// One item of a batch.
#[derive(Clone, Copy)]
pub(in crate::transit) enum Entry<'a> {
    /// A plaintext, and the version that is to wrap it.
    Encrypt(&'a Plaintext, Option<u32>),
    /// A ciphertext.
    Decrypt(&'a VaultCiphertext),
}

/// What one batch's references begin with: no other batch of any process has the same.
#[derive(Debug)]
pub(in crate::transit) struct Tag(String);

#[derive(Deserialize)]
struct Results<'a> {
    #[serde(borrow)]
    batch_results: Vec<Found<'a>>,
}

/// What was answered to one item.
#[derive(Deserialize)]
pub(in crate::transit) struct Found<'a> {
    #[serde(borrow)]
    reference: Option<Text<'a>>,
    #[serde(borrow)]
    error: Option<Text<'a>>,
    #[serde(borrow)]
    ciphertext: Option<Text<'a>>,
    #[serde(borrow)]
    plaintext: Option<Text<'a>>,
    key_version: Option<u32>,
}

/// Borrows from the answer unless something in it is escaped; a copy is wiped.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The request for `entries`, in a buffer that never grows.
pub(in crate::transit) fn request<'a>(
    entries: impl Iterator<Item = Entry<'a>> + Clone,
    tag: &Tag,
) -> Zeroizing<Vec<u8>> {
    let references = || (0..).map(|n| tag.reference(n));
    let lengths = entries.clone().zip(references()).map(|(e, r)| e.length(r.len()) + 1);
    let length = HEAD.len() + lengths.sum::<usize>() + TAIL.len();
    let mut body = Zeroizing::new(Vec::with_capacity(length));
    body.extend_from_slice(HEAD.as_bytes());
    for (n, (entry, reference)) in entries.zip(references()).enumerate() {
        if n > 0 {
            body.push(b',');
        }
        entry.write(&mut body, &reference);
    }
    body.extend_from_slice(TAIL.as_bytes());
    debug_assert!(body.len() <= length, "it would have been copied");
    body
}

/// The answers to the `count` items of the batch `tag`, in the order in which they were sent.
pub(in crate::transit) fn answer<'a>(
    body: &'a [u8],
    tag: &Tag,
    count: usize,
) -> Result<Vec<Found<'a>>, Wrong> {
    let Results { batch_results } = data(body, "a batch's results")?;
    if batch_results.len() != count {
        let had = batch_results.len();
        return Err(Wrong(format!("{had} results to a batch of {count}")));
    }
    let mut places: HashMap<String, usize> = (0..count).map(|n| (tag.reference(n), n)).collect();
    let mut sorted: Vec<Option<Found<'a>>> = Vec::new();
    sorted.resize_with(count, || None);
    for found in batch_results {
        let Some(Text(reference)) = &found.reference else {
            return Err(Wrong::new("a batch's result without its reference"));
        };
        // A reference that comes twice is not found the second time.
        let Some(place) = places.remove(reference.as_ref()) else {
            return Err(Wrong::new("a batch's result with a reference that was not asked for"));
        };
        sorted[place] = Some(found);
    }
    let sorted: Option<Vec<_>> = sorted.into_iter().collect();
    sorted.ok_or_else(|| Wrong::new("a batch that lacks a result"))
}

// === impl Entry ===

impl Entry<'_> {
    /// Keys and string values that it adds to a request, as OpenBao counts them.
    pub(in crate::transit) fn strings(self) -> usize {
        match self {
            Self::Encrypt(_, None) => 4,
            Self::Encrypt(_, Some(_)) => 5,
            Self::Decrypt(ciphertext) if ciphertext.is_bound() => 6,
            Self::Decrypt(_) => 4,
        }
    }

    /// Bytes that it adds to a request, at most.
    pub(in crate::transit) fn bytes(self) -> usize {
        self.length(Tag::LONGEST_REFERENCE) + 1
    }

    fn length(self, reference: usize) -> usize {
        let members = match self {
            Self::Encrypt(plaintext, version) => {
                let pin = version.map_or(0, |v| ",\"key_version\":".len() + digits(v));
                "\"plaintext\":\"\"".len() + encoded_len(plaintext) + pin
            }
            Self::Decrypt(ciphertext) => {
                let VaultCiphertext { version, payload, associated_data } = ciphertext;
                let bound = associated_data.as_ref();
                let bound = bound.map_or(0, |d| ",\"associated_data\":\"\"".len() + d.len());
                "\"ciphertext\":\"vault:v:\"".len() + digits(*version) + payload.len() + bound
            }
        };
        "{,\"reference\":\"\"}".len() + members + reference
    }

    /// Nothing in it needs escaping: base64, numbers, and references of our own.
    fn write(self, body: &mut Vec<u8>, reference: &str) {
        let mut push = |part: &str| body.extend_from_slice(part.as_bytes());
        match self {
            Self::Encrypt(plaintext, version) => {
                push("{\"plaintext\":\"");
                push_encoded(body, plaintext);
                body.push(b'"');
                if let Some(version) = version {
                    body.extend_from_slice(format!(",\"key_version\":{version}").as_bytes());
                }
            }
            Self::Decrypt(ciphertext) => {
                let VaultCiphertext { version, payload, associated_data } = ciphertext;
                push(&format!("{{\"ciphertext\":\"vault:v{version}:"));
                push(payload);
                push("\"");
                if let Some(bound) = associated_data {
                    push(",\"associated_data\":\"");
                    push(bound);
                    push("\"");
                }
            }
        }
        for part in [",\"reference\":\"", reference, "\"}"] {
            body.extend_from_slice(part.as_bytes());
        }
    }
}

const fn digits(number: u32) -> usize {
    match number.checked_ilog10() {
        Some(log) => log as usize + 1,
        None => 1,
    }
}

// === impl Tag ===

impl Tag {
    /// Two numbers of 64 bits in hex, two dashes, and a place in a batch.
    const LONGEST_REFERENCE: usize = 16 + 1 + 16 + 1 + 4;

    /// One that no batch has had.
    pub(in crate::transit) fn next() -> Self {
        static PROCESS: LazyLock<u64> = LazyLock::new(rand::random);
        static BATCHES: AtomicU64 = AtomicU64::new(1);
        let batch = BATCHES.fetch_add(1, Ordering::Relaxed);
        Self(format!("{:x}-{batch:x}", *PROCESS))
    }

    fn reference(&self, place: usize) -> String {
        format!("{}-{place}", self.0)
    }
}

// === impl Found ===

impl Found<'_> {
    /// What is wrong with this item, in Vault's words, which can echo what was sent.
    pub(in crate::transit) fn error(&self) -> Option<&str> {
        self.error.as_ref().map(|text| text.0.as_ref()).filter(|text| !text.is_empty())
    }

    /// The ciphertext, with the checks of [`super::encrypt_answer`].
    pub(in crate::transit) fn ciphertext(
        &self,
        plaintext: &Plaintext,
        pinned: Option<u32>,
        nonce: Option<usize>,
    ) -> Result<VaultCiphertext, Wrong> {
        let Some(Text(ciphertext)) = &self.ciphertext else {
            return Err(Wrong::new("JSON that does not hold a ciphertext"));
        };
        checked(ciphertext, self.key_version, plaintext, pinned, nonce)
    }

    /// The plaintext; an empty one is refused.
    pub(in crate::transit) fn plaintext(&self) -> Result<Plaintext, Wrong> {
        let Some(Text(encoded)) = &self.plaintext else {
            return Err(Wrong::new("JSON that does not hold a plaintext"));
        };
        decoded(encoded)
    }
}

// === impl Text ===

impl Drop for Text<'_> {
    fn drop(&mut self) {
        if let Cow::Owned(copy) = &mut self.0 {
            copy.zeroize();
        }
    }
}

#[cfg(test)]
mod tests;
