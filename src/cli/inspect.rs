//! `inspect`: who encrypted a value in etcd, with which key, and whether it still decrypts.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::etcd::EtcdArgs;
use super::{EXIT_USAGE, complain, environment, fail, install_crypto_provider, runtime, say};
use crate::config::load::{self, FileForm, Flags, Sources};
use crate::config::settings::SocketAddress;
use crate::etcd::Etcd;
use crate::stored::{Kms, Plain, Value};

mod input;
mod report;
mod verdict;

use input::{Input, InputError};
use report::Report;
use verdict::Verdict;

/// Say who encrypted a value in etcd, with which key, and whether it still decrypts.
///
/// Reads one value: its bytes, or what etcdctl, hexdump -C or xxd printed of it, which is
/// known by its looks. Names the provider, the API, the plugin, the KEK and its version.
/// With --verify the running daemon is asked to unwrap the data key, as a kube-apiserver
/// would ask it. What is encrypted is never shown, and neither is the data key.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  \
    etcdctl get /registry/secrets/default/db --print-value-only | vault-kms-proxy inspect\n  \
    etcdctl get /registry/secrets/default/db --hex | vault-kms-proxy inspect --verify\n  \
    vault-kms-proxy inspect --file listing.txt --output json\n  \
    vault-kms-proxy inspect --etcd /registry/secrets/default/db --verify\n\n\
    With --verify run it as a user whom socket.allowedUids lists. The socket is --socket, else\n\
    that of the configuration, else the default.\n\
    Exit codes: 0 named (and with --verify: decrypts), 1 damaged, unknown or not decrypted, \
    64 bad command line.")]
pub struct Inspect {
    /// Read this file instead of standard input.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What is read is hex, whatever it looks like.
    #[arg(long)]
    hex: bool,
    /// Read the value of this key from etcd instead.
    #[arg(long = "etcd", value_name = "KEY", conflicts_with_all = ["file", "hex"])]
    stored: Option<String>,
    #[command(flatten)]
    etcd: EtcdArgs,
    /// Ask the running daemon whether it can decrypt it.
    #[arg(long)]
    verify: bool,
    /// The socket to ask with --verify: a path, unix:///path, or @name.
    #[arg(long, value_name = "SOCKET", requires = "verify")]
    socket: Option<String>,
    /// The daemon's configuration, for its socket.
    #[arg(long, short, value_name = "FILE", env = super::CONFIG_VARIABLE)]
    config: Option<PathBuf>,
    /// How long the daemon may take.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// For people or for programs.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

/// How the result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A line for each thing.
    Text,
    /// One JSON object.
    Json,
}

/// The socket where nothing names another.
const DEFAULT_SOCKET: &str = "/run/vault-kms-proxy/kms.sock";

/// Reads, asks if it is told to, prints, and says through the exit code how it went.
pub fn run(inspect: Inspect) -> ExitCode {
    let input = match inspect.input() {
        Ok(input) => input,
        Err(code) => return code,
    };
    let value = Value::parse(&input.value);
    let verdict = match (inspect.verify, &value) {
        (true, Value::Kms(kms)) => match inspect.verdict(kms) {
            Ok(verdict) => verdict,
            Err(code) => return code,
        },
        _ => None,
    };
    let report = Report::of(&input, verdict.as_ref());
    match inspect.output {
        Output::Text => say(format_args!("{report}")),
        Output::Json => say(format_args!("{}\n", report.to_json())),
    }
    if inspect.is_good(&value, verdict.as_ref()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

// === impl Inspect ===

impl Inspect {
    /// The value, from wherever it is to come.
    fn input(&self) -> Result<Input, ExitCode> {
        let Some(key) = &self.stored else {
            return input::read(self.file.as_deref(), self.hex).map_err(|error| fail(&error));
        };
        let settings = self.etcd.settings().map_err(|problem| {
            complain(format_args!("error: {problem}"));
            ExitCode::from(EXIT_USAGE)
        })?;
        install_crypto_provider();
        let mut etcd = Etcd::try_new(&settings).map_err(|error| fail(&error))?;
        let runtime = runtime().map_err(|error| fail(&error))?;
        let entry = runtime.block_on(etcd.get(key.as_bytes())).map_err(|error| fail(&error))?;
        let entry = entry.ok_or_else(|| fail(&InputError::NoSuchKey(key.clone())))?;
        Ok(Input { key: Some(key.clone()), value: entry.value.to_vec() })
    }

    /// What the daemon says; `None` where there is nothing to ask about.
    fn verdict(&self, kms: &Kms<'_>) -> Result<Option<Verdict>, ExitCode> {
        let Ok(body) = &kms.body else { return Ok(None) };
        let socket = self.socket_address()?;
        let runtime = runtime().map_err(|error| fail(&error))?;
        Ok(Some(runtime.block_on(verdict::ask(&socket, kms.api, body, self.timeout))))
    }

    fn socket_address(&self) -> Result<SocketAddress, ExitCode> {
        if self.socket.is_none() && self.config.is_some() {
            let sources = Sources {
                file: self.config.clone(),
                environment: environment(),
                flags: Flags::default(),
                form: FileForm::Ours,
            };
            let loaded = load::load(&sources).map_err(|problems| {
                complain(format_args!("{problems}"));
                ExitCode::from(EXIT_USAGE)
            })?;
            return Ok(loaded.settings.socket.address);
        }
        let text = self.socket.as_deref().unwrap_or(DEFAULT_SOCKET);
        SocketAddress::parse(text).map_err(|error| {
            complain(format_args!("error: --socket: {error}"));
            ExitCode::from(EXIT_USAGE)
        })
    }

    fn is_good(&self, value: &Value<'_>, verdict: Option<&Verdict>) -> bool {
        match value {
            Value::Kms(kms) => match verdict {
                Some(verdict) => verdict.is_good(),
                None => kms.trouble().is_none(),
            },
            // The daemon cannot decrypt it, and nobody needs to ask.
            Value::Local(_) => !self.verify,
            Value::Plain(Plain::Empty) | Value::Unknown => false,
            Value::Plain(_) => true,
        }
    }
}
