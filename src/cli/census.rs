//! `census`: what etcd holds, by the key that it needs.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::etcd::EtcdArgs;
use super::{EXIT_USAGE, complain, environment, fail, install_crypto_provider, runtime, say};
use crate::config::load::{self, FileForm, Flags, Loaded, Sources};
use crate::config::settings::{KekName, RETIRED_BAO_KMS_PROVIDER};
use crate::etcd::Etcd;

mod gate;
mod report;
mod resource;
mod steps;
mod sweep;
mod tally;

use gate::{Old, Verdict};
use report::Report;
use steps::Configured;
use sweep::{Plan, Sweep, SweepError};

/// The configuration that is looked at when none is named.
const DEFAULT_CONFIG: &str = "/etc/vault-kms-proxy/vault-plugin.yaml";

/// Something is, or may be, left on what `--require-none-on` names.
const EXIT_LEFT: u8 = 2;

/// Count the objects in etcd by resource, provider, key and key version.
///
/// Reads every object once, at one revision of etcd, a page at a time, and writes nothing. A
/// key is no longer needed when nothing is stored under it: before min_decryption_version is
/// raised, before old versions are trimmed, before a key is removed, ask with
/// --require-none-on. What cannot be read, or names no key, counts as needing it. Backups are
/// not counted. With a configuration, the last lines say at which step of a move one is.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  \
    vault-kms-proxy census\n  \
    vault-kms-proxy census --resource secrets --output json\n  \
    vault-kms-proxy census --require-none-on kube-2025 && echo may be retired\n  \
    vault-kms-proxy census --require-none-on kube:v1-v3 && bao write \\\n      \
      transit/keys/kube/config min_decryption_version=4\n\n\
    On a control-plane node of kubeadm's, run it as root: the default certificates are those of\n\
    kube-apiserver. On K3s and RKE2 they are server-ca.crt, client.crt and client.key below\n\
    /var/lib/rancher/<k3s or rke2>/server/tls/etcd. etcd's users and passwords are not spoken.\n\
    Exit codes: 0 counted (and none is left), 1 etcd cannot be read, 2 something is left on what\n\
    --require-none-on names or may be, 64 bad command line or configuration.")]
pub struct Census {
    #[command(flatten)]
    etcd: EtcdArgs,
    /// What kube-apiserver's keys begin with: its --etcd-prefix.
    #[arg(long, value_name = "PREFIX", default_value = "/registry/")]
    prefix: String,
    /// Count only these resources, as kubectl names them: secrets, widgets.example.com.
    #[arg(long, value_name = "RESOURCE", value_delimiter = ',')]
    resource: Vec<String>,
    /// How many objects are read a second at most; 0 sets no limit.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    rate: u32,
    /// How the result is written.
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    output: Output,
    /// Exit with 2 unless nothing needs this: a KEK (NAME), versions of it (NAME:v2,
    /// NAME:v1-v3), what values begin with (k8s:enc:kms:v1:PROVIDER), or identity.
    #[arg(long, value_name = "OLD")]
    require_none_on: Vec<Old>,
    /// The configuration whose keys are moved [default:
    /// /etc/vault-kms-proxy/vault-plugin.yaml, if it is there].
    #[arg(long, short, value_name = "FILE", env = super::CONFIG_VARIABLE)]
    config: Option<PathBuf>,
}

/// How the result is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table and what comes next.
    Text,
    /// One JSON object.
    Json,
}

