//! `check --online` of one KEK: what the policy grants, what the key is, whether it works.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::Report;
use crate::clock::Deadline;
use crate::cluster::{Cluster, Operation, Verb};
use crate::config::settings::KekSettings;
use crate::keyring::rotation::why_unusable;
use crate::secret::Plaintext;
use crate::transit::http_key::HttpTransitKey;
use crate::transit::{KeyMetadata, Refusal, TransitError, TransitKey};

/// What is encrypted to see whether it can be; no secret.
const TEST_VALUE: &[u8] = b"vault-kms-proxy check";

/// What a daemon does with a key: the part of the path, and the capability that it needs.
type Need = (&'static str, &'static str);
const ENCRYPT: Need = ("encrypt", "update");
const DECRYPT: Need = ("decrypt", "update");
const READ: Need = ("keys", "read");

/// The line of a policy that grants `need`.
fn policy_line(kek: &KekSettings, (verb, capability): Need) -> String {
    let (mount, key) = (&kek.mount, &kek.transit_key);
    format!("path \"{mount}/{verb}/{key}\" {{ capabilities = [\"{capability}\"] }}")
}

/// An error as this command tells it: the remedy for a policy that is too narrow is to
/// run this command, which is no news here.
fn words(error: &TransitError, kek: &KekSettings, need: Need) -> String {
    match error.refusal() {
        Some(Refusal::PolicyDenied) => {
            format!("the policy does not allow it; add: {}", policy_line(kek, need))
        }
        _ => error.to_string(),
    }
}

/// Looks at `kek` through `cluster`, which has a token.
pub(super) async fn check(
    report: &mut Report,
    cluster: &Arc<Cluster>,
    kek: &KekSettings,
    timeout: Duration,
) {
    let key = HttpTransitKey::new(Arc::clone(cluster), kek);
    policy(report, cluster, kek, timeout).await;
    let usable = match key.read(Deadline::after(timeout)).await {
        Ok(metadata) => describe(report, kek, &metadata),
        Err(error) => {
            report.fail(format!("its metadata: {}", words(&error, kek, READ)));
            false
        }
    };
    upsert(report, cluster, kek, timeout).await;
    // A key that was not seen may not be there, and to encrypt with it could make it.
    if usable {
        round_trip(report, &key, kek, timeout).await;
    }
}

/// What the token may do, against what it needs.
async fn policy(report: &mut Report, cluster: &Cluster, kek: &KekSettings, timeout: Duration) {
    let path = |verb: &str| format!("{}/{verb}/{}", kek.mount, kek.transit_key);
    let needs = [ENCRYPT, DECRYPT, READ];
    let paths: Vec<String> = needs.iter().map(|(verb, _)| path(verb)).collect();
    let body = json!({ "paths": paths }).to_string().into_bytes();
    let path_of_self = "/v1/sys/capabilities-self";
    let asked = ask(cluster, kek, Method::POST, path_of_self, Some(body), timeout).await;
    let granted = match asked {
        Ok(granted) => granted,
        Err(why) => return report.warn(format!("the policy cannot be read: {why}")),
    };
    let grants = |path: &str, capability: &str| {
        let of_path = granted.get(path).or_else(|| granted.get("data").and_then(|d| d.get(path)));
        let list = of_path.and_then(Value::as_array);
        list.is_some_and(|l| l.iter().any(|c| [capability, "root"].iter().any(|w| c == w)))
    };
    let missing: Vec<String> = needs
        .iter()
        .filter(|(verb, capability)| !grants(&path(verb), capability))
        .map(|need| policy_line(kek, *need))
        .collect();
    if missing.is_empty() {
        report.good("the policy grants encrypt, decrypt and reading the key");
    } else {
        report.fail(format!("the policy lacks: {}", missing.join("; ")));
    }
    if grants(&path("encrypt"), "create") {
        report.warn(format!(
            "the policy grants create on {}: where the key is missing, Vault would make a new \
             one instead of saying so; grant update only",
            path("encrypt")
        ));
    }
}

/// Describes the key; says whether it can be used.
fn describe(report: &mut Report, kek: &KekSettings, key: &KeyMetadata) -> bool {
    let KeyMetadata { latest_version, min_decryption_version, min_encryption_version, .. } = key;
    if let Some(why) = why_unusable(key) {
        report.fail(why);
        return false;
    }
    report.good(format!(
        "{}, latest version v{latest_version}, decrypts v{min_decryption_version} and later{}",
        key.key_type,
        if *min_encryption_version > 0 {
            format!(", encrypts v{min_encryption_version} and later")
        } else {
            String::new()
        }
    ));
    if let Some(pinned) = kek.active_version {
        report.warn(format!(
            "activeVersion pins v{pinned}: rotations have no effect until it is removed"
        ));
    }
    true
}

/// Whether Transit makes keys by itself. Few policies let us see it.
async fn upsert(report: &mut Report, cluster: &Cluster, kek: &KekSettings, timeout: Duration) {
    let path = format!("/v1/{}/config/keys", crate::cluster::path::encode(&kek.mount));
    let Ok(answer) = ask(cluster, kek, Method::GET, &path, None, timeout).await else { return };
    let disabled = answer.get("data").and_then(|d| d.get("disable_upsert"));
    if disabled == Some(&Value::Bool(false)) {
        report.warn(format!(
            "Transit at {0} makes missing keys by itself: `vault write {0}/config/keys \
             disable_upsert=true`",
            kek.mount
        ));
    }
}

async fn round_trip(
    report: &mut Report,
    key: &HttpTransitKey,
    kek: &KekSettings,
    timeout: Duration,
) {
    let value = Plaintext::new(TEST_VALUE.to_vec());
    let wrapped = match key.encrypt(&value, None, Deadline::after(timeout)).await {
        Ok(wrapped) => wrapped,
        Err(error) => return report.fail(format!("encrypt: {}", words(&error, kek, ENCRYPT))),
    };
    let version = wrapped.ciphertext.version();
    match key.decrypt(&wrapped.ciphertext, Deadline::after(timeout)).await {
        Ok(back) if back == value => {
            report.good(format!("a test value was encrypted with v{version} and decrypted"));
        }
        Ok(_) => report.fail("decrypt gives back something else than was encrypted"),
        Err(error) => report.fail(format!("decrypt: {}", words(&error, kek, DECRYPT))),
    }
}

/// A request beside Transit's own verbs; the error is for people.
async fn ask(
    cluster: &Cluster,
    kek: &KekSettings,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
    timeout: Duration,
) -> Result<Value, String> {
    let namespace = kek.namespace.clone().or_else(|| cluster.settings().namespace.clone());
    let operation = Operation {
        needs_active: false,
        verb: Verb::Read,
        method,
        path: path.to_owned(),
        namespace,
        body: body.map(Zeroizing::new),
    };
    let answer = cluster
        .call(operation, Deadline::after(timeout))
        .await
        .map_err(|error| error.to_string())?;
    if !answer.status.is_success() {
        return Err(format!("{}: HTTP {}", answer.address, answer.status.as_u16()));
    }
    serde_json::from_slice(&answer.body).map_err(|_| format!("{}: no JSON", answer.address))
}
