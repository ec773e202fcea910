//! What a real OpenBao answers to Transit's verbs and to logins, and what the daemon's
//! Vault side makes of it: the rows of the answer table that one node can give.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::sync::Arc;
use std::time::Duration;

use lab::{Admin, DevNode, policy_for};
use secrecy::SecretString;
use serde_json::json;
use vault_kms_proxy::clock::{Deadline, UnixSeconds};
use vault_kms_proxy::cluster::Cluster;
use vault_kms_proxy::config::settings::{AppRoleSettings, AuthSettings, SecretId, SecretSource};
use vault_kms_proxy::secret::Plaintext;
use vault_kms_proxy::transit::{
    HttpTransitKey, KeyVersion, Refusal, TransitCause, TransitKey as _, VaultCiphertext,
};

#[path = "parts/vault_side.rs"]
mod vault_side;

use vault_side::{cluster_at, key_in};

/// The deadline of a call: longer than an apiserver's, for a machine that is busy.
fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

/// What an encrypt asks for; only several clusters look at the creation time.
#[allow(clippy::unnecessary_wraps, reason = "it is asked for in this form")]
fn version(number: u32) -> Option<KeyVersion> {
    Some(KeyVersion { number, created: UnixSeconds(0) })
}

fn seed() -> Plaintext {
    Plaintext::new(b"secret seed of thirty two bytes!".to_vec())
}

fn cluster(node: &DevNode, auth: AuthSettings) -> Arc<Cluster> {
    cluster_at(&[node.address()], node.ca_file(), auth)
}

fn token(text: &str) -> AuthSettings {
    AuthSettings::Token(SecretString::from(text))
}

fn key(cluster: &Arc<Cluster>, key: &str) -> HttpTransitKey {
    key_in(cluster, "transit", key)
}

fn ciphertext(text: &str) -> VaultCiphertext {
    VaultCiphertext::parse(text).unwrap()
}

/// A node with key `kube`, a role that may use it, and the login of that role.
async fn node_with_role(role: serde_json::Value) -> (DevNode, AuthSettings) {
    let node = DevNode::start().await.unwrap();
    node.create_keys(&["kube"]).await.unwrap();
    let admin = node.admin();
    admin.write_policy("kms", &policy_for(&["kube"])).await.unwrap();
    admin.enable_approle().await.unwrap();
    let role = admin.create_approle("kms", role).await.unwrap();
    let auth = AuthSettings::AppRole(AppRoleSettings {
        mount: "approle".to_owned(),
        role_id: SecretSource::Inline(role.role_id.into()),
        secret_id: SecretId::Given(SecretSource::Inline(role.secret_id.into())),
    });
    (node, auth)
}

/// The tokens that live, by accessor.
async fn living_tokens(admin: &Admin) -> usize {
    let list = admin.call("LIST", "auth/token/accessors", json!(null)).await.unwrap();
    list["data"]["keys"].as_array().unwrap().len()
}

#[tokio::test]
async fn the_smallest_policy_is_enough_for_every_verb() {
    let role = json!({ "token_policies": "kms", "token_ttl": "1h" });
    let (node, auth) = node_with_role(role).await;
    let cluster = cluster(&node, auth);
    let key = key(&cluster, "kube");

    let wrapped = key.encrypt(&seed(), version(1), soon()).await.unwrap();
    assert_eq!(wrapped.address, node.address());
    assert_eq!(key.decrypt(&wrapped.ciphertext, soon()).await.unwrap(), seed());
    let metadata = key.read(soon()).await.unwrap();
    assert_eq!((metadata.latest_version, metadata.key_type.as_str()), (1, "aes256-gcm96"));
    assert!(metadata.versions.contains_key(&1) && !metadata.derived);
    assert_eq!(key.encrypt_capabilities(soon()).await.unwrap(), ["update"]);

    let created = metadata.versions[&1];
    let now = key.vault_now().expect("every answer carries its date");
    assert!((0..120).contains(&(now.0 - created.0)), "{now:?} {created:?}");
    let left = cluster.token_state().remaining().unwrap();
    assert!(left > Duration::from_secs(3_500), "{left:?}");
}

#[tokio::test]
async fn every_type_of_key_is_encrypted_with_or_read() {
    let node = DevNode::start().await.unwrap();
    node.create_keys(&[]).await.unwrap();
    let cluster = cluster(&node, token(node.root_token()));
    for key_type in ["aes128-gcm96", "aes256-gcm96", "chacha20-poly1305", "xchacha20-poly1305"] {
        node.admin().create_key_with(key_type, json!({ "type": key_type })).await.unwrap();
        let key = key(&cluster, key_type);
        let unknown = key.encrypt(&seed(), version(1), soon()).await.unwrap();
        assert_eq!(key.read(soon()).await.unwrap().key_type, key_type);
        let known = key.encrypt(&seed(), version(1), soon()).await.unwrap();
        for wrapped in [unknown, known] {
            let plaintext = key.decrypt(&wrapped.ciphertext, soon()).await.unwrap();
            assert_eq!(plaintext, seed(), "{key_type}");
        }
    }
    for key_type in ["ecdsa-p256", "rsa-2048", "ed25519"] {
        node.admin().create_key_with(key_type, json!({ "type": key_type })).await.unwrap();
        let metadata = key(&cluster, key_type).read(soon()).await.unwrap();
        assert_eq!(metadata.key_type, key_type);
        assert_eq!(metadata.versions.len(), 1, "{key_type}");
    }
}

