//! What a configuration says, for people and for comparison: every value under its key
//! path, and no secret. Where one stands in the configuration itself, only that it does.
//!
//! A running daemon shows its outline, so that `check` can tell what a reload would change.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::settings::{
    AuthSettings, ClusterSettings, KekSettings, LogFormat, OnOutage, OtlpProtocol, SecretId,
    SecretSource, Settings, VerifyEncrypt, WriteFormat,
};

/// See the module. What stands at its default is there too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outline {
    /// The KEKs, in order; the first encrypts.
    pub key_names: Vec<KekOutline>,
    /// Everything else, by key path; the items of a list in one text.
    pub values: BTreeMap<String, String>,
}

/// A KEK.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KekOutline {
    /// Its name.
    pub name: String,
    /// What else is said of it, by key.
    pub values: BTreeMap<String, String>,
}

/// Values by key path, as they are put together.
#[derive(Default)]
struct Values(BTreeMap<String, String>);

/// What stands for a secret.
const NOT_SHOWN: &str = "(not shown)";

// === impl Outline ===

impl Outline {
    /// What `settings` say.
    pub fn of(settings: &Settings) -> Self {
        let mut values = Values::default();
        values.of_the_socket(settings);
        for cluster in &settings.clusters {
            // The flat form describes the cluster `default`, without a prefix.
            let is_flat = settings.clusters.len() == 1 && cluster.name.as_str() == "default";
            let prefix =
                if is_flat { String::new() } else { format!("clusters.{}.", cluster.name) };
            values.of_a_cluster(&prefix, cluster);
        }
        values.of_the_keyring(settings);
        values.of_the_rest(settings);
        let key_names = settings.keyring.keks.iter().map(|kek| KekOutline::of(kek)).collect();
        Self { key_names, values: values.0 }
    }

    /// The names of the KEKs, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.key_names.iter().map(|kek| kek.name.as_str())
    }

    /// The KEK `name`.
    pub fn kek(&self, name: &str) -> Option<&KekOutline> {
        self.key_names.iter().find(|kek| kek.name == name)
    }

    /// Whether a secret stands in the configuration, which no outline can compare.
    pub fn has_unseen(&self) -> bool {
        self.values.values().any(|value| value.contains(NOT_SHOWN))
    }
}

// === impl KekOutline ===

impl KekOutline {
    fn of(kek: &KekSettings) -> Self {
        let mut values = Values::default();
        values.put("transitKey", &kek.transit_key);
        values.put("mount", &kek.mount);
        values.put_some("namespace", kek.namespace.as_ref());
        values.put("clusters", list(&kek.clusters));
        for (n, replica) in kek.replicas.iter().enumerate() {
            let namespace = replica.namespace.as_deref().unwrap_or_default();
            values.put(&format!("replica {}", n + 1), format!("{namespace}/{}", replica.mount));
        }
        values.put_some("epoch", kek.epoch.as_ref());
        values.put_some("activeVersion", kek.active_version.as_ref());
        Self { name: kek.name.as_str().to_owned(), values: values.0 }
    }
}

// === impl Values ===

impl Values {
    fn put(&mut self, key: &str, value: impl Display) {
        self.0.insert(key.to_owned(), value.to_string());
    }

    fn put_some(&mut self, key: &str, value: Option<impl Display>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }

    fn of_the_socket(&mut self, settings: &Settings) {
        let socket = &settings.socket;
        self.put("socket.path", &socket.address);
        self.put("socket.mode", format_args!("{:04o}", socket.mode));
        self.put_some("socket.owner", socket.owner.as_ref());
        self.put_some("socket.group", socket.group.as_ref());
        self.put_some("socket.allowedUids", socket.allowed_uids.as_ref().map(|uids| list(uids)));
    }

    fn of_a_cluster(&mut self, prefix: &str, cluster: &ClusterSettings) {
        let mut put = |key: &str, value: Option<String>| {
            self.put_some(&format!("{prefix}{key}"), value);
        };
        let path = |path: &Path| path.display().to_string();
        put("addr", Some(list(&cluster.addresses)));
        put("namespace", cluster.namespace.clone());
        put("vaultCACert", cluster.tls.ca_file.as_deref().map(path));
        put("clientCert", cluster.tls.client.as_ref().map(|client| path(&client.cert_file)));
        put("clientKey", cluster.tls.client.as_ref().map(|client| path(&client.key_file)));
        put("tlsServerName", cluster.tls.server_name.clone());
        put("allowPlaintext", Some(cluster.allow_plaintext.to_string()));
        put("tokenCache", cluster.token_cache.as_deref().map(path));
        put("auth", Some(login(&cluster.auth)));
        put("auth.namespace", cluster.auth_namespace.clone());
    }

