//! `stateDir`: what a daemon leaves for the next one, and that no file there stops it.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use lab::{Cluster, Config, Daemon, DevNode, eventually};
use serde_json::{Value, json};
use tonic::Code;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn the_active_version_is_left_for_the_next_run() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube"]).await?;
    let folder = tempfile::tempdir()?;
    let state = folder.path().join("state");
    let file = state.join("state.json");
    let config = bao.config(&["kube"]).await?.with("stateDir", state.display().to_string());
    let remembers = async |version: u64| {
        eventually("the state says so", PATIENCE, || async {
            let Ok(text) = std::fs::read(&file) else { return Ok(None) };
            let content: Value = serde_json::from_slice(&text)?;
            Ok((content["keks"][0]["active"]["version"] == version).then_some(()))
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

/// kube-apiserver must not notice that the daemon was restarted while Vault is away: an error
/// instead of the key_id would stop its writes.
#[tokio::test]
async fn a_restart_while_vault_is_away_still_names_the_key() -> lab::Result {
    // One node with a disk: what it knew, it knows again after a restart.
    let cluster = Cluster::builder().nodes(1).start().await?;
    cluster.create_keys(&["kube"]).await?;
    let state = tempfile::tempdir()?;
    let config = cluster.config(&["kube"]).await?;
    let config = config.with("stateDir", state.path().display().to_string());
    let daemon = Daemon::start(DAEMON, &config).await?;
    let key_id = daemon.kms().v2().wait_ok(PATIENCE).await?.key_id;
    let is_kept = || async {
        let text = std::fs::read_to_string(state.path().join("state.json"))?;
        Ok((text.contains(&key_id) && text.contains("\"proven\": 1")).then_some(()))
    };
    eventually("the proof is kept", PATIENCE, is_kept).await?;
    cluster.node(0).kill();
    daemon.kill();

    // Within the grace nobody's load balancer is emptied, not even by a restart.
    let grace = |grace: &str| config.clone().with("status", json!({ "grace": grace }));
    let status = status_after_restart(&grace("1h")).await?;
    assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &key_id));

    // After it the reason is told, with the key_id.
    let daemon = Daemon::start(DAEMON, grace("1s")).await?;
    let reason = eventually("the reason is known", PATIENCE, || async {
        let status = daemon.kms().v2().status().await?;
        Ok(status.healthz.contains("refused").then_some(status))
    });
    let reason = reason.await?;
    println!("v2 Status: healthz {:?}, key_id {}", reason.healthz, reason.key_id);
    assert_eq!(reason.key_id, key_id);
    assert!(reason.healthz.contains("not proven for"), "{}", reason.healthz);
    assert_eq!(daemon.admin_get("/readyz").await?.0, 503);
    assert_eq!(daemon.admin_get("/livez").await?.0, 200);
    assert!(daemon.kms().v2().encrypt(&[7; 32], "uid").await.is_err());
    assert_eq!(daemon.stop().await?, 0);

    let stay = json!({ "grace": "1s", "onOutage": "ok" });
    let status = status_after_restart(&config.clone().with("status", stay)).await?;
    assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &key_id));

    // Another epoch means another key_id, which nobody has seen yet.
    let other = config.clone().with("keyNames", json!([{ "name": "kube", "epoch": "2" }]));
    let daemon = Daemon::start(DAEMON, other).await?;
    daemon.wait_for_log("is about another key of this name", PATIENCE).await?;
    let unknown = daemon.kms().v2().status().await.unwrap_err();
    assert_ne!(unknown.code(), Code::Ok);
    assert_eq!(daemon.stop().await?, 0);

    let daemon = Daemon::start(DAEMON, &config).await?;
    let answers = || async { Ok(Some(daemon.kms().v2().status().await?.key_id)) };
    assert_eq!(eventually("Status answers", PATIENCE, answers).await?, key_id);
    cluster.node(0).start().await?;
    assert_eq!(daemon.kms().v2().wait_ok(PATIENCE).await?.key_id, key_id);
    let made = daemon.kms().v2().encrypt(&[7; 32], "uid").await?;
    assert_eq!(made.key_id, key_id);
    Ok(())
}

