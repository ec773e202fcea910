//! Transit's JSON, both ways.
//!
//! Requests with key material are written by hand into buffers that never grow, so that
//! no copy is left behind. What is wrong with an answer is told without a byte of it:
//! parser messages quote their input, so they are never handed on.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use zeroize::{Zeroize as _, Zeroizing};

use super::{KeyMetadata, VaultCiphertext};
use crate::clock::UnixSeconds;
use crate::cluster::date;
use crate::secret::Plaintext;

pub(super) mod batch;

/// Every AEAD that Transit offers has a tag of this length.
const TAG: usize = 16;

/// Nonce of AES-GCM and ChaCha20-Poly1305.
const NONCE: usize = 12;

/// Nonce of XChaCha20-Poly1305.
const LONG_NONCE: usize = 24;

/// What is wrong with an answer, in words that quote none of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong(pub(super) String);

#[derive(Deserialize)]
struct Envelope<T> {
    data: T,
}

#[derive(Deserialize)]
struct EncryptData<'a> {
    #[serde(borrow)]
    ciphertext: Cow<'a, str>,
    key_version: Option<u32>,
}

#[derive(Deserialize)]
struct DecryptData<'a> {
    #[serde(borrow)]
    plaintext: Cow<'a, str>,
}

#[derive(Deserialize)]
struct KeyData {
    keys: BTreeMap<String, Version>,
    latest_version: u32,
    #[serde(default)]
    min_decryption_version: u32,
    #[serde(default)]
    min_encryption_version: u32,
    #[serde(default, rename = "type")]
    key_type: String,
    #[serde(default)]
    derived: bool,
    #[serde(default)]
    soft_deleted: bool,
}

/// Symmetric keys give the creation time of a version as a number, others as an object.
#[derive(Deserialize)]
#[serde(untagged)]
enum Version {
    Created(i64),
    Described { creation_time: String },
}

/// `POST encrypt/<key>`.
pub(super) fn encrypt_request(plaintext: &Plaintext, version: Option<u32>) -> Zeroizing<Vec<u8>> {
    let pin = version.map_or_else(String::new, |v| format!(",\"key_version\":{v}"));
    let (head, tail) = ("{\"plaintext\":\"", "\"");
    let length = head.len() + encoded_len(plaintext) + tail.len() + pin.len() + 1;
    let mut body = Zeroizing::new(Vec::with_capacity(length));
    body.extend_from_slice(head.as_bytes());
    push_encoded(&mut body, plaintext);
    for part in [tail, &pin, "}"] {
        body.extend_from_slice(part.as_bytes());
    }
    body
}

/// The length of its base64.
fn encoded_len(plaintext: &Plaintext) -> usize {
    plaintext.len().div_ceil(3) * 4
}

/// Writes its base64 into `body`, which has room for it.
fn push_encoded(body: &mut Vec<u8>, plaintext: &Plaintext) {
    let start = body.len();
    body.resize(start + encoded_len(plaintext), 0);
    let written = STANDARD
        .encode_slice(plaintext.expose(), &mut body[start..])
        .expect("the buffer has the length of the padded encoding");
    debug_assert_eq!(written, encoded_len(plaintext));
}

/// `POST decrypt/<key>`.
pub(super) fn decrypt_request(ciphertext: &VaultCiphertext) -> Zeroizing<Vec<u8>> {
    // Its form was checked when it was made: nothing in it needs escaping.
    let VaultCiphertext { version, payload, associated_data } = ciphertext;
    let bound = associated_data
        .as_ref()
        .map_or_else(String::new, |data| format!(",\"associated_data\":\"{data}\""));
    let body = format!("{{\"ciphertext\":\"vault:v{version}:{payload}\"{bound}}}");
    Zeroizing::new(body.into_bytes())
}

/// `POST sys/capabilities-self`.
pub(super) fn capabilities_request(path: &str) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(serde_json::json!({ "paths": [path] }).to_string().into_bytes())
}

/// Reads the answer to an encrypt and checks that it is one that may be handed on: made
/// with the version that was asked for and as long as its cipher makes it.
///
/// `nonce` is the key type's nonce length, when it is known.
pub(super) fn encrypt_answer(
    body: &[u8],
    plaintext: &Plaintext,
    pinned: Option<u32>,
    nonce: Option<usize>,
) -> Result<VaultCiphertext, Wrong> {
    let EncryptData { ciphertext, key_version } = data(body, "a ciphertext")?;
    checked(&ciphertext, key_version, plaintext, pinned, nonce)
}

