//! What the daemon runs on: plain typed values, checked once by `resolve`, with
//! nothing optional that need not be. Files named here are read later, by their users,
//! because what they hold changes while the daemon runs.

mod auth;
mod names;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;

pub use auth::{
    AppRoleSettings, AuthSettings, CertSettings, JwtSettings, KubernetesSettings, SecretId,
    SecretSource, UserpassSettings,
};
pub use names::{ClusterName, InvalidName, KekName};

/// The scheme of an address whose host is the name of a service: DNS knows its nodes and
/// their ports, and each is spoken to as with `https`.
pub const SERVICE_SCHEME: &str = "srv+https";

/// Everything that one accepted configuration says.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The socket that kube-apiserver dials.
    pub socket: SocketSettings,
    /// The KEKs and how they are used.
    pub keyring: KeyringSettings,
    /// The clusters that the KEKs live in, in the file's order; never empty.
    pub clusters: Vec<Arc<ClusterSettings>>,
    /// How calls are served.
    pub kms: KmsSettings,
    /// Where `/livez`, `/readyz` and `/metrics` are served; `None` switches them off.
    pub admin: Option<SocketAddr>,
    /// Logs.
    pub log: LogSettings,
    /// Traces; `None` while no endpoint is configured.
    pub traces: Option<TraceSettings>,
    /// How long calls in flight may take to finish after SIGTERM.
    pub shutdown_grace: Duration,
    /// How a changed configuration is taken into use.
    pub reload: ReloadSettings,
    /// Where state that outlives the process is kept; `None` keeps none.
    pub state_dir: Option<PathBuf>,
}

/// How a changed configuration is taken into use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReloadSettings {
    /// How long new parts may take to answer.
    pub timeout: Duration,
    /// New parts that are not the primary's must answer too.
    pub strict: bool,
    /// A change of the file's content is a reload.
    pub watch: bool,
    /// KEKs that may be gone from the keyring: nothing needs them any more.
    /// [`RETIRED_BAO_KMS_PROVIDER`] among them is none.
    pub retired: Vec<KekName>,
}

/// What stands in `retired` for the names of another plugin: their own key path.
pub const RETIRED_BAO_KMS_PROVIDER: &str = "legacy.baoKmsProvider";

/// The socket that kube-apiserver dials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketSettings {
    /// Where it listens.
    pub address: SocketAddress,
    /// Permission bits of the socket file.
    pub mode: u32,
    /// User who owns the socket file, by name or number.
    pub owner: Option<String>,
    /// Group that owns the socket file, by name or number.
    pub group: Option<String>,
    /// Users who may connect; `None` means root and the daemon's own user.
    pub allowed_uids: Option<Vec<u32>>,
}

/// A unix socket's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketAddress {
    /// A file.
    Path(PathBuf),
    /// A name in Linux's abstract namespace, without the leading `@`.
    Abstract(String),
}

/// The KEKs and how they are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyringSettings {
    /// In order: the first encrypts, all decrypt; never empty, names are unique.
    pub keks: Vec<Arc<KekSettings>>,
    /// How new versions of a key are noticed and taken into use.
    pub rotation: RotationSettings,
    /// Which ciphertexts are decrypted and compared before they are handed out.
    pub verify_encrypt: VerifyEncrypt,
    /// How ciphertexts are written.
    pub write_format: WriteFormat,
    /// What v2 Status says when Vault is away.
    pub status: StatusSettings,
    /// The KEK that is asked first to decrypt `vault:vN:` ciphertexts, which name none.
    pub legacy_key: Option<KekName>,
    /// What bao-kms-provider bound its ciphertexts to, where it ran before.
    pub bao_kms_provider: Option<BaoKmsProvider>,
}

/// The names in bao-kms-provider's configuration that go into its associated data. They hold
/// nothing that JSON escapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaoKmsProvider {
    /// Its name for itself.
    pub provider_name: String,
    /// Its name for the Kubernetes cluster.
    pub cluster_id: String,
    /// Its name for the OpenBao installation.
    pub instance_id: String,
}

/// One KEK.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KekSettings {
    /// Our name for it, written into ciphertexts.
    pub name: KekName,
    /// Vault's name for it.
    pub transit_key: String,
    /// The Transit engine's mount path, without slashes at its ends.
    pub mount: String,
    /// Vault's namespace.
    pub namespace: Option<String>,
    /// The cluster that holds it; those of `replicas` come after it.
    pub clusters: Vec<ClusterName>,
    /// Where the key is in the clusters after the first, one for each.
    pub replicas: Vec<ReplicaSettings>,
    /// Goes into key_id, so that changing it makes every key_id of this KEK a new one.
    pub epoch: Option<String>,
    /// Pins the version that encrypts, in an emergency.
    pub active_version: Option<u32>,
}

/// Where a KEK is in one of the clusters after its first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReplicaSettings {
    /// The Transit engine's mount path there.
    pub mount: String,
    /// Vault's namespace there.
    pub namespace: Option<String>,
}

/// How new versions of a key are noticed and taken into use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RotationSettings {
    /// How often each key's metadata is read.
    pub refresh: Duration,
    /// How old, by Vault's clock, a version must be before it encrypts.
    pub activation_delay: Duration,
}

/// Which ciphertexts are decrypted and compared before they are handed out. The answer's
/// version and length are always checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyEncrypt {
    /// Every v2 answer, and the first v1 answer per generation, version and address.
    V2,
    /// Every answer.
    Always,
}

