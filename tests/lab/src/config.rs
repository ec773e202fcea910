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
    let options = json!({ "token_policies": [role], "token_ttl": "1h", "token_max_ttl": "24h" });
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
    fn a_configuration_prints_one_key_a_line() {
        let config = Config::new().keys(&["a", "b"]).with("addr", "http://127.0.0.1:1");
        assert_eq!(config.to_string(), "addr: \"http://127.0.0.1:1\"\nkeyNames: [\"a\",\"b\"]\n");
    }
}
