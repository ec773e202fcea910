//! `serve`: the daemon.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{
    EXIT_USAGE, complain, environment, fail, install_crypto_provider, runtime_of_the_daemon,
};
use crate::clock::Deadline;
use crate::config::load::{FileForm, Flags, Sources};
use crate::daemon::{self, Start, kept};
use crate::listener::inherited;
use crate::telemetry::{self, Telemetry};

/// How long traces may take to leave when the daemon stops.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a thread that waits for the kernel, such as for DNS, may hold up the end.
const THREADS_TIMEOUT: Duration = Duration::from_millis(200);

/// Serve KMS v1 and v2 on the unix socket, until SIGTERM.
///
/// The socket is bound first and answers at once, whether Vault can be reached or not.
/// SIGHUP reads the configuration again: keys, their order, addresses, authentication, TLS
/// files and the log level change without a failed call; a bad file changes nothing.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  \
    vault-kms-proxy serve --config /etc/vault-kms-proxy/vault-plugin.yaml\n  \
    vault-kms-proxy serve --config vault-plugin.yaml --socket @kms --log-level debug\n  \
    VAULT_KMS_PROXY_LOG__FORMAT=json vault-kms-proxy serve --config vault-plugin.yaml\n\n\
    Environment: every key of the file as VAULT_KMS_PROXY_<KEY>, with __ between the parts of\n\
    a path and _ between its words, goes over the file; flags go over both. BAO_* and VAULT_*\n\
    (ADDR, TOKEN, CACERT, NAMESPACE, ...) fill in what the file leaves out.\n\
    systemd: a socket that it hands over (LISTEN_FDS) is served, NOTIFY_SOCKET is told.\n\
    Signals: SIGHUP reads the configuration again, SIGTERM and SIGINT finish what runs and stop.\n\
    Exit codes: 0 stopped, 1 the socket cannot be had, 64 bad command line or configuration.")]
pub struct Serve {
    /// The configuration file (YAML, or TOML when it ends in .toml). Without one, the
    /// environment says all: VAULT_KMS_PROXY_KEY_NAMES, VAULT_KMS_PROXY_ADDR and so on.
    #[arg(long, short, value_name = "FILE", env = super::CONFIG_VARIABLE)]
    config: Option<PathBuf>,
    /// The socket: a path, unix:///path, or @name for Linux's abstract namespace.
    #[arg(long, value_name = "SOCKET")]
    socket: Option<String>,
    /// Where /livez, /readyz and /metrics are served; "off" serves none.
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin_listen: Option<String>,
    /// error, warn, info, debug, trace, or a filter such as info,vault_kms_proxy=debug.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// text or json.
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// A folder for state that outlives the process; see stateDir.
    #[arg(long, value_name = "FOLDER")]
    state_dir: Option<String>,
    /// The file has the Oracle plugin's form: its keys, its leniency.
    #[arg(skip)]
    oracle: bool,
}

// === impl Serve ===

impl Serve {
    /// The command that Oracle's two flags mean.
    pub fn oracle(config: PathBuf, socket: String) -> Self {
        Self {
            config: Some(config),
            socket: Some(socket),
            admin_listen: None,
            log_level: None,
            log_format: None,
            state_dir: None,
            oracle: true,
        }
    }

    /// What the configuration is merged from.
    fn sources(&self) -> Sources {
        Sources {
            file: self.config.clone(),
            environment: environment(),
            flags: Flags {
                socket: self.socket.clone(),
                admin_listen: self.admin_listen.clone(),
                log_level: self.log_level.clone(),
                log_format: self.log_format.clone(),
                state_dir: self.state_dir.clone(),
            },
            form: if self.oracle { FileForm::Oracle } else { FileForm::Ours },
        }
    }

    #[cfg(test)]
    pub(super) fn config_path(&self) -> String {
        self.config.as_ref().map(|p| p.display().to_string()).unwrap_or_default()
    }

    #[cfg(test)]
    pub(super) fn socket_text(&self) -> String {
        self.socket.clone().unwrap_or_default()
    }
}

/// Runs the daemon until it is told to stop.
pub fn run(serve: Serve) -> ExitCode {
    // Before anything else opens a file or starts a thread.
    let inherited = match inherited::take() {
        Ok(inherited) => inherited,
        Err(error) => return fail(&error),
    };
    let sources = serve.sources();
    let chosen = match kept::choose(&sources) {
        Ok(chosen) => chosen,
        Err(problems) => {
            complain(format_args!("{problems}"));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    install_crypto_provider();
    let runtime = match runtime_of_the_daemon() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let code = runtime.block_on(async {
        let settings = &chosen.loaded.settings;
        let telemetry = match telemetry::install(&settings.log, settings.traces.as_ref()) {
            Ok(telemetry) => telemetry,
            Err(error) => return fail(&error),
        };
        telemetry::log_panics();
        for warning in &chosen.loaded.warnings {
            tracing::warn!("{}", warning.one_line());
        }
        let end = daemon::run(Start { chosen, sources, inherited }, &telemetry).await;
        finish(end, telemetry).await
    });
    runtime.shutdown_timeout(THREADS_TIMEOUT);
    code
}

async fn finish(end: Result<(), daemon::ServeError>, telemetry: Telemetry) -> ExitCode {
    if let Err(error) = &end {
        tracing::error!("{error}");
    }
    telemetry.shutdown(Deadline::after(FLUSH_TIMEOUT)).await;
    match end {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
