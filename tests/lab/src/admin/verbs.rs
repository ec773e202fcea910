//! What tests ask of a Vault, by name.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::{Admin, text};
use crate::{Context, Result};

/// A Transit key's metadata.
#[derive(Debug, Clone)]
pub struct KeyInfo {
    /// The newest version.
    pub latest_version: u32,
    /// Older ones are not decrypted.
    pub min_decryption_version: u32,
    /// Older ones do not encrypt; 0 means the newest only by default.
    pub min_encryption_version: u32,
    /// Creation time of each version that decrypts, in Unix seconds.
    pub created: BTreeMap<u32, i64>,
    /// Everything that was answered.
    pub raw: Value,
}

/// What a daemon logs in with.
#[derive(Clone)]
pub struct AppRole {
    /// The role's id.
    pub role_id: String,
    /// One secret id.
    pub secret_id: String,
}

/// The policy that `vault-kms-proxy policy` prints for these keys in `transit` and a login with
/// AppRole, a rule a line; a test compares.
pub fn policy_for(keys: &[&str]) -> String {
    policy_for_mount("transit", keys)
}

/// The same for these keys in `mount`.
pub fn policy_for_mount(mount: &str, keys: &[&str]) -> String {
    let mut policy = String::new();
    let mut rule = |path: &str, capability: &str| {
        let _ = writeln!(policy, "path \"{path}\" {{ capabilities = [\"{capability}\"] }}");
    };
    for key in keys {
        rule(&format!("{mount}/encrypt/{key}"), "update");
        rule(&format!("{mount}/decrypt/{key}"), "update");
        rule(&format!("{mount}/keys/{key}"), "read");
    }
    rule("auth/token/lookup-self", "read");
    rule("auth/token/renew-self", "update");
    rule("auth/token/revoke-self", "update");
    rule("auth/approle/role/+/secret-id/lookup", "update");
    rule("sys/capabilities-self", "update");
    policy
}

// === impl Admin ===

/// Transit.
impl Admin {
    /// Mounts the Transit engine, if it is not mounted yet.
    pub async fn mount_transit(&self) -> Result {
        let path = format!("sys/mounts/{}", self.mount);
        let reply = self.request("POST", &path, &json!({ "type": "transit" })).await?;
        if reply.status >= 300 && !reply.errors().contains("already in use") {
            crate::fail!("mounting transit at {}: {reply}", self.mount);
        }
        Ok(())
    }

    /// Creates an `aes256-gcm96` key.
    pub async fn create_key(&self, key: &str) -> Result {
        self.create_key_with(key, json!({})).await
    }

    /// Creates a key with options: `type`, `derived`, `exportable`,
    /// `allow_plaintext_backup`, …
    pub async fn create_key_with(&self, key: &str, options: Value) -> Result {
        self.write(&self.key_path(key), options).await.map(drop)
    }

    /// Adds a version and makes it the latest.
    pub async fn rotate(&self, key: &str) -> Result {
        self.write(&format!("{}/rotate", self.key_path(key)), json!({})).await.map(drop)
    }

    /// Deletes a key (and allows that first).
    pub async fn delete_key(&self, key: &str) -> Result {
        self.configure_key(key, json!({ "deletion_allowed": true })).await?;
        self.call("DELETE", &self.key_path(key), Value::Null).await.map(drop)
    }

    /// Reads a key's metadata.
    pub async fn key(&self, key: &str) -> Result<KeyInfo> {
        KeyInfo::from_answer(self.read(&self.key_path(key)).await?)
            .context(format!("the metadata of key {key}"))
    }

    /// Changes a key's settings.
    pub async fn configure_key(&self, key: &str, settings: Value) -> Result {
        self.write(&format!("{}/config", self.key_path(key)), settings).await.map(drop)
    }

    /// Refuses to decrypt older versions.
    pub async fn set_min_decryption_version(&self, key: &str, version: u32) -> Result {
        self.configure_key(key, json!({ "min_decryption_version": version })).await
    }

    /// Refuses to encrypt with older versions.
    pub async fn set_min_encryption_version(&self, key: &str, version: u32) -> Result {
        self.configure_key(key, json!({ "min_encryption_version": version })).await
    }

