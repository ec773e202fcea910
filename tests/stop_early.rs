//! Whoever stops the daemon never waits for it longer than for the calls in flight: not
//! while it waits for the socket, and not once they have had enough.

use std::time::Duration;

use lab::{Config, Daemon, eventually};
use tokio::time::Instant;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(20);

/// A configuration whose Vault is not there.
fn config() -> lab::Result<Config> {
    let nobody = format!("https://127.0.0.1:{}", lab::free_port()?);
    let config = Config::new().keys(&["kube"]).addresses(&[nobody]).token("s.nobody");
    let admin = serde_json::json!({ "listen": "127.0.0.1:0" });
    Ok(config.with("admin", admin).with("shutdownGrace", "60s"))
}

#[tokio::test]
async fn one_that_waits_for_the_sockets_lock_stops_at_once() -> lab::Result {
    let first = Daemon::start(DAEMON, config()?).await?;
    let second = Daemon::builder(DAEMON).config(config()?).socket(first.socket()).spawn()?;
    second.wait_for_log("Waiting for the socket's lock", PATIENCE).await?;
    let told = Instant::now();
    assert_eq!(second.stop().await?, 0);
    assert!(told.elapsed() < Duration::from_secs(5), "it took {:?}", told.elapsed());
    assert_eq!(first.kms().v1().version().await?.version, "v1beta1", "the first one serves on");
    Ok(())
}

#[tokio::test]
async fn a_second_signal_cuts_the_calls_in_flight() -> lab::Result {
    let daemon = Daemon::start(DAEMON, config()?).await?;
    daemon.wait_for_log("The configuration is in force", PATIENCE).await?; // else it fails at once
    let kms = daemon.kms().timeout(Duration::from_secs(60));
    let call =
        tokio::spawn(async move { kms.v1().decrypt(b"kube:v1:AAECAwQFBgcICQoLDA0ODw==").await });
    eventually("the call is in flight", PATIENCE, || async {
        let calls = daemon.metric("vault_kms_proxy_calls_in_flight", "").await?;
        Ok((calls == 1.0).then_some(()))
    })
    .await?;
    daemon.terminate()?;
    daemon.wait_for_log("calls in flight may finish", PATIENCE).await?;
    let told = Instant::now();
    daemon.interrupt()?;
    assert_eq!(daemon.wait(PATIENCE).await?, 0);
    assert!(told.elapsed() < Duration::from_secs(5), "it took {:?}", told.elapsed());
    assert!(call.await?.is_err());
    Ok(())
}
