//! KMS v2: one seed per key_id, encrypted once; data keys are derived from it.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use prost::Message;
use tokio::time::Instant;

use super::{INFO, KEY, Object, Store, expand, open, random, seal, stored, without_prefix};
use crate::kms;
use crate::proto::v2::{DecryptRequest, EncryptResponse, StatusResponse};
use crate::{Context, Result, fail};

/// How long an apiserver goes on writing after the last Status that was good.
pub const STATE_LIFE: Duration = Duration::from_secs(3 * 60);

const MAX_KEY_ID: usize = 1024;
const MAX_CIPHERTEXT: usize = 1024;
const MAX_ANNOTATIONS: usize = 32 * 1024;

/// One kube-apiserver with a KMS v2 provider.
#[derive(Debug)]
pub struct Server {
    kms: kms::V2,
    provider: String,
    state: Option<State>,
    // Encrypted seeds to plain ones.
    seeds: HashMap<Vec<u8>, Vec<u8>>,
}

/// What it writes with.
#[derive(Debug)]
struct State {
    encrypted: EncryptResponse,
    seed: Vec<u8>,
    uses_until: Instant,
}

/// The object in etcd, after the prefix.
#[derive(Clone, PartialEq, Message)]
pub struct EncryptedObject {
    /// Info, nonce, ciphertext and tag (with a seed); nonce, ciphertext and tag (with a key).
    #[prost(bytes = "vec", tag = "1")]
    pub encrypted_data: Vec<u8>,
    /// The key_id that Encrypt answered.
    #[prost(string, tag = "2")]
    pub key_id: String,
    /// What Encrypt answered for the seed.
    #[prost(bytes = "vec", tag = "3")]
    pub encrypted_dek_source: Vec<u8>,
    /// The annotations that Encrypt answered.
    #[prost(btree_map = "string, bytes", tag = "4")]
    pub annotations: BTreeMap<String, Vec<u8>>,
    /// How the data key follows from the source.
    #[prost(enumeration = "DekSourceType", tag = "5")]
    pub encrypted_dek_source_type: i32,
}

/// How the data key follows from what the plugin decrypts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum DekSourceType {
    /// It is the key (Kubernetes 1.25 to 1.27).
    AesGcmKey = 0,
    /// It is a seed, expanded with 32 bytes of info for each object.
    HkdfSha256XnonceAesGcmSeed = 1,
}

// === impl Server ===

impl Server {
    /// A freshly started one; `provider` is the name in the EncryptionConfiguration.
    pub fn new(kms: kms::V2, provider: &str) -> Self {
        Self { kms, provider: provider.to_owned(), state: None, seeds: HashMap::new() }
    }

    /// What every stored value begins with.
    pub fn prefix(&self) -> String {
        format!("k8s:enc:kms:v2:{}:", self.provider)
    }

    /// Forgets what a new process would not know.
    pub fn restart(&mut self) {
        self.state = None;
        self.seeds.clear();
    }

    /// The key_id that it writes with.
    pub fn key_id(&self) -> Option<&str> {
        self.state.as_ref().map(|state| state.encrypted.key_id.as_str())
    }

    /// Asks for Status, as an apiserver does at its start and every minute; when key_id is
    /// new, lets the plugin encrypt a new seed. Answers the key_id.
    pub async fn probe(&mut self) -> Result<String> {
        let status = self.kms.status().await.context("KMS v2 Status")?;
        check_status(&status)?;
        let uses_until = Instant::now() + STATE_LIFE;
        match &mut self.state {
            Some(state) if state.encrypted.key_id == status.key_id => state.uses_until = uses_until,
            _ => {
                let (seed, encrypted) = self.new_seed(&status.key_id).await?;
                self.seeds.insert(encrypted.ciphertext.clone(), seed.clone());
                self.state = Some(State { encrypted, seed, uses_until });
            }
        }
        Ok(status.key_id)
    }

    async fn new_seed(&self, key_id: &str) -> Result<(Vec<u8>, EncryptResponse)> {
        let seed = random::<KEY>()?.to_vec();
        let encrypted = self.kms.encrypt(&seed, &uid()?).await.context("KMS v2 Encrypt")?;
        check_encrypted(&encrypted)?;
        if encrypted.key_id != key_id {
            fail!(
                "Encrypt answers key_id {:?} where Status says {key_id:?}: the apiserver throws \
                 the answer away",
                encrypted.key_id
            );
        }
        Ok((seed, encrypted))
    }

    /// Writes an object with the seed that it has; the first write probes.
    pub async fn write(&mut self, store: &mut Store, etcd_key: &str, value: &[u8]) -> Result {
        let stored = self.transform_to_storage(etcd_key, value).await?;
        store.insert(etcd_key.to_owned(), stored);
        Ok(())
    }

    /// Reads an object; asks the plugin for seeds that it does not know. It is stale when
    /// its key_id is not the one that is written with now.
    pub async fn read(&mut self, store: &Store, etcd_key: &str) -> Result<Object> {
        self.transform_from_storage(etcd_key, stored(store, etcd_key)?).await
    }

