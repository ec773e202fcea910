//! A control plane: etcd, the daemon, and two apiservers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;

use super::Told;
use crate::apiserver::{Provider, Registry, v1, v2};
use crate::{Config, Context, Daemon, Etcd, Kms, RELOADED, Result, fail};

/// How long anything may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// So many objects of each of two resources.
pub(super) const OBJECTS: usize = 20;
pub(super) const SECRETS: &str = "/registry/secrets/";
pub(super) const CONFIG_MAPS: &str = "/registry/configmaps/";

/// One apiserver that stores secrets by KMS v2, and one that stores config maps by KMS v1, over
/// one etcd and one daemon.
#[derive(Debug)]
pub(super) struct Plane {
    pub(super) etcd: Etcd,
    pub(super) daemon: Daemon,
    pub(super) apiservers: Apiservers,
    pub(super) told: Told,
    binary: PathBuf,
    admin: String,
}

#[derive(Debug)]
pub(super) struct Apiservers {
    pub(super) secrets: Registry,
    pub(super) config_maps: Registry,
}

/// What a census says.
#[derive(Debug)]
pub(super) struct Census(pub(super) Value);

// === impl Plane ===

impl Plane {
    /// With an empty etcd.
    pub(super) async fn start(binary: &Path, config: &Config, told: Told) -> Result<Self> {
        let daemon = Daemon::builder(binary).config(config).config_name("vault-plugin.yaml");
        let (etcd, daemon) = tokio::try_join!(Etcd::start(), daemon.start())?;
        let apiservers = Apiservers::start(&etcd, &daemon.kms());
        Self::take_over(binary, etcd, daemon, apiservers, told).await
    }

    /// With what is there.
    pub(super) async fn take_over(
        binary: &Path,
        etcd: Etcd,
        daemon: Daemon,
        apiservers: Apiservers,
        mut told: Told,
    ) -> Result<Self> {
        daemon.wait_ready(PATIENCE).await?;
        let admin = daemon.admin_url().await?;
        told.place(&daemon.folder().display().to_string(), "/etc/vault-kms-proxy");
        told.place(&daemon.socket().display().to_string(), "/run/vault-kms-proxy/kms.sock");
        told.place(&admin, "http://127.0.0.1:9480");
        Ok(Self { etcd, daemon, apiservers, told, binary: binary.to_owned(), admin })
    }

    /// Runs the daemon's binary on this node, where nothing need be said of etcd, the socket and
    /// the configuration; tells what it printed. It must end with `code`.
    pub(super) async fn run(&mut self, arguments: &[&str], code: i32) -> Result<String> {
        let printed = self.printed(arguments, code).await?;
        self.told.command(&format!("vault-kms-proxy {}", arguments.join(" ")), &printed);
        Ok(printed)
    }

    async fn printed(&self, arguments: &[&str], code: i32) -> Result<String> {
        let mut command = Command::new(&self.binary);
        command.args(arguments).env("VAULT_KMS_PROXY_CONFIG", self.daemon.config_file());
        command.env("VAULT_KMS_PROXY_SOCKET__PATH", self.daemon.socket());
        command.env("ETCDCTL_ENDPOINTS", self.etcd.endpoint());
        let output = command.kill_on_drop(true).output().await.context("cannot run a command")?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.code() != Some(code) {
            let said = String::from_utf8_lossy(&output.stderr);
            fail!("{arguments:?} ended with {} and not {code}:\n{printed}{said}", output.status);
        }
        Ok(printed)
    }

    /// Counts for a program: whether nothing is left on `old` must be `met`.
    pub(super) async fn count(&self, old: &str, met: bool) -> Result<Census> {
        let arguments = ["census", "--output", "json", "--require-none-on", old];
        let printed = self.printed(&arguments, if met { 0 } else { 2 }).await?;
        Ok(Census(serde_json::from_str(&printed).context(printed)?))
    }

    /// What an object's value in etcd says, and that the daemon decrypts it.
    pub(super) async fn inspect(&mut self, key: &str) -> Result<String> {
        self.run(&["inspect", "--etcd", key, "--verify"], 0).await
    }

