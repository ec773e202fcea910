//! Tokens while nobody leads: the quorum is lost, nobody can log in or renew a token, and
//! calls go on, over a restart of the daemon with `tokenCache` too. Three nodes for the whole
//! file, one test at a time, since each does away with two of them.

use std::time::Duration;

use lab::{Callers, Cluster, Daemon, Node, eventually, policy_for};
use serde_json::json;
use tokio::sync::{Mutex, MutexGuard, OnceCell};
use tokio::time::Instant;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(30);
const DEK: [u8; 32] = [7; 32];
const LOGIN: &str = "auth/approle/login";
const RENEW: &str = "auth/token/renew-self";
const ATTEMPTS: &str = "vault_kms_proxy_attempt_duration_seconds_count";

static NODES: OnceCell<Cluster> = OnceCell::const_new();
static TURN: Mutex<()> = Mutex::const_new(());

async fn nodes() -> lab::Result<(&'static Cluster, MutexGuard<'static, ()>)> {
    let turn = TURN.lock().await;
    let cluster = NODES.get_or_try_init(start_nodes).await?;
    cluster.heal().await?;
    Ok((cluster, turn))
}

async fn start_nodes() -> lab::Result<Cluster> {
    let cluster = Cluster::start().await?;
    cluster.create_keys(&["kube"]).await?;
    Ok(cluster)
}

#[tokio::test]
async fn a_token_whose_renewal_finds_no_leader_is_kept_and_renewed_after_the_election()
-> lab::Result {
    const TTL: Duration = Duration::from_secs(36);
    let (cluster, _turn) = nodes().await?;
    let admin = cluster.admin();
    admin.write_policy("short", &policy_for(&["kube"])).await?;
    let options =
        json!({ "token_policies": ["short"], "token_ttl": "36s", "token_max_ttl": "24h" });
    let role = admin.create_approle("short", options).await?;
    let config = cluster.config(&["kube"]).await?.without("secretIDFile");
    let config = config.with("roleID", role.role_id).with("secretID", role.secret_id);
    let logins = cluster.count_requests(LOGIN);

    let began = Instant::now();
    let daemon = Daemon::start(DAEMON, &config).await?;
    daemon.wait_ready(PATIENCE).await?;
    let callers = Callers::start(&daemon.kms(), 2, &[]);
    // The renewal comes after two thirds of the ttl, a tenth sooner or later.
    while began.elapsed() < TTL / 2 {
        callers.more(20, PATIENCE).await?;
    }
    let leader = cluster.leader().await?;
    let mut standbys = cluster.nodes().iter().filter(|node| node.name() != leader.name());
    let standby = standbys.next().expect("there are three nodes");
    assert_eq!(cluster.count_requests(RENEW), 0, "too late");
    leader.stop()?;
    standby.stop()?;

    // Two of three hang, so that nobody is elected until the renewal was under way.
    eventually("a renewal has found nobody who leads", PATIENCE, || async {
        let attempts = daemon.metric(ATTEMPTS, "verb=\"renew_self\"").await?;
        Ok((attempts > 0.0).then_some(()))
    })
    .await?;
    assert!(began.elapsed() < TTL, "the token has ended before anybody could renew it");
    standby.cont()?;
    // Past the end that the token would have had.
    while began.elapsed() < TTL + Duration::from_secs(4) {
        callers.more(20, PATIENCE).await?;
    }
    let seen = callers.finish().await;
    assert!(seen.failures.is_empty(), "{}", seen.failures_told());
    let (renewals, logins) =
        (cluster.count_requests(RENEW), cluster.count_requests(LOGIN) - logins);
    println!("{} calls, {renewals} renewals, {logins} logins", seen.good);
    assert!(renewals > 0 && (1..=2).contains(&logins), "{renewals}, {logins}");
    assert_eq!(daemon.stop().await?, 0);
    cluster.heal().await
}

#[tokio::test]
async fn a_restart_while_the_quorum_is_lost_goes_on_with_the_token_that_was_kept() -> lab::Result {
    let (cluster, _turn) = nodes().await?;
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
    cluster.admin().revoke_prefix(LOGIN).await?;
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