    /// An object as it is stored, under the seed that this server has; the first one probes.
    pub async fn transform_to_storage(&mut self, etcd_key: &str, value: &[u8]) -> Result<Vec<u8>> {
        if self.state.is_none() {
            self.probe().await?;
        }
        let state = self.state.as_ref().context("the probe left no state")?;
        if Instant::now() > state.uses_until {
            fail!("{etcd_key}: the last good Status is older than {STATE_LIFE:?}: no more writes");
        }
        let info: [u8; INFO] = random()?;
        let sealed = seal(&expand(&state.seed, &info)?, value, etcd_key)?;
        let object = EncryptedObject {
            encrypted_data: [info.as_slice(), &sealed].concat(),
            key_id: state.encrypted.key_id.clone(),
            encrypted_dek_source: state.encrypted.ciphertext.clone(),
            annotations: state.encrypted.annotations.clone().into_iter().collect(),
            encrypted_dek_source_type: DekSourceType::HkdfSha256XnonceAesGcmSeed.into(),
        };
        Ok([self.prefix().as_bytes(), &object.encode_to_vec()].concat())
    }

    /// The object that is stored so.
    pub async fn transform_from_storage(
        &mut self,
        etcd_key: &str,
        stored: &[u8],
    ) -> Result<Object> {
        let object = self.parse(etcd_key, stored)?;
        let source = &object.encrypted_dek_source;
        if !self.seeds.contains_key(source) {
            let request = DecryptRequest {
                ciphertext: source.clone(),
                uid: uid()?,
                key_id: object.key_id.clone(),
                annotations: object.annotations.clone().into_iter().collect(),
            };
            let seed = self.kms.decrypt_request(request).await;
            let seed = seed.context(format!("{etcd_key}: KMS v2 Decrypt"))?;
            self.seeds.insert(source.clone(), seed);
        }
        let value = open_object(&object, &self.seeds[source], etcd_key)?;
        Ok(Object { value, stale: self.key_id() != Some(object.key_id.as_str()) })
    }

    /// An object as it lies in etcd.
    pub fn stored_object(&self, store: &Store, etcd_key: &str) -> Result<EncryptedObject> {
        self.parse(etcd_key, stored(store, etcd_key)?)
    }

    fn parse(&self, etcd_key: &str, stored: &[u8]) -> Result<EncryptedObject> {
        let body = without_prefix(stored, etcd_key, &self.prefix())?;
        let object = EncryptedObject::decode(body)
            .context(format!("{etcd_key} is not laid out as KMS v2"))?;
        check_object(&object).context(etcd_key)?;
        Ok(object)
    }
}

fn open_object(object: &EncryptedObject, source: &[u8], etcd_key: &str) -> Result<Vec<u8>> {
    match DekSourceType::try_from(object.encrypted_dek_source_type) {
        Ok(DekSourceType::AesGcmKey) => open(source, &object.encrypted_data, etcd_key),
        Ok(DekSourceType::HkdfSha256XnonceAesGcmSeed) => {
            if source.len() < KEY {
                fail!("{etcd_key}: Decrypt answers a seed of {} bytes", source.len());
            }
            let (info, sealed) = object
                .encrypted_data
                .split_first_chunk::<INFO>()
                .context(format!("{etcd_key}: too short for its info"))?;
            open(&expand(source, info)?, sealed, etcd_key)
        }
        Err(_) => fail!("{etcd_key}: unknown type {}", object.encrypted_dek_source_type),
    }
}

/// Some uid; the apiserver sends a UUID.
fn uid() -> Result<String> {
    let number = u128::from_be_bytes(random()?);
    let hex = format!("{number:032x}");
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

// === the rules ===

/// What the apiserver demands of a Status.
pub fn check_status(status: &StatusResponse) -> Result {
    if !matches!(status.version.as_str(), "v2" | "v2beta1") {
        fail!("Status: version is {:?}, not v2 or v2beta1", status.version);
    }
    if status.healthz != "ok" {
        fail!("Status: healthz is {:?}, not \"ok\"", status.healthz);
    }
    check_key_id(&status.key_id).context("Status")
}

/// What the apiserver demands of an answer to Encrypt.
pub fn check_encrypted(answer: &EncryptResponse) -> Result {
    check_ciphertext(&answer.ciphertext).context("Encrypt")?;
    check_key_id(&answer.key_id).context("Encrypt")?;
    check_annotations(answer.annotations.iter()).context("Encrypt")
}

fn check_object(object: &EncryptedObject) -> Result {
    if object.encrypted_data.is_empty() {
        fail!("the stored object is empty");
    }
    check_ciphertext(&object.encrypted_dek_source)?;
    check_key_id(&object.key_id)?;
    check_annotations(object.annotations.iter())
}

fn check_ciphertext(ciphertext: &[u8]) -> Result {
    match ciphertext.len() {
        1..=MAX_CIPHERTEXT => Ok(()),
        length => fail!("a ciphertext of {length} bytes; 1 to {MAX_CIPHERTEXT} are allowed"),
    }
}

fn check_key_id(key_id: &str) -> Result {
    match key_id.len() {
        1..=MAX_KEY_ID => Ok(()),
        length => fail!("a key_id of {length} bytes; 1 to {MAX_KEY_ID} are allowed"),
    }
}

fn check_annotations<'a>(annotations: impl Iterator<Item = (&'a String, &'a Vec<u8>)>) -> Result {
    let mut size = 0;
    for (name, value) in annotations {
        if !is_qualified_name(name) {
            fail!("annotation {name:?} is no lower-case domain name of two labels or more");
        }
        size += name.len() + value.len();
    }
    if size > MAX_ANNOTATIONS {
        fail!("annotations of {size} bytes; {MAX_ANNOTATIONS} are allowed");
    }
    Ok(())
}

fn is_qualified_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.contains('.') && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests;
