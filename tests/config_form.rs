//! Where a daemon's configuration comes from: the file, over it the environment, over that
//! the command line.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use lab::{Config, Daemon};
use serde_json::json;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(15);

/// A configuration whose Vault nobody ever reaches.
fn config() -> Config {
    Config::new()
        .keys(&["kube"])
        .addresses(&["https://127.0.0.1:1"])
        .token("hvs.nobody")
        .with("admin", json!({ "listen": "off" }))
}

#[tokio::test]
async fn a_flag_goes_over_the_environment_and_that_over_the_file() -> lab::Result {
    let config = config().with("statusVersion", "v2").with("log", json!({ "format": "text" }));
    let config = config.with("socket", json!({ "path": "/nowhere/file.sock", "mode": "0600" }));
    let not_text = OsString::from_vec(vec![0xff, 0xfe]);
    let daemon = Daemon::builder(DAEMON)
        .config(config)
        .env("VAULT_KMS_PROXY_SOCKET__PATH", "/nowhere/environment.sock")
        .env("VAULT_KMS_PROXY_SOCKET__MODE", "0660")
        .env("VAULT_KMS_PROXY_LOG__FORMAT", "json")
        .env("SOMEBODY_ELSES", not_text)
        .start()
        .await?;
    // The flag `--socket`, which the lab gives, has won, or nobody would answer.
    assert_eq!(daemon.kms().v1().version().await?.version, "v1beta1");
    let mode = std::os::unix::fs::PermissionsExt::mode(&daemon.socket().metadata()?.permissions());
    assert_eq!(mode & 0o777, 0o660, "the environment over the file");
    let line = daemon.wait_for_log("The socket listens.", PATIENCE).await?;
    assert!(line.starts_with('{'), "the environment over the file: {line}");
    assert_eq!(daemon.stop().await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_bad_value_is_told_by_the_variable_or_the_flag_that_holds_it() -> lab::Result {
    let daemon = Daemon::builder(DAEMON)
        .config(config())
        .env("VAULT_KMS_PROXY_SHUTDOWN_GRACE", OsString::from_vec(vec![b'1', 0xff]))
        .arg("--log-format=xml")
        .spawn()?;
    assert_eq!(daemon.wait(PATIENCE).await?, 64);
    let said = daemon.log();
    for place in [
        "environment variable VAULT_KMS_PROXY_SHUTDOWN_GRACE: error: shutdownGrace",
        "flag --log-format: error: log.format: `xml`",
    ] {
        assert!(said.contains(place), "no {place:?} in:\n{said}");
    }
    assert!(!said.contains("panicked"), "{said}");
    Ok(())
}
