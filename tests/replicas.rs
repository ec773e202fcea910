//! One key in two clusters: what goes on while the first is away, and what must not.

use std::time::Duration;

use lab::{Callers, Config, Daemon, DevNode, FaultProxy, eventually};
use serde_json::json;
use tonic::Code;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(30);
const DEK: [u8; 32] = [7; 32];
const CALLS: &str = "vault_kms_proxy_kek_tier_calls_total";

/// A node with a key that can be copied, and a proxy before it, so that it can go away and
/// come back with what it knows.
async fn first() -> lab::Result<(DevNode, FaultProxy)> {
    let node = DevNode::start().await?;
    node.admin().mount_transit().await?;
    node.admin().create_replicable_key("kube").await?;
    let proxy = FaultProxy::start(node.address()).await?;
    Ok((node, proxy))
}

/// Waits until `/readyz` says `words` of the KEK.
async fn wait_told(daemon: &Daemon, words: &str) -> lab::Result {
    eventually(words, PATIENCE, || async {
        let (_, text) = daemon.admin_get("/readyz").await?;
        Ok(text.contains(words).then_some(()))
    })
    .await
}

/// Has the daemon take `config` into use; what it said before comes before the mark.
async fn reload(daemon: &Daemon, config: &Config) -> lab::Result<usize> {
    let mark = daemon.log_mark();
    daemon.write_config(config)?;
    daemon.sighup()?;
    daemon.wait_for_log_after(mark, "Reloaded; the new configuration", PATIENCE).await?;
    Ok(mark)
}

#[tokio::test]
async fn a_replica_serves_under_the_same_key_id_while_the_first_cluster_is_away() -> lab::Result {
    let ((a, proxy), b) = tokio::try_join!(first(), DevNode::start())?;
    a.admin().replicate_key("kube", b.admin()).await?;
    let state = tempfile::tempdir()?;
    let at_a = a.config(&["kube"]).await?.addresses(&[proxy.https()]);
    let at_b = b.config(&["kube"]).await?;
    let config = Config::replicas(&[("a", &at_a), ("b", &at_b)], &["kube"])
        .with("stateDir", state.path().display().to_string());

    let daemon = Daemon::start(DAEMON, &config).await?;
    let kms = daemon.kms();
    let status = kms.v2().wait_ok(PATIENCE).await?;
    daemon.wait_for_log("The replica is proven", PATIENCE).await?;
    let before = kms.v2().encrypt(&DEK, "uid").await?;
    let v1_before = kms.v1().encrypt(&DEK).await?;
    assert_eq!(b.count_requests("transit/encrypt/kube"), 0, "the first one serves alone");

    proxy.refuse().await?;
    for _ in 0..5 {
        let made = kms.v2().encrypt(&DEK, "uid").await?;
        assert_eq!(made.key_id, status.key_id);
        assert_eq!(kms.v2().decrypt(&made, "uid").await?, DEK);
        assert_eq!(kms.v2().decrypt(&before, "uid").await?, DEK);
        let made = kms.v1().encrypt(&DEK).await?;
        assert_eq!(kms.v1().decrypt(&made).await?, DEK);
        assert_eq!(kms.v1().decrypt(&v1_before).await?, DEK);
        assert_eq!(kms.v2().status().await?, status);
    }
    assert!(daemon.metric(CALLS, "cluster=\"b\"").await? >= 20.0);
    wait_told(&daemon, "cluster a is passed over").await?;
    eventually("the state has a canary", PATIENCE, || async {
        let state = std::fs::read_to_string(state.path().join("state.json")).unwrap_or_default();
        Ok(state.contains("vault:v1:").then_some(()))
    })
    .await?;
    assert_eq!(daemon.stop().await?, 0);

    // Another process, that has never seen the first cluster.
    let daemon = Daemon::start(DAEMON, &config).await?;
    let kms = daemon.kms();
    assert_eq!(kms.v2().wait_ok(PATIENCE).await?.key_id, status.key_id);
    let during = kms.v2().encrypt(&DEK, "uid").await?;
    assert_eq!(during.key_id, status.key_id);
    assert_eq!(kms.v2().decrypt(&before, "uid").await?, DEK);

    // What the replica made, the first cluster reads.
    proxy.heal().await?;
    wait_told(&daemon, "cluster a serves").await?;
    let text = String::from_utf8_lossy(&during.ciphertext).replacen("kube:", "vault:", 1);
    assert_eq!(a.admin().decrypt("kube", &text).await?, DEK);
    assert_eq!(kms.v2().status().await?.key_id, status.key_id);
    assert_eq!(daemon.stop().await?, 0);

    // A daemon that remembers nothing decrypts, and does not encrypt.
    proxy.refuse().await?;
    let daemon = Daemon::start(DAEMON, config.without("stateDir")).await?;
    let kms = daemon.kms();
    eventually("it decrypts", PATIENCE, || async {
        Ok(kms.v2().decrypt(&during, "uid").await.ok())
    })
    .await?;
    let refused = kms.v2().encrypt(&DEK, "uid").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    Ok(())
}

