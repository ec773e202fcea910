//! The daemon under test: started as an operator would, watched from outside.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use crate::kms::Kms;
use crate::process::{Process, tail, temporary_folder};
use crate::{Context, Result, eventually, fail};

/// How long a daemon may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running daemon with a folder of its own. Killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    config: PathBuf,
    socket: PathBuf,
    folder: tempfile::TempDir,
}

/// What a daemon says when a reload was accepted.
pub const RELOADED: &str = "Reloaded; the new configuration is in force.";

/// What it says when one was not, and why.
pub const REFUSED: &str = "Reload failed; the running configuration stays:";

/// What a process takes of the machine.
#[derive(Debug, Clone, Copy)]
pub struct Footprint {
    /// Memory that is not swapped out.
    pub resident_kib: u64,
    /// Threads.
    pub threads: u64,
    /// Open files, where they can be seen.
    pub files: Option<usize>,
}

/// How to start a daemon.
#[derive(Debug, Clone)]
pub struct DaemonBuilder {
    binary: PathBuf,
    config: String,
    config_name: String,
    socket: Option<PathBuf>,
    extra: Vec<OsString>,
    whole: Option<Vec<OsString>>,
    environment: Vec<(OsString, OsString)>,
    inherited: Option<Arc<OwnedFd>>,
}

/// Puts the descriptor where systemd would, and says so as systemd would: the daemon takes
/// over the shell's process id.
const ACTIVATE: &str = r#"exec 3<&0 0</dev/null; LISTEN_PID=$$ exec "$@""#;

// === impl DaemonBuilder ===

impl DaemonBuilder {
    /// The configuration: a [`Config`](crate::Config) or any text.
    #[must_use]
    pub fn config(mut self, config: impl ToString) -> Self {
        self.config = config.to_string();
        self
    }