    /// Encrypts with the latest version and answers `vault:vN:…`.
    pub async fn encrypt(&self, key: &str, plaintext: &[u8]) -> Result<String> {
        let body = json!({ "plaintext": BASE64_STANDARD.encode(plaintext) });
        let answer = self.write(&format!("{}/encrypt/{key}", self.mount), body).await?;
        text(&answer["data"]["ciphertext"], "ciphertext")
    }

    /// Decrypts `vault:vN:…`.
    pub async fn decrypt(&self, key: &str, ciphertext: &str) -> Result<Vec<u8>> {
        let body = json!({ "ciphertext": ciphertext });
        let answer = self.write(&format!("{}/decrypt/{key}", self.mount), body).await?;
        Ok(BASE64_STANDARD.decode(text(&answer["data"]["plaintext"], "plaintext")?)?)
    }

    /// Takes a backup of a key made with `exportable` and `allow_plaintext_backup`.
    pub async fn backup(&self, key: &str) -> Result<String> {
        let answer = self.read(&format!("{}/backup/{key}", self.mount)).await?;
        text(&answer["data"]["backup"], "backup")
    }

    /// Restores a backup, also into another cluster and over what is there; creation times
    /// stay.
    pub async fn restore(&self, key: &str, backup: &str) -> Result {
        let path = format!("{}/restore/{key}", self.mount);
        self.write(&path, json!({ "backup": backup, "force": true })).await.map(drop)
    }

    /// Creates a key that [`Admin::replicate_key`] can copy.
    pub async fn create_replicable_key(&self, key: &str) -> Result {
        let options = json!({ "exportable": true, "allow_plaintext_backup": true });
        self.create_key_with(key, options).await
    }

    /// Makes (or brings up to date) a replica of a key in `to`'s cluster, below `to`'s mount:
    /// the same material, versions and creation times.
    pub async fn replicate_key(&self, key: &str, to: &Self) -> Result {
        to.mount_transit().await?;
        to.restore(key, &self.backup(key).await?).await
    }

    /// Makes an impostor of a key in `to`'s cluster, below `to`'s mount: the same name,
    /// versions and creation times, but other material in each version.
    pub async fn replicate_as_impostor(&self, key: &str, to: &Self) -> Result {
        let backup = BASE64_STANDARD.decode(self.backup(key).await?)?;
        let mut backup: Value = serde_json::from_slice(&backup)?;
        let pointers = ["/policy/keys", "/archived_keys/keys"];
        let mut changed = 0;
        for pointer in pointers {
            let Some(versions) = backup.pointer_mut(pointer) else { continue };
            let each: Vec<&mut Value> = match versions {
                Value::Object(versions) => versions.values_mut().collect(),
                Value::Array(versions) => versions.iter_mut().collect(),
                _ => continue,
            };
            for version in each {
                let Some(material) = version["key"].as_str() else { continue };
                let mut material = BASE64_STANDARD.decode(material)?;
                material.iter_mut().for_each(|byte| *byte ^= 0xa5);
                version["key"] = BASE64_STANDARD.encode(material).into();
                changed += 1;
            }
        }
        if changed == 0 {
            crate::fail!("the backup of {key} holds no material that could be changed");
        }
        to.mount_transit().await?;
        to.restore(key, &BASE64_STANDARD.encode(serde_json::to_vec(&backup)?)).await
    }

    pub(crate) fn key_path(&self, key: &str) -> String {
        format!("{}/keys/{key}", self.mount)
    }
}

/// Tokens, policies, roles.
impl Admin {
    /// Writes a policy.
    pub async fn write_policy(&self, name: &str, policy: &str) -> Result {
        let path = format!("sys/policies/acl/{name}");
        self.write(&path, json!({ "policy": policy })).await.map(drop)
    }

    /// Deletes a policy.
    pub async fn delete_policy(&self, name: &str) -> Result {
        self.call("DELETE", &format!("sys/policies/acl/{name}"), Value::Null).await.map(drop)
    }

    /// Creates a token; options: `policies`, `ttl`, `period`, `num_uses`, `explicit_max_ttl`,
    /// `type` (`batch`), `no_parent`, …
    pub async fn create_token(&self, options: Value) -> Result<String> {
        let answer = self.write("auth/token/create", options).await?;
        text(&answer["auth"]["client_token"], "client_token")
    }

