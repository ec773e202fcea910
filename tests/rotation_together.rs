//! Three daemons that share nothing take each version of a key into use in the same second,
//! and none of them ever goes back, whatever happens to the key, to a node or to a clock.
//!
//! The lab's servers share the machine's clock; that a *Vault* node's clock may be wrong is
//! tested in `clock::vault`.

use std::path::PathBuf;
use std::time::Duration;

use lab::{Cluster, Config, Daemon, DaemonBuilder, DevNode, Kms, eventually, install};
use serde_json::json;
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use vault_kms_proxy::clock::node_time;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(30);
const DEK: [u8; 32] = [9; 32];

/// How far apart the daemons may take a version into use that Vault has stamped with a time.
const TOGETHER: Duration = Duration::from_secs(1);

/// How far apart they may be where Vault stamps nothing, so that each has to read it first:
/// `rotation.refresh`, with its jitter, more.
const LEARNT: Duration = Duration::from_millis(2500);

/// As many cases at a time as two cores can play without being late.
static PLACES: Semaphore = Semaphore::const_new(2);

/// Three nodes for all cases; each has keys of its own.
static NODES: OnceCell<Cluster> = OnceCell::const_new();

async fn nodes() -> lab::Result<(&'static Cluster, SemaphorePermit<'static>)> {
    let nodes = NODES.get_or_try_init(start_nodes).await?;
    let place = PLACES.acquire().await.expect("the semaphore is never closed");
    Ok((nodes, place))
}

async fn start_nodes() -> lab::Result<Cluster> {
    let nodes = Cluster::start().await?;
    nodes.admin().mount_transit().await?;
    Ok(nodes)
}

/// A configuration whose daemon looks at the key each second and takes a version into use
/// after `delay` seconds.
fn quick(config: Config, delay: u64) -> Config {
    let rotation = json!({ "refresh": "1s", "activationDelay": format!("{delay}s") });
    config.with("rotation", rotation)
}

/// Three daemons.
struct Three {
    daemons: Vec<Daemon>,
    watches: Vec<JoinHandle<Seen>>,
    stop: tokio::sync::watch::Sender<bool>,
}

/// What Status said on one connection: each key_id that differed from the one before, and
/// when it came.
type Seen = Vec<(String, Instant)>;

impl Three {
    async fn start(configs: [Config; 3]) -> lab::Result<Self> {
        Self::build(configs.map(|config| Daemon::builder(DAEMON).config(config))).await
    }

    /// Starts them, waits until they are ready and agree, and watches them from then on.
    async fn build(builders: [DaemonBuilder; 3]) -> lab::Result<Self> {
        let mut daemons = Vec::new();
        for builder in builders {
            daemons.push(builder.start().await?);
        }
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut watches = Vec::new();
        for daemon in &daemons {
            daemon.kms().v2().wait_ok(PATIENCE).await?;
            watches.push(tokio::spawn(watch(daemon.kms(), stopped.clone())));
        }
        Ok(Self { daemons, watches, stop })
    }

    /// Waits until all say this version of `key`.
    async fn wait(&self, key: &str, version: u32, within: Duration) -> lab::Result {
        let head = format!("{key}:v{version}:");
        for daemon in &self.daemons {
            let says = || async {
                let status = daemon.kms().v2().status().await?;
                let is_new = status.healthz == "ok" && status.key_id.starts_with(&head);
                Ok(is_new.then_some(()))
            };
            eventually(&format!("a daemon says {head}"), within, says).await?;
        }
        Ok(())
    }

    /// Ends the watching a moment later, in which a daemon could go back, and answers what
    /// each has said.
    async fn finish(self) -> Vec<Seen> {
        sleep(Duration::from_millis(1500)).await;
        self.stop.send_replace(true);
        let mut all = Vec::new();
        for watch in self.watches {
            all.push(watch.await.expect("watching does not panic"));
        }
        all
    }
}

