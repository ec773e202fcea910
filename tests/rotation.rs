//! New versions of a key: when they are taken into use, by whom, and what else may happen
//! to a key.
//!
//! A machine whose own clock is wrong is not made here, because the lab's servers and the
//! daemon share one; the unit tests of `keyring::rotation` and `clock` do that.

use std::time::Duration;

use lab::{Config, Daemon, DevNode, eventually};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tonic::Code;
use vault_kms_proxy::clock::node_time;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(15);
const DEK: [u8; 32] = [7; 32];
/// `rotation.activationDelay` of the lab's configurations, in seconds.
const DELAY: i64 = 2;

/// A node with the key `kube`.
async fn bao() -> lab::Result<DevNode> {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube"]).await?;
    Ok(bao)
}

/// A daemon that neither reads the metadata again by itself nor activates anything in the
/// time of a test.
fn unaware(config: Config) -> Config {
    config.with("rotation", json!({ "refresh": "1h", "activationDelay": "2h" }))
}

/// `keyNames` with options for the one key.
fn with_options(config: Config, options: Value) -> Config {
    let mut entry = options;
    entry["name"] = json!("kube");
    config.with("keyNames", json!([entry]))
}

/// What one connection saw of Status: each key_id that differed from the one before, when
/// it came, and what the machine's clock said then.
struct Seen(Vec<(String, Instant, i64)>);

/// Asks Status and Encrypt in pairs until told to stop; each pair must agree.
async fn watch(daemon: &Daemon, until: &tokio::sync::watch::Receiver<bool>) -> lab::Result<Seen> {
    let kms = daemon.kms().v2();
    let mut seen = Seen(Vec::new());
    while !*until.borrow() {
        let status = kms.status().await?;
        assert_eq!(status.healthz, "ok");
        if seen.0.last().is_none_or(|(key_id, ..)| *key_id != status.key_id) {
            seen.0.push((status.key_id.clone(), Instant::now(), node_time().0));
        }
        let made = kms.encrypt(&DEK, "uid").await?;
        assert_eq!(made.key_id, status.key_id, "an Encrypt that the Status before it denies");
        let version = made.key_id.split(':').nth(1).unwrap_or_default();
        let head = format!("kube:{version}:");
        assert!(made.ciphertext.starts_with(head.as_bytes()), "{head} is not its head");
        sleep(Duration::from_millis(5)).await;
    }
    Ok(seen)
}

#[tokio::test]
async fn daemons_that_share_nothing_switch_together_after_the_delay() -> lab::Result {
    let bao = bao().await?;
    let one = Daemon::start(DAEMON, bao.config(&["kube"]).await?).await?;
    let two = Daemon::start(DAEMON, bao.config(&["kube"]).await?).await?;
    one.wait_ready(PATIENCE).await?;
    two.wait_ready(PATIENCE).await?;
    let old = one.kms().v2().encrypt(&DEK, "uid").await?;

    let (stop, until) = tokio::sync::watch::channel(false);
    let rotate = async {
        let first = bao.admin().key("kube").await?.created[&1];
        // Creation times are whole seconds; versions of one second would switch at once.
        eventually("the clock ticks", PATIENCE, || async {
            Ok((node_time().0 > first).then_some(()))
        })
        .await?;
        // A probe that the switch comes in the middle of.
        let slow = one.kms().v2();
        assert_eq!(slow.status().await?.key_id, old.key_id);
        bao.admin().rotate("kube").await?;
        for daemon in [&one, &two] {
            daemon.kms().v2().wait_other_key_id(&old.key_id, PATIENCE).await?;
        }
        let made = slow.encrypt(&DEK, "uid").await?;
        assert_eq!(made.key_id, old.key_id, "an Encrypt that the Status before it denies");
        assert_ne!(slow.status().await?.key_id, old.key_id);
        // Long enough for a read that could undo it.
        sleep(Duration::from_secs(3)).await;
        stop.send_replace(true);
        Ok(())
    };
    let (on_one, again_on_one, on_two, rotated) =
        tokio::join!(watch(&one, &until), watch(&one, &until), watch(&two, &until), async {
            let rotated: lab::Result = rotate.await;
            stop.send_replace(true);
            rotated
        });
    rotated?;
    let created = bao.admin().key("kube").await?.created[&2];
    let mut switches = Vec::new();
    for seen in [on_one?, again_on_one?, on_two?] {
        let [(before, ..), (after, at, clock)] = &seen.0[..] else {
            panic!("it switched more often than once: {:?}", seen.0);
        };
        assert_eq!(*before, old.key_id);
        assert!(after.starts_with("kube:v2:"), "{after}");
        assert!(*clock >= created + DELAY, "{} s too early", created + DELAY - clock);
        assert!(*clock <= created + DELAY + 3, "{} s late", clock - created - DELAY);
        switches.push((after.clone(), *at));
    }
    let apart = switches[0].1.max(switches[2].1) - switches[0].1.min(switches[2].1);
    println!("the two switched {apart:?} apart");
    assert!(apart <= Duration::from_secs(1), "they switched {apart:?} apart");
    assert!(switches.iter().all(|(key_id, _)| *key_id == switches[0].0), "{switches:?}");
    for daemon in [&one, &two] {
        assert_eq!(daemon.kms().v2().decrypt(&old, "uid").await?, DEK);
    }
    Ok(())
}