    fn of_the_keyring(&mut self, settings: &Settings) {
        let keyring = &settings.keyring;
        self.put("rotation.refresh", humantime::format_duration(keyring.rotation.refresh));
        let delay = humantime::format_duration(keyring.rotation.activation_delay);
        self.put("rotation.activationDelay", delay);
        let verify = match keyring.verify_encrypt {
            VerifyEncrypt::V2 => "v2",
            VerifyEncrypt::Always => "always",
        };
        self.put("verifyEncrypt", verify);
        let format = match keyring.write_format {
            WriteFormat::Named => "named",
            WriteFormat::Vault => "vault",
        };
        self.put("write.format", format);
        self.put("statusVersion", keyring.status.version.as_str());
        self.put("status.grace", humantime::format_duration(keyring.status.grace));
        let on_outage = match keyring.status.on_outage {
            OnOutage::Report => "report",
            OnOutage::Ok => "ok",
        };
        self.put("status.onOutage", on_outage);
        self.put_some("legacy.key", keyring.legacy_key.as_ref());
        if let Some(bao) = &keyring.bao_kms_provider {
            self.put("legacy.baoKmsProvider.providerName", &bao.provider_name);
            self.put("legacy.baoKmsProvider.clusterId", &bao.cluster_id);
            self.put("legacy.baoKmsProvider.instanceId", &bao.instance_id);
        }
    }

    fn of_the_rest(&mut self, settings: &Settings) {
        let dns = settings.clusters.first().map(|cluster| list(&cluster.dns_servers));
        self.put_some("dns.servers", dns.filter(|servers| !servers.is_empty()));
        self.put("calls.maxConcurrent", settings.kms.max_concurrent_calls);
        let deadline = humantime::format_duration(settings.kms.default_deadline);
        self.put("calls.defaultDeadline", deadline);
        match settings.admin {
            Some(address) => self.put("admin.listen", address),
            None => self.put("admin.listen", "off"),
        }
        self.put("log.level", &settings.log.filter);
        let format = match settings.log.format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        self.put("log.format", format);
        if let Some(traces) = &settings.traces {
            self.put("traces.endpoint", &traces.endpoint);
            let protocol = match traces.protocol {
                OtlpProtocol::Grpc => "grpc",
                OtlpProtocol::Http => "http",
            };
            self.put("traces.protocol", protocol);
            self.put("traces.sampleRatio", traces.sample_ratio);
        }
        self.put("shutdownGrace", humantime::format_duration(settings.shutdown_grace));
        let reload = &settings.reload;
        self.put("reloadTimeout", humantime::format_duration(reload.timeout));
        self.put("reload.strict", reload.strict);
        self.put("watchConfig", reload.watch);
        if !reload.retired.is_empty() {
            self.put("retired", list(&reload.retired));
        }
        self.put_some("stateDir", settings.state_dir.as_ref().map(|path| path.display()));
    }
}

/// How a cluster is logged in to, without what proves it.
fn login(auth: &AuthSettings) -> String {
    let file = |path: &Path| path.display().to_string();
    let source = |source: &SecretSource| source.file().map_or(NOT_SHOWN.to_owned(), file);
    let role = |role: &Option<String>| role.clone().unwrap_or_else(|| "default".to_owned());
    match auth {
        AuthSettings::Token(_) => format!("token {NOT_SHOWN}"),
        AuthSettings::TokenFile(path) => format!("tokenFile {}", file(path)),
        AuthSettings::AppRole(role) => {
            let secret = match &role.secret_id {
                SecretId::None => "no secretID".to_owned(),
                SecretId::Given(secret) => format!("secretID {}", source(secret)),
                SecretId::Wrapped { token, kept_in } => {
                    format!("wrappedSecretID {}, kept in {}", source(token), file(kept_in))
                }
            };
            format!("appRole at {}, roleID {}, {secret}", role.mount, source(&role.role_id))
        }
        AuthSettings::Kubernetes(k) => {
            format!("kubernetes at {}, role {}, tokenFile {}", k.mount, k.role, file(&k.token_file))
        }
        AuthSettings::Jwt(jwt) => {
            let (role, token) = (role(&jwt.role), file(&jwt.token_file));
            format!("jwt at {}, role {role}, tokenFile {token}", jwt.mount)
        }
        AuthSettings::Cert(cert) => format!("cert at {}, role {}", cert.mount, role(&cert.role)),
        AuthSettings::Userpass(user) => format!(
            "userpass at {}, username {}, password {}",
            user.mount,
            user.username,
            source(&user.password)
        ),
    }
}

fn list<T: Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