#[tokio::test]
async fn each_refusal_of_a_verb_is_known_by_its_text() {
    let node = DevNode::start().await.unwrap();
    node.create_keys(&["kube", "other"]).await.unwrap();
    let admin = node.admin();
    let root = cluster(&node, token(node.root_token()));
    let kube = key(&root, "kube");
    let first = kube.encrypt(&seed(), version(1), soon()).await.unwrap().ciphertext;
    admin.rotate("kube").await.unwrap();
    admin.rotate("kube").await.unwrap();
    admin.set_min_decryption_version("kube", 2).await.unwrap();
    admin.set_min_encryption_version("kube", 3).await.unwrap();

    let foreign = key(&root, "other").encrypt(&seed(), version(1), soon()).await.unwrap();
    let second = format!("vault:v2:{}", foreign.ciphertext.payload());
    let fourth = format!("vault:v4:{}", foreign.ciphertext.payload());
    let decrypted = [
        ("another key's", kube.decrypt(&ciphertext(&second), soon()).await, Refusal::WrongKey),
        ("too old", kube.decrypt(&first, soon()).await, Refusal::TooOld),
        ("too new", kube.decrypt(&ciphertext(&fourth), soon()).await, Refusal::TooNew),
        ("no key", key(&root, "none").decrypt(&first, soon()).await, Refusal::KeyNotFound),
    ];
    for (name, outcome, expected) in decrypted {
        assert_eq!(outcome.unwrap_err().refusal(), Some(&expected), "{name}");
    }
    let below = kube.encrypt(&seed(), version(2), soon()).await.unwrap_err();
    assert_eq!(below.refusal(), Some(&Refusal::BelowMinimumEncryption));
    let above = kube.encrypt(&seed(), version(4), soon()).await.unwrap_err();
    assert_eq!(above.refusal(), Some(&Refusal::AboveLatest));
    let missing = key(&root, "none").read(soon()).await.unwrap_err();
    assert_eq!(missing.refusal(), Some(&Refusal::KeyNotFound));
    let mount = key_in(&root, "elsewhere", "kube");
    for refusal in [
        mount.encrypt(&seed(), version(1), soon()).await.unwrap_err(),
        mount.read(soon()).await.unwrap_err(),
    ] {
        assert!(matches!(refusal.refusal(), Some(Refusal::Misconfigured(_))), "{refusal}");
    }

    admin.write_policy("kms", &policy_for(&["other"])).await.unwrap();
    let options = json!({ "policies": ["kms"], "ttl": "1h" });
    let limited = cluster(&node, token(&admin.create_token(options).await.unwrap()));
    let denied = key(&limited, "kube");
    for outcome in [
        denied.encrypt(&seed(), version(3), soon()).await.unwrap_err(),
        denied.decrypt(&first, soon()).await.unwrap_err(),
        denied.read(soon()).await.unwrap_err(),
    ] {
        assert_eq!(outcome.refusal(), Some(&Refusal::PolicyDenied), "{outcome}");
    }
}

#[tokio::test]
async fn sixty_four_callers_with_a_revoked_token_share_one_login() {
    let role = json!({ "token_policies": "kms", "token_ttl": "1h" });
    let (node, auth) = node_with_role(role).await;
    let cluster = cluster(&node, auth);
    let key = key(&cluster, "kube");
    let wrapped = key.encrypt(&seed(), version(1), soon()).await.unwrap();
    node.admin().revoke_prefix("auth/approle/login").await.unwrap();
    let before = living_tokens(node.admin()).await;

    let calls = (0..64).map(|_| key.decrypt(&wrapped.ciphertext, soon()));
    for outcome in futures_util::future::join_all(calls).await {
        assert_eq!(outcome.unwrap(), seed());
    }
    assert_eq!(living_tokens(node.admin()).await, before + 1);
}

#[tokio::test]
async fn a_token_with_a_short_life_is_kept_alive_beyond_its_max_ttl() {
    let role = json!({ "token_policies": "kms", "token_ttl": "3s", "token_max_ttl": "6s" });
    let (node, auth) = node_with_role(role).await;
    let cluster = cluster(&node, auth);
    let key = key(&cluster, "kube");
    let wrapped = key.encrypt(&seed(), version(1), soon()).await.unwrap();
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    let mut calls = tokio::time::interval(Duration::from_millis(100));
    while tokio::time::Instant::now() < end {
        calls.tick().await;
        key.decrypt(&wrapped.ciphertext, soon()).await.unwrap();
        assert!(cluster.token_state().has_token);
    }
}

#[tokio::test]
async fn each_way_to_have_no_token_says_what_to_do() {
    let role = json!({ "token_policies": "kms", "token_ttl": "1h" });
    let (node, auth) = node_with_role(role).await;
    let AuthSettings::AppRole(role) = auth else { panic!("it is an AppRole") };
    let secret = "0d1f2e3a-aaaa-bbbb-cccc-1234567890ab";
    let wrong_secret = AuthSettings::AppRole(AppRoleSettings {
        secret_id: SecretId::Given(SecretSource::Inline(secret.into())),
        ..role.clone()
    });
    let wrong_mount = AuthSettings::AppRole(AppRoleSettings { mount: "approl".to_owned(), ..role });
    let dead = "hvs.CAESIJdeaddeaddead";
    for (auth, says) in [
        (wrong_secret, "write a new one and check roleID"),
        (wrong_mount, "check that the auth method is mounted"),
        (token(dead), "put another into the configuration and reload"),
    ] {
        let cluster = cluster(&node, auth);
        let error = key(&cluster, "kube")
            .encrypt(&seed(), version(1), Deadline::after(Duration::from_secs(2)))
            .await
            .unwrap_err();
        assert!(matches!(error.cause, TransitCause::Unavailable(_)), "{error}");
        for shown in [error.to_string(), format!("{error:?}")] {
            assert!(shown.contains(says), "{shown}");
            assert!(!shown.contains(secret) && !shown.contains(dead), "{shown}");
        }
    }
}