/// The checks of [`encrypt_answer`].
fn checked(
    ciphertext: &str,
    key_version: Option<u32>,
    plaintext: &Plaintext,
    pinned: Option<u32>,
    nonce: Option<usize>,
) -> Result<VaultCiphertext, Wrong> {
    let ciphertext = VaultCiphertext::parse(ciphertext)
        .ok_or_else(|| Wrong::new("a ciphertext that is not of the form vault:vN:<base64>"))?;
    let version = ciphertext.version();
    if let Some(pinned) = pinned.filter(|v| *v != version) {
        return Err(Wrong(format!(
            "a ciphertext of key version {version} although version {pinned} was asked for"
        )));
    }
    if let Some(said) = key_version.filter(|v| *v != version) {
        return Err(Wrong(format!(
            "a ciphertext of key version {version} and said that it was version {said}"
        )));
    }
    let length = STANDARD.decode(ciphertext.payload()).map_or(0, |bytes| bytes.len());
    let expected = plaintext.len() + TAG;
    let fits = match nonce {
        Some(nonce) => length == expected + nonce,
        None => length == expected + NONCE || length == expected + LONG_NONCE,
    };
    if !fits {
        return Err(Wrong(format!(
            "a ciphertext of {length} bytes, which is not nonce, plaintext and tag"
        )));
    }
    Ok(ciphertext)
}

/// Reads the answer to a decrypt; an empty plaintext is refused.
pub(super) fn decrypt_answer(body: &[u8]) -> Result<Plaintext, Wrong> {
    let DecryptData { plaintext: encoded } = data(body, "a plaintext")?;
    let decoded = decoded(&encoded);
    if let Cow::Owned(mut copy) = encoded {
        copy.zeroize();
    }
    decoded
}

/// The plaintext of this base64; an empty one is refused.
fn decoded(encoded: &str) -> Result<Plaintext, Wrong> {
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(encoded.len())]);
    let decoded = STANDARD.decode_slice(encoded.as_bytes(), &mut bytes);
    let length = decoded.map_err(|_| Wrong::new("a plaintext that is not base64"))?;
    if length == 0 {
        return Err(Wrong::new("an empty plaintext"));
    }
    bytes.truncate(length);
    Ok(Plaintext::new(std::mem::take(&mut *bytes)))
}

/// Reads a key's metadata.
pub(super) fn key_answer(body: &[u8]) -> Result<KeyMetadata, Wrong> {
    let key: KeyData = data(body, "key metadata")?;
    let mut versions = BTreeMap::new();
    for (number, version) in key.keys {
        let number = number.parse().ok().filter(|n| *n > 0);
        let created = match version {
            Version::Created(seconds) => Some(UnixSeconds(seconds)),
            Version::Described { creation_time } => date::rfc3339(&creation_time),
        };
        let (Some(number), Some(created)) = (number, created) else {
            return Err(Wrong::new("key metadata with a version that has no number or no time"));
        };
        versions.insert(number, created);
    }
    if versions.is_empty() && !key.soft_deleted {
        return Err(Wrong::new("key metadata without a version"));
    }
    Ok(KeyMetadata {
        versions,
        latest_version: key.latest_version,
        min_decryption_version: key.min_decryption_version,
        min_encryption_version: key.min_encryption_version,
        key_type: key.key_type,
        derived: key.derived,
        soft_deleted: key.soft_deleted,
    })
}

/// Reads what the token may do on `path`.
pub(super) fn capabilities_answer(body: &[u8], path: &str) -> Result<Vec<String>, Wrong> {
    // `data` also holds other things than lists in some versions, so it is read loosely.
    let mut all: BTreeMap<String, serde_json::Value> = data(body, "capabilities")?;
    let of_path = all.remove(path).or_else(|| all.remove("capabilities"));
    of_path
        .and_then(|list| serde_json::from_value(list).ok())
        .ok_or_else(|| Wrong::new("no capabilities for the path that was asked about"))
}

/// Whether a request is a batch.
pub(super) fn is_batch(request: &[u8]) -> bool {
    request.starts_with(batch::HEAD.as_bytes())
}

/// The nonce length of a key type that encrypts with an AEAD.
pub(super) fn nonce_length(key_type: &str) -> Option<usize> {
    match key_type {
        "aes128-gcm96" | "aes256-gcm96" | "chacha20-poly1305" => Some(NONCE),
        "xchacha20-poly1305" => Some(LONG_NONCE),
        _ => None,
    }
}

fn data<'a, T: Deserialize<'a>>(body: &'a [u8], what: &str) -> Result<T, Wrong> {
    match serde_json::from_slice::<Envelope<T>>(body) {
        Ok(envelope) => Ok(envelope.data),
        Err(e) if e.is_data() => Err(Wrong(format!("JSON that does not hold {what}"))),
        Err(_) => Err(Wrong::new("something that is not JSON")),
    }
}

// === impl Wrong ===

impl Wrong {
    fn new(words: &str) -> Self {
        Self(words.to_owned())
    }
}

#[cfg(test)]
mod tests;
