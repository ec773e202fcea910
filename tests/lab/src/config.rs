//! A daemon's configuration file, made of plain values.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use crate::Result;
use crate::admin::{Admin, policy_for_mount};

/// A daemon's configuration. Prints as YAML, one top-level key a line.
#[derive(Debug, Clone, Default)]
pub struct Config {
    entries: BTreeMap<String, Value>,
}

/// The flat keys that describe a cluster.
const OF_A_CLUSTER: &[&str] = &[
    "addr",
    "namespace",
    "transitPath",
    "vaultCACert",
    "clientCert",
    "clientKey",
    "tlsServerName",
    "auth",
    "token",
    "tokenFile",
    "roleID",
    "roleIDFile",
    "secretID",
    "secretIDFile",
];

/// Of those, the ones that stand below `auth` in an entry of `clusters`: in which method,
/// and as what.
const OF_AUTH: &[(&str, &str, &str)] = &[
    ("token", "", "token"),
    ("tokenFile", "", "tokenFile"),
    ("roleID", "appRole", "roleID"),
    ("roleIDFile", "appRole", "roleIDFile"),
    ("secretID", "appRole", "secretID"),
    ("secretIDFile", "appRole", "secretIDFile"),
];

// === impl Config ===

impl Config {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with a top-level key set.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.entries.insert(key.to_owned(), value.into());
        self
    }

    /// The same without a top-level key.
    #[must_use]
    pub fn without(mut self, key: &str) -> Self {
        self.entries.remove(key);
        self
    }

    /// The same with other keys, the first of which encrypts.
    #[must_use]
    pub fn keys(self, keys: &[&str]) -> Self {
        self.with("keyNames", json!(keys))
    }

    /// The same with other addresses, such as those of fault proxies.
    #[must_use]
    pub fn addresses<A: AsRef<str>>(self, addresses: &[A]) -> Self {
        let list: Vec<&str> = addresses.iter().map(AsRef::as_ref).collect();
        self.with("addr", json!(list))
    }

    /// The same with this token instead of any other way to log in.
    #[must_use]
    pub fn token(self, token: &str) -> Self {
        let bare = self.without("roleID").without("secretID").without("secretIDFile");
        bare.without("auth").without("tokenFile").with("token", token)
    }

    /// The clusters of several configurations in one, each under its name, and `keys` in all
    /// of them, in this order of failover. What describes no cluster is taken from the first.
    #[must_use]
    pub fn replicas(clusters: &[(&str, &Self)], keys: &[&str]) -> Self {
        let names: Vec<&str> = clusters.iter().map(|(name, _)| *name).collect();
        let blocks = clusters.iter().map(|(name, config)| ((*name).to_owned(), config.cluster()));
        let keys = keys.iter().map(|key| json!({ "name": key, "clusters": names }));
        let mut rest = clusters.first().map(|(_, config)| (*config).clone()).unwrap_or_default();
        rest.entries.retain(|key, _| !OF_A_CLUSTER.contains(&key.as_str()));
        rest.with("clusters", Value::Object(blocks.collect()))
            .with("keyNames", Value::from_iter(keys))
    }

    /// Its one cluster, as an entry of `clusters`.
    fn cluster(&self) -> Value {
        let is_auth = |key: &str| OF_AUTH.iter().any(|(flat, ..)| *flat == key);
        let mut block = serde_json::Map::new();
        for (key, value) in &self.entries {
            if OF_A_CLUSTER.contains(&key.as_str()) && !is_auth(key) {
                block.insert(key.clone(), value.clone());
            }
        }
        let mut auth = self.entries.get("auth").cloned().unwrap_or_else(|| json!({}));
        for (flat, method, name) in OF_AUTH {
            let Some(value) = self.entries.get(*flat) else { continue };
            if method.is_empty() {
                auth[*name] = value.clone();
            } else {
                auth[*method][*name] = value.clone();
            }
        }
        block.insert("auth".to_owned(), auth);
        Value::Object(block)
    }

    /// A value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // JSON is YAML.
        self.entries.iter().try_for_each(|(key, value)| writeln!(f, "{key}: {value}"))
    }
}

/// Gives a daemon of its own role what it needs for `keys`, and no more; answers how it
/// is configured.
pub(crate) async fn grant(
    admin: &Admin,
    addresses: &[String],
    ca: &Path,
    folder: &Path,
    keys: &[&str],
) -> Result<Config> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let role = format!("kms-{}", NEXT.fetch_add(1, Ordering::Relaxed));

    admin.write_policy(&role, &policy_for_mount(admin.mount(), keys)).await?;
    // Without Vault's `default` policy: what the daemon prints must be enough.
    let options = json!({
        "token_policies": [role],
        "token_no_default_policy": true,
        "token_ttl": "1h",
        "token_max_ttl": "24h",
    });
    let approle = admin.create_approle(&role, options).await?;
    let secret_id = folder.join(format!("{role}.secret-id"));
    crate::tls::replace_file(&secret_id, &approle.secret_id)?;

    Ok(Config::new()
        .keys(keys)
        .addresses(addresses)
        .with("vaultCACert", ca.display().to_string())
        .with("roleID", approle.role_id)
        .with("secretIDFile", secret_id.display().to_string())
        .with("admin", json!({ "listen": "127.0.0.1:0" }))
        .with("rotation", json!({ "refresh": "1s", "activationDelay": "2s" })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_configurations_become_clusters_of_one() {
        let a = Config::new().addresses(&["https://a"]).with("roleID", "r").with("rotation", 1);
        let b = Config::new().addresses(&["https://b"]).token("s.b");
        let both = Config::replicas(&[("one", &a), ("two", &b)], &["kube"]);
        let expected = json!({
            "one": { "addr": ["https://a"], "auth": { "appRole": { "roleID": "r" } } },
            "two": { "addr": ["https://b"], "auth": { "token": "s.b" } },
        });
        assert_eq!(both.get("clusters"), Some(&expected));
        let keys = json!([{ "name": "kube", "clusters": ["one", "two"] }]);
        assert_eq!((both.get("keyNames"), both.get("addr")), (Some(&keys), None));
        assert_eq!(both.get("rotation"), Some(&json!(1)));
    }

    #[test]
    fn a_configuration_prints_one_key_a_line() {
        let config = Config::new().keys(&["a", "b"]).with("addr", "http://127.0.0.1:1");
        assert_eq!(config.to_string(), "addr: \"http://127.0.0.1:1\"\nkeyNames: [\"a\",\"b\"]\n");
    }
}
