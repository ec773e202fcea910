//! A model of what kube-apiserver does with a KMS plugin: its checks, its caches, and the
//! bytes that it keeps in etcd.
//!
//! It is written from kube-apiserver's rules, not from the daemon's code, so that the two
//! can disagree. [`v1::Server`] and [`v2::Server`] each stand for one provider of one apiserver
//! process; `restart()` forgets what a new process would not know. [`Registry`] is an apiserver
//! with a list of providers, over a real etcd.

use std::collections::BTreeMap;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf;

use crate::{Context, Error, Result};

mod registry;
pub mod sample;
pub mod v1;
pub mod v2;

pub use registry::{Provider, Registry};

/// What etcd holds: the object's key and its stored bytes. Two apiservers share one.
pub type Store = BTreeMap<String, Vec<u8>>;

/// What a read found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// The object.
    pub value: Vec<u8>,
    /// Whether it is not written as it would be written now, so that a rewrite is due.
    pub stale: bool,
}

const NONCE: usize = 12;
const INFO: usize = 32;
const KEY: usize = 32;

// === AES-GCM as kube-apiserver uses it ===

/// Nonce, then ciphertext and tag.
fn seal(key: &[u8], value: &[u8], etcd_key: &str) -> Result<Vec<u8>> {
    let nonce: [u8; NONCE] = random()?;
    let mut sealed = value.to_vec();
    gcm(key)?
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(etcd_key.as_bytes()),
            &mut sealed,
        )
        .map_err(|_| Error::new("AES-GCM cannot seal"))?;
    Ok([nonce.as_slice(), &sealed].concat())
}

fn open(key: &[u8], stored: &[u8], etcd_key: &str) -> Result<Vec<u8>> {
    let (nonce, sealed) =
        stored.split_first_chunk::<NONCE>().context("the stored data is too short for a nonce")?;
    let mut sealed = sealed.to_vec();
    let opened = gcm(key)?
        .open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(etcd_key.as_bytes()),
            &mut sealed,
        )
        .map_err(|_| Error::new(format!("{etcd_key} does not open with the decrypted key")))?;
    Ok(opened.to_vec())
}

fn gcm(key: &[u8]) -> Result<LessSafeKey> {
    let unbound = UnboundKey::new(&AES_256_GCM, key);
    let words = || format!("a data key of {} bytes instead of {KEY}", key.len());
    unbound.map(LessSafeKey::new).map_err(|_| Error::new(words()))
}

/// HKDF's second half alone: the seed is the pseudo-random key.
fn expand(seed: &[u8], info: &[u8]) -> Result<[u8; KEY]> {
    let mut key = [0; KEY];
    let failed = |_| Error::new("HKDF cannot expand the seed");
    hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, seed)
        .expand(&[info], hkdf::HKDF_SHA256)
        .map_err(failed)?
        .fill(&mut key)
        .map_err(failed)?;
    Ok(key)
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::new("no random bytes"))?;
    Ok(bytes)
}

fn stored<'a>(store: &'a Store, etcd_key: &str) -> Result<&'a [u8]> {
    store.get(etcd_key).map(Vec::as_slice).context(format!("etcd has no {etcd_key}"))
}

fn without_prefix<'a>(stored: &'a [u8], etcd_key: &str, prefix: &str) -> Result<&'a [u8]> {
    let words = || format!("{etcd_key} is not stored under {prefix}");
    stored.strip_prefix(prefix.as_bytes()).context(words())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_expansion_is_the_one_of_rfc_5869() {
        // Test case 1 of RFC 5869: PRK and info as given there, the first 32 bytes of OKM.
        let unhex = |hex: &str| -> Vec<u8> {
            let digit = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            (0..hex.len()).step_by(2).map(digit).collect()
        };
        let prk = unhex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5");
        let okm = unhex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf");
        assert_eq!(expand(&prk, &unhex("f0f1f2f3f4f5f6f7f8f9")).unwrap().as_slice(), okm);
    }

    #[test]
    fn a_value_opens_under_its_own_etcd_key_only() {
        let key = [7; KEY];
        let sealed = seal(&key, b"secret", "/registry/secrets/a").unwrap();
        assert_eq!(sealed.len(), NONCE + 6 + 16);
        assert_eq!(open(&key, &sealed, "/registry/secrets/a").unwrap(), b"secret");
        assert!(open(&key, &sealed, "/registry/secrets/b").is_err());
        assert!(open(&key, &sealed[..5], "/registry/secrets/a").is_err());
    }
}
