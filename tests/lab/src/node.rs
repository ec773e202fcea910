//! One server: its process, its address, and what can be done to it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::admin::{Admin, Reply};
use crate::process::{Process, tail};
use crate::tls::Authority;
use crate::{Context, Result, eventually, fail};

/// How long a node may take to start, to seal, to become active.
pub(crate) const NODE_PATIENCE: Duration = Duration::from_secs(40);

/// One OpenBao server of a [`Cluster`](crate::Cluster), or behind a
/// [`DevNode`](crate::DevNode).
#[derive(Debug)]
pub struct Node {
    name: String,
    address: String,
    launch: Launch,
    admin: Admin,
    process: Mutex<Option<Process>>,
    unseal_key: Mutex<String>,
}

/// How to start it.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) folder: PathBuf,
    pub(crate) log: PathBuf,
}

/// One line of a node's audit log: a request that this node handled itself. What a
/// standby forwards stands in the active node's log.
#[derive(Debug, Clone)]
pub struct Audited {
    /// What follows `/v1/`.
    pub path: String,
    /// `read`, `update`, `create`, `delete`, `list`.
    pub operation: String,
    /// The whole entry.
    pub entry: Value,
}

// === impl Node ===

impl Node {
    pub(crate) fn new(
        name: &str,
        address: String,
        launch: Launch,
        authority: &Arc<Authority>,
    ) -> Result<Self> {
        let admin = Admin::new(std::slice::from_ref(&address), authority, "")?;
        Ok(Self {
            name: name.to_owned(),
            address,
            launch,
            admin,
            process: Mutex::new(None),
            unseal_key: Mutex::new(String::new()),
        })
    }

    /// Its name in the cluster: `n0`, `n1`, …
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its base URL: `https://127.0.0.1:<port>`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What follows `https://`: where a [`FaultProxy`](crate::FaultProxy) connects to.
    pub fn authority(&self) -> &str {
        self.address.split("://").nth(1).unwrap_or(&self.address)
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.launch.folder
    }

