//! `policy`: the least Vault policy that a configuration works with.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{EXIT_USAGE, complain, environment, say};
use crate::config::load::{self, FileForm, Flags, Sources};

mod document;

use document::{Document, documents};

/// Print the least Vault policy that a configuration works with.
///
/// One document for each cluster, for each has a token of its own; `--cluster` prints that of
/// one alone, to be written as it is. Nothing is dialled. Each key may be encrypted with,
/// decrypted with and read; none may be made or changed.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  \
    vault-kms-proxy policy --config /etc/vault-kms-proxy/vault-plugin.yaml\n  \
    vault-kms-proxy policy --config vault-plugin.yaml --cluster bao |\n    \
    bao policy write vault-kms-proxy -\n\n\
    Exit codes: 0 printed, 64 bad command line or configuration.")]
pub struct Policy {
    /// The configuration file (YAML, or TOML when it ends in .toml). Without one, what the
    /// environment says.
    #[arg(long, short, value_name = "FILE", env = super::CONFIG_VARIABLE)]
    config: Option<PathBuf>,
    /// Read the file as the Oracle plugin's, with its leniency.
    #[arg(long)]
    oracle: bool,
    /// Only the policy of this cluster.
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
}

/// Prints, and says through the exit code how it went.
pub fn run(policy: Policy) -> ExitCode {
    let sources = Sources {
        file: policy.config,
        environment: environment(),
        flags: Flags::default(),
        form: if policy.oracle { FileForm::Oracle } else { FileForm::Ours },
    };
    let loaded = match load::load(&sources) {
        Ok(loaded) => loaded,
        Err(problems) => {
            complain(format_args!("{problems}"));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let mut documents = documents(&loaded.settings);
    if let Some(wanted) = &policy.cluster {
        let names: Vec<_> = documents.iter().map(|d| d.cluster.to_string()).collect();
        documents.retain(|document| document.cluster.as_str() == wanted);
        if documents.is_empty() {
            let names = names.join(", ");
            complain(format_args!("error: there is no cluster `{wanted}`; write one of: {names}"));
            return ExitCode::from(EXIT_USAGE);
        }
    }
    let texts: Vec<String> = documents.iter().map(Document::to_string).collect();
    say(format_args!("{}", texts.join("\n")));
    ExitCode::SUCCESS
}