#[tokio::test]
async fn what_a_daemon_has_not_heard_of_does_not_stop_it() -> lab::Result {
    let bao = bao().await?;
    let admin = bao.admin();
    let daemon = Daemon::start(DAEMON, unaware(bao.config(&["kube"]).await?)).await?;
    daemon.wait_ready(PATIENCE).await?;
    let kms = daemon.kms();
    let before = kms.v2().status().await?;
    let read = bao.count_requests("transit/keys/kube");

    // Another node, whose clock or delay differs, may write with it already.
    admin.rotate("kube").await?;
    let news = admin.encrypt("kube", &DEK).await?.replacen("vault:", "kube:", 1);
    assert!(news.starts_with("kube:v2:"));
    assert_eq!(kms.v1().decrypt(news.as_bytes()).await?, DEK);
    let old = kms.v2().encrypt(&DEK, "uid").await?;
    assert_eq!(
        (&old.key_id, kms.v2().status().await?.key_id),
        (&before.key_id, old.key_id.clone())
    );

    // An operator raises the bound above the version that encrypts.
    admin.set_min_encryption_version("kube", 2).await?;
    let made = kms.v1().encrypt(&DEK).await?;
    assert!(made.starts_with(b"kube:v2:"));
    let made = kms.v2().encrypt(&DEK, "uid").await?;
    assert!(made.key_id.starts_with("kube:v2:"), "{}", made.key_id);
    assert_eq!(kms.v2().status().await?.key_id, made.key_id);
    assert_eq!(kms.v2().decrypt(&made, "uid").await?, DEK);
    assert_eq!(kms.v2().decrypt(&old, "uid").await?, DEK);
    let own = bao.count_requests("transit/keys/kube") - read;
    // The two changes are requests for that path as well.
    assert_eq!(own, 3, "one read was enough to learn of it");
    Ok(())
}

#[tokio::test]
async fn a_pin_and_an_epoch_are_taken_into_use_by_a_reload() -> lab::Result {
    let bao = bao().await?;
    bao.admin().rotate("kube").await?;
    let config = bao.config(&["kube"]).await?;
    let pinned = with_options(config.clone(), json!({ "activeVersion": 1 }));
    let daemon = Daemon::start(DAEMON, pinned).await?;
    daemon.wait_ready(PATIENCE).await?;
    let kms = daemon.kms().v2();
    let created = bao.admin().key("kube").await?.created[&2];
    eventually("version 2 would be active without the pin", PATIENCE, || async {
        Ok((node_time().0 > created + DELAY + 1).then_some(()))
    })
    .await?;
    let first = kms.status().await?.key_id;
    assert!(first.starts_with("kube:v1:"), "{first}");
    assert_eq!(kms.encrypt(&DEK, "uid").await?.key_id, first);

    let reload = async |config: Config| {
        let mark = daemon.log_mark();
        daemon.write_config(config)?;
        daemon.sighup()?;
        daemon.wait_for_log_after(mark, ": Reload", PATIENCE).await
    };
    reload(config.clone()).await?;
    let second = kms.wait_other_key_id(&first, PATIENCE).await?.key_id;
    assert!(second.starts_with("kube:v2:"), "{second}");

    reload(with_options(config.clone(), json!({ "epoch": "2" }))).await?;
    let third = kms.wait_other_key_id(&second, PATIENCE).await?.key_id;
    assert!(third.starts_with("kube:v2:"), "{third}");
    assert_eq!(kms.encrypt(&DEK, "uid").await?.key_id, third);

    let refused = reload(with_options(config, json!({ "activeVersion": 9 }))).await?;
    assert!(refused.contains("Reload failed"), "{refused}");
    assert!(refused.contains("activeVersion pins v9") && refused.contains("correct or remove it"));
    assert_eq!(kms.status().await?.key_id, third);
    Ok(())
}

