//! The rules that kube-apiserver holds a KMS plugin to.

use std::str::FromStr;
use std::time::Duration;

use rand::RngCore;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::latency::Latencies;
use crate::cli::dial::dial;
use crate::config::settings::SocketAddress;
use crate::proto::v1beta1::key_management_service_client::KeyManagementServiceClient as V1Client;
use crate::proto::v2::key_management_service_client::KeyManagementServiceClient as V2Client;
use crate::proto::{v1beta1, v2};
use crate::secret::Plaintext;

/// Limits of KMS v2, in bytes.
const MAX_FIELD_BYTES: usize = 1024;
const MAX_ANNOTATION_BYTES: usize = 32 * 1024;

/// A minor version of Kubernetes 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KubernetesVersion(u32);

/// Something that a kube-apiserver would not accept.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    /// Nobody listens.
    #[error("{socket}: {cause}; does the plugin run, and may this user connect?")]
    Connect {
        /// The socket.
        socket: String,
        /// What the kernel said.
        cause: String,
    },
    /// A call failed.
    #[error("{api} {call} failed with {code:?}: {message}")]
    Call {
        /// Which API.
        api: &'static str,
        /// Which call.
        call: &'static str,
        /// Its gRPC code.
        code: tonic::Code,
        /// Its message.
        message: String,
    },
    /// An answer breaks a rule.
    #[error("{api} {call}: {rule}; kube-apiserver would refuse this plugin")]
    Rule {
        /// Which API.
        api: &'static str,
        /// Which call.
        call: &'static str,
        /// The rule, and what the plugin did.
        rule: String,
    },
}

/// A connection to the plugin, and the rules.
#[derive(Debug)]
pub(super) struct Apiserver {
    channel: Channel,
    version: KubernetesVersion,
    timeout: Duration,
}

// === impl KubernetesVersion ===

impl FromStr for KubernetesVersion {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let minor = text.trim_start_matches('v').strip_prefix("1.");
        let minor = minor.and_then(|m| m.split('.').next()).and_then(|m| m.parse().ok());
        minor
            .filter(|minor| *minor >= 10)
            .map(Self)
            .ok_or_else(|| "write 1.10 or later, such as 1.34".into())
    }
}

impl KubernetesVersion {
    /// Whether this version takes `version` in a v2 Status: 1.27 and 1.28 know only
    /// `v2beta1`; 1.29 and later take both.
    fn takes_status_version(self, version: &str) -> bool {
        version == "v2beta1" || (version == "v2" && self.0 >= 29)
    }

    fn why_not(self, version: &str) -> String {
        let Self(minor) = self;
        if version == "v2" {
            return format!(
                "Kubernetes 1.{minor} takes only version \"v2beta1\", not \"v2\"; set \
                 `statusVersion: v2beta1`"
            );
        }
        format!("Kubernetes 1.{minor} does not take version {version:?}")
    }
}

// === impl Apiserver ===

impl Apiserver {
    /// Connects, as a kube-apiserver of `version` whose calls have `timeout`.
    pub(super) async fn connect(
        socket: SocketAddress,
        version: KubernetesVersion,
        timeout: Duration,
    ) -> Result<Self, ProbeError> {
        let channel = tokio::time::timeout(timeout, dial(&socket)).await;
        let cause = match channel {
            Ok(Ok(channel)) => return Ok(Self { channel, version, timeout }),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no connection within {timeout:?}"),
        };
        Err(ProbeError::Connect { socket: socket.to_string(), cause })
    }

    /// Version, the health ping, then `count` Encrypts and Decrypts of new 32-byte keys.
    pub(super) async fn probe_v1(
        &mut self,
        count: u32,
        latencies: &mut Latencies,
    ) -> Result<String, ProbeError> {
        let mut client = V1Client::new(self.channel.clone());
        let version = || "v1beta1".to_owned();
        let asked = self.request(v1beta1::VersionRequest { version: version() });
        let answer = timed("v1", "Version", latencies, client.version(asked)).await?;
        if answer.version != "v1beta1" {
            return broken(
                "v1",
                "Version",
                format!("it must answer v1beta1, not {}", answer.version),
            );
        }
        let mut length = 0;
        for n in 0..count {
            let plaintext = if n == 0 { Plaintext::new(b"ping".to_vec()) } else { random(32) };
            let plain = plaintext.expose().to_vec();
            let asked = self.request(v1beta1::EncryptRequest { version: version(), plain });
            let cipher = timed("v1", "Encrypt", latencies, client.encrypt(asked)).await?.cipher;
            if cipher.is_empty() || cipher.len() > usize::from(u16::MAX) {
                let rule = format!("a cipher has 1 to 65,535 bytes, not {}", cipher.len());
                return broken("v1", "Encrypt", rule);
            }
            length = cipher.len();
            let asked = self.request(v1beta1::DecryptRequest { version: version(), cipher });
            let answer = timed("v1", "Decrypt", latencies, client.decrypt(asked)).await?;
            same("v1", &plaintext, answer.plain)?;
        }
        let Self { version: KubernetesVersion(minor), .. } = self;
        Ok(format!(
            "v1: {} {} is sound for Kubernetes 1.{minor}; a ciphertext has {length} bytes",
            answer.runtime_name, answer.runtime_version
        ))
    }

