//! Vault is away at the start, or goes away later: the socket answers, the answers say what
//! is wrong and where, and nothing has to be restarted when Vault is back.

use std::net::TcpListener;
use std::time::Duration;

use lab::{Cluster, Config, Daemon, Node, eventually};
use serde_json::json;
use tokio::time::Instant;
use tonic::{Code, Status};

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(20);
/// What kube-apiserver grants a call; the answer must come before.
const DEADLINE: Duration = Duration::from_secs(3);
const GRACE: Duration = Duration::from_secs(4);

#[tokio::test]
async fn the_daemon_serves_before_vault_does_and_outlives_its_outages() -> lab::Result {
    // One node with a disk: what it knew, it knows again after a restart on the same port.
    let cluster = Cluster::builder().nodes(1).start().await?;
    cluster.create_keys(&["kube"]).await?;
    let config = cluster.config(&["kube"]).await?;
    let config = config.with("status", json!({ "grace": format!("{}s", GRACE.as_secs()) }));

    cluster.node(0).kill();
    let started = Instant::now();
    let daemon = Daemon::start(DAEMON, config).await?;
    println!("v1 Version is answered {:.0?} after the start, Vault is down", started.elapsed());
    // Vault stays down until later on, so that a socket that waited would never answer.
    assert!(started.elapsed() < Duration::from_secs(10), "the socket waited for Vault");
    let pid = daemon.pid();

    tokio::select! {
        done = scenes(&cluster, &daemon) => done?,
        failed = livez_fails(&daemon) => failed?,
    }
    assert_eq!(daemon.pid(), pid);
    assert!(daemon.is_running());
    assert_eq!(daemon.stop().await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_taken_admin_port_keeps_nobody_from_the_socket() -> lab::Result {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let config = Config::new().keys(&["kube"]).addresses(&["https://127.0.0.1:1"]).token("none");
    let config = config.with("admin", json!({ "listen": address }));
    let daemon = Daemon::start(DAEMON, config).await?;
    println!("{}", daemon.wait_for_log("The admin port cannot be bound", PATIENCE).await?);
    drop(taken);
    daemon.wait_for_log("Serving /livez, /readyz and /metrics.", PATIENCE).await?;
    assert_eq!(daemon.admin_get("/livez").await?.0, 200);
    Ok(())
}

async fn scenes(cluster: &Cluster, daemon: &Daemon) -> lab::Result {
    let vault = cluster.node(0);
    let cipher = it_starts_without_vault(vault, daemon).await?;

    println!("\nVault is killed");
    vault.kill();
    it_is_ok_within_the_grace(daemon).await?;
    it_outlives_an_outage(vault, daemon, &cipher, "connection refused").await?;
    vault.start().await?;
    it_recovers(daemon, &cipher).await?;

    println!("\nVault freezes (SIGSTOP)");
    vault.stop()?;
    it_is_ok_within_the_grace(daemon).await?;
    it_outlives_an_outage(vault, daemon, &cipher, "no answer").await?;
    vault.cont()?;
    it_recovers(daemon, &cipher).await?;

    println!("\nVault is sealed");
    vault.seal().await?; // takes as long as Vault likes, so nothing is said of the grace
    it_outlives_an_outage(vault, daemon, &cipher, "sealed").await?;
    vault.unseal().await?;
    it_recovers(daemon, &cipher).await
}

async fn it_starts_without_vault(vault: &Node, daemon: &Daemon) -> lab::Result<Vec<u8>> {
    let kms = daemon.kms();
    assert_eq!(kms.v1().version().await?.version, "v1beta1");
    let status = eventually("Status says why", PATIENCE, || async {
        let status = kms.v2().status().await.expect_err("an unseen key cannot be ok");
        Ok(status.message().contains("connection refused").then_some(status))
    });
    let status = status.await?;
    println!("v2 Status: {status}");
    assert_names(&status, vault, "connection refused");
    let (code, checks) = daemon.admin_get("/readyz").await?;
    println!("/readyz: {code}\n{checks}");
    assert_eq!(code, 503, "{checks}");
    assert!(checks.contains(vault.authority()), "{checks}");

    vault.start().await?;
    let back = Instant::now();
    let status = kms.v2().wait_ok(PATIENCE).await?;
    println!("v2 Status: ok, {:.1?} after Vault's return: {}", back.elapsed(), status.key_id);
    assert!(status.key_id.starts_with("kube:v1:"));
    assert_eq!(daemon.admin_get("/readyz").await?.0, 200);
    Ok(kms.v1().encrypt(&[7; 32]).await?)
}

async fn it_is_ok_within_the_grace(daemon: &Daemon) -> lab::Result {
    let status = daemon.kms().v2().status().await?;
    assert_eq!(status.healthz, "ok", "nobody's load balancer is emptied");
    Ok(())
}

async fn it_outlives_an_outage(
    vault: &Node,
    daemon: &Daemon,
    cipher: &[u8],
    words: &str,
) -> lab::Result {
    let v2 = daemon.kms().v2();
    let key_id = v2.status().await?.key_id;
    let began = Instant::now();
    let refused = daemon.kms().v1().decrypt(cipher).await.expect_err("Vault is away");
    println!("v1 Decrypt, after {:.1?}: {refused}", began.elapsed());
    assert!(began.elapsed() < DEADLINE, "kube-apiserver had given up");
    assert_names(&refused, vault, words);

    let reason = eventually("the grace is over", PATIENCE, || async {
        let status = v2.status().await?;
        Ok(status.healthz.contains(vault.authority()).then_some(status))
    });
    let reason = reason.await?;
    println!("v2 Status: healthz {:?}, key_id {}", reason.healthz, reason.key_id);
    assert_eq!(reason.key_id, key_id, "with its key_id the apiserver goes on writing");
    assert!(reason.healthz.contains("not proven for"), "{}", reason.healthz);
    let (code, checks) = daemon.admin_get("/readyz").await?;
    assert_eq!(code, 503, "{checks}");
    Ok(())
}

async fn it_recovers(daemon: &Daemon, cipher: &[u8]) -> lab::Result {
    let back = Instant::now();
    daemon.kms().v2().wait_ok(PATIENCE).await?;
    println!("v2 Status: ok again, {:.1?} after Vault's return", back.elapsed());
    assert_eq!(daemon.kms().v1().decrypt(cipher).await?, [7; 32]);
    assert_eq!(daemon.admin_get("/readyz").await?.0, 200);
    Ok(())
}

fn assert_names(status: &Status, vault: &Node, cause: &str) {
    // A frozen Vault is silent to the deadline, and left out once its breaker is open.
    let codes = [Code::Unavailable, Code::DeadlineExceeded];
    assert!(codes.contains(&status.code()), "{status}");
    for part in ["KEK `kube`", vault.authority(), cause] {
        assert!(status.message().contains(part), "{part}: {status}");
    }
}

/// Asks `/livez` all the time and ends when it is not 200: an outage of Vault must not
/// make a supervisor restart the daemon.
async fn livez_fails(daemon: &Daemon) -> lab::Result {
    loop {
        let (code, body) = daemon.admin_get("/livez").await?;
        if code != 200 {
            lab::fail!("/livez: {code} {body}");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