#[tokio::test]
async fn an_impostor_encrypts_nothing_and_is_no_reason_to_call_a_ciphertext_bad() -> lab::Result {
    let ((a, proxy), b) = tokio::try_join!(first(), DevNode::start())?;
    a.admin().replicate_as_impostor("kube", b.admin()).await?;
    let at_a = a.config(&["kube"]).await?.addresses(&[proxy.https()]);
    let at_b = b.config(&["kube"]).await?;
    let config = Config::replicas(&[("a", &at_a), ("b", &at_b)], &["kube"]);
    let daemon = Daemon::start(DAEMON, &config).await?;
    let kms = daemon.kms();
    let status = kms.v2().wait_ok(PATIENCE).await?;
    let line = daemon.wait_for_log("The replica is none", PATIENCE).await?;
    assert!(line.contains("ERROR") && line.contains("cannot decrypt what cluster a"), "{line}");
    let made = kms.v2().encrypt(&DEK, "uid").await?;

    proxy.refuse().await?;
    for _ in 0..3 {
        let encrypt = kms.v2().encrypt(&DEK, "uid").await.unwrap_err();
        assert_eq!(encrypt.code(), Code::Unavailable, "{encrypt}");
        let told = encrypt.message();
        assert!(told.contains(&proxy.https()) && told.contains("cluster b may not"), "{told}");
        let decrypt = kms.v2().decrypt(&made, "uid").await.unwrap_err();
        assert_eq!(decrypt.code(), Code::Unavailable, "{decrypt}");
        let told = decrypt.message();
        assert!(told.contains(&proxy.https()) && told.contains("cluster b"), "{told}");
    }
    assert_eq!(b.count_requests("transit/encrypt/kube"), 0);
    assert_eq!(kms.v2().status().await?.key_id, status.key_id);

    proxy.heal().await?;
    eventually("the first cluster serves again", PATIENCE, || async {
        Ok(kms.v2().encrypt(&DEK, "uid").await.ok())
    })
    .await?;
    assert_eq!(kms.v2().decrypt(&made, "uid").await?, DEK);
    Ok(())
}

#[tokio::test]
async fn clusters_change_places_under_calls_and_a_reload_keeps_what_is_proven() -> lab::Result {
    let ((a, proxy), b) = tokio::try_join!(first(), DevNode::start())?;
    a.admin().replicate_key("kube", b.admin()).await?;
    let at_a = a.config(&["kube"]).await?.addresses(&[proxy.https()]);
    let at_b = b.config(&["kube"]).await?;
    let a_first = Config::replicas(&[("a", &at_a), ("b", &at_b)], &["kube"]);
    let b_first = Config::replicas(&[("b", &at_b), ("a", &at_a)], &["kube"]);
    let daemon = Daemon::start(DAEMON, &a_first).await?;
    let kms = daemon.kms();
    let status = kms.v2().wait_ok(PATIENCE).await?;
    daemon.wait_for_log("The replica is proven", PATIENCE).await?;

    let old = (kms.v1().encrypt(&DEK).await?, DEK.to_vec());
    let callers = Callers::start(&kms, 4, &[old]);
    for config in [&b_first, &a_first] {
        callers.more(20, PATIENCE).await?;
        let mark = reload(&daemon, config).await?;
        daemon.wait_for_log_after(mark, "The replica is proven", PATIENCE).await?;
        assert_eq!(kms.v2().status().await?, status, "the same key_id, whoever comes first");
    }
    assert!(b.count_requests("transit/encrypt/kube") > 0, "it was the first one for a while");

    // Another log level is no reason to prove anything again, and nobody could: the first
    // cluster is away.
    proxy.refuse().await?;
    wait_told(&daemon, "cluster a is passed over").await?;
    reload(&daemon, &a_first.clone().with("log", json!({ "level": "debug" }))).await?;
    let made = kms.v2().encrypt(&DEK, "uid").await?;
    assert_eq!(made.key_id, status.key_id);
    callers.more(20, PATIENCE).await?;
    let seen = callers.finish().await;
    assert!(seen.failures.is_empty(), "{}", seen.failures_told());
    Ok(())
}