/// What Status says right after a start with this configuration.
async fn status_after_restart(config: &Config) -> lab::Result<lab::proto::v2::StatusResponse> {
    let daemon = Daemon::start(DAEMON, config).await?;
    let status = eventually("the first generation is built", PATIENCE, || async {
        Ok(Some(daemon.kms().v2().status().await?))
    });
    let status = status.await?;
    daemon.kill();
    Ok(status)
}

/// What a reload has refused does not come into force by a reboot.
#[tokio::test]
async fn a_restart_takes_no_file_that_a_reload_has_refused() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube", "old"]).await?;
    let folder = tempfile::tempdir()?;
    let (state, file) = (folder.path().join("state"), folder.path().join("vkp.yaml"));
    let both = bao.config(&["kube", "old"]).await?;
    let both = both.with("stateDir", state.display().to_string());
    let without = both.clone().keys(&["kube"]);
    let write = |config: &Config| -> lab::Result {
        std::fs::write(&file, config.to_string())?;
        Ok(std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?)
    };
    let path = file.display().to_string();
    let service =
        Daemon::builder(DAEMON).args(["serve", "--config", &path, "--socket", "{socket}"]);
    write(&both.clone().keys(&["old", "kube"]))?;
    let daemon = service.clone().start().await?;
    let sealed = daemon.kms().v1().encrypt(&[7; 32]).await?;
    assert!(sealed.starts_with(b"old:v1:"));
    write(&both)?;
    daemon.sighup()?;
    daemon.wait_for_log(lab::RELOADED, PATIENCE).await?;
    eventually("both files are kept", PATIENCE, || async {
        let holds = |name: &str, words: &str| {
            std::fs::read_to_string(state.join(name)).is_ok_and(|text| text.contains(words))
        };
        let kept = holds("accepted.yaml", r#""kube", "old""#);
        Ok((kept && holds("state.json", "\"kube:v1:")).then_some(()))
    })
    .await?;
    write(&without)?;
    daemon.sighup()?;
    let refused = daemon.wait_for_log(lab::REFUSED, PATIENCE).await?;
    assert!(refused.contains("the key `old` is gone"), "{refused}");
    daemon.kill();

    for _ in 0..2 {
        let daemon = service.clone().start().await?;
        let told = daemon.wait_for_log("is one that a reload refuses", PATIENCE).await?;
        println!("{told}");
        for words in ["ERROR", "vkp.yaml:", "the key `old` is gone", "retired: [old]", "remove "] {
            assert!(told.contains(words), "{words}: {told}");
        }
        daemon.wait_ready(PATIENCE).await?;
        assert_eq!(daemon.kms().v1().decrypt(&sealed).await?, [7; 32], "it can still be read");
        assert_eq!(daemon.metric("vault_kms_proxy_config_fallback", "").await?, 1.0);
        let (_, ready) = daemon.admin_get("/readyz").await?;
        assert!(ready.contains("the file asks for what a reload refuses"), "{ready}");
        let (_, running) = daemon.admin_get("/configz").await?;
        let running: Value = serde_json::from_str(&running)?;
        let why = running["fallback"].as_str().unwrap_or_default();
        assert!(why.contains("the key `old` is gone"), "{running}");
        // The same file again is refused again.
        daemon.sighup()?;
        daemon.wait_for_log(lab::REFUSED, PATIENCE).await?;
        assert_eq!(daemon.stop().await?, 0);
    }
    // Said so, it goes.
    write(&without.with("retired", json!(["old"])))?;
    let daemon = service.start().await?;
    daemon.wait_ready(PATIENCE).await?;
    assert!(daemon.kms().v1().decrypt(&sealed).await.is_err());
    assert_eq!(daemon.metric("vault_kms_proxy_config_fallback", "").await?, 0.0);
    assert_eq!(daemon.stop().await?, 0);
    Ok(())
}

