//! What moves while the daemon runs: the socket, the admin port, who may dial, and the file
//! itself, which is watched.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::{Callers, Config, Daemon, DevNode, Kms, RELOADED, eventually};
use serde_json::{Value, json};

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(20);
const KEYS: [&str; 2] = ["kube-2025", "kube-2026"];
const TURNED: [&str; 2] = ["kube-2026", "kube-2025"];

async fn vault() -> lab::Result<(DevNode, Config)> {
    let bao = DevNode::start().await?;
    bao.create_keys(&KEYS).await?;
    let config = bao.config(&KEYS).await?;
    Ok((bao, config))
}

/// One whose socket is where the file says.
async fn start(config: &Config, socket: &Path) -> lab::Result<Daemon> {
    let args = ["serve", "--config", "{config}"];
    let builder = Daemon::builder(DAEMON).config(config).socket(socket).args(args);
    let daemon = builder.start().await?;
    daemon.wait_ready(PATIENCE).await?;
    Ok(daemon)
}

async fn reloads(daemon: &Daemon) -> lab::Result<f64> {
    daemon.metric("vault_kms_proxy_reloads_total", "").await
}

#[tokio::test]
async fn the_socket_and_the_admin_port_move_and_no_call_fails() -> lab::Result {
    let (_bao, config) = vault().await?;
    let folder = tempfile::tempdir()?;
    let (old, new) = (folder.path().join("old.sock"), folder.path().join("new.sock"));
    let socket =
        |path: &Path, mode: &str| json!({ "path": path.display().to_string(), "mode": mode });
    let config = config.with("socket", socket(&old, "0600"));
    let daemon = start(&config, &old).await?;
    let callers = Callers::start(&daemon.kms(), 8, &[]);
    callers.more(50, PATIENCE).await?;

    // Where it is, it opens to a group.
    let wider = config.clone().with("socket", socket(&old, "0660"));
    daemon.reload(&wider, RELOADED).await?;
    let mode = std::fs::metadata(&old)?.permissions().mode() & 0o777;
    assert_eq!(mode, 0o660);

    // It moves: who is connected stays, who dials the new path is served, the old is gone.
    let line = daemon.reload(config.clone().with("socket", socket(&new, "0600")), RELOADED).await?;
    println!("{line}");
    assert!(line.contains("socket.path: "), "{line}");
    callers.more(50, PATIENCE).await?;
    assert_eq!(Kms::new(&new).v1().version().await?.version, "v1beta1");
    assert!(!old.exists(), "the old socket's file is still there");
    assert!(lab::kms::connect(&old).await.is_err());
    let newcomers = Callers::start(&Kms::new(&new), 4, &[]);
    newcomers.more(50, PATIENCE).await?;

    // And back, a few times, with somebody who dials all the while.
    for round in 0..6 {
        let to = if round % 2 == 0 { &old } else { &new };
        daemon.reload(config.clone().with("socket", socket(to, "0600")), RELOADED).await?;
        assert_eq!(Kms::new(to).v1().version().await?.version, "v1beta1");
    }
    callers.more(50, PATIENCE).await?;
    newcomers.more(50, PATIENCE).await?;

    // The admin port goes elsewhere, and then away.
    let before = daemon.admin_url().await?;
    let at = format!("127.0.0.1:{}", lab::free_port()?);
    let base = config.clone().with("socket", socket(&new, "0600"));
    daemon.reload(base.clone().with("admin", json!({ "listen": at })), RELOADED).await?;
    eventually("the new port answers and the old one is closed", PATIENCE, || async {
        let is_there = daemon.admin_url().await? == format!("http://{at}")
            && daemon.admin_get("/livez").await?.0 == 200;
        let old = before.trim_start_matches("http://");
        let is_gone = tokio::net::TcpStream::connect(old).await.is_err();
        Ok((is_there && is_gone).then_some(()))
    })
    .await?;
    daemon.reload(base.with("admin", json!({ "listen": "off" })), RELOADED).await?;
    eventually("nothing listens at the admin port", PATIENCE, || async {
        Ok(tokio::net::TcpStream::connect(&at).await.is_err().then_some(()))
    })
    .await?;

    for seen in [callers.finish().await, newcomers.finish().await] {
        println!(
            "{} calls, {} failed, the slowest {:.0?}",
            seen.good,
            seen.failures.len(),
            seen.slowest
        );
        assert!(seen.failures.is_empty(), "{}", seen.failures_told());
    }
    assert_eq!(daemon.stop().await?, 0);
    assert!(!new.exists(), "its file goes with the daemon");
    Ok(())
}

