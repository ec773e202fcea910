//! `stateDir`: what a daemon leaves for the next one, and that no file there stops it.

use std::time::Duration;

use lab::{Daemon, DevNode, eventually};
use serde_json::Value;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn the_active_version_is_left_for_the_next_run() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube"]).await?;
    let folder = tempfile::tempdir()?;
    let state = folder.path().join("state");
    let file = state.join("activations.json");
    let config = bao.config(&["kube"]).await?.with("stateDir", state.display().to_string());
    let remembers = async |version: u64| {
        eventually("the state says so", PATIENCE, || async {
            let Ok(text) = std::fs::read(&file) else { return Ok(None) };
            let content: Value = serde_json::from_slice(&text)?;
            Ok((content["keks"][0]["version"] == version).then_some(()))
        })
        .await
    };

    let daemon = Daemon::start(DAEMON, &config).await?;
    let first = daemon.kms().v2().wait_ok(PATIENCE).await?.key_id;
    remembers(1).await?;
    bao.admin().rotate("kube").await?;
    let second = daemon.kms().v2().wait_other_key_id(&first, PATIENCE).await?.key_id;
    remembers(2).await?;
    assert_eq!(daemon.stop().await?, 0);

    let daemon = Daemon::start(DAEMON, &config).await?;
    assert_eq!(daemon.kms().v2().wait_ok(PATIENCE).await?.key_id, second);
    assert!(!daemon.log().contains("state of an earlier run"), "{}", daemon.log());
    assert_eq!(daemon.stop().await?, 0);

    // A disk that lost it costs a warning, and it is made anew.
    std::fs::write(&file, b"\0\0\0\0")?;
    let daemon = Daemon::start(DAEMON, &config).await?;
    daemon.wait_for_log("The state of an earlier run cannot be used", PATIENCE).await?;
    assert_eq!(daemon.kms().v2().wait_ok(PATIENCE).await?.key_id, second);
    remembers(2).await?;
    assert_eq!(daemon.stop().await?, 0);

    // A place that cannot be written costs one, too.
    std::fs::remove_dir_all(&state)?;
    std::os::unix::fs::symlink("/proc/nowhere", &state)?;
    let daemon = Daemon::start(DAEMON, &config).await?;
    daemon.wait_for_log("The state cannot be kept", PATIENCE).await?;
    assert_eq!(daemon.kms().v2().wait_ok(PATIENCE).await?.key_id, second);
    Ok(())
}