    /// Its process, when it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process().as_ref().map(Process::pid)
    }

    /// What the server has logged, over all its starts.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.launch.log).unwrap_or_default()
    }

    // --- its process

    /// Starts it, and unseals it when it needs that and the cluster is initialised.
    pub async fn start(&self) -> Result {
        self.start_sealed().await?;
        let key = self.unseal_key().clone();
        if self.status().await? == 503 && !key.is_empty() {
            self.unseal().await?;
        }
        Ok(())
    }

    /// Starts it and leaves it as it comes up: sealed.
    pub async fn start_sealed(&self) -> Result {
        self.spawn()?;
        let what = format!("{} answers at {}", self.name, self.address);
        let up = eventually(&what, NODE_PATIENCE, || async {
            // A process that has ended will not answer: no use in waiting.
            Ok(if self.has_exited() { Some(false) } else { self.status().await.ok().map(|_| true) })
        });
        if !matches!(up.await, Ok(true)) {
            let end = tail(&self.log());
            self.kill();
            fail!("{} did not come up; its log ({}) ends:\n{end}", self.name, self.log_path());
        }
        Ok(())
    }

    /// Puts a line into its configuration, or takes it out; whether that is a change. It takes
    /// effect at the next start.
    pub(crate) fn configure(&self, line: &str, wanted: bool) -> Result<bool> {
        let file = self.launch.folder.join("server.hcl");
        let text = std::fs::read_to_string(&file)?;
        let bare = text.replace(line, "");
        let next = if wanted { format!("{line}{bare}") } else { bare };
        let is_change = wanted != text.contains(line);
        if is_change {
            crate::tls::replace_file(&file, &next)?;
        }
        Ok(is_change)
    }

    fn spawn(&self) -> Result {
        let mut process = self.process();
        if process.as_ref().is_some_and(|running| running.exited().is_none()) {
            fail!("{} already runs", self.name);
        }
        let mut command = Command::new(&self.launch.program);
        command.args(&self.launch.args).current_dir(&self.launch.folder);
        for (variable, _) in std::env::vars_os() {
            let name = variable.to_string_lossy();
            if name.starts_with("BAO_") || name.starts_with("VAULT_") {
                command.env_remove(&variable);
            }
        }
        *process = Some(Process::spawn(&self.name, command, &self.launch.log)?);
        Ok(())
    }

    fn log_path(&self) -> std::path::Display<'_> {
        self.launch.log.display()
    }

    /// Ends it at once: `kill -9`.
    pub fn kill(&self) {
        // Dropping the process kills it and waits for it.
        drop(self.process().take());
    }

    /// Ends it with SIGTERM and waits.
    pub async fn terminate(&self) -> Result {
        let process = self.process().take().context(format!("{} does not run", self.name))?;
        process.signal(Signal::TERM)?;
        process.wait(NODE_PATIENCE).await.map(drop)
    }

    /// Freezes it (SIGSTOP): the kernel still accepts connections, nobody answers.
    pub fn stop(&self) -> Result {
        self.signal(Signal::STOP)
    }

    /// Thaws it (SIGCONT).
    pub fn cont(&self) -> Result {
        self.signal(Signal::CONT)
    }

    /// Makes it read its certificate again (SIGHUP).
    pub fn hang_up(&self) -> Result {
        self.signal(Signal::HUP)
    }

    /// Kills it and starts it again.
    pub async fn restart(&self) -> Result {
        self.kill();
        self.start().await
    }

    fn signal(&self, signal: Signal) -> Result {
        self.process().as_ref().context(format!("{} does not run", self.name))?.signal(signal)
    }

    pub(crate) fn has_exited(&self) -> bool {
        self.process().as_ref().is_none_or(|running| running.exited().is_some())
    }

    // --- its state

    /// What `sys/health` answers: 200 active, 429 standby, 503 sealed, 501 uninitialised.
    pub async fn status(&self) -> Result<u16> {
        Ok(self.health().await?.status)
    }

    /// The whole answer of `sys/health`.
    pub async fn health(&self) -> Result<Reply> {
        let ask = self.admin.request("GET", "sys/health", &Value::Null);
        tokio::time::timeout(Duration::from_secs(1), ask).await.context("sys/health")?
    }

    /// Whether it is the active node now.
    pub async fn is_leader(&self) -> bool {
        self.status().await.is_ok_and(|status| status == 200)
    }

    /// Waits until it is active.
    pub async fn wait_active(&self) -> Result {
        self.wait_status("is active", 200).await
    }

    /// Waits until it is a standby.
    pub async fn wait_standby(&self) -> Result {
        self.wait_status("is a standby", 429).await
    }

    /// Waits until it is sealed.
    pub async fn wait_sealed(&self) -> Result {
        self.wait_status("is sealed", 503).await
    }

    /// Waits until it shows a certificate of this authority.
    pub async fn wait_trusted_by(&self, authority: &Authority) -> Result {
        let what = format!("{} shows the other certificate", self.name);
        let asking = Admin::new(std::slice::from_ref(&self.address), authority, "")?;
        eventually(&what, NODE_PATIENCE, || async {
            asking.request("GET", "sys/health", &Value::Null).await.map(|_| Some(()))
        })
        .await
    }

    async fn wait_status(&self, what: &str, status: u16) -> Result {
        eventually(&format!("{} {what}", self.name), NODE_PATIENCE, || async {
            Ok((self.status().await? == status).then_some(()))
        })
        .await
    }

    /// Seals it. Only an active node can be asked to; a standby is restarted and left
    /// sealed, which comes to the same.
    pub async fn seal(&self) -> Result {
        if self.is_leader().await {
            self.admin.write("sys/seal", json!({})).await?;
        } else {
            self.kill();
            self.start_sealed().await?;
        }
        self.wait_sealed().await
    }

    /// Unseals it and waits until it is active or a standby.
    pub async fn unseal(&self) -> Result {
        self.give_key().await?;
        self.wait_unsealed().await
    }

    pub(crate) async fn give_key(&self) -> Result {
        let key = self.unseal_key().clone();
        self.admin.write("sys/unseal", json!({ "key": key })).await.map(drop)
    }

    pub(crate) async fn wait_unsealed(&self) -> Result {
        eventually(&format!("{} is unsealed", self.name), NODE_PATIENCE, || async {
            Ok(matches!(self.status().await?, 200 | 429).then_some(()))
        })
        .await
    }

    /// Makes it give up its leadership.
    pub async fn step_down(&self) -> Result {
        self.admin.write("sys/step-down", json!({})).await.map(drop)
    }

    /// Its API alone, with the root token.
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// The requests that this node handled, as its audit log has them.
    pub fn audited(&self) -> Vec<Audited> {
        let log = self.launch.folder.join("audit.log");
        let log = std::fs::read_to_string(log).unwrap_or_default();
        log.lines().filter_map(Audited::from_line).collect()
    }

    /// How many requests this node has handled whose path starts so.
    pub fn count_requests(&self, path: &str) -> usize {
        self.audited().iter().filter(|request| request.path.starts_with(path)).count()
    }

    pub(crate) fn set_root_token(&mut self, token: &str) {
        self.admin = self.admin.with_token(token);
    }

    pub(crate) fn set_unseal_key(&self, key: &str) {
        *self.unseal_key() = key.to_owned();
    }

    fn unseal_key(&self) -> MutexGuard<'_, String> {
        self.unseal_key.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Audited ===

impl Audited {
    fn from_line(line: &str) -> Option<Self> {
        let entry: Value = serde_json::from_str(line).ok()?;
        if entry["type"] != "request" {
            return None;
        }
        let part = |name: &str| entry["request"][name].as_str().map(str::to_owned);
        Some(Self { path: part("path")?, operation: part("operation")?, entry })
    }
}