/// The second daemon has read its file, and waits for the first to let go of the socket.
#[tokio::test]
async fn what_is_written_between_the_first_read_and_the_first_generation_is_a_reload() -> lab::Result
{
    let (_bao, config) = vault().await?;
    let first = Daemon::start(DAEMON, &config).await?;
    let address = match config.get("addr") {
        Some(Value::Array(all)) => all.first().cloned().unwrap_or_default(),
        one => one.cloned().unwrap_or_default(),
    };
    let twice = vec![address.clone(), address]; // a warning shows that the file was read
    let config = config.with("watchConfig", "true").with("addr", twice);
    let second = Daemon::builder(DAEMON).config(&config).socket(first.socket()).spawn()?;
    second.wait_for_log("stands here twice", PATIENCE).await?;
    second.write_config(config.clone().keys(&TURNED))?;
    assert_eq!(first.stop().await?, 0);
    second.wait_for_log(lab::RELOADED, PATIENCE).await?;
    assert!(second.kms().v1().encrypt(&[7; 32]).await?.starts_with(b"kube-2026:v1:"));
    assert_eq!(second.stop().await?, 0);
    Ok(())
}

#[tokio::test]
async fn another_content_of_the_file_is_a_reload() -> lab::Result {
    let (_bao, config) = vault().await?;
    let config = config.with("watchConfig", "true");
    let daemon = Daemon::start(DAEMON, &config).await?;
    daemon.wait_ready(PATIENCE).await?;
    let wait_for = async |count: f64| {
        eventually("the reload is counted", PATIENCE, || async {
            Ok((reloads(&daemon).await? == count).then_some(()))
        })
        .await
    };

    daemon.write_config(config.clone().keys(&TURNED))?;
    wait_for(1.0).await?;
    assert!(daemon.kms().v1().encrypt(&[7; 32]).await?.starts_with(b"kube-2026:v1:"));

    // The same content again is none; a signal is one in any case.
    daemon.write_config(config.clone().keys(&TURNED))?;
    daemon.sighup()?;
    wait_for(2.0).await?;

    // What is broken is told once, as with a signal.
    daemon.write_config("keyNames: []\n")?;
    wait_for(3.0).await?;
    let (_, checks) = daemon.admin_get("/readyz").await?;
    assert!(checks.contains("the last reload was refused: "), "{checks}");

    // As a ConfigMap is mounted: the file is behind two links, and one is turned.
    let folder = daemon.folder();
    let publish = |version: &str, text: &Config| -> lab::Result {
        std::fs::create_dir(folder.join(version))?;
        std::fs::write(folder.join(version).join("config.yaml"), text.to_string())?;
        symlink(version, folder.join("..data_tmp"))?;
        std::fs::rename(folder.join("..data_tmp"), folder.join("..data"))?;
        Ok(())
    };
    publish("..1", &config)?;
    symlink("..data/config.yaml", folder.join("link"))?;
    std::fs::rename(folder.join("link"), daemon.config_file())?;
    wait_for(4.0).await?;
    assert!(daemon.kms().v1().encrypt(&[7; 32]).await?.starts_with(b"kube-2025:v1:"));
    publish("..2", &config.clone().keys(&TURNED))?;
    wait_for(5.0).await?;
    assert!(daemon.kms().v1().encrypt(&[7; 32]).await?.starts_with(b"kube-2026:v1:"));

    // It can be switched off by the same way.
    publish("..3", &config.clone().keys(&TURNED).without("watchConfig"))?;
    wait_for(6.0).await?;
    let (_, text) = daemon.admin_get("/configz").await?;
    assert!(text.contains("\"watchConfig\": \"false\""), "{text}");
    // Twice as long as it takes to be noticed, nothing is.
    publish("..4", &config)?;
    let until = tokio::time::Instant::now() + Duration::from_secs(3);
    eventually("the time is over", PATIENCE, || async {
        assert_eq!(reloads(&daemon).await?, 6.0, "it is watched still");
        Ok((tokio::time::Instant::now() > until).then_some(()))
    })
    .await?;
    assert_eq!(daemon.metric("vault_kms_proxy_reloads_total", "result=\"failed\"").await?, 1.0);
    Ok(())
}