/// Asks Status until told to stop. A daemon that is down, or that has nothing to say, is
/// asked again.
async fn watch(kms: Kms, stopped: tokio::sync::watch::Receiver<bool>) -> Seen {
    let kms = kms.v2();
    let mut seen = Seen::new();
    while !*stopped.borrow() {
        if let Ok(status) = kms.status().await
            && seen.last().is_none_or(|(key_id, _)| *key_id != status.key_id)
        {
            seen.push((status.key_id, Instant::now()));
        }
        sleep(Duration::from_millis(10)).await;
    }
    seen
}

/// The version in a key_id.
fn version(key_id: &str) -> u32 {
    let version = key_id.split(':').nth(1).and_then(|v| v.strip_prefix('v'));
    version.and_then(|v| v.parse().ok()).unwrap_or_else(|| panic!("no version in {key_id}"))
}

/// All daemons said these versions, one after the other and no other, under the same key_ids,
/// and each within so much time of the others.
fn assert_together(case: &str, all: &[Seen], versions: &[u32], limit: Duration) {
    for seen in all {
        let said: Vec<u32> = seen.iter().map(|(key_id, _)| version(key_id)).collect();
        assert_eq!(said, versions, "{case}: {all:?}");
    }
    for switch in 1..versions.len() {
        let key_ids: Vec<&String> = all.iter().map(|seen| &seen[switch].0).collect();
        assert!(key_ids.iter().all(|id| *id == key_ids[0]), "{case}: {key_ids:?}");
        let times = all.iter().map(|seen| seen[switch].1);
        let apart = times
            .clone()
            .max()
            .zip(times.min())
            .map_or(Duration::MAX, |(last, first)| last - first);
        println!("{case}: v{} within {apart:?}", versions[switch]);
        assert!(apart <= limit, "{case}: {apart:?} apart");
    }
}

/// Creation times are whole seconds, and versions of one second are taken into use at once.
async fn next_second() -> lab::Result {
    let now = node_time();
    eventually("the clock ticks", PATIENCE, || async { Ok((node_time() > now).then_some(())) })
        .await
}

#[tokio::test]
async fn after_a_rotation_also_one_that_talks_to_a_standby_alone() -> lab::Result {
    let (nodes, _place) = nodes().await?;
    let key = "together";
    nodes.create_keys(&[key]).await?;
    let config = quick(nodes.config(&[key]).await?, 4);
    let standby = nodes.standby().await?;
    let lone = config.clone().addresses(&[standby.address()]);
    let three = Three::start([config.clone(), config, lone]).await?;
    next_second().await?;

    // The standby sleeps over the rotation, and answers from what it knew when it wakes.
    standby.stop()?;
    let rotated = nodes.admin().rotate(key).await;
    sleep(Duration::from_secs(1)).await;
    standby.cont()?;
    rotated?;

    three.wait(key, 2, PATIENCE).await?;
    assert_together("a standby that is behind", &three.finish().await, &[1, 2], TOGETHER);
    Ok(())
}

#[tokio::test]
async fn also_when_one_restarts_in_between() -> lab::Result {
    let (nodes, _place) = nodes().await?;
    let key = "restarted";
    nodes.create_keys(&[key]).await?;
    let config = quick(nodes.config(&[key]).await?, 6);
    let state = tempfile::tempdir()?;
    let kept = config.clone().with("stateDir", state.path().display().to_string());
    let socket = state.path().join("kms.sock");
    let builder = || Daemon::builder(DAEMON).config(&kept).socket(&socket);
    let ordinary = || Daemon::builder(DAEMON).config(&config);
    let mut three = Three::build([ordinary(), ordinary(), builder()]).await?;
    next_second().await?;

    nodes.admin().rotate(key).await?;
    three.daemons[2].kill();
    three.daemons[2] = builder().start().await?;
    // Not at its start already: it would be alone with it.
    three.daemons[2].kms().v2().wait_ok(PATIENCE).await?;
    three.wait(key, 2, PATIENCE).await?;
    // And it does not forget, once its disk has it.
    let file = state.path().join("state.json");
    let is_kept = || async {
        let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
        Ok((kept["keks"][0]["active"]["version"] == 2).then_some(()))
    };
    eventually("the state says so", PATIENCE, is_kept).await?;
    three.daemons[2].kill();
    three.daemons[2] = builder().start().await?;
    three.wait(key, 2, PATIENCE).await?;
    assert_together("a restart in between", &three.finish().await, &[1, 2], TOGETHER);
    Ok(())
}

