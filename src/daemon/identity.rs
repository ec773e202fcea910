//! What is the same in two configurations, so that a reload can carry it over.

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::config::settings::{
    AppRoleSettings, AuthSettings, ClusterName, ClusterSettings, KekName, KekSettings, SecretId,
    SecretSource,
};

/// What makes two KEKs the same key in Vault, so that what was seen of one is worth
/// something for the other. Of a KEK in several clusters the first one counts: it alone
/// says which versions there are.
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
    let ClusterSettings {
        name,
        addresses,
        dns_servers,
        namespace,
        auth_namespace,
        tls,
        auth,
        allow_plaintext,
        token_cache,
    } = a;
    *name == b.name
        && *addresses == b.addresses
        && *dns_servers == b.dns_servers
        && *namespace == b.namespace
        && *auth_namespace == b.auth_namespace
        && *tls == b.tls
        && *allow_plaintext == b.allow_plaintext
        && *token_cache == b.token_cache
        && same_auth(auth, &b.auth)
}

fn same_auth(a: &AuthSettings, b: &AuthSettings) -> bool {
    match (a, b) {
        (AuthSettings::Token(a), AuthSettings::Token(b)) => same_secret(a, b),
        (AuthSettings::TokenFile(a), AuthSettings::TokenFile(b)) => a == b,
        (AuthSettings::AppRole(a), AuthSettings::AppRole(b)) => same_app_role(a, b),
        (AuthSettings::Kubernetes(a), AuthSettings::Kubernetes(b)) => a == b,
        (AuthSettings::Jwt(a), AuthSettings::Jwt(b)) => a == b,
        (AuthSettings::Cert(a), AuthSettings::Cert(b)) => a == b,
        (AuthSettings::Userpass(a), AuthSettings::Userpass(b)) => {
            a.mount == b.mount && a.username == b.username && same_source(&a.password, &b.password)
        }
        _ => false,
    }
}

fn same_app_role(a: &AppRoleSettings, b: &AppRoleSettings) -> bool {
    let same_secret_id = match (&a.secret_id, &b.secret_id) {
        (SecretId::None, SecretId::None) => true,
        (SecretId::Given(a), SecretId::Given(b)) => same_source(a, b),
        (
            SecretId::Wrapped { token: a, kept_in: kept_by_a },
            SecretId::Wrapped { token: b, kept_in: kept_by_b },
        ) => same_source(a, b) && kept_by_a == kept_by_b,
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

/// What tells a KEK's first cluster from another one of the same name, or the key in it from
/// another: a canary of one says nothing of the other.
pub(super) fn origin_of(kek: &KekSettings, cluster: &ClusterSettings) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update(text.len().to_be_bytes());
        hash.update(text);
    };
    let namespace = kek.namespace.as_deref().unwrap_or_default();
    for text in [cluster.name.as_str(), namespace, &kek.mount, &kek.transit_key] {
        add(text);
    }
    let mut addresses: Vec<String> = cluster.addresses.iter().map(ToString::to_string).collect();
    addresses.sort();
    addresses.iter().for_each(|address| add(address));
    hex::encode(hash.finalize())
}

// Both come from the operator's own configuration: there is nobody to time it.
fn same_secret(a: &SecretString, b: &SecretString) -> bool {
    a.expose_secret() == b.expose_secret()
}

// === impl KekIdentity ===

impl KekIdentity {
    /// Whether `other` has the same key_ids: it is the same key, perhaps with another cluster
    /// as its first one.
    pub(super) fn names_as(&self, other: &Self) -> bool {
        let clusters = self.clusters.clone();
        Self { clusters, ..other.clone() } == *self
    }

    pub(super) fn of(kek: &KekSettings) -> Self {
        Self {
            name: kek.name.clone(),
            clusters: kek.clusters.iter().take(1).cloned().collect(),
            namespace: kek.namespace.clone(),
            mount: kek.mount.clone(),
            transit_key: kek.transit_key.clone(),
        }
    }
}
