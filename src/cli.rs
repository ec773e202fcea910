//! The command line: one subcommand a file.
//!
//! Exit codes: 0 done, 1 failed or found something wrong, 64 (`EX_USAGE`) for a bad command
//! line or a bad configuration.

use std::ffi::OsString;
use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub mod census;
pub mod check;
pub mod dial;
pub mod etcd;
pub mod inspect;
pub mod oracle;
pub mod policy;
pub mod probe;
pub mod serve;

/// `EX_USAGE` of sysexits.h.
pub const EXIT_USAGE: u8 = 64;

/// The path of the configuration file, where no flag gives it.
const CONFIG_VARIABLE: &str = "VAULT_KMS_PROXY_CONFIG";

/// A KMS plugin for kube-apiserver that keeps its keys in Vault or OpenBao.
///
/// kube-apiserver hands it data-encryption keys over a unix socket (KMS v1 and v2); it wraps
/// and unwraps them with Transit keys that never leave Vault. The first key in `keyNames`
/// encrypts, all of them decrypt. Several Vault addresses are tried until one answers.
#[derive(Debug, Parser)]
#[command(
    name = "vault-kms-proxy",
    version,
    after_help = "Examples:\n  \
        vault-kms-proxy check --config /etc/vault-kms-proxy/vault-plugin.yaml --online\n  \
        vault-kms-proxy serve --config /etc/vault-kms-proxy/vault-plugin.yaml\n  \
        vault-kms-proxy probe --socket /run/vault-kms-proxy/kms.sock\n  \
        vault-kms-proxy census --require-none-on kube-2025\n  \
        etcdctl get /registry/secrets/default/db --hex | vault-kms-proxy inspect --verify\n\n\
        The Oracle plugin's flags work too: -socketFile PATH -vaultConfig FILE.\n\
        Exit codes: 0 done, 1 failed, 64 bad command line or configuration."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    Check(check::Check),
    Probe(probe::Probe),
    Policy(policy::Policy),
    Census(census::Census),
    Inspect(inspect::Inspect),
}

/// Runs the command that `arguments` name; the first is the program's own name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let parsed = match oracle::translate(&arguments) {
        Ok(Some(serve)) => Ok(Arguments { command: Command::Serve(serve) }),
        Ok(None) => Arguments::try_parse_from(&arguments),
        Err(problem) => {
            complain(format_args!("error: {problem}"));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match parsed {
        Ok(Arguments { command: Command::Serve(serve) }) => serve::run(serve),
        Ok(Arguments { command: Command::Check(check) }) => check::run(check),
        Ok(Arguments { command: Command::Probe(probe) }) => probe::run(probe),
        Ok(Arguments { command: Command::Policy(policy) }) => policy::run(policy),
        Ok(Arguments { command: Command::Census(census) }) => census::run(census),
        Ok(Arguments { command: Command::Inspect(inspect) }) => inspect::run(inspect),
        Err(error) => {
            // clap's own code for a bad command line is 2; help and version are no errors.
            let code = if error.use_stderr() { EXIT_USAGE } else { 0 };
            let _ = error.print();
            ExitCode::from(code)
        }
    }
}

/// Prints an error as the last thing before exit code 1; its text names its causes.
fn fail(error: &dyn std::error::Error) -> ExitCode {
    complain(format_args!("error: {error}"));
    ExitCode::FAILURE
}

/// Writes to standard output. Whoever reads it may have gone, as `head` does: then there is
/// nobody to tell, and the exit code still says how it went.
fn say(text: fmt::Arguments<'_>) {
    let _ = std::io::stdout().lock().write_fmt(text);
}

/// Writes a line to standard error, under the same rule.
fn complain(text: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// The environment. What is no UTF-8 becomes text that no key takes, so that a variable of
/// ours that is damaged is reported and not passed over.
fn environment() -> Vec<(String, String)> {
    let text = |word: OsString| word.to_string_lossy().into_owned();
    std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
}

/// The runtime that commands run on, with a thread for each core up to eight: more have nothing
/// to do.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    runtime_with(cores().clamp(2, 8))
}

/// The runtime that the daemon runs on: one thread for its calls, and one more for each four
/// cores beyond seven. One answers more calls than Vault does, and a call that stays on it needs
/// no other to be woken, which with two threads happened four times a call. A runtime that is
/// made for one thread runs tasks strictly in the order in which they were woken: all calls of a
/// batch have their answers before the connection is written to, once, where the other one wrote
/// for each. What may block, such as a look at a file, has threads of its own.
fn runtime_of_the_daemon() -> std::io::Result<tokio::runtime::Runtime> {
    match (cores() / 4).clamp(1, 4) {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        threads => runtime_with(threads),
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get)
}

fn runtime_with(threads: usize) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()
}

/// Makes aws-lc-rs the provider of every TLS stack in this process.
fn install_crypto_provider() {
    // An error means that one is installed already, and only we install one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