/// What `check` prints and its exit code.
async fn check(arguments: Vec<String>) -> lab::Result<(i32, String)> {
    let ran = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(DAEMON);
        for (name, _) in std::env::vars().filter(|(name, _)| name.contains("VAULT")) {
            command.env_remove(name);
        }
        command.arg("check").args(arguments).output()
    });
    let ran = ran.await??;
    let text = [ran.stdout, ran.stderr].concat();
    Ok((ran.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned()))
}

#[tokio::test]
async fn check_shows_what_a_reload_would_change_and_what_it_would_refuse() -> lab::Result {
    let (bao, config) = vault().await?;
    let at = format!("127.0.0.1:{}", lab::free_port()?);
    let config = config.with("admin", json!({ "listen": at }));
    let daemon = Daemon::start(DAEMON, &config).await?;
    daemon.wait_ready(PATIENCE).await?;
    let file = daemon.config_file().display().to_string();
    let same = || check(vec!["--config".into(), file.clone()]);

    // The flag that the daemon has for its socket counts for the comparison, too.
    let (code, text) = same().await?;
    println!("{text}");
    assert!(text.contains("generation 1) would change nothing.\n"), "{text}");
    assert_eq!(code, 0);

    daemon.write_config(config.clone().keys(&TURNED).with("log", json!({ "level": "debug" })))?;
    let (code, text) = same().await?;
    println!("{text}");
    let generation =
        format!("A reload of the daemon that runs (pid {}, generation 1)", daemon.pid());
    for part in [
        &*generation,
        "  keyNames: kube-2026 encrypts, and no longer kube-2025\n",
        "  log.level: info -> debug\n",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert_eq!(code, 0, "{text}");

    // Another file, compared because it was asked for; nothing of the secret shows.
    let other = daemon.folder().join("other.yaml");
    let secret = bao.root_token();
    let wanted = config.clone().token(secret).keys(&["kube-2027", "kube-2025"]);
    std::fs::write(&other, wanted.with("statusVersion", "v2beta1").to_string())?;
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o600))?;
    let other = other.display().to_string();
    let (code, text) = check(vec!["--config".into(), other.clone()]).await?;
    assert!(code == 0 && !text.contains("A reload of"), "{text}");
    let running = ["--running".into(), format!("http://{at}")];
    let (code, text) =
        check([vec!["--config".into(), other.clone()], running.into()].concat()).await?;
    println!("{text}");
    for part in [
        "  keyNames: + kube-2027\n",
        "  keyNames: - kube-2026\n",
        "  auth: appRole at approle",
        "-> token (not shown)\n",
        "  (a role id or a secret that stands in the configuration itself is not compared)\n",
        "It would be refused:\n",
        &format!("  FAIL {other}:"),
        "the key `kube-2026` is gone",
        "the key `kube-2027` would encrypt at once",
        "statusVersion: it cannot change while the daemon runs, from v2 to v2beta1",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert_eq!(code, 1);
    assert!(!text.contains(secret), "{text}");

    // Nobody there is an error for whoever has asked, and none for others.
    assert_eq!(daemon.stop().await?, 0);
    let (code, text) = same().await?;
    assert_eq!(code, 0, "{text}");
    let running = ["--running".into(), format!("http://{at}")];
    let (code, text) = check([vec!["--config".into(), file], running.into()].concat()).await?;
    assert!(code == 1 && text.contains("no daemon could be asked at http://127.0.0.1:"), "{text}");
    Ok(())
}
