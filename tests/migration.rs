//! Moves of a whole control plane's objects, end to end: a real etcd, a kube-apiserver's
//! storage over it, real OpenBao, and the daemon reloaded in the middle of calls.

use std::time::Duration;

use lab::apiserver::{Provider, Registry, v1, v2};
use lab::{Callers, Config, Daemon, DevNode, Etcd};
use serde_json::{Value, json};
use tokio::process::Command;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(30);
const DONE: &str = "Reloaded; the new configuration is in force.";

/// So many objects of each of two resources, one stored by KMS v2 and one by KMS v1.
const OBJECTS: usize = 20;
const SECRETS: &str = "/registry/secrets/";
const CONFIG_MAPS: &str = "/registry/configmaps/";

/// A control plane: two apiservers of one etcd, of which one stores secrets by KMS v2 and one
/// config maps by KMS v1, over one daemon.
struct Plane {
    etcd: Etcd,
    daemon: Daemon,
    secrets: Registry,
    config_maps: Registry,
}

/// What a census says.
struct Census {
    code: i32,
    json: Value,
}

impl Plane {
    async fn start(config: &Config) -> lab::Result<Self> {
        let (etcd, daemon) = tokio::try_join!(Etcd::start(), Daemon::start(DAEMON, config))?;
        daemon.wait_ready(PATIENCE).await?;
        let kms = daemon.kms();
        let v2 = Provider::V2(v2::Server::new(kms.v2(), "vault"));
        let v1 = Provider::V1(v1::Server::new(kms.v1(), "vault"));
        let secrets = Registry::new(etcd.client(), vec![v2, Provider::Identity]);
        let config_maps = Registry::new(etcd.client(), vec![v1, Provider::Identity]);
        Ok(Self { etcd, daemon, secrets, config_maps })
    }

    async fn create(&mut self, some: &str) -> lab::Result {
        self.secrets.probe().await?;
        for (key, value) in objects(SECRETS, some) {
            self.secrets.create(&key, &value).await?;
        }
        for (key, value) in objects(CONFIG_MAPS, some) {
            self.config_maps.create(&key, &value).await?;
        }
        Ok(())
    }

    /// Reads everything as apiservers that have just started: each data key is decrypted.
    async fn read(&self, made: &[&str]) -> lab::Result {
        let kms = self.daemon.kms().fresh();
        let v2 = Provider::V2(v2::Server::new(kms.v2(), "vault"));
        let v1 = Provider::V1(v1::Server::new(kms.v1(), "vault"));
        let mut apiserver = Registry::new(self.etcd.client(), vec![v2, v1]);
        for some in made {
            for (key, value) in objects(SECRETS, some).chain(objects(CONFIG_MAPS, some)) {
                assert_eq!(apiserver.get(&key).await?, value, "{key}");
            }
        }
        Ok(())
    }

    async fn reload(&self, config: &Config) -> lab::Result {
        let mark = self.daemon.log_mark();
        self.daemon.write_config(config)?;
        self.daemon.sighup()?;
        self.daemon.wait_for_log_after(mark, DONE, PATIENCE).await?;
        Ok(())
    }

    /// Writes everything anew, as the commands that census names do.
    async fn rewrite(&mut self) -> lab::Result<(usize, usize)> {
        self.secrets.probe().await?;
        let secrets = self.secrets.replace_all(SECRETS).await?;
        // KMS v1 calls nothing stale, so that `kubectl replace` alone moves nothing.
        assert_eq!(self.config_maps.replace_all(CONFIG_MAPS).await?, 0);
        Ok((secrets, self.config_maps.annotate_all(CONFIG_MAPS).await?))
    }

    async fn census(&self, old: &str) -> lab::Result<Census> {
        let mut command = Command::new(DAEMON);
        command.arg("census").args(self.etcd.options());
        command.arg("--config").arg(self.daemon.config_file());
        command.args(["--output", "json", "--require-none-on", old]);
        let output = command.kill_on_drop(true).output().await?;
        let json = serde_json::from_slice(&output.stdout);
        let json = json.unwrap_or_else(|e| {
            panic!("{e}: {}", String::from_utf8_lossy(&output.stderr));
        });
        Ok(Census { code: output.status.code().unwrap_or(-1), json })
    }
}

impl Census {
    /// How many objects are on `kek`.
    fn on(&self, kek: &str) -> u64 {
        let counts = self.json["counts"].as_array().into_iter().flatten();
        let these = counts.filter(|count| count["kek"] == kek);
        these.filter_map(|count| count["objects"].as_u64()).sum()
    }

    fn next(&self) -> String {
        let lines = self.json["next"].as_array().into_iter().flatten();
        lines.filter_map(Value::as_str).collect::<Vec<_>>().join("\n")
    }
}

