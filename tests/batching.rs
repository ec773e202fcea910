//! Calls that come together go to OpenBao together, and each gets its own answer: what a real
//! server makes of batches, in those ways too that it refuses them.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use lab::{Cluster as Nodes, Daemon, DevNode, FaultProxy, Kms, RELOADED};
use secrecy::SecretString;
use serde_json::json;
use tonic::Code;
use vault_kms_proxy::clock::{Deadline, UnixSeconds};
use vault_kms_proxy::config::settings::AuthSettings;
use vault_kms_proxy::secret::Plaintext;
use vault_kms_proxy::transit::{
    HttpTransitKey, KeyVersion, Refusal, TransitKey as _, VaultCiphertext,
};

#[path = "parts/vault_side.rs"]
mod vault_side;

use vault_side::{cluster_at, key_in};

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(40);
const KEY: &str = "kube";

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

fn version(number: u32) -> Option<KeyVersion> {
    Some(KeyVersion { number, created: UnixSeconds(0) })
}

/// A seed that only this number has.
fn seed(number: usize) -> Plaintext {
    Plaintext::new(format!("the seed of thirty-two bytes {number:03}").into_bytes())
}

/// The key at this address, asked with this token.
fn key_at(address: &str, ca: &Path, token: &str) -> HttpTransitKey {
    let auth = AuthSettings::Token(SecretString::from(token));
    key_in(&cluster_at(&[address], ca, auth), "transit", KEY)
}

fn key_of(bao: &DevNode) -> HttpTransitKey {
    key_at(bao.address(), bao.ca_file(), bao.root_token())
}

/// Encrypts so many seeds at once, each with its version, and decrypts them at once.
async fn there_and_back(key: &HttpTransitKey, count: usize, pin: impl Fn(usize) -> u32) {
    let encrypt = |n| {
        let pin = version(pin(n));
        async move { key.encrypt(&seed(n), pin, soon()).await.unwrap().ciphertext }
    };
    let made = join_all((0..count).map(encrypt)).await;
    for (n, made) in made.iter().enumerate() {
        assert_eq!(made.version(), pin(n), "{n}");
    }
    let opened = join_all(made.iter().map(|made| key.decrypt(made, soon()))).await;
    for (n, opened) in opened.into_iter().enumerate() {
        assert_eq!(opened.unwrap(), seed(n), "{n}");
    }
}

#[tokio::test]
async fn many_calls_at_once_are_few_requests_and_each_is_pinned() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&[KEY]).await?;
    bao.admin().rotate(KEY).await?;
    bao.admin().rotate(KEY).await?;
    let key = key_of(&bao);
    there_and_back(&key, 400, |n| 1 + n as u32 % 3).await;
    for verb in ["encrypt", "decrypt"] {
        let requests = bao.count_requests(&format!("transit/{verb}/{KEY}"));
        assert!((3..=8).contains(&requests), "{requests} {verb} requests for 400 calls");
    }

    // Another key's, a damaged one and one of a version that is not there, among others.
    let mut asked = Vec::new();
    for n in 0..100 {
        asked.push(key.encrypt(&seed(n), version(2), soon()).await.unwrap().ciphertext);
    }
    bao.admin().create_key("other").await?;
    asked[30] = VaultCiphertext::parse(&bao.admin().encrypt("other", b"x").await?).unwrap();
    asked[50] = VaultCiphertext::try_new(2, "AAEC").unwrap();
    asked[70] = VaultCiphertext::try_new(9, asked[70].payload()).unwrap();
    let before = bao.count_requests("transit/decrypt/kube");
    let opened = join_all(asked.iter().map(|ciphertext| key.decrypt(ciphertext, soon()))).await;
    for (n, opened) in opened.into_iter().enumerate() {
        match (n, opened) {
            (30, Err(error)) => assert_eq!(error.refusal(), Some(&Refusal::WrongKey), "{error}"),
            (50, Err(error)) => assert!(error.is_final(), "{error}"),
            (70, Err(error)) => assert_eq!(error.refusal(), Some(&Refusal::TooNew), "{error}"),
            (n, opened) => assert_eq!(opened.unwrap(), seed(n), "{n}"),
        }
    }
    let requests = bao.count_requests("transit/decrypt/kube") - before;
    assert!(requests <= 12, "{requests} requests for 100 calls of which three are bad");
    Ok(())
}