    /// The configuration file's name (default: `config.yaml`).
    #[must_use]
    pub fn config_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.config_name);
        self
    }

    /// Another socket than `kms.sock` in the daemon's folder; `@name` for an abstract one.
    #[must_use]
    pub fn socket(mut self, socket: impl Into<PathBuf>) -> Self {
        self.socket = Some(socket.into());
        self
    }

    /// One more argument, after `serve --config FILE --socket PATH`.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.extra.push(argument.into());
        self
    }

    /// The whole argument list instead; `{config}` and `{socket}` stand for the paths.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.whole = Some(arguments.into_iter().map(Into::into).collect());
        self
    }

    /// An environment variable. All of `VAULT_*`, `BAO_*`, `OTEL_*` and the daemon's own
    /// are cleared first.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// A socket that it inherits, as from systemd. `LISTEN_FDS` can be set to something else
    /// afterwards.
    #[must_use]
    pub fn inherit(mut self, descriptor: impl Into<OwnedFd>) -> Self {
        self.inherited = Some(Arc::new(descriptor.into()));
        self.env("LISTEN_FDS", "1")
    }

    /// Starts it and does not wait for its socket.
    pub fn spawn(self) -> Result<Daemon> {
        let folder = temporary_folder("kms-")?;
        let config = folder.path().join(&self.config_name);
        crate::tls::replace_file(&config, &self.config)?;
        let socket = self.socket.clone().unwrap_or_else(|| folder.path().join("kms.sock"));
        let command = self.command(&config, &socket);
        let stdin = match &self.inherited {
            Some(inherited) => Stdio::from(inherited.try_clone()?),
            None => Stdio::null(),
        };
        let log = folder.path().join("daemon.log");
        let process = Process::spawn_reading("the daemon", command, stdin, &log)?;
        Ok(Daemon { process, config, socket, folder })
    }

    /// Starts it and waits until its socket answers.
    pub async fn start(self) -> Result<Daemon> {
        let daemon = self.spawn()?;
        daemon.wait_serving(PATIENCE).await?;
        Ok(daemon)
    }

    fn command(&self, config: &Path, socket: &Path) -> Command {
        let mut command = match self.inherited {
            None => Command::new(&self.binary),
            Some(_) => {
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", ACTIVATE, "systemd"]).arg(&self.binary);
                shell
            }
        };
        match &self.whole {
            None => {
                command.arg("serve").arg("--config").arg(config).arg("--socket").arg(socket);
            }
            Some(whole) => {
                command.args(whole.iter().map(|argument| match argument.to_str() {
                    Some("{config}") => config.as_os_str(),
                    Some("{socket}") => socket.as_os_str(),
                    _ => argument.as_os_str(),
                }));
            }
        }
        command.args(&self.extra);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            let ours = ["VAULT_", "BAO_", "OTEL_", "NOTIFY_", "LISTEN_", "RUST_LOG"];
            if ours.iter().any(|prefix| text.starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

// === impl Daemon ===

impl Daemon {
    /// Starts a daemon and waits until its socket answers. Tests give
    /// `env!("CARGO_BIN_EXE_vault-kms-proxy")`.
    pub async fn start(binary: impl Into<PathBuf>, config: impl ToString) -> Result<Self> {
        Self::builder(binary).config(config).start().await
    }

    /// Chooses how to start one.
    pub fn builder(binary: impl Into<PathBuf>) -> DaemonBuilder {
        DaemonBuilder {
            binary: binary.into(),
            config: String::new(),
            config_name: "config.yaml".to_owned(),
            socket: None,
            extra: Vec::new(),
            whole: None,
            environment: Vec::new(),
            inherited: None,
        }
    }

    /// A client with a connection of its own.
    pub fn kms(&self) -> Kms {
        Kms::new(&self.socket)
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its configuration file.
    pub fn config_file(&self) -> &Path {
        &self.config
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits until the socket answers `Version`, which needs no Vault.
    pub async fn wait_serving(&self, within: Duration) -> Result {
        let kms = self.kms().timeout(Duration::from_secs(2));
        let serves = eventually("the daemon's socket answers", within, || async {
            if self.process.exited().is_some() {
                return Ok(Some(false));
            }
            kms.v1().version().await?;
            Ok(Some(true))
        });
        match serves.await {
            Ok(true) => Ok(()),
            Ok(false) => {
                let end = self.process.exited().map(|status| status.to_string());
                let end = end.unwrap_or_default();
                fail!("the daemon ended ({end}); its log ends:\n{}", self.process.tail())
            }
            Err(error) => fail!("{error}; the daemon's log ends:\n{}", self.process.tail()),
        }
    }

    /// Waits until the primary key can be used: KMS v2 `Status` says `ok`.
    pub async fn wait_ready(&self, within: Duration) -> Result {
        let ready = self.kms().v2().wait_ok(within).await;
        match ready {
            Ok(_) => Ok(()),
            Err(error) => fail!("{error}; the daemon's log ends:\n{}", self.process.tail()),
        }
    }

    // --- what it says

    /// Its stdout and stderr so far.
    pub fn log(&self) -> String {
        self.process.output()
    }

    /// Waits until its output holds `words`; answers the line.
    pub async fn wait_for_log(&self, words: &str, within: Duration) -> Result<String> {
        self.wait_for_log_after(0, words, within).await
    }

    /// The same for what it says after it had said `mark` bytes ([`Daemon::log_mark`]).
    pub async fn wait_for_log_after(
        &self,
        mark: usize,
        words: &str,
        within: Duration,
    ) -> Result<String> {
        let what = format!("the log says {words:?}");
        let line = eventually(&what, within, || async {
            let log = self.log();
            let new = log.get(mark..).unwrap_or_default();
            Ok(new.lines().find(|line| line.contains(words)).map(str::to_owned))
        });
        match line.await {
            Ok(line) => Ok(line),
            Err(error) => fail!("{error}; it ends:\n{}", tail(&self.log())),
        }
    }

    /// How much it has said so far.
    pub fn log_mark(&self) -> usize {
        self.log().len()
    }

    // --- what is done to it

    /// Replaces its configuration file, by rename.
    pub fn write_config(&self, config: impl ToString) -> Result {
        crate::tls::replace_file(&self.config, &config.to_string())
    }

    /// Sends SIGHUP: reload.
    pub fn sighup(&self) -> Result {
        self.process.signal(Signal::HUP)
    }

    /// Sends SIGTERM: finish what runs and stop.
    pub fn terminate(&self) -> Result {
        self.process.signal(Signal::TERM)
    }

    /// Sends SIGINT.
    pub fn interrupt(&self) -> Result {
        self.process.signal(Signal::INT)
    }

    /// Stops its process (SIGSTOP) or lets it go on (SIGCONT).
    pub fn freeze(&self, frozen: bool) -> Result {
        self.process.signal(if frozen { Signal::STOP } else { Signal::CONT })
    }

    /// Ends it with SIGKILL.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.process.exited().is_none()
    }

    /// Waits for its end and answers its exit code; 128 plus the number for a signal.
    pub async fn wait(&self, within: Duration) -> Result<i32> {
        let status = self.process.wait(within).await?;
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
    }

    /// Stops it with SIGTERM, waits, and answers its exit code.
    pub async fn stop(&self) -> Result<i32> {
        self.terminate()?;
        self.wait(PATIENCE).await
    }

    /// Puts `config` into its file, sends SIGHUP, and waits for a line that holds `outcome`
    /// ([`RELOADED`] or [`REFUSED`]); answers the line.
    pub async fn reload(&self, config: impl ToString, outcome: &str) -> Result<String> {
        let mark = self.log_mark();
        self.write_config(config)?;
        self.sighup()?;
        self.wait_for_log_after(mark, outcome, PATIENCE).await
    }

    // --- what it takes

    /// What it takes of the machine now.
    pub fn footprint(&self) -> Result<Footprint> {
        let proc = PathBuf::from(format!("/proc/{}", self.pid()));
        let status = std::fs::read_to_string(proc.join("status"))?;
        let number = |key: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).context(key)?;
            let digits = line.trim_start_matches(':').split_whitespace().next();
            Ok(digits.context(key)?.parse()?)
        };
        // A hardened process shows its descriptors to root only.
        let files = std::fs::read_dir(proc.join("fd")).ok().map(Iterator::count);
        Ok(Footprint { resident_kib: number("VmRSS")?, threads: number("Threads")?, files })
    }

    // --- its admin port

    /// `http://127.0.0.1:<port>`, as the daemon's log told it last, so that the configuration
    /// can say port 0. A hardened process shows its sockets to root only.
    pub async fn admin_url(&self) -> Result<String> {
        const SERVING: &str = "Serving /livez, /readyz and /metrics.";
        self.wait_for_log(SERVING, PATIENCE).await?;
        let log = self.log();
        let line = log.lines().rev().find(|line| line.contains(SERVING)).unwrap_or_default();
        let port = admin_port(line).context(format!("no port in the log line {line:?}"))?;
        Ok(format!("http://127.0.0.1:{port}"))
    }

    /// Fetches a path of the admin port: its status and its body.
    pub async fn admin_get(&self, path: &str) -> Result<(u16, String)> {
        let url = format!("{}{path}", self.admin_url().await?);
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(crate::tls::untrusting_client()?)
            .no_proxy()
            .timeout(Duration::from_secs(5))
            .build()?;
        let reply = http.get(&url).send().await.context(&url)?;
        Ok((reply.status().as_u16(), reply.text().await?))
    }

    /// The metrics, as Prometheus text.
    pub async fn metrics(&self) -> Result<String> {
        Ok(self.admin_get("/metrics").await?.1)
    }

    /// The sum of a metric over all its series whose labels contain `labels` (a part of the
    /// text between the braces; empty for all).
    pub async fn metric(&self, name: &str, labels: &str) -> Result<f64> {
        Ok(sum_metric(&self.metrics().await?, name, labels))
    }
}

/// The sum of a metric in a Prometheus text, as [`Daemon::metric`] builds it.
pub fn sum_metric(text: &str, name: &str, labels: &str) -> f64 {
    let lines = text.lines().filter_map(|line| line.strip_prefix(name));
    let series = lines.filter(|rest| rest.starts_with(['{', ' ']) && rest.contains(labels));
    // An exemplar follows after a `#`; a label may hold one too, but no ` # {`.
    let values = series.filter_map(|rest| {
        let sample = rest.split(" # {").next()?;
        sample.rsplit(['}', ' ']).find(|part| !part.is_empty())?.parse::<f64>().ok()
    });
    values.sum()
}

/// The port in a line that names a loopback address, in text or in JSON.
fn admin_port(line: &str) -> std::result::Result<u16, std::num::ParseIntError> {
    let rest = line.rsplit_once("127.0.0.1:").map_or("", |(_, rest)| rest);
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_matching_series() {
        let text = "calls_total{verb=\"encrypt\"} 3\ncalls_total{verb=\"decrypt\"} 4 # {a=\"b\"} 9\n\
                    calls_total_more{verb=\"encrypt\"} 100\nup 1\n";
        assert_eq!(sum_metric(text, "calls_total", ""), 7.0);
        assert_eq!(sum_metric(text, "calls_total", "verb=\"decrypt\""), 4.0);
        assert_eq!(sum_metric(text, "up", ""), 1.0);
    }

    #[test]
    fn the_admin_port_is_found_in_text_and_in_json() {
        assert_eq!(admin_port("INFO  daemon: Serving. address=127.0.0.1:4711"), Ok(4711));
        assert_eq!(admin_port(r#"{"address":"127.0.0.1:4711","level":"INFO"}"#), Ok(4711));
        assert!(admin_port("address=[::1]:4711").is_err());
    }

    #[tokio::test]
    async fn a_daemon_that_ends_at_once_is_reported_with_its_last_words() {
        let builder = Daemon::builder("/bin/sh").args(["-c", "echo No such key. >&2; exit 64"]);
        let error = builder.clone().start().await.unwrap_err().to_string();
        assert!(error.contains("exit status: 64") && error.contains("No such key."), "{error}");
        assert_eq!(builder.spawn().unwrap().wait(PATIENCE).await.unwrap(), 64);
    }

    #[tokio::test]
    async fn the_oracle_plugins_flags_can_be_given() {
        let daemon = Daemon::builder("/bin/echo")
            .config("a: b")
            .config_name("vault-plugin.yaml")
            .args(["-socketFile", "{socket}", "-vaultConfig", "{config}"])
            .spawn()
            .unwrap();
        let said = daemon.wait_for_log("-socketFile", PATIENCE).await.unwrap();
        let folder = daemon.folder().display();
        let due = format!("-socketFile {folder}/kms.sock -vaultConfig {folder}/vault-plugin.yaml");
        assert_eq!(said, due);
    }
}