/// How ciphertexts are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFormat {
    /// `<name>:vN:<base64>`.
    Named,
    /// `vault:vN:<base64>`, as Vault answers, for a way back to another plugin.
    Vault,
}

/// What v2 Status says when Vault is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusSettings {
    /// The version that Status reports.
    pub version: StatusVersion,
    /// How long after the last proof Status still says `ok`.
    pub grace: Duration,
    /// What it says afterwards, while Vault is merely unreachable.
    pub on_outage: OnOutage,
}

/// The version that v2 Status reports; it must not change while a kube-apiserver runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusVersion {
    /// `v2`: kube-apiserver 1.29 and later.
    V2,
    /// `v2beta1`: kube-apiserver 1.27 and 1.28.
    V2Beta1,
}

/// What Status says while Vault is unreachable and the grace has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOutage {
    /// The reason, with the last key_id: kube-apiserver's health check fails.
    Report,
    /// `ok`: kube-apiserver goes on with the seed that it has.
    Ok,
}

/// How calls are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KmsSettings {
    /// How many Encrypt and Decrypt calls run at once; more wait in line.
    pub max_concurrent_calls: usize,
    /// The deadline of a call that brings none.
    pub default_deadline: Duration,
}

/// Addresses that share one storage, so one token and one key material.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// Its name in the file; `default` for the flat form.
    pub name: ClusterName,
    /// Base URLs (scheme and authority only), in the file's order; never empty. With the
    /// scheme [`SERVICE_SCHEME`] there is no port.
    pub addresses: Vec<Uri>,
    /// The DNS servers that know the names in them; none asks as this machine does.
    pub dns_servers: Vec<SocketAddr>,
    /// The namespace of KEKs that name none.
    pub namespace: Option<String>,
    /// The namespace of the login and of the token; `None` is the root.
    pub auth_namespace: Option<String>,
    /// How `https://` addresses are verified and how we present ourselves.
    pub tls: TlsSettings,
    /// How a token is got.
    pub auth: AuthSettings,
    /// `http://` off loopback was allowed in so many words.
    pub allow_plaintext: bool,
    /// Where the token of a login is kept for a later process; `None` keeps it nowhere.
    pub token_cache: Option<PathBuf>,
}

/// TLS to a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct TlsSettings {
    /// PEM file of the certificate authorities; `None` means the built-in public ones.
    pub ca_file: Option<PathBuf>,
    /// Certificate chain and key that we present, as PEM files.
    pub client: Option<ClientIdentity>,
    /// The name to verify instead of the address's host.
    pub server_name: Option<String>,
}

/// PEM files of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientIdentity {
    /// The chain, leaf first.
    pub cert_file: PathBuf,
    /// The private key.
    pub key_file: PathBuf,
}

/// Logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// A filter in `tracing_subscriber::EnvFilter` form, such as `info`.
    pub filter: String,
    /// Text for people or JSON for collectors.
    pub format: LogFormat,
}

/// The shape of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where traces go.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceSettings {
    /// Where spans are sent: over HTTP the whole URL, over gRPC host and port.
    pub endpoint: Uri,
    /// How it is spoken to.
    pub protocol: OtlpProtocol,
    /// The share of calls that are traced when the caller did not decide, 0 to 1.
    pub sample_ratio: f64,
}

/// The two ways of OTLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtlpProtocol {
    /// gRPC, usually port 4317.
    Grpc,
    /// HTTP with protobuf bodies, usually port 4318.
    Http,
}

// === impl SocketAddress ===

impl SocketAddress {
    /// Reads an address as kube-apiserver writes it (`unix:///path`, `unix:///@name`) or as
    /// people do (`/path`, `@name`), for whoever dials it.
    ///
    /// # Errors
    /// When nothing is left to dial; the text says what to write.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("unix:").unwrap_or(text);
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        let rest = if rest.starts_with("/@") { &rest[1..] } else { rest };
        match rest.strip_prefix('@') {
            Some("") => Err("an abstract name follows the @".into()),
            Some(name) => Ok(Self::Abstract(name.to_owned())),
            None if rest.is_empty() => Err("write a path, unix:///path or @name".into()),
            None => Ok(Self::Path(PathBuf::from(rest))),
        }
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{}", path.display()),
            Self::Abstract(name) => write!(f, "@{name}"),
        }
    }
}

// === impl KekSettings ===

impl KekSettings {
    /// The same KEK as if its cluster number `index` were the only one.
    #[must_use]
    pub fn in_cluster(&self, index: usize) -> Self {
        let mut there = self.clone();
        there.clusters = self.clusters.get(index).cloned().into_iter().collect();
        there.replicas = Vec::new();
        if let Some(replica) = index.checked_sub(1).and_then(|n| self.replicas.get(n)) {
            there.mount.clone_from(&replica.mount);
            there.namespace.clone_from(&replica.namespace);
        }
        there
    }
}

// === impl StatusVersion ===

impl StatusVersion {
    /// The text that goes on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V2Beta1 => "v2beta1",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_dialled_in_every_way_that_people_write_it() {
        let path = Ok(SocketAddress::Path("/run/k.sock".into()));
        for text in ["/run/k.sock", "unix:///run/k.sock", "unix:/run/k.sock"] {
            assert_eq!(SocketAddress::parse(text), path, "{text}");
        }
        let name = Ok(SocketAddress::Abstract("kms".into()));
        for text in ["@kms", "unix:@kms", "unix:///@kms"] {
            assert_eq!(SocketAddress::parse(text), name, "{text}");
        }
        assert!(SocketAddress::parse("").is_err() && SocketAddress::parse("@").is_err());
    }
}
