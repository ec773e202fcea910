//! `check`: what is wrong with a configuration, and what to write instead.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::{EXIT_USAGE, complain, environment, fail, install_crypto_provider, runtime, say};
use crate::config::load::{self, FileForm, Flags, Loaded, Sources};

mod cluster;
mod kek;
mod replicas;
mod running;

/// Check a configuration before a daemon runs on it.
///
/// Without --online nothing is dialled: the file is read, and every problem is shown at
/// once with its place and what to write. With --online each address is reached, a token is
/// got, and each key is looked at, encrypted with and decrypted with. The daemon's own
/// environment variables count here too, so run it as the daemon's user. No key is ever made
/// or changed.
///
/// Where a daemon runs on the same file, its admin port is asked what runs, and what a reload
/// would change is shown, and what it would refuse.
#[derive(Args, Clone, Debug)]
#[command(after_help = "Examples:\n  \
    vault-kms-proxy check --config /etc/vault-kms-proxy/vault-plugin.yaml\n  \
    vault-kms-proxy check --config /etc/vault-kms-proxy/vault-plugin.yaml --online\n  \
    vault-kms-proxy check --config next.yaml --running http://127.0.0.1:9480\n  \
    vault-kms-proxy check --oracle --config /etc/oracle/vault-plugin.yaml --online\n\n\
    Each finding begins with ok, warn (it works, but) or FAIL (it does not).\n\
    Exit codes: 0 good (warnings allowed), 1 something online is wrong or a reload would be\n\
    refused, 64 bad configuration.")]
pub struct Check {
    /// The configuration file (YAML, or TOML when it ends in .toml). Without one, what the
    /// environment says is checked.
    #[arg(long, short, value_name = "FILE", env = super::CONFIG_VARIABLE)]
    config: Option<PathBuf>,
    /// Read the file as the Oracle plugin's, with its leniency.
    #[arg(long)]
    oracle: bool,
    /// Reach Vault too.
    #[arg(long)]
    online: bool,
    /// The admin port of the daemon to compare with, whatever file it runs on.
    #[arg(long, value_name = "URL")]
    running: Option<String>,
    /// How long each step online may take.
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    grade: Grade,
    text: String,
}

/// How well it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grade {
    /// As it should be.
    Good,
    /// It works, and an operator should know something.
    Warn,
    /// It does not work.
    Fail,
}

/// Prints findings as they come, and counts those that are not good.
#[derive(Debug, Default)]
struct Report {
    warned: usize,
    failed: usize,
}

/// Checks, prints, and says through the exit code how it went.
pub fn run(check: Check) -> ExitCode {
    let sources = Sources {
        file: check.config.clone(),
        environment: environment(),
        flags: Flags::default(),
        form: if check.oracle { FileForm::Oracle } else { FileForm::Ours },
    };
    let loaded = match load::load(&sources) {
        Ok(loaded) => loaded,
        Err(problems) => {
            complain(format_args!("{problems}"));
            return ExitCode::from(EXIT_USAGE);
        }
    };
    for warning in &loaded.warnings {
        say(format_args!("{warning}\n"));
    }
    say(format_args!("{}\n", summary(&check, &loaded)));
    install_crypto_provider();
    let would_reload = running::compare(&check, &sources, &loaded.settings);
    if !check.online {
        return if would_reload { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    let report = runtime.block_on(online(&loaded, check.timeout));
    say(format_args!("\n{}\n", report.summary()));
    if report.failed > 0 || !would_reload { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Looks at every cluster, and through it at each of its KEKs.
async fn online(loaded: &Loaded, timeout: Duration) -> Report {
    let settings = &loaded.settings;
    let mut report = Report::default();
    let mut reached = replicas::Reached::new();
    for wanted in &settings.clusters {
        report.heading(format_args!("cluster {}", wanted.name));
        let Some(cluster) = cluster::check(&mut report, wanted, timeout).await else { continue };
        for kek in &settings.keyring.keks {
            let Some(n) = kek.clusters.iter().position(|name| *name == wanted.name) else {
                continue;
            };
            let there = kek.in_cluster(n);
            let replica = if n == 0 { "" } else { ", replica" };
            report.heading(format_args!(
                "KEK {} ({}/{}{replica})",
                kek.name, there.mount, there.transit_key
            ));
            kek::check(&mut report, &cluster, &there, timeout).await;
        }
        reached.insert(wanted.name.clone(), cluster);
    }
    for kek in settings.keyring.keks.iter().filter(|kek| kek.clusters.len() > 1) {
        let names: Vec<&str> = kek.clusters.iter().map(|name| name.as_str()).collect();
        report.heading(format_args!("KEK {} in clusters {}", kek.name, names.join(", ")));
        replicas::check(&mut report, kek, &reached, timeout).await;
    }
    report
}

fn summary(check: &Check, loaded: &Loaded) -> String {
    let keks: Vec<&str> = loaded.settings.keyring.keks.iter().map(|k| k.name.as_str()).collect();
    let warnings = match loaded.warnings.len() {
        0 => "no warning".to_owned(),
        1 => "1 warning".to_owned(),
        n => format!("{n} warnings"),
    };
    format!(
        "{}: no error, {warnings}. Encrypts with {}; decrypts with {}.",
        check.config.as_ref().map_or("the environment".into(), |path| path.display().to_string()),
        keks[0],
        keks.join(", ")
    )
}

// === impl Report ===

impl Report {
    fn heading(&self, what: fmt::Arguments<'_>) {
        say(format_args!("\n{what}\n"));
    }

    fn good(&mut self, text: impl Into<String>) {
        self.add(Finding { grade: Grade::Good, text: text.into() });
    }

    fn warn(&mut self, text: impl Into<String>) {
        self.add(Finding { grade: Grade::Warn, text: text.into() });
    }

    fn fail(&mut self, text: impl Into<String>) {
        self.add(Finding { grade: Grade::Fail, text: text.into() });
    }

    fn add(&mut self, finding: Finding) {
        say(format_args!("  {finding}\n"));
        match finding.grade {
            Grade::Good => {}
            Grade::Warn => self.warned += 1,
            Grade::Fail => self.failed += 1,
        }
    }

    fn summary(&self) -> String {
        match (self.failed, self.warned) {
            (0, 0) => "everything is as it should be".to_owned(),
            (0, warned) => format!("it works; {warned} warn"),
            (failed, 0) => format!("it does not work; {failed} FAIL"),
            (failed, warned) => format!("it does not work; {failed} FAIL, {warned} warn"),
        }
    }
}

// === impl Finding ===

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grade = match self.grade {
            Grade::Good => "ok  ",
            Grade::Warn => "warn",
            Grade::Fail => "FAIL",
        };
        write!(f, "{grade} {}", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_counts_what_is_not_good() {
        let mut report = Report::default();
        report.good("a");
        assert_eq!(report.summary(), "everything is as it should be");
        report.warn("c");
        assert_eq!(report.summary(), "it works; 1 warn");
        report.fail("b");
        assert_eq!(report.summary(), "it does not work; 1 FAIL, 1 warn");
        let finding = Finding { grade: Grade::Fail, text: "refused".into() };
        assert_eq!(finding.to_string(), "FAIL refused");
    }
}