    /// Checks a configuration beside the daemon, with Vault too if it is `online`, and then
    /// reloads with it; looks what runs.
    pub(super) async fn reload(&mut self, config: &Config, online: bool) -> Result {
        let next = self.daemon.folder().join("next.yaml");
        crate::tls::replace_file(&next, &config.to_string())?;
        let (next, admin) = (next.display().to_string(), self.admin.clone());
        let mut arguments = vec!["check", "--config", &next, "--running", &admin];
        arguments.extend(online.then_some("--online"));
        self.run(&arguments, 0).await?;
        self.told.step("mv next.yaml vault-plugin.yaml, and reload");
        self.daemon.reload(config, RELOADED).await?;
        let (status, body) = self.daemon.admin_get("/configz").await?;
        demand!(status == 200, "/configz answers {status}: {body}");
        let running: Value = serde_json::from_str(&body).context(body)?;
        let names = running["configuration"]["keyNames"].as_array().into_iter().flatten();
        let shown: Vec<&Value> =
            [&running["generation"]].into_iter().chain(names.map(|kek| &kek["name"])).collect();
        let command = format!(
            "curl -s {admin}/configz | jq -c '[.generation, .configuration.keyNames[].name]'"
        );
        self.told.command(&command, &serde_json::to_string(&shown)?);
        Ok(())
    }

    /// Reads everything as an apiserver that has just started: each data key is decrypted.
    pub(super) async fn read(&self, made: &[&str]) -> Result {
        let mut apiserver =
            Registry::new(self.etcd.client(), providers(&self.daemon.kms().fresh()));
        for some in made {
            for (key, value) in objects(SECRETS, some).chain(objects(CONFIG_MAPS, some)) {
                let read = apiserver.get(&key).await?;
                demand!(read == value, "{key} is read as another object");
            }
        }
        Ok(())
    }

    /// Stops the daemon.
    pub(super) async fn end(self) -> Result<Told> {
        let code = self.daemon.stop().await?;
        demand!(code == 0, "the daemon has ended with {code}");
        Ok(self.told)
    }
}

/// Both, as one apiserver of both APIs has them.
fn providers(kms: &Kms) -> Vec<Provider> {
    let v2 = Provider::V2(v2::Server::new(kms.v2(), "vault"));
    vec![v2, Provider::V1(v1::Server::new(kms.v1(), "vault"))]
}

// === impl Apiservers ===

impl Apiservers {
    pub(super) fn start(etcd: &Etcd, kms: &Kms) -> Self {
        let [v2, v1] = providers(kms).try_into().unwrap_or_else(|_| unreachable!("two"));
        Self {
            secrets: Registry::new(etcd.client(), vec![v2, Provider::Identity]),
            config_maps: Registry::new(etcd.client(), vec![v1, Provider::Identity]),
        }
    }

    pub(super) async fn create(&mut self, some: &str) -> Result {
        self.secrets.probe().await?;
        for (key, value) in objects(SECRETS, some) {
            self.secrets.create(&key, &value).await?;
        }
        for (key, value) in objects(CONFIG_MAPS, some) {
            self.config_maps.create(&key, &value).await?;
        }
        Ok(())
    }

    /// Writes the objects anew, as the commands that census names do; answers how many secrets
    /// and how many config maps were written.
    pub(super) async fn rewrite(&mut self) -> Result<(usize, usize)> {
        self.secrets.probe().await?;
        let secrets = self.secrets.replace_all(SECRETS).await?;
        let replaced = self.config_maps.replace_all(CONFIG_MAPS).await?;
        demand!(replaced == 0, "KMS v1 calls {replaced} objects stale, and never does");
        Ok((secrets, self.config_maps.annotate_all(CONFIG_MAPS).await?))
    }
}

/// The objects that are called `some`.
pub(super) fn objects(prefix: &str, some: &str) -> impl Iterator<Item = (String, Vec<u8>)> {
    (0..OBJECTS).map(move |n| {
        let key = format!("{prefix}default/{some}-{n:02}");
        let value = format!("k8s\0the object {key}").into_bytes();
        (key, value)
    })
}

// === impl Census ===

impl Census {
    /// How many objects of which `member` is `value`.
    pub(super) fn of(&self, member: &str, value: &str) -> usize {
        let counts = self.0["counts"].as_array().into_iter().flatten();
        let these = counts.filter(|count| count[member] == value);
        these.filter_map(|count| usize::try_from(count["objects"].as_u64()?).ok()).sum()
    }

    /// Whether it says this of what comes next.
    pub(super) fn says(&self, words: &str) -> bool {
        let mut lines = self.0["next"].as_array().into_iter().flatten();
        lines.any(|line| line.as_str().is_some_and(|line| line.contains(words)))
    }
}
