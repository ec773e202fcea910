//! Whom a kept secret id may be shown to.

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::cluster::authenticate::Link;

/// The login that a secret id was unwrapped for: no other Vault, and no other role of the
/// same, is shown it. Kept beside it in words, so that a refusal can name what differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Owner {
    addresses: Vec<String>,
    namespace: Option<String>,
    mount: String,
    /// The SHA-256 of the role id.
    role: String,
}

// === impl Owner ===

impl Owner {
    pub(super) fn new(link: &Link, mount: &str, role_id: &SecretString) -> Self {
        Self {
            addresses: link.addresses().to_vec(),
            namespace: link.namespace().cloned(),
            mount: mount.to_owned(),
            role: hex::encode(Sha256::digest(role_id.expose_secret())),
        }
    }

    /// Why what belongs to `self` may not be shown to `other`, if it may not. A cluster that
    /// gains or loses addresses is the same while one of them stays.
    pub(super) fn is_not(&self, other: &Self) -> Option<String> {
        let said = |namespace: &Option<String>| {
            namespace.as_ref().map_or_else(|| "no namespace".into(), |n| format!("namespace {n}"))
        };
        let (theirs, ours) = match () {
            () if !self.addresses.iter().any(|address| other.addresses.contains(address)) => {
                (self.addresses.join(", "), other.addresses.join(", "))
            }
            () if self.namespace != other.namespace => {
                (said(&self.namespace), said(&other.namespace))
            }
            () if self.mount != other.mount => {
                (format!("auth/{}", self.mount), format!("auth/{}", other.mount))
            }
            () if self.role != other.role => ("another role ID".into(), "this one".into()),
            () => return None,
        };
        Some(format!(
            "the secret ID that is kept there was unwrapped for {theirs}, not for {ours}; wrap \
             another"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_cluster_while_one_address_stays() {
        let owner = |addresses: &[&str]| Owner {
            addresses: addresses.iter().map(ToString::to_string).collect(),
            namespace: None,
            mount: "approle".into(),
            role: "kms".into(),
        };
        let kept = owner(&["https://b0", "https://b1"]);
        assert_eq!(kept.is_not(&owner(&["https://b2", "https://b1"])), None);
        let why = kept.is_not(&owner(&["https://c0"])).unwrap();
        assert!(why.contains("for https://b0, https://b1, not for https://c0"), "{why}");
        let other = Owner { namespace: Some("ops".into()), ..kept.clone() };
        assert!(kept.is_not(&other).unwrap().contains("for no namespace, not for namespace ops"));
        let other = Owner { mount: "team".into(), ..kept.clone() };
        assert!(kept.is_not(&other).unwrap().contains("for auth/approle, not for auth/team"));
        let other = Owner { role: "other".into(), ..kept.clone() };
        assert!(kept.is_not(&other).unwrap().contains("for another role ID"));
    }
}