#[tokio::test]
async fn a_server_that_takes_less_is_sent_less() -> lab::Result {
    let bao = DevNode::start_with("max_request_json_strings = 100").await?;
    bao.create_keys(&[KEY]).await?;
    let key = key_of(&bao);
    there_and_back(&key, 150, |_| 1).await;
    there_and_back(&key, 150, |_| 1).await;
    // What it refuses for its size does not stand in its audit log.
    let requests = bao.count_requests("transit/decrypt/kube");
    assert!(requests < 40, "{requests} requests for 300 calls");
    Ok(())
}

#[tokio::test]
async fn a_policy_that_forbids_batches_costs_no_call() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&[KEY]).await?;
    let policy = r#"
        path "transit/encrypt/kube" {
          capabilities = ["update"]
          allowed_parameters = { "plaintext" = [], "key_version" = [] }
        }
        path "transit/decrypt/kube" {
          capabilities = ["update"]
          allowed_parameters = { "ciphertext" = [] }
        }
        path "auth/token/lookup-self" { capabilities = ["read"] }
    "#;
    bao.admin().write_policy("single", policy).await?;
    let token = bao.admin().create_token(json!({ "policies": ["single"] })).await?;
    let key = key_at(bao.address(), bao.ca_file(), &token);
    there_and_back(&key, 60, |_| 1).await;
    there_and_back(&key, 60, |_| 1).await;

    // What is denied for good is told to all, and not asked for each.
    bao.admin()
        .write_policy("single", "path \"transit/decrypt/kube\" { capabilities = [\"deny\"] }")
        .await?;
    let denied = VaultCiphertext::parse(&bao.admin().encrypt(KEY, b"x").await?).unwrap();
    let error = key.decrypt(&denied, soon()).await.unwrap_err();
    assert_eq!(error.refusal(), Some(&Refusal::PolicyDenied), "{error}");
    Ok(())
}

#[tokio::test]
async fn what_a_standby_does_not_know_yet_is_brought_to_all_who_ask() -> lab::Result {
    let nodes = Nodes::start().await?;
    nodes.create_keys(&[KEY]).await?;
    let standby = nodes.standby().await?.address().to_owned();
    let key = key_at(&standby, nodes.ca_file(), nodes.root_token());
    key.read(soon()).await.unwrap();
    for round in 0..10_usize {
        let before = nodes.admin().key(KEY).await?.latest_version;
        nodes.admin().rotate(KEY).await?;
        let mut made = Vec::new();
        for n in 0..4 {
            let new = nodes.admin().encrypt(KEY, seed(n).expose()).await?;
            made.push(VaultCiphertext::parse(&new).unwrap());
        }
        let asked: Vec<_> = (0..40).map(|n| &made[n % 4]).collect();
        let opened = join_all(asked.into_iter().map(|made| key.decrypt(made, soon()))).await;
        for (n, opened) in opened.into_iter().enumerate() {
            assert_eq!(opened.unwrap(), seed(n % 4), "round {round}");
        }
        nodes.admin().rotate(KEY).await?;
        there_and_back(&key, 60, |n| before + 1 + n as u32 % 2).await;
    }

    // What the active node does not know either is told to all, by few requests.
    let newest = nodes.admin().key(KEY).await?.latest_version;
    let payload = "AAECAwQFBgcICQoLDA0ODw==";
    let never: Vec<_> =
        (1..=100).map(|n| VaultCiphertext::try_new(newest + n, payload).unwrap()).collect();
    let before = nodes.count_requests("transit/decrypt/kube");
    for refused in join_all(never.iter().map(|never| key.decrypt(never, soon()))).await {
        let refused = refused.unwrap_err();
        assert_eq!(refused.refusal(), Some(&Refusal::TooNew), "{refused}");
    }
    let requests = nodes.count_requests("transit/decrypt/kube") - before;
    assert!(requests <= 20, "{requests} requests");
    Ok(())
}