#[tokio::test]
async fn also_when_rotations_follow_within_the_delay() -> lab::Result {
    let (nodes, _place) = nodes().await?;
    let key = "twice";
    nodes.create_keys(&[key]).await?;
    let config = quick(nodes.config(&[key]).await?, 4);
    let three = Three::start([config.clone(), config.clone(), config]).await?;
    for _ in 0..2 {
        // Two seconds apart, so that both switches are to be seen.
        next_second().await?;
        next_second().await?;
        nodes.admin().rotate(key).await?;
    }
    three.wait(key, 3, PATIENCE).await?;
    assert_together("two rotations", &three.finish().await, &[1, 2, 3], TOGETHER);
    Ok(())
}

#[tokio::test]
async fn also_when_three_versions_come_at_once() -> lab::Result {
    let (nodes, _place) = nodes().await?;
    let key = "jump";
    nodes.create_keys(&[key]).await?;
    let config = quick(nodes.config(&[key]).await?, 4);
    let three = Three::start([config.clone(), config.clone(), config]).await?;
    let made_at_once = async {
        next_second().await?;
        for _ in 0..3 {
            nodes.admin().rotate(key).await?;
        }
        nodes.admin().key(key).await
    };
    let created = made_at_once.await?.created;
    three.wait(key, 4, PATIENCE).await?;
    // A second may have ended in between: a switch for each.
    let mut versions = vec![1];
    versions.extend((2..=4).filter(|v| created.get(&(v + 1)) != created.get(v)));
    assert_together("three versions at once", &three.finish().await, &versions, TOGETHER);
    Ok(())
}

#[tokio::test]
async fn also_when_older_versions_must_not_encrypt_any_more() -> lab::Result {
    let (nodes, _place) = nodes().await?;
    let key = "minimum";
    nodes.create_keys(&[key]).await?;
    // Nothing would be taken into use by its age while the test runs.
    let config = quick(nodes.config(&[key]).await?, 600);
    let three = Three::start([config.clone(), config.clone(), config]).await?;
    next_second().await?;
    nodes.rotate(key).await?;
    nodes.admin().set_min_encryption_version(key, 2).await?;
    three.wait(key, 2, PATIENCE).await?;
    for daemon in &three.daemons {
        let made = daemon.kms().v2().encrypt(&DEK, "uid").await?;
        assert_eq!(version(&made.key_id), 2);
    }
    assert_together("min_encryption_version", &three.finish().await, &[1, 2], LEARNT);
    Ok(())
}

#[tokio::test]
async fn also_when_the_key_is_deleted_and_made_again() -> lab::Result {
    let (nodes, _place) = nodes().await?;
    let key = "again";
    nodes.create_keys(&[key]).await?;
    let config = quick(nodes.config(&[key]).await?, 4);
    let three = Three::start([config.clone(), config.clone(), config]).await?;
    let before = three.daemons[0].kms().v2().status().await?.key_id;
    next_second().await?;
    nodes.admin().delete_key(key).await?;
    for daemon in &three.daemons {
        let refuses = || async { Ok(daemon.kms().v2().status().await.err()) };
        eventually("Status says that it is gone", PATIENCE, refuses).await?;
        daemon.kms().v1().encrypt(&DEK).await.unwrap_err();
    }
    nodes.admin().create_key(key).await?;
    three.wait(key, 1, PATIENCE).await?;
    let all = three.finish().await;
    assert_together("a key made again", &all, &[1, 1], LEARNT);
    assert!(all.iter().all(|seen| seen[0].0 == before && seen[1].0 != before), "{all:?}");
    Ok(())
}

