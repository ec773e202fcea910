//! What is the same in two configurations, so that a reload can carry it over.

use secrecy::{ExposeSecret, SecretString};

use crate::config::settings::{
    AppRoleSettings, AuthSettings, ClusterName, ClusterSettings, KekName, KekSettings, SecretSource,
};

/// What makes two KEKs the same key in Vault, so that what was seen of one is worth
/// something for the other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KekIdentity {
    pub(super) name: KekName,
    pub(super) clusters: Vec<ClusterName>,
    pub(super) namespace: Option<String>,
    pub(super) mount: String,
    pub(super) transit_key: String,
}

/// Whether both mean the same addresses, reached and logged in to in the same way. The
/// bytes of TLS files are compared elsewhere; files of secrets are read again at each use.
pub(super) fn same_cluster(a: &ClusterSettings, b: &ClusterSettings) -> bool {
    let ClusterSettings { name, addresses, namespace, tls, auth, allow_plaintext } = a;
    *name == b.name
        && *addresses == b.addresses
        && *namespace == b.namespace
        && *tls == b.tls
        && *allow_plaintext == b.allow_plaintext
        && same_auth(auth, &b.auth)
}

fn same_auth(a: &AuthSettings, b: &AuthSettings) -> bool {
    match (a, b) {
        (AuthSettings::Token(a), AuthSettings::Token(b)) => same_secret(a, b),
        (AuthSettings::TokenFile(a), AuthSettings::TokenFile(b)) => a == b,
        (AuthSettings::AppRole(a), AuthSettings::AppRole(b)) => same_app_role(a, b),
        _ => false,
    }
}

fn same_app_role(a: &AppRoleSettings, b: &AppRoleSettings) -> bool {
    let same_secret_id = match (&a.secret_id, &b.secret_id) {
        (None, None) => true,
        (Some(a), Some(b)) => same_source(a, b),
        _ => false,
    };
    a.mount == b.mount && same_source(&a.role_id, &b.role_id) && same_secret_id
}

fn same_source(a: &SecretSource, b: &SecretSource) -> bool {
    match (a, b) {
        (SecretSource::Inline(a), SecretSource::Inline(b)) => same_secret(a, b),
        (SecretSource::File(a), SecretSource::File(b)) => a == b,
        _ => false,
    }
}

// Both come from the operator's own configuration: there is nobody to time it.
fn same_secret(a: &SecretString, b: &SecretString) -> bool {
    a.expose_secret() == b.expose_secret()
}

// === impl KekIdentity ===

impl KekIdentity {
    pub(super) fn of(kek: &KekSettings) -> Self {
        Self {
            name: kek.name.clone(),
            clusters: kek.clusters.clone(),
            namespace: kek.namespace.clone(),
            mount: kek.mount.clone(),
            transit_key: kek.transit_key.clone(),
        }
    }
}