    /// Revokes a token.
    pub async fn revoke_token(&self, token: &str) -> Result {
        self.write("auth/token/revoke", json!({ "token": token })).await.map(drop)
    }

    /// Looks a token up and answers its `data`.
    pub async fn lookup_token(&self, token: &str) -> Result<Value> {
        let mut answer = self.write("auth/token/lookup", json!({ "token": token })).await?;
        Ok(answer["data"].take())
    }

    /// Revokes every token that was given out below this path, such as
    /// `auth/approle/login`.
    pub async fn revoke_prefix(&self, prefix: &str) -> Result {
        self.write(&format!("sys/leases/revoke-prefix/{prefix}"), json!({})).await.map(drop)
    }

    /// Enables the AppRole method at `auth/approle`, if it is not enabled yet.
    pub async fn enable_approle(&self) -> Result {
        let reply = self.request("POST", "sys/auth/approle", &json!({ "type": "approle" })).await?;
        if reply.status >= 300 && !reply.errors().contains("already in use") {
            crate::fail!("enabling approle: {reply}");
        }
        Ok(())
    }

    /// Creates (or changes) a role and makes one secret id; options: `token_policies`,
    /// `token_ttl`, `token_max_ttl`, `token_period`, `token_num_uses`,
    /// `secret_id_num_uses`, `secret_id_ttl`, …
    pub async fn create_approle(&self, role: &str, options: Value) -> Result<AppRole> {
        self.enable_approle().await?;
        let path = format!("auth/approle/role/{role}");
        self.write(&path, options).await?;
        let answer = self.read(&format!("{path}/role-id")).await?;
        let role_id = text(&answer["data"]["role_id"], "role_id")?;
        Ok(AppRole { role_id, secret_id: self.new_secret_id(role).await? })
    }

    /// One more secret id of a role.
    pub async fn new_secret_id(&self, role: &str) -> Result<String> {
        let path = format!("auth/approle/role/{role}/secret-id");
        let answer = self.write(&path, json!({})).await?;
        text(&answer["data"]["secret_id"], "secret_id")
    }

    /// What writing to a path would have answered, wrapped: the wrapping token.
    pub async fn wrap(&self, path: &str, body: Value, ttl: Duration) -> Result<String> {
        let ttl = format!("{}s", ttl.as_secs());
        let answer = self.wrapped(&ttl).write(path, body).await?;
        text(&answer["wrap_info"]["token"], "wrapping token")
    }

    /// Makes a secret id useless.
    pub async fn destroy_secret_id(&self, role: &str, secret_id: &str) -> Result {
        let path = format!("auth/approle/role/{role}/secret-id/destroy");
        self.write(&path, json!({ "secret_id": secret_id })).await.map(drop)
    }

    /// Creates a namespace.
    pub async fn create_namespace(&self, name: &str) -> Result {
        self.write(&format!("sys/namespaces/{name}"), json!({})).await.map(drop)
    }

    /// Sets a rate limit; options: `rate`, `interval`, `path`, `block_interval`, …
    pub async fn set_rate_limit(&self, name: &str, options: Value) -> Result {
        self.write(&format!("sys/quotas/rate-limit/{name}"), options).await.map(drop)
    }

    /// Lifts it.
    pub async fn remove_rate_limit(&self, name: &str) -> Result {
        self.call("DELETE", &format!("sys/quotas/rate-limit/{name}"), Value::Null).await.map(drop)
    }
}

// === impl KeyInfo ===

impl KeyInfo {
    fn from_answer(mut answer: Value) -> Option<Self> {
        let raw = answer["data"].take();
        let number = |name: &str| raw[name].as_u64().and_then(|n| u32::try_from(n).ok());
        let created = raw["keys"].as_object()?.iter().filter_map(|(version, at)| {
            // A number for symmetric keys, an object for the others.
            let seconds = at.as_i64()?;
            Some((version.parse().ok()?, seconds))
        });
        Some(Self {
            latest_version: number("latest_version")?,
            min_decryption_version: number("min_decryption_version")?,
            min_encryption_version: number("min_encryption_version")?,
            created: created.collect(),
            raw,
        })
    }
}

impl std::fmt::Debug for AppRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppRole").field("role_id", &self.role_id).finish_non_exhaustive()
    }
}
