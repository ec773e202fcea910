//! `probe`: does what a kube-apiserver does to the plugin, and judges as it would.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{EXIT_USAGE, complain, fail, runtime, say};
use crate::config::settings::SocketAddress;

mod apiserver;
mod latency;

use apiserver::{Apiserver, KubernetesVersion, ProbeError};
use latency::Latencies;

/// Act as a kube-apiserver: ask for version and status, encrypt, decrypt, compare.
///
/// Prints a table of latencies, and the first rule that the plugin breaks of those that a
/// kube-apiserver of the chosen version holds it to. Works with any KMS plugin's socket.
/// The `:authority` that it sends is `localhost`, as kube-apiserver 1.32 and later do.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  \
    vault-kms-proxy probe --socket /run/vault-kms-proxy/kms.sock\n  \
    vault-kms-proxy probe --socket unix:///run/kms.sock --api v2 --kubernetes 1.28\n  \
    vault-kms-proxy probe --socket @kms --count 1000 --timeout 500ms\n\n\
    Run it as a user whom socket.allowedUids lists: root, or kube-apiserver's.\n\
    Exit codes: 0 sound, 1 a rule is broken or nobody answers, 64 bad command line.")]
pub struct Probe {
    /// The socket: a path, unix:///path, or @name.
    #[arg(long, value_name = "SOCKET")]
    socket: String,
    /// Which API to probe.
    #[arg(long, value_enum, default_value = "both")]
    api: Api,
    /// Judge as this version of Kubernetes does, such as 1.28.
    #[arg(long, value_name = "VERSION", default_value = "1.34")]
    kubernetes: KubernetesVersion,
    /// How often each call is made.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// The deadline of each call, as in kube-apiserver's EncryptionConfiguration.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// The APIs that a plugin may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Api {
    /// KMS v1.
    V1,
    /// KMS v2.
    V2,
    /// One after the other.
    Both,
}

/// Probes, prints, and says through the exit code how it went.
pub fn run(probe: Probe) -> ExitCode {
    let socket = match SocketAddress::parse(&probe.socket) {
        Ok(socket) => socket,
        Err(error) => {
            complain(format_args!("error: --socket: {error}"));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let mut latencies = Latencies::default();
    let result = runtime.block_on(probe.drive(socket, &mut latencies));
    say(format_args!("{latencies}"));
    match result {
        Ok(findings) => {
            findings.iter().for_each(|finding| say(format_args!("{finding}\n")));
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

// === impl Probe ===

impl Probe {
    async fn drive(
        &self,
        socket: SocketAddress,
        latencies: &mut Latencies,
    ) -> Result<Vec<String>, ProbeError> {
        let mut apiserver = Apiserver::connect(socket, self.kubernetes, self.timeout).await?;
        let mut findings = Vec::new();
        if self.api != Api::V2 {
            findings.push(apiserver.probe_v1(self.count, latencies).await?);
        }
        if self.api != Api::V1 {
            findings.push(apiserver.probe_v2(self.count, latencies).await?);
        }
        Ok(findings)
    }
}