/// What newer versions have encrypted is lost then, which a daemon neither hides nor believes
/// at once: the older state must be all that Vault says for a minute.
#[tokio::test]
async fn also_when_vault_is_restored_from_an_older_snapshot() -> lab::Result {
    let place = PLACES.acquire().await.expect("the semaphore is never closed");
    // One node with a disk, of which a copy is taken.
    let nodes = Cluster::builder().nodes(1).start().await?;
    let node = nodes.node(0);
    nodes.create_keys(&["old"]).await?;
    let config = quick(nodes.config(&["old"]).await?, 2);
    node.terminate().await?;
    let (disk, copy) = (node.folder().join("raft"), node.folder().join("copy"));
    copy_folder(&disk, &copy)?;
    node.start().await?;
    nodes.leader().await?;

    let three = Three::start([config.clone(), config.clone(), config]).await?;
    next_second().await?;
    nodes.rotate("old").await?;
    three.wait("old", 2, PATIENCE).await?;
    node.terminate().await?;
    std::fs::remove_dir_all(&disk)?;
    std::fs::rename(&copy, &disk)?;
    node.start().await?;
    nodes.leader().await?;
    // Other cases need not wait for this minute.
    drop(place);

    three.wait("old", 1, Duration::from_secs(120)).await?;
    for daemon in &three.daemons {
        let alarm = daemon.wait_for_log("as after a restore from a snapshot", PATIENCE).await?;
        assert!(alarm.contains("ERROR"), "{alarm}");
    }
    assert_together("an older snapshot", &three.finish().await, &[1, 2, 1], LEARNT);
    Ok(())
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) -> lab::Result {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let (entry, place) = (entry?, to.to_owned());
        let place = place.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &place)?;
        } else {
            std::fs::copy(entry.path(), place)?;
        }
    }
    Ok(())
}

/// A machine whose wall clock is what a file says, while its monotonic clock runs on.
struct WrongClock {
    library: PathBuf,
    file: PathBuf,
}

impl WrongClock {
    fn new(folder: &std::path::Path, name: &str, says: &str) -> lab::Result<Self> {
        let clock = Self { library: install::faketime()?, file: folder.join(name) };
        clock.set(says)?;
        Ok(clock)
    }

    /// `-600` is ten minutes slow; `@1970-01-02 00:00:00` starts there.
    fn set(&self, says: &str) -> lab::Result {
        Ok(std::fs::write(&self.file, says)?)
    }

    fn on(&self, builder: DaemonBuilder) -> DaemonBuilder {
        builder
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    }
}

#[tokio::test]
async fn also_when_the_machines_clocks_are_wrong() -> lab::Result {
    let _place = PLACES.acquire().await.expect("the semaphore is never closed");
    let bao = DevNode::start().await?;
    bao.create_keys(&["clocks"]).await?;
    // Certificates have no place here: in 1970 none is valid yet, and that is told.
    let config = quick(bao.config(&["clocks"]).await?, 4).addresses(&[bao.http()]);
    let config = config.without("vaultCACert");
    let folder = tempfile::tempdir()?;
    let slow = WrongClock::new(folder.path(), "slow", "-600")?;
    let stepping = WrongClock::new(folder.path(), "stepping", "+600")?;
    let ancient = WrongClock::new(folder.path(), "ancient", "@1970-01-02 00:00:00")?;
    let state = folder.path().join("state").display().to_string();
    let kept = config.clone().with("stateDir", state);
    let plain = |config: &Config| Daemon::builder(DAEMON).config(config);
    let builders = [slow.on(plain(&config)), stepping.on(plain(&kept)), ancient.on(plain(&config))];
    let three = Three::build(builders).await?;
    assert!(three.daemons[2].log().starts_with("1970-01-02"), "{}", three.daemons[2].log());

    next_second().await?;
    bao.admin().rotate("clocks").await?;
    stepping.set("-86400")?;
    three.wait("clocks", 2, PATIENCE).await?;
    // What was taken into use is not given up because the clock says that it is too young.
    stepping.set("@1970-01-02 00:00:00")?;
    assert_together("wrong clocks", &three.finish().await, &[1, 2], TOGETHER);
    Ok(())
}
