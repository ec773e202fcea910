//! Reloads while something is wrong: what did not change need not answer, what runs is not
//! touched by a trial that fails, and a way out of an outage is never refused.

use std::time::Duration;

use lab::{Config, Daemon, DevNode, FaultProxy, REFUSED, RELOADED};
use serde_json::json;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_trial_that_fails_leaves_no_trace_in_what_runs() -> lab::Result {
    let (bao, other) = tokio::try_join!(DevNode::start(), DevNode::start())?;
    bao.create_keys(&["kube"]).await?;
    let config = bao.config(&["kube"]).await?.with("reloadTimeout", "2s");
    let daemon = Daemon::start(DAEMON, &config).await?;
    let before = daemon.kms().v2().wait_ok(PATIENCE).await?;

    bao.admin()
        .write_policy("blind", "path \"transit/decrypt/kube\" { capabilities = [] }")
        .await?;
    let blind = bao.admin().create_token(json!({ "policies": ["blind"] })).await?;
    let elsewhere = other.config(&["kube"]).await?.with("reloadTimeout", "2s");
    let another = DevNode::start().await?;
    another.create_keys(&["kube"]).await?;
    let another_key = another.config(&["kube"]).await?.with("reloadTimeout", "2s");
    // The old cluster still decrypts everything, but it is not the one that would encrypt.
    let before_the_old = Config::replicas(&[("new", &another_key), ("old", &config)], &["kube"]);
    for (what, trial) in [
        ("a Vault without the key", elsewhere),
        ("a Vault whose key has the same name", another_key),
        ("the same, with the running one as its replica, whose key has that name", before_the_old),
        ("a token that may not use the key", config.clone().token(&blind)),
    ] {
        let line = daemon.reload(trial, REFUSED).await?;
        println!("{what}: {}", line.split_once(REFUSED).map_or("", |(_, why)| why));
        assert!(line.contains(&daemon.config_file().display().to_string()), "{line}");
        let is_another = line.contains("cannot decrypt what the running one has just encrypted");
        assert_eq!(is_another, what.ends_with("name"), "{line}");
        // At once: a later canary of the running configuration would mend it.
        let after = daemon.kms().v2().status().await?;
        assert_eq!(after, before, "{what}");
        let made = daemon.kms().v2().encrypt(&[7; 32], "uid").await?;
        assert_eq!(daemon.kms().v2().decrypt(&made, "uid").await?, [7; 32], "{what}");
        assert_eq!(made.key_id, before.key_id, "{what}");
    }
    Ok(())
}

#[tokio::test]
async fn a_dead_cluster_that_is_not_the_primarys_holds_up_no_reload() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube", "next"]).await?;
    let flat = bao.config(&["kube"]).await?;
    let get = |key: &str| flat.get(key).cloned().unwrap_or_default();
    let nobody = format!("https://127.0.0.1:{}", lab::free_port()?);
    let cluster = |addr: serde_json::Value| {
        let auth = json!({ "token": bao.root_token() });
        json!({ "addr": addr, "vaultCACert": get("vaultCACert"), "auth": auth })
    };
    let config = |clusters: serde_json::Value, keys: serde_json::Value| {
        let log = json!({ "listen": "127.0.0.1:0" });
        json!({ "keyNames": keys, "clusters": clusters, "admin": log, "reloadTimeout": "2s" })
    };
    let alive = cluster(get("addr"));
    let kube = json!({ "name": "kube", "cluster": "bao" });
    let next = json!({ "name": "next", "cluster": "bao" });
    let first = config(json!({ "bao": alive }), json!([kube, next]));
    let daemon = Daemon::start(DAEMON, first).await?;
    daemon.wait_ready(PATIENCE).await?;

    // The dead one comes first in the file, and the primary is another one.
    let both = json!({ "a-dead": cluster(json!(nobody)), "bao": alive });
    let lost = json!({ "name": "lost", "cluster": "a-dead" });
    let mark = daemon.log_mark();
    daemon.reload(config(both.clone(), json!([next, kube, lost])), RELOADED).await?;
    let log = daemon.log();
    assert!(log[mark..].contains("A KEK that is not the primary does not answer"), "{log}");
    assert!(daemon.kms().v1().encrypt(&[7; 32]).await?.starts_with(b"next:v1:"));

    // Known to be dead by now, and unchanged: not even waited for.
    let mark = daemon.log_mark();
    let turned = config(both, json!([kube, next, lost]));
    daemon.reload(&turned, RELOADED).await?;
    let log = daemon.log();
    assert!(!log[mark..].contains("does not answer"), "{log}");
    assert!(daemon.kms().v1().encrypt(&[7; 32]).await?.starts_with(b"kube:v1:"));

    // Changed, and no better: whoever is strict is told which line asks for it.
    let elsewhere = format!("https://127.0.0.1:{}", lab::free_port()?);
    let both = json!({ "a-dead": cluster(json!(elsewhere)), "bao": alive });
    let mut strict = config(both, json!([kube, next, lost]));
    strict["reload"] = json!({ "strict": true });
    let line = daemon.reload(&strict, REFUSED).await?;
    println!("{line}");
    let file = daemon.config_file().display();
    assert!(line.contains(&format!("{file}:1:")) && line.contains(&elsewhere), "{line}");
    assert!(line.contains(": clusters.a-dead.addr: cluster a-dead: "), "{line}");
    // The way out is open: the dead cluster is another one, or it goes with its key.
    let mut gone = config(json!({ "bao": alive }), json!([kube, next]));
    gone["retired"] = json!(["lost"]);
    gone["reload"] = json!({ "strict": true });
    daemon.reload(gone, RELOADED).await?;
    Ok(())
}

#[tokio::test]
async fn during_an_outage_everything_can_be_changed_but_what_works() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube"]).await?;
    let (here, there) =
        tokio::try_join!(FaultProxy::start(bao.authority()), FaultProxy::start(bao.authority()))?;
    let config: Config = bao.config(&["kube"]).await?.with("reloadTimeout", "1s");
    let config = config.addresses(&[here.https()]);
    let daemon = Daemon::start(DAEMON, &config).await?;
    let before = daemon.kms().v2().wait_ok(PATIENCE).await?;

    here.refuse().await?;
    there.refuse().await?;
    // What is asked for first in an outage.
    let config = config.with("log", json!({ "level": "debug" }));
    daemon.reload(&config, RELOADED).await?;
    // The new address is as dead as the old one, for now.
    let mark = daemon.log_mark();
    let config = config.addresses(&[there.https()]);
    daemon.reload(&config, RELOADED).await?;
    let log = daemon.log();
    assert!(log[mark..].contains("but the running one cannot encrypt either"), "{log}");
    // kube-apiserver goes on with its seed as long as Status has a key_id.
    assert_eq!(daemon.kms().v2().status().await?.key_id, before.key_id);

    there.heal().await?;
    daemon.kms().v2().wait_ok(PATIENCE).await?;
    let made = daemon.kms().v2().encrypt(&[7; 32], "uid").await?;
    assert_eq!(made.key_id, before.key_id);
    Ok(())
}
