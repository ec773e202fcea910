//! What bao-kms-provider bound its ciphertexts to. The annotations hold hashes of most of
//! it; three names stand only in its configuration.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

use super::written::Parts;
use crate::config::settings::BaoKmsProvider;
use crate::keyring::{DecryptHints, KeyringError};

/// The annotations that are needed, all below `.kms.openbao.org`.
const KEY_ID_HASH: &str = "key-id-hash.kms.openbao.org";
const KEY_VERSION: &str = "transit-key-version.kms.openbao.org";
const MOUNT_HASH: &str = "transit-mount-hash.kms.openbao.org";
const KEY_HASH: &str = "transit-key-hash.kms.openbao.org";
const AAD_VERSION: &str = "aad-version.kms.openbao.org";
/// Written only where it was configured with a namespace.
const NAMESPACE_HASH: &str = "openbao-namespace-hash.kms.openbao.org";

/// The associated data, byte for byte as they were when `parts` was written.
pub(super) fn associated_data(
    bao: &BaoKmsProvider,
    parts: Parts<'_>,
    hints: &DecryptHints,
) -> Result<Vec<u8>, KeyringError> {
    let aad_version = annotation(hints, AAD_VERSION)?;
    if aad_version != "v1" {
        return refuse("names a form of its associated data that this version does not know");
    }
    let version = annotation(hints, KEY_VERSION)?;
    if version != parts.version {
        return refuse("and its annotations name different key versions");
    }
    let key_id_hash = hash(&hints.key_id);
    if key_id_hash != annotation(hints, KEY_ID_HASH)? {
        return refuse("stands beside a key_id that is not the one in its annotations");
    }
    let mount_hash = hash_in(hints, MOUNT_HASH)?;
    let key_hash = hash_in(hints, KEY_HASH)?;
    let namespace = match hints.annotations.contains_key(NAMESPACE_HASH) {
        true => format!("\"openbao_namespace_hash\":\"{}\",", hash_in(hints, NAMESPACE_HASH)?),
        false => String::new(),
    };
    // The order of the fields and the absence of spaces belong to it.
    let BaoKmsProvider { provider_name, cluster_id, instance_id } = bao;
    let (cluster_hash, instance_hash) = (hash(cluster_id), hash(instance_id));
    Ok(format!(
        "{{\"aad_version\":\"v1\",\"purpose\":\"kubernetes-etcd-kms-v2\",\
         \"provider\":\"openbao-transit\",\"provider_name\":\"{provider_name}\",\
         \"cluster_id_hash\":\"{cluster_hash}\",\"openbao_instance_hash\":\"{instance_hash}\",\
         {namespace}\"transit_mount_hash\":\"{mount_hash}\",\"transit_key_hash\":\"{key_hash}\",\
         \"key_id_hash\":\"{key_id_hash}\",\"key_version\":\"{version}\"}}"
    )
    .into_bytes())
}

/// SHA-256 in base64 as it stands in URLs, without padding.
pub(super) fn hash(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(text.as_bytes()))
}

fn annotation<'a>(hints: &'a DecryptHints, name: &str) -> Result<&'a str, KeyringError> {
    let value = hints.annotations.get(name).and_then(|value| std::str::from_utf8(value).ok());
    value.filter(|value| !value.is_empty()).map_or_else(
        || refuse(&format!("lacks the annotation {name}, without which it cannot be decrypted")),
        Ok,
    )
}

/// An annotation that goes into JSON as it stands, so it must be what it should be.
fn hash_in<'a>(hints: &'a DecryptHints, name: &str) -> Result<&'a str, KeyringError> {
    let value = annotation(hints, name)?;
    let sound = URL_SAFE_NO_PAD.decode(value).is_ok_and(|bytes| bytes.len() == 32);
    if sound { Ok(value) } else { refuse(&format!("has an annotation {name} that is no hash")) }
}

fn refuse<T>(what: &str) -> Result<T, KeyringError> {
    Err(KeyringError::Unreadable(format!("the ciphertext was written by bao-kms-provider, {what}")))
}