#[tokio::test]
async fn a_key_made_again_is_an_alarm_and_another_key_id() -> lab::Result {
    let bao = bao().await?;
    let admin = bao.admin();
    let daemon = Daemon::start(DAEMON, bao.config(&["kube"]).await?).await?;
    daemon.wait_ready(PATIENCE).await?;
    let kms = daemon.kms();
    let lost = kms.v2().encrypt(&DEK, "uid").await?;
    let first = admin.key("kube").await?.created[&1];
    eventually("the clock ticks", PATIENCE, || async { Ok((node_time().0 > first).then_some(())) })
        .await?;

    admin.delete_key("kube").await?;
    let gone = eventually("Status says that the key is gone", PATIENCE, || async {
        Ok(kms.v2().status().await.err())
    })
    .await?;
    assert_eq!(gone.code(), Code::FailedPrecondition, "{gone}");
    assert!(gone.message().contains("no such key in Transit"), "{gone}");
    // Nothing is encrypted, which could make the key again.
    kms.v1().encrypt(&DEK).await.unwrap_err();

    admin.create_key("kube").await?;
    let alarm = "The key was deleted and made again";
    let line = daemon.wait_for_log(alarm, PATIENCE).await?;
    assert!(line.contains("ERROR") && line.contains("restored from a backup"), "{line}");
    let now = kms.v2().wait_other_key_id(&lost.key_id, PATIENCE).await?.key_id;
    assert!(now.starts_with("kube:v1:"), "{now}");
    assert_eq!(kms.v2().encrypt(&DEK, "uid").await?.key_id, now);
    let unreadable = kms.v2().decrypt(&lost, "uid").await.unwrap_err();
    assert_eq!(unreadable.code(), Code::InvalidArgument, "{unreadable}");
    assert!(unreadable.message().contains("was not made by this key"), "{unreadable}");
    Ok(())
}

#[tokio::test]
async fn a_key_that_must_not_be_used_is_named_with_what_to_do() -> lab::Result {
    let bao = DevNode::start().await?;
    let admin = bao.admin();
    admin.mount_transit().await?;
    for (key, options, says) in [
        ("rsa", json!({ "type": "rsa-2048" }), "`rsa-2048`; make one of type aes256-gcm96"),
        ("ecdsa", json!({ "type": "ecdsa-p256" }), "`ecdsa-p256`; make one of type aes256-gcm96"),
        ("derived", json!({ "derived": true }), "make one with derived=false"),
        ("absent", Value::Null, "make it with `vault write -f transit/keys/absent`"),
    ] {
        if !options.is_null() {
            admin.create_key_with(key, options).await?;
        }
        let daemon = Daemon::start(DAEMON, bao.config(&[key]).await?).await?;
        let kms = daemon.kms();
        let status = eventually("Status says what to do", PATIENCE, || async {
            let said = kms.v2().status().await.unwrap_err();
            Ok(said.message().contains(says).then_some(said))
        });
        let status = status.await.map_err(|error| lab::Error::new(format!("{key}: {error}")))?;
        println!("{key}: {:?}: {}", status.code(), status.message());
        let encrypt = kms.v1().encrypt(&DEK).await.unwrap_err();
        assert!(encrypt.message().contains(says), "{encrypt}");
        assert_eq!(bao.count_requests(&format!("transit/encrypt/{key}")), 0);
    }
    Ok(())
}