/// Counts, prints, and says through the exit code whether something is left.
pub fn run(census: Census) -> ExitCode {
    let prepared = census.plan().and_then(|plan| Ok((plan, census.etcd.settings()?)));
    let (plan, settings) = match prepared {
        Ok(prepared) => prepared,
        Err(problem) => {
            complain(format_args!("error: {problem}"));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let configured = match census.configured() {
        Ok(configured) => configured,
        Err(problems) => {
            complain(format_args!("{problems}"));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    install_crypto_provider();
    let etcd = Etcd::try_new(&settings);
    let swept = match (etcd, runtime()) {
        (Ok(etcd), Ok(runtime)) => runtime.block_on(census.count(etcd, &plan)),
        (Err(error), _) => return fail(&error),
        (_, Err(error)) => return fail(&error),
    };
    let sweep = match swept {
        Ok(sweep) => sweep,
        Err(error) => return fail(&error),
    };
    let report = census.report(&sweep, &plan, configured.as_ref());
    match census.output {
        Output::Text => say(format_args!("{}", report.text())),
        Output::Json => say(format_args!("{:#}\n", report.json())),
    }
    if report.is_met() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_LEFT) }
}

// === impl Census ===

impl Census {
    fn plan(&self) -> Result<Plan, String> {
        let root = resource::root(&self.prefix);
        let mut folders = Vec::new();
        for name in &self.resource {
            let of_it = resource::folders(name, &root);
            if name.is_empty() || of_it.is_empty() {
                return Err(format!(
                    "--resource: {name:?} is no resource; write it as `kubectl api-resources -o \
                     name` does"
                ));
            }
            folders.extend(of_it);
        }
        folders.sort();
        folders.dedup();
        if folders.is_empty() {
            folders.push(root.clone());
        }
        Ok(Plan { root, folders, rate: NonZeroU32::new(self.rate) })
    }

    /// What the configuration says about keys; one that was not named may be absent or broken.
    fn configured(&self) -> Result<Option<Configured>, String> {
        let default = Path::new(DEFAULT_CONFIG);
        let file = match &self.config {
            Some(named) => named.clone(),
            None if default.is_file() => default.to_owned(),
            None => return Ok(None),
        };
        let sources = Sources {
            file: Some(file.clone()),
            environment: environment(),
            flags: Flags::default(),
            form: FileForm::Ours,
        };
        match load::load(&sources) {
            Ok(loaded) => Ok(Some(configured(&file, &loaded))),
            Err(problems) if self.config.is_none() => {
                complain(format_args!("warning: it is not told what comes next, for\n{problems}"));
                Ok(None)
            }
            Err(problems) => Err(problems.to_string()),
        }
    }

    async fn count(&self, mut etcd: Etcd, plan: &Plan) -> Result<Sweep, SweepError> {
        // It draws on a terminal and nowhere else.
        let progress = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let style = "{bar:40} {human_pos} of {human_len} objects, {per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(style) {
            progress.set_style(style);
        }
        let swept = sweep::sweep(&mut etcd, plan, &progress).await;
        progress.finish_and_clear();
        swept
    }

    fn report<'a>(
        &self,
        sweep: &'a Sweep,
        plan: &Plan,
        configured: Option<&Configured>,
    ) -> Report<'a> {
        let known: Option<Vec<String>> =
            configured.map(|c| c.keks.iter().chain(&c.retired).cloned().collect());
        let verdict = |old: &Old| Verdict::of(old, &sweep.tally, known.as_deref());
        let verdicts: Vec<Verdict> = self.require_none_on.iter().map(verdict).collect();
        let met = verdicts.iter().filter(|verdict| verdict.is_met());
        let met: Vec<&str> = met
            .filter_map(|verdict| match &verdict.old {
                Old::Kek { name, versions: None } => Some(name.as_str()),
                _ => None,
            })
            .collect();
        let next = match configured {
            _ if !self.resource.is_empty() => vec![
                "What comes next in a move is told by a count of everything: leave out --resource."
                    .to_owned(),
            ],
            Some(configured) => steps::next(configured, &sweep.tally, &met),
            None => vec![format!(
                "To be told what comes next in a move, name the configuration: --config FILE \
                 (there is no {DEFAULT_CONFIG})"
            )],
        };
        let scope = match self.resource.as_slice() {
            [] => format!("under {}", plan.root),
            these => format!("of {} under {}", these.join(", "), plan.root),
        };
        Report { sweep, scope, missing: self.missing(sweep, plan), verdicts, next }
    }

    /// What was to be counted and is not there: a name that is spelt wrong would pass any gate.
    fn missing(&self, sweep: &Sweep, plan: &Plan) -> Vec<String> {
        if self.resource.is_empty() {
            let nothing = format!(
                "nothing is stored under {}: is that kube-apiserver's --etcd-prefix?",
                plan.root
            );
            return sweep.empty.iter().map(|_| nothing.clone()).collect();
        }
        let is_missing = |name: &&String| {
            let folders = resource::folders(name, &plan.root);
            folders.iter().all(|folder| sweep.empty.contains(folder))
        };
        let missing = self.resource.iter().filter(is_missing);
        missing.map(|name| format!("no object of {name} is stored: is it spelt right?")).collect()
    }
}

fn configured(file: &Path, loaded: &Loaded) -> Configured {
    let keks = &loaded.settings.keyring.keks;
    // Another plugin's names are no key that a move could end with.
    let retired = loaded.settings.reload.retired.iter().map(KekName::as_str);
    let retired = retired.filter(|name| *name != RETIRED_BAO_KMS_PROVIDER);
    Configured {
        file: file.display().to_string(),
        keks: keks.iter().map(|kek| kek.name.to_string()).collect(),
        retired: retired.map(str::to_owned).collect(),
    }
}