/// So many v1 calls at once, there and back.
async fn storm(kms: &Kms, count: usize) {
    let one = |n| async move {
        let plaintext = seed(n);
        let made = kms.v1().encrypt(plaintext.expose()).await.unwrap();
        assert_eq!(kms.v1().decrypt(&made).await.unwrap(), plaintext.expose());
    };
    join_all((0..count).map(one)).await;
}

#[tokio::test]
async fn a_storm_through_the_daemon_is_carried_by_batches() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&[KEY]).await?;
    let proxy = FaultProxy::start(bao.address()).await?;
    let config = bao.config(&[KEY]).await?.addresses(&[proxy.https()]);
    let daemon = Daemon::start(DAEMON, config.clone()).await?;
    daemon.wait_ready(PATIENCE).await?;
    let kms = daemon.kms();
    storm(&kms, 300).await;
    let labels = r#"cluster="default",verb="decrypt""#;
    let requests = daemon.metric("vault_kms_proxy_batch_size_count", labels).await?;
    let calls = daemon.metric("vault_kms_proxy_batch_size_sum", labels).await?;
    assert!(calls >= 300.0 && requests < calls / 2.0, "{requests} requests for {calls} calls");
    assert_eq!(daemon.metric("vault_kms_proxy_batch_queued", labels).await?, 0.0);

    // A reload in the midst of it ends nobody's call.
    let other = config.clone().with("tlsServerName", "localhost");
    let (_, reloaded) = tokio::join!(storm(&kms, 300), daemon.reload(other, RELOADED));
    reloaded?;

    // In an outage each is told which address did not answer.
    let made = kms.v1().encrypt(&[7; 32]).await?;
    proxy.delay(Duration::from_secs(30));
    let hasty = daemon.kms().timeout(Duration::from_millis(800));
    let calls = (0..40).map(|_| async { hasty.v1().decrypt(&made).await.unwrap_err() });
    for refused in join_all(calls).await {
        let message = refused.message();
        assert!(matches!(refused.code(), Code::DeadlineExceeded | Code::Unavailable), "{refused}");
        assert!(message.contains(&proxy.https()), "{message}");
    }
    proxy.heal().await?;
    lab::eventually("it serves again", PATIENCE, || async {
        Ok(kms.v1().decrypt(&made).await.ok())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_shutdown_lets_batches_end() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&[KEY]).await?;
    let proxy = FaultProxy::start(bao.address()).await?;
    let config = bao.config(&[KEY]).await?.addresses(&[proxy.https()]);
    let daemon = Daemon::start(DAEMON, config).await?;
    daemon.wait_ready(PATIENCE).await?;
    let kms = daemon.kms();
    storm(&kms, 10).await;
    proxy.delay(Duration::from_millis(1_500));
    let kms = kms.timeout(Duration::from_secs(20));
    let calls = (0..60).map(|n| {
        let kms = &kms;
        async move { kms.v1().encrypt(seed(n).expose()).await }
    });
    let stop = async {
        lab::eventually("calls are on their way", PATIENCE, || async {
            let calls = daemon.metric("vault_kms_proxy_calls_in_flight", "").await?;
            Ok((calls >= 60.0).then_some(()))
        })
        .await?;
        daemon.terminate()
    };
    let (made, stopped) = tokio::join!(join_all(calls), stop);
    stopped?;
    for made in made {
        assert!(!made.unwrap().is_empty());
    }
    assert_eq!(daemon.wait(PATIENCE).await?, 0);
    Ok(())
}