fn objects(prefix: &str, some: &str) -> impl Iterator<Item = (String, Vec<u8>)> {
    (0..OBJECTS).map(move |n| {
        let key = format!("{prefix}default/{some}-{n:02}");
        let value = format!("k8s\0the object {key}").into_bytes();
        (key, value)
    })
}

/// From `from` to `to`, by three configurations: `from` alone, `to` added last, `to` moved
/// first; and a last one without `from`. `end` is called when nothing needs `from` any more.
async fn moves(
    from: &str,
    to: &str,
    [alone, last, first, without]: [&Config; 4],
    end: impl FnOnce(),
) -> lab::Result {
    let mut plane = Plane::start(alone).await?;
    plane.create("before").await?;
    let old = plane.daemon.kms().v1().encrypt(&[7; 32]).await?;
    let callers = Callers::start(&plane.daemon.kms(), 4, &[(old, vec![7; 32])]);
    callers.more(50, PATIENCE).await?;
    let all = 2 * OBJECTS as u64;

    // The new key only decrypts; nothing is written with it.
    plane.reload(last).await?;
    callers.more(50, PATIENCE).await?;
    plane.read(&["before"]).await?;
    let census = plane.census(from).await?;
    assert_eq!((census.code, census.on(from), census.on(to)), (2, all, 0), "{}", census.json);
    assert!(census.next().contains(&format!("If you move from {from} to it, step 1")));

    // It encrypts; what was there is read, and counted as not yet moved.
    plane.reload(first).await?;
    callers.more(50, PATIENCE).await?;
    plane.create("between").await?;
    plane.read(&["before", "between"]).await?;
    let census = plane.census(from).await?;
    assert_eq!((census.code, census.on(from), census.on(to)), (2, all, all), "{}", census.json);
    assert!(census.next().contains("HERE  3. every object is written anew"), "{}", census.next());

    // The objects are written anew in the middle of calls: those on the old key, all of KMS v1.
    assert_eq!(plane.rewrite().await?, (OBJECTS, 2 * OBJECTS));
    callers.more(50, PATIENCE).await?;
    let census = plane.census(from).await?;
    assert_eq!((census.code, census.on(from), census.on(to)), (0, 0, 2 * all), "{}", census.json);
    assert!(census.next().contains("HERE  5."), "{}", census.next());
    let seen = callers.finish().await;
    assert!(seen.failures.is_empty(), "{}", seen.failures_told());

    // The old key goes, and its cluster.
    let callers = Callers::start(&plane.daemon.kms(), 4, &[]);
    plane.reload(without).await?;
    end();
    callers.more(50, PATIENCE).await?;
    plane.read(&["before", "between"]).await?;
    plane.create("after").await?;
    plane.read(&["after"]).await?;
    let seen = callers.finish().await;
    assert!(seen.failures.is_empty(), "{}", seen.failures_told());
    assert!(seen.made_by.keys().any(|made| *made == format!("{to}:v1")), "{:?}", seen.made_by);
    assert_eq!(plane.daemon.stop().await?, 0);
    Ok(())
}

#[tokio::test]
async fn all_objects_move_from_an_old_key_to_a_new_one_and_no_call_fails() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube-2025", "kube-2026"]).await?;
    let both = bao.config(&["kube-2025", "kube-2026"]).await?;
    let (old, new) = ("kube-2025", "kube-2026");
    let keys = |keys: &[&str]| both.clone().keys(keys);
    let without = keys(&[new]).with("retired", json!([old]));
    moves(old, new, [&keys(&[old]), &keys(&[old, new]), &keys(&[new, old]), &without], || {}).await
}

#[tokio::test]
async fn all_objects_move_to_a_cluster_that_calls_its_key_the_same_and_the_old_one_is_stopped()
-> lab::Result {
    let (old, new) = tokio::try_join!(DevNode::start(), DevNode::start())?;
    tokio::try_join!(old.create_keys(&["kube"]), new.create_keys(&["kube"]))?;
    let at_old = old.config(&["kube"]).await?;
    let at_new = new.config(&["kube"]).await?;
    let clusters = [("old", &at_old), ("new", &at_new)];
    let both = Config::replicas(&clusters, &["kube"]);
    let kek = |name: &str, cluster: &str| json!({ "name": name, "transitKey": "kube", "clusters": [cluster] });
    let (from, to) = (kek("kube", "old"), kek("kube-2026", "new"));
    let keys = |keys: &[&Value]| both.clone().with("keyNames", json!(keys));
    let alone = Config::replicas(&clusters[..1], &["kube"]).with("keyNames", json!([from]));
    let without = Config::replicas(&clusters[1..], &["kube"])
        .with("keyNames", json!([to]))
        .with("retired", json!(["kube"]));
    let orders = [&alone, &keys(&[&from, &to]), &keys(&[&to, &from]), &without];
    moves("kube", "kube-2026", orders, || old.kill()).await
}
