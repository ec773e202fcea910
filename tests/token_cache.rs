//! `tokenCache`: the quorum is lost, nobody can log in, the daemon is restarted, and calls
//! go on. Three nodes, of which two are killed.

use std::time::Duration;

use lab::{Cluster, Daemon, Node, eventually};
use serde_json::json;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(30);
const DEK: [u8; 32] = [7; 32];

#[tokio::test]
async fn a_restart_while_the_quorum_is_lost_goes_on_with_the_token_that_was_kept() -> lab::Result {
    let cluster = Cluster::start().await?;
    cluster.create_keys(&["kube"]).await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("token");
    let without = cluster.config(&["kube"]).await?;
    let config = without.clone().with("tokenCache", file.display().to_string());

    let daemon = Daemon::start(DAEMON, &config).await?;
    let key_id = daemon.kms().v2().wait_ok(PATIENCE).await?.key_id;
    let v1 = daemon.kms().v1().encrypt(&DEK).await?;
    let kept = || async { Ok(file.exists().then_some(())) };
    eventually("the token is kept", PATIENCE, kept).await?;
    daemon.kill();
    let content: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    let token = content["token"].as_str().unwrap();

    let leader = cluster.leader().await?;
    let standbys: Vec<&Node> =
        cluster.nodes().iter().filter(|node| node.name() != leader.name()).collect();
    // A standby that has not heard of the token passes its calls on, for some moments. When
    // the others die then, it never hears of it.
    let alone = || serves_alone(standbys[1], leader, token);
    eventually("the standby serves the token by itself", PATIENCE, alone).await?;
    leader.kill();
    standbys[0].kill();
    // The survivor gives up its leader after a moment, and then serves by itself.
    let survivor = standbys[1].admin().with_token(token);
    let serves = || async { Ok(Some(survivor.encrypt("kube", &DEK).await?)) };
    eventually("the last node serves by itself", PATIENCE, serves).await?;

    // What the cache is for: without it there is no token, and so no answer.
    let daemon = Daemon::start(DAEMON, &without).await?;
    daemon.wait_for_log("Could not get a token", PATIENCE).await?;
    let refused = daemon.kms().v1().decrypt(&v1).await.unwrap_err();
    println!("without tokenCache: {refused}");
    assert!(refused.message().contains("no token"), "{refused}");
    daemon.kill();

    let daemon = Daemon::start(DAEMON, &config).await?;
    assert_eq!(daemon.kms().v2().wait_ok(PATIENCE).await?.key_id, key_id);
    let kms = daemon.kms();
    for _ in 0..50 {
        assert_eq!(kms.v1().decrypt(&v1).await?, DEK);
        let v2 = kms.v2().encrypt(&DEK, "uid").await?;
        assert_eq!(kms.v2().decrypt(&v2, "uid").await?, DEK);
    }
    assert!(!daemon.log().contains("Could not get a token"), "{}", daemon.log());
    assert_eq!(daemon.stop().await?, 0);

    // With the quorum back, a token that was revoked meanwhile is replaced by a login.
    cluster.heal().await?;
    cluster.admin().revoke_prefix("auth/approle/login").await?;
    let daemon = Daemon::start(DAEMON, &config).await?;
    daemon.wait_ready(PATIENCE).await?;
    assert_eq!(daemon.kms().v1().decrypt(&v1).await?, DEK);
    daemon.wait_for_log("does not accept the token of an earlier run", PATIENCE).await?;
    assert_eq!(daemon.metric("vault_kms_proxy_logins_total", "result=\"ok\"").await?, 1.0);
    Ok(())
}

#[tokio::test]
async fn a_cache_that_others_could_write_is_refused_before_it_is_used() -> lab::Result {
    let config = lab::Config::new()
        .keys(&["kube"])
        .addresses(&["https://127.0.0.1:1"])
        .with("roleID", "kms")
        .with("admin", json!({ "listen": "off" }));
    let folder = tempfile::tempdir()?;
    let open = folder.path().join("open");
    std::fs::create_dir(&open)?;
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    std::fs::set_permissions(&open, permissions)?;
    let config = config.with("tokenCache", open.join("token").display().to_string());
    let daemon = Daemon::builder(DAEMON).config(&config).spawn()?;
    daemon.wait_for_log("everybody may write to", PATIENCE).await?;
    assert_ne!(daemon.wait(PATIENCE).await?, 0);
    Ok(())
}

/// Whether `node` serves calls with `token` by itself, and does not pass them on to `leader`.
async fn serves_alone(node: &Node, leader: &Node, token: &str) -> lab::Result<Option<()>> {
    const ENCRYPT: &str = "transit/encrypt/kube";
    let before = leader.count_requests(ENCRYPT);
    node.admin().with_token(token).encrypt("kube", &DEK).await?;
    Ok((leader.count_requests(ENCRYPT) == before).then_some(()))
}
