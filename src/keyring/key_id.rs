//! The public name of a KEK version, `<name>:vN:<16 hex>`: what KMS v2 stores and compares.
//!
//! It is a pure function of configuration and Vault's state, so that every control-plane
//! node says the same with no coordination, and a key that was deleted and made again gets
//! another name for its `v1`.
//!
//! The sixteen hex digits are the first eight bytes of SHA-256 over:
//!
//! ```text
//! "vault-kms-proxy/key-id/v1" 0x00
//! name  namespace  mount  transitKey        each: length (u32, big-endian), then its bytes
//! version (u32, big-endian)  creation time (i64, big-endian, seconds since 1970)
//! epoch                                     as the texts above; left out when there is none
//! ```
//!
//! Namespace and mount are taken without slashes at their ends; no namespace is the empty
//! one. This is frozen: a changed encoding would change every key_id, and every apiserver
//! would believe that its key was rotated.

use sha2::{Digest, Sha256};

use super::KeyId;
use crate::clock::UnixSeconds;
use crate::config::settings::KekSettings;

const DOMAIN: &[u8] = b"vault-kms-proxy/key-id/v1\0";

/// The key_id of `version`, which Vault says was created at `created`.
pub(crate) fn of(kek: &KekSettings, version: u32, created: UnixSeconds) -> KeyId {
    let mut hash = Sha256::new_with_prefix(DOMAIN);
    let namespace = kek.namespace.as_deref().unwrap_or_default();
    for text in [kek.name.as_str(), without_slashes(namespace), without_slashes(&kek.mount)] {
        add_text(&mut hash, text);
    }
    add_text(&mut hash, &kek.transit_key);
    hash.update(version.to_be_bytes());
    hash.update(created.0.to_be_bytes());
    if let Some(epoch) = &kek.epoch {
        add_text(&mut hash, epoch);
    }
    let head = hex::encode(&hash.finalize()[..8]);
    KeyId::from(format!("{}:v{version}:{head}", kek.name))
}

/// What stands for a key_id where the creation time is unknown, because the token may not
/// read the key. It never reaches KMS v2.
pub(crate) fn unread(kek: &KekSettings, version: u32) -> KeyId {
    KeyId::from(format!("{}:v{version}:unread", kek.name))
}

/// The version that `key_id` names, when it is one of `kek`'s by its looks. Its hash
/// must be compared with [`of`] before it is believed.
pub(crate) fn version_in(kek: &KekSettings, key_id: &KeyId) -> Option<u32> {
    let rest = key_id.as_str().strip_prefix(kek.name.as_str())?.strip_prefix(":v")?;
    rest.split_once(':')?.0.parse().ok()
}

fn without_slashes(path: &str) -> &str {
    path.trim_matches('/')
}

fn add_text(hash: &mut Sha256, text: &str) {
    // Configuration is far smaller than 4 GiB; the length makes the encoding unambiguous.
    hash.update(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    hash.update(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{ClusterName, KekName};

    fn kek() -> KekSettings {
        KekSettings {
            name: KekName::try_new("kube-2026").unwrap(),
            transit_key: "kube".into(),
            mount: "transit".into(),
            namespace: None,
            clusters: vec![ClusterName::try_new("default").unwrap()],
            replicas: Vec::new(),
            epoch: None,
            active_version: None,
        }
    }

    const CREATED: UnixSeconds = UnixSeconds(1_767_225_600);

    // The hex digits were computed with another program (python3, hashlib) from the
    // description above. They are frozen.
    #[test]
    fn key_ids_are_frozen() {
        assert_eq!(of(&kek(), 1, CREATED).as_str(), "kube-2026:v1:a98a7d9c3dc483df");
        let full = KekSettings {
            namespace: Some("ops/prod".into()),
            mount: "kms/transit".into(),
            epoch: Some("2".into()),
            ..kek()
        };
        assert_eq!(
            of(&full, 4_294_967_295, CREATED).as_str(),
            "kube-2026:v4294967295:46f65032788eba77"
        );
    }

    #[test]
    fn everything_that_tells_two_keys_apart_is_in_the_key_id() {
        let all = [
            of(&kek(), 1, CREATED),
            of(&kek(), 2, CREATED),
            of(&kek(), 1, UnixSeconds(CREATED.0 + 1)),
            of(&KekSettings { name: KekName::try_new("kube").unwrap(), ..kek() }, 1, CREATED),
            of(&KekSettings { transit_key: "kube2".into(), ..kek() }, 1, CREATED),
            of(&KekSettings { mount: "transit2".into(), ..kek() }, 1, CREATED),
            of(&KekSettings { namespace: Some("ops".into()), ..kek() }, 1, CREATED),
            of(&KekSettings { epoch: Some(String::new()), ..kek() }, 1, CREATED),
            of(&KekSettings { epoch: Some("1".into()), ..kek() }, 1, CREATED),
            // The same letters with the border between mount and key elsewhere.
            of(
                &KekSettings { mount: "transitk".into(), transit_key: "ube".into(), ..kek() },
                1,
                CREATED,
            ),
        ];
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn how_a_path_is_written_and_where_the_key_lives_now_do_not_matter() {
        let same = KekSettings {
            mount: "/transit/".into(),
            namespace: Some("/".into()),
            clusters: vec![ClusterName::try_new("elsewhere").unwrap()],
            active_version: Some(1),
            ..kek()
        };
        assert_eq!(of(&kek(), 1, CREATED), of(&same, 1, CREATED));
    }

    #[test]
    fn the_version_is_read_back_from_a_key_id_of_this_kek_only() {
        let id = of(&kek(), 12, CREATED);
        assert_eq!(version_in(&kek(), &id), Some(12));
        let other = KekSettings { name: KekName::try_new("kube").unwrap(), ..kek() };
        assert_eq!(version_in(&other, &id), None);
        for foreign in ["", "1", "kube-2026", "kube-2026:v", "kube-2026:vx:0", "obk2.abc"] {
            assert_eq!(version_in(&kek(), &KeyId::from(foreign.to_owned())), None, "{foreign}");
        }
    }
}
