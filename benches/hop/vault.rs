//! A Vault that answers in no time: what it wraps is the plaintext between zeros.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode, Uri};
use vault_kms_proxy::benched;
use vault_kms_proxy::clock::{Deadline, Jitter};
use vault_kms_proxy::cluster::operation::{AddressName, Attempt};
use vault_kms_proxy::cluster::{Answer, AttemptError, Cluster, Verb};
use vault_kms_proxy::config::load::{Sources, load};
use vault_kms_proxy::config::settings::Settings;
use vault_kms_proxy::keyring::Keyring;
use vault_kms_proxy::keyring::kek::Kek;
use vault_kms_proxy::keyring::memory::KekMemory;
use vault_kms_proxy::transit::HttpTransitKey;
use zeroize::Zeroizing;

const KEY: &str = r#"{"data":{"keys":{"1":1700000000},"latest_version":1,
    "min_decryption_version":1,"min_encryption_version":0,"type":"aes256-gcm96"}}"#;

const AUTH: &str = r#"{"auth":{"client_token":"hvs.1","lease_duration":86400,"renewable":true,
    "num_uses":0}}"#;

const TOKEN: &str = r#"{"data":{"ttl":86400,"creation_ttl":86400,"renewable":true,"num_uses":0,
    "expire_time":"2100-01-01T00:00:00Z"}}"#;

const HEALTH: &str = r#"{"initialized":true,"sealed":false,"standby":false}"#;

/// A daemon's inside, above such a Vault.
pub(crate) struct Inside {
    pub(crate) settings: Settings,
    pub(crate) key: Arc<HttpTransitKey>,
    pub(crate) keyring: Arc<Keyring>,
}

/// What Transit would have made of `plaintext`: `<base64>`, after `vault:v1:`.
pub(crate) fn payload(plaintext: &[u8]) -> String {
    STANDARD.encode([&[0; 12][..], plaintext, &[0; 16]].concat())
}

// === impl Inside ===

impl Inside {
    /// Builds it, within a runtime, and waits until it has logged in.
    pub(crate) async fn start() -> Self {
        let variables = [
            ("VAULT_KMS_PROXY_KEY_NAMES", "[kube]"),
            ("VAULT_KMS_PROXY_ADDR", r#"["https://b0:8200","https://b1:8200","https://b2:8200"]"#),
            ("VAULT_KMS_PROXY_ROLE_ID", "6a174c20-f6de-a53c-74d2-6018fcceff64"),
            ("VAULT_KMS_PROXY_SECRET_ID", "0d1f2e3a-aaaa-bbbb-cccc-1234567890ab"),
        ];
        let environment = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let sources = Sources { environment: environment.to_vec(), ..Sources::default() };
        let settings = load(&sources).unwrap_or_else(|problems| panic!("{problems}")).settings;

        let jitter = Arc::new(Jitter::seeded(7));
        let of_cluster = &settings.clusters[0];
        let stack = benched::stack(of_cluster, &jitter, |_| tower::service_fn(serve));
        let cluster = Cluster::new(Arc::clone(of_cluster), Arc::new(stack), Arc::clone(&jitter));
        let deadline = Deadline::after(Duration::from_secs(10));
        cluster.ready(deadline).await.expect("a Vault that answers at once gives a token");
        let kek = Arc::clone(&settings.keyring.keks[0]);
        let key = Arc::new(HttpTransitKey::new(cluster, &kek));
        let rotation = settings.keyring.rotation.clone();
        let memory = Arc::new(KekMemory::new());
        let kek = Kek::new(kek, Arc::clone(&key) as _, memory, rotation, jitter);
        let keyring = Keyring::new(settings.keyring.clone(), vec![kek]);
        Self { settings, key, keyring }
    }
}

async fn serve(attempt: Attempt) -> Result<Answer, AttemptError> {
    let operation = &attempt.call.operation;
    let body = operation.body.as_ref().map_or(&[][..], |body| body);
    let body = std::str::from_utf8(body).expect("JSON is text");
    let (status, text) = match operation.verb {
        Verb::Encrypt => (200, answer(body, "plaintext", wrapped)),
        Verb::Decrypt => (200, answer(body, "ciphertext", unwrapped)),
        Verb::ReadKey => (200, KEY.to_owned()),
        Verb::Login | Verb::RenewSelf => (200, AUTH.to_owned()),
        Verb::LookupSelf => (200, TOKEN.to_owned()),
        Verb::Health => (200, HEALTH.to_owned()),
        _ => (404, r#"{"errors":[]}"#.to_owned()),
    };
    // Whoever comes at the same time gets to ask before this is answered.
    tokio::task::yield_now().await;
    Ok(Answer {
        status: StatusCode::from_u16(status).expect("a valid status"),
        headers: HeaderMap::new(),
        body: Zeroizing::new(text.into_bytes()),
        address: AddressName::of(&Uri::from_static("https://b0:8200")),
    })
}

/// Answers one item, or each item of a batch with its reference. Looks for what it needs and
/// parses nothing: what this costs is measured too.
fn answer(body: &str, field: &str, of: impl Fn(&str) -> String) -> String {
    let all = values(body, field).map(of);
    if !body.contains("\"batch_input\"") {
        return format!(r#"{{"data":{{{}}}}}"#, all.collect::<String>());
    }
    let items = all.zip(values(body, "reference"));
    let items = items.map(|(item, reference)| format!(r#"{{{item},"reference":"{reference}"}}"#));
    format!(r#"{{"data":{{"batch_results":[{}]}}}}"#, items.collect::<Vec<_>>().join(","))
}

fn values<'a>(body: &'a str, field: &str) -> impl Iterator<Item = &'a str> + use<'a> {
    let before = format!("\"{field}\":\"");
    let mut rest = body;
    std::iter::from_fn(move || {
        let start = rest.find(&before)? + before.len();
        let (value, after) = rest[start..].split_once('"')?;
        rest = after;
        Some(value)
    })
}

fn wrapped(plaintext: &str) -> String {
    let plaintext = STANDARD.decode(plaintext).expect("a plaintext is base64");
    format!(r#""ciphertext":"vault:v1:{}","key_version":1"#, payload(&plaintext))
}

fn unwrapped(ciphertext: &str) -> String {
    let payload = ciphertext.rsplit(':').next().unwrap_or_default();
    let bytes = STANDARD.decode(payload).expect("a ciphertext is base64");
    format!(r#""plaintext":"{}""#, STANDARD.encode(&bytes[12..bytes.len() - 16]))
}