    /// `count` times Status, Encrypt and Decrypt of a new 32-byte seed.
    pub(super) async fn probe_v2(
        &mut self,
        count: u32,
        latencies: &mut Latencies,
    ) -> Result<String, ProbeError> {
        let mut client = V2Client::new(self.channel.clone());
        let mut last = String::new();
        for n in 0..count {
            let asked = self.request(v2::StatusRequest {});
            let status = timed("v2", "Status", latencies, client.status(asked)).await?;
            self.judge_status(&status)?;
            let seed = random(32);
            let uid = format!("probe-{n}");
            let plaintext = seed.expose().to_vec();
            let asked = self.request(v2::EncryptRequest { plaintext, uid: uid.clone() });
            let answer = timed("v2", "Encrypt", latencies, client.encrypt(asked)).await?;
            judge_encrypt(&answer, &status)?;
            let v2::EncryptResponse { ciphertext, key_id, annotations } = answer;
            last = format!("key_id {key_id}, a ciphertext has {} bytes", ciphertext.len());
            let asked = self.request(v2::DecryptRequest { ciphertext, uid, key_id, annotations });
            let answer = timed("v2", "Decrypt", latencies, client.decrypt(asked)).await?;
            same("v2", &seed, answer.plaintext)?;
        }
        Ok(format!("v2: the plugin is sound for Kubernetes 1.{}; {last}", self.version.0))
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }

    fn judge_status(&self, status: &v2::StatusResponse) -> Result<(), ProbeError> {
        if !self.version.takes_status_version(&status.version) {
            return broken("v2", "Status", self.version.why_not(&status.version));
        }
        if status.healthz != "ok" {
            return broken("v2", "Status", format!("healthz must be ok, not: {}", status.healthz));
        }
        in_bounds("Status", "a key_id", status.key_id.len())
    }
}

fn judge_encrypt(
    answer: &v2::EncryptResponse,
    status: &v2::StatusResponse,
) -> Result<(), ProbeError> {
    in_bounds("Encrypt", "a ciphertext", answer.ciphertext.len())?;
    in_bounds("Encrypt", "a key_id", answer.key_id.len())?;
    if answer.key_id != status.key_id {
        let rule = format!("its key_id is {}, but Status said {}", answer.key_id, status.key_id);
        return broken("v2", "Encrypt", rule);
    }
    let size = answer.annotations.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
    if size > MAX_ANNOTATION_BYTES {
        return broken("v2", "Encrypt", format!("annotations have {size} bytes, over 32 KiB"));
    }
    match answer.annotations.keys().find(|key| !is_domain_name(key)) {
        None => Ok(()),
        Some(key) => broken("v2", "Encrypt", format!("annotation {key:?} is no domain name")),
    }
}

/// A lower-case domain name of at least two labels, as RFC 1123 writes them.
fn is_domain_name(text: &str) -> bool {
    let label = |label: &str| {
        let inner =
            label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        inner && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    text.contains('.') && text.len() <= 253 && text.split('.').all(label)
}

fn in_bounds(call: &'static str, what: &str, bytes: usize) -> Result<(), ProbeError> {
    if (1..=MAX_FIELD_BYTES).contains(&bytes) {
        return Ok(());
    }
    broken("v2", call, format!("{what} has 1 to 1,024 bytes, not {bytes}"))
}

fn same(api: &'static str, sent: &Plaintext, got: Vec<u8>) -> Result<(), ProbeError> {
    if *sent == Plaintext::new(got) {
        return Ok(());
    }
    broken(api, "Decrypt", "it does not give back what was encrypted".into())
}

fn broken<T>(api: &'static str, call: &'static str, rule: String) -> Result<T, ProbeError> {
    Err(ProbeError::Rule { api, call, rule })
}

fn random(bytes: usize) -> Plaintext {
    let mut seed = vec![0; bytes];
    rand::rng().fill_bytes(&mut seed);
    Plaintext::new(seed)
}

async fn timed<T>(
    api: &'static str,
    call: &'static str,
    latencies: &mut Latencies,
    rpc: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, ProbeError> {
    let start = Instant::now();
    let answer = rpc.await.map_err(|status| ProbeError::Call {
        api,
        call,
        code: status.code(),
        message: status.message().to_owned(),
    })?;
    latencies.add(api, call, start.elapsed());
    Ok(answer.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubernetes_versions_are_read_and_judge_the_status_version() {
        let version = |text: &str| text.parse::<KubernetesVersion>();
        assert_eq!(version("1.28"), Ok(KubernetesVersion(28)));
        assert_eq!(version("v1.34.2"), Ok(KubernetesVersion(34)));
        for bad in ["", "2.1", "1.9", "1.x", "28"] {
            assert!(version(bad).is_err(), "{bad}");
        }
        assert!(!KubernetesVersion(28).takes_status_version("v2"));
        assert!(KubernetesVersion(28).takes_status_version("v2beta1"));
        assert!(KubernetesVersion(29).takes_status_version("v2"));
        assert!(!KubernetesVersion(34).takes_status_version("v1"));
    }

    #[test]
    fn annotations_must_be_domain_names() {
        assert!(is_domain_name("kek.vault-kms-proxy.io"));
        for bad in ["", "kek", "Kek.io", "kek..io", "-a.io", "a-.io", "a_b.io"] {
            assert!(!is_domain_name(bad), "{bad}");
        }
    }

    #[test]
    fn an_encrypt_whose_key_id_differs_from_status_is_refused() {
        let status = v2::StatusResponse { key_id: "a".into(), ..Default::default() };
        let answer = v2::EncryptResponse {
            ciphertext: vec![1],
            key_id: "b".into(),
            annotations: Default::default(),
        };
        let error = judge_encrypt(&answer, &status).unwrap_err().to_string();
        assert!(error.contains("its key_id is b, but Status said a"), "{error}");
    }
}
