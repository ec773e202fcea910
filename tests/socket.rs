//! The socket as an operator meets it: what the daemon refuses, replaces, and leaves alone.

#![allow(clippy::unwrap_used)] // in helpers of tests as in tests

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lab::{Config, Daemon};
use serde_json::json;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
/// A second daemon waits 10 s for the first to let go of the socket.
const PATIENCE: Duration = Duration::from_secs(20);

/// A configuration whose Vault nobody ever reaches: the socket does not need one.
fn config() -> Config {
    Config::new()
        .keys(&["kube"])
        .addresses(&["https://127.0.0.1:1"])
        .token("hvs.nobody")
        .with("admin", json!({ "listen": "off" }))
}

/// Starts a daemon that cannot have its socket; answers its exit code and what it said.
async fn refused(config: impl ToString, socket: impl Into<PathBuf>) -> lab::Result<(i32, String)> {
    let daemon = Daemon::builder(DAEMON).config(config).socket(socket).spawn()?;
    let code = daemon.wait(PATIENCE).await?;
    Ok((code, daemon.log()))
}

fn mode(path: &Path) -> u32 {
    path.metadata().expect("the file is there").mode() & 0o7777
}

#[tokio::test]
async fn a_second_daemon_is_refused_and_the_first_goes_on() -> lab::Result {
    let first = Daemon::start(DAEMON, config()).await?;
    let kms = first.kms();
    let (code, said) = refused(config(), first.socket()).await?;
    assert_eq!(code, 1, "{said}");
    let lock = format!("lock {}.lock is still held by", first.socket().display());
    assert!(said.contains(&lock), "{said}");
    assert!(said.contains(&format!("process {}", first.pid())), "{said}");
    assert!(said.contains("stop that process, or give this one another socket.path"), "{said}");
    assert_eq!(kms.v1().version().await?.version, "v1beta1", "the old connection");
    assert_eq!(first.kms().v1().version().await?.version, "v1beta1", "a new connection");
    assert_eq!(first.stop().await?, 0);
    assert!(!first.socket().exists(), "the socket file is left behind");
    Ok(())
}

#[tokio::test]
async fn a_killed_daemons_socket_is_replaced_and_another_servers_is_not() -> lab::Result {
    let folder = tempfile::tempdir_in("/tmp")?;
    let socket = folder.path().join("kms.sock");
    let builder = Daemon::builder(DAEMON).config(config()).socket(&socket);
    let first = builder.clone().start().await?;
    first.kill();
    assert!(socket.metadata()?.file_type().is_socket(), "a killed daemon leaves its socket");
    assert!(first.kms().v1().version().await.is_err());

    let second = builder.clone().start().await?;
    assert_eq!(second.kms().v1().version().await?.version, "v1beta1");
    assert_eq!(second.stop().await?, 0);

    // A program that takes no part in the lock, such as another KMS plugin.
    let other = std::os::unix::net::UnixListener::bind(&socket)?;
    let (code, said) = refused(config(), &socket).await?;
    assert_eq!(code, 1, "{said}");
    let words = format!("another process answers at {}; stop it (`ss -xlp`", socket.display());
    assert!(said.contains(&words), "{said}");
    drop(other);
    Ok(())
}

#[tokio::test]
async fn a_place_that_is_not_fit_for_a_socket_is_refused_with_a_remedy() -> lab::Result {
    let folder = tempfile::tempdir_in("/tmp")?;
    let at = |name: &str| folder.path().join(name);
    let shown = |name: &str| at(name).display().to_string();

    fs::write(at("file"), "not yours")?;
    let (code, said) = refused(config(), at("file")).await?;
    assert_eq!(code, 1, "{said}");
    let words = "exists and is a plain file, not a socket; remove it or change socket.path";
    assert!(said.contains(&format!("{} {words}", shown("file"))), "{said}");
    assert_eq!(fs::read_to_string(at("file"))?, "not yours");

    fs::create_dir(at("folder"))?;
    let (code, said) = refused(config(), at("folder")).await?;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("exists and is a folder, not a socket"), "{said}");

    fs::create_dir(at("open"))?;
    fs::set_permissions(at("open"), fs::Permissions::from_mode(0o777))?;
    let (code, said) = refused(config(), at("open/kms.sock")).await?;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains(&format!("folder {} of socket", shown("open"))), "{said}");
    assert!(said.contains("is writable by every user (mode 0777)"), "{said}");
    assert!(said.contains(&format!("run `chmod o-w {}`", shown("open"))), "{said}");
    assert!(!at("open/kms.sock").exists());

    let (code, said) = refused(config(), at("missing/kms.sock")).await?;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains(&format!("create it: `mkdir -m 0755 {}`", shown("missing"))), "{said}");

    let long = at(&"x".repeat(120));
    let (code, said) = refused(config(), &long).await?;
    assert_eq!(code, 64, "{said}");
    assert!(said.contains(&format!("{} bytes", long.as_os_str().len())), "{said}");
    assert!(said.contains("107"), "{said}");

    let (code, said) = refused(config(), "@vault-kms-proxy-for-anybody").await?;
    assert_eq!(code, 64, "{said}");
    assert!(said.contains("allowedUids"), "{said}");
    Ok(())
}

#[tokio::test]
async fn the_socket_has_the_mode_that_is_configured_and_the_form_that_kubernetes_writes()
-> lab::Result {
    let closed = Daemon::start(DAEMON, config()).await?;
    assert_eq!(mode(closed.socket()), 0o600, "the default");

    let folder = tempfile::tempdir_in("/tmp")?;
    let socket = folder.path().join("kms.sock");
    let owner = ours();
    let config = config().with("socket", json!({ "mode": "0660", "group": owner.1.to_string() }));
    let open = Daemon::builder(DAEMON)
        .config(config)
        .socket(&socket)
        .args(["serve", "--config", "{config}", "--socket"])
        .arg(format!("unix://{}", socket.display()))
        .start()
        .await?;
    assert_eq!(mode(&socket), 0o660);
    assert_eq!((socket.metadata()?.uid(), socket.metadata()?.gid()), owner);
    assert_eq!(open.stop().await?, 0);
    assert!(!socket.exists(), "the socket file is left behind");
    Ok(())
}

fn ours() -> (u32, u32) {
    let own = fs::metadata("/proc/self").expect("Linux has it");
    (own.uid(), own.gid())
}

#[tokio::test]
async fn a_user_who_is_not_on_the_list_is_refused_and_the_log_says_what_to_add() -> lab::Result {
    let (us, _) = ours();
    let other = us + 4711;
    let config = config().with("socket", json!({ "allowedUids": [other] }));
    let daemon = Daemon::builder(DAEMON).config(config).spawn()?;
    daemon.wait_for_log("The socket listens.", PATIENCE).await?;
    let refused = daemon.kms().v1().version().await.unwrap_err();
    assert_ne!(refused.code(), tonic::Code::Ok);
    let line = daemon.wait_for_log("Refused a peer", PATIENCE).await?;
    let pid = std::process::id();
    assert!(line.contains("WARN"), "{line}");
    assert!(line.contains(&format!("user {us} (process {pid}) may not connect")), "{line}");
    let list = format!("to allow it, write `socket.allowedUids: [{us}, {other}]`");
    assert!(line.contains(&list), "{line}");
    assert_eq!(daemon.stop().await?, 0);
    Ok(())
}
