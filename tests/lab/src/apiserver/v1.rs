//! KMS v1: one data key per object, encrypted by the plugin at each write.

use std::collections::HashMap;

use super::{KEY, Object, Store, open, random, seal, stored, without_prefix};
use crate::kms;
use crate::{Context, Result, fail};

/// One kube-apiserver with a KMS v1 provider.
#[derive(Debug)]
pub struct Server {
    kms: kms::V1,
    provider: String,
    version_checked: bool,
    // Encrypted data keys to plain ones.
    data_keys: HashMap<Vec<u8>, Vec<u8>>,
}

// === impl Server ===

impl Server {
    /// A freshly started one; `provider` is the name in the EncryptionConfiguration.
    pub fn new(kms: kms::V1, provider: &str) -> Self {
        let data_keys = HashMap::new();
        Self { kms, provider: provider.to_owned(), version_checked: false, data_keys }
    }

    /// What every stored value begins with.
    pub fn prefix(&self) -> String {
        format!("k8s:enc:kms:v1:{}:", self.provider)
    }

    /// Forgets what a new process would not know.
    pub fn restart(&mut self) {
        self.version_checked = false;
        self.data_keys.clear();
    }

    /// The health check: four bytes there and back.
    pub async fn health(&mut self) -> Result {
        let cipher = self.encrypt(b"ping").await?;
        if self.decrypt(&cipher).await? != b"ping" {
            fail!("Decrypt of an encrypted ping answers something else");
        }
        Ok(())
    }

    /// Writes an object: a fresh data key, encrypted by the plugin.
    pub async fn write(&mut self, store: &mut Store, etcd_key: &str, value: &[u8]) -> Result {
        let stored = self.transform_to_storage(etcd_key, value).await?;
        store.insert(etcd_key.to_owned(), stored);
        Ok(())
    }

    /// Reads an object; asks the plugin for data keys that it does not know.
    pub async fn read(&mut self, store: &Store, etcd_key: &str) -> Result<Object> {
        self.transform_from_storage(etcd_key, stored(store, etcd_key)?).await
    }

    /// An object as it is stored: under a fresh data key, encrypted by the plugin.
    pub async fn transform_to_storage(&mut self, etcd_key: &str, value: &[u8]) -> Result<Vec<u8>> {
        let data_key = random::<KEY>()?.to_vec();
        let cipher = self.encrypt(&data_key).await?;
        let stored = layout(&self.prefix(), &cipher, &seal(&data_key, value, etcd_key)?)?;
        self.data_keys.insert(cipher, data_key);
        Ok(stored)
    }

    /// The object that is stored so. KMS v1 never calls one stale: it cannot know that its
    /// plugin would encrypt with another key now.
    pub async fn transform_from_storage(
        &mut self,
        etcd_key: &str,
        stored: &[u8],
    ) -> Result<Object> {
        let (cipher, sealed) = parse(without_prefix(stored, etcd_key, &self.prefix())?)
            .context(format!("{etcd_key} is not laid out as KMS v1"))?;
        if !self.data_keys.contains_key(cipher) {
            let data_key = self.decrypt(cipher).await.context(etcd_key)?;
            self.data_keys.insert(cipher.to_vec(), data_key);
        }
        let value = open(&self.data_keys[cipher], sealed, etcd_key)?;
        Ok(Object { value, stale: false })
    }

    async fn encrypt(&mut self, plain: &[u8]) -> Result<Vec<u8>> {
        self.check_version().await?;
        let cipher = self.kms.encrypt(plain).await.context("KMS v1 Encrypt")?;
        if cipher.is_empty() {
            fail!("Encrypt answers OK with an empty cipher: it would be stored, and is data loss");
        }
        Ok(cipher)
    }

    async fn decrypt(&mut self, cipher: &[u8]) -> Result<Vec<u8>> {
        self.check_version().await?;
        self.kms.decrypt(cipher).await.context("KMS v1 Decrypt")
    }

    async fn check_version(&mut self) -> Result {
        if !self.version_checked {
            let answer = self.kms.version().await.context("KMS v1 Version")?;
            if answer.version != "v1beta1" {
                fail!("Version answers {:?}, the apiserver demands \"v1beta1\"", answer.version);
            }
            self.version_checked = true;
        }
        Ok(())
    }
}

/// Prefix, length of the encrypted data key (big-endian u16), encrypted data key, object.
fn layout(prefix: &str, cipher: &[u8], sealed: &[u8]) -> Result<Vec<u8>> {
    let words = format!("a cipher of {} bytes does not fit its 16-bit length", cipher.len());
    let length = u16::try_from(cipher.len()).context(words)?;
    Ok([prefix.as_bytes(), &length.to_be_bytes(), cipher, sealed].concat())
}

fn parse(stored: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = stored.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_prefix_length_cipher_object() {
        let stored = layout("k8s:enc:kms:v1:vault:", b"kube:v1:QQ==", b"object").unwrap();
        assert_eq!(stored, b"k8s:enc:kms:v1:vault:\x00\x0ckube:v1:QQ==object");
        let body = stored.strip_prefix(b"k8s:enc:kms:v1:vault:").unwrap();
        assert_eq!(parse(body).unwrap(), (b"kube:v1:QQ==".as_slice(), b"object".as_slice()));
        assert_eq!(parse(b"\x00\x0cshort"), None);
        assert_eq!(parse(b"\x00"), None);
    }

    #[test]
    fn a_cipher_longer_than_its_length_field_is_refused() {
        assert!(layout("p", &vec![0; 65_535], b"").is_ok());
        let error = layout("p", &vec![0; 65_536], b"").unwrap_err().to_string();
        assert!(error.contains("65536"), "{error}");
    }
}