#[tokio::test]
async fn with_a_broken_file_the_last_accepted_configuration_starts() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube", "other"]).await?;
    let folder = tempfile::tempdir()?;
    let (state, file) = (folder.path().join("state"), folder.path().join("vkp.yaml"));
    let kept = state.join("accepted.yaml");
    let config = bao.config(&["kube", "other"]).await?.keys(&["kube"]);
    let config = config.with("stateDir", state.display().to_string());
    let write = |text: &str| std::fs::write(&file, text);
    let mode = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode));
    write(&config.to_string())?;
    mode(0o600)?;
    let path = file.display().to_string();
    let service =
        Daemon::builder(DAEMON).args(["serve", "--config", &path, "--socket", "{socket}"]);
    let keeps = async |words: &str| {
        eventually("it is kept", PATIENCE, || async {
            Ok(std::fs::read_to_string(&kept)?.contains(words).then_some(()))
        })
        .await
    };

    let daemon = service.clone().start().await?;
    keeps("\"kube\"").await?;
    assert_eq!(kept.metadata()?.permissions().mode() & 0o777, 0o600);
    assert_eq!(daemon.metric("vault_kms_proxy_config_fallback", "").await?, 0.0);
    // What a reload accepts is kept, and what it refuses is not.
    let config = config.keys(&["kube", "other"]);
    write(&config.to_string())?;
    daemon.sighup()?;
    keeps("\"other\"").await?;
    let broken = format!("{config}keyname: kube\n");
    write(&broken)?;
    daemon.sighup()?;
    daemon.wait_for_log("Reload failed", PATIENCE).await?;
    daemon.kill();

    let daemon = service.clone().start().await?;
    let told = daemon.wait_for_log("so the last accepted one runs", PATIENCE).await?;
    println!("{told}");
    assert!(told.contains("ERROR") && told.contains("did you mean `keyNames`"), "{told}");
    assert!(daemon.kms().v1().encrypt(&[7; 32]).await?.starts_with(b"kube:v1:"));
    assert_eq!(daemon.metric("vault_kms_proxy_config_fallback", "").await?, 1.0);
    daemon.wait_ready(PATIENCE).await?;
    let (code, ready) = daemon.admin_get("/readyz").await?;
    assert_eq!(code, 200, "{ready}");
    assert!(ready.contains("[+] configuration file: The last accepted"), "{ready}");
    assert!(
        ready.contains("[+] kek other: other:v1:"),
        "it is what a reload has accepted: {ready}"
    );
    // A good file ends it.
    write(&config.to_string())?;
    daemon.sighup()?;
    daemon.wait_for_log("Reloaded; the new configuration is in force.", PATIENCE).await?;
    eventually("the fallback is over", PATIENCE, || async {
        Ok((daemon.metric("vault_kms_proxy_config_fallback", "").await? == 0.0).then_some(()))
    })
    .await?;
    assert!(!daemon.admin_get("/readyz").await?.1.contains("configuration file"));
    assert_eq!(daemon.stop().await?, 0);

    // A secret is written nowhere else, so there is nothing to start with then.
    let token = bao.admin().create_token(json!({ "policies": ["root"] })).await?;
    write(&config.token(&token).to_string())?;
    let daemon = service.clone().start().await?;
    daemon.wait_for_log("so no copy of it is kept in stateDir", PATIENCE).await?;
    eventually("the old copy is gone", PATIENCE, || async { Ok((!kept.exists()).then_some(())) })
        .await?;
    assert_eq!(daemon.stop().await?, 0);
    for entry in std::fs::read_dir(&state)? {
        let text = std::fs::read_to_string(entry?.path())?;
        assert!(!text.contains(&token), "{text}");
    }
    write(&broken)?;
    let daemon = service.spawn()?;
    assert_eq!(daemon.wait(PATIENCE).await?, 64, "{}", daemon.log());
    assert!(daemon.log().contains("did you mean `keyNames`"), "{}", daemon.log());
    Ok(())
}
