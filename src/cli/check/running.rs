//! `check` beside a daemon that runs: what a reload would change, and what it would refuse.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use super::Check;
use crate::admin::Running;
use crate::cli::{complain, say};
use crate::config::change::{differences, needs_restart, unsafe_keys};
use crate::config::diagnostics::Problem;
use crate::config::load::{self, Sources};
use crate::config::outline::Outline;
use crate::config::settings::{KekName, Settings};

/// How long the daemon of this machine may take when nobody has asked for it.
const UNASKED: Duration = Duration::from_secs(1);

/// An outline has a few kilobytes.
const MAX_BYTES: u64 = 4 << 20;

/// Compares, prints, and says whether a reload would be accepted as far as can be told. No
/// daemon is no obstacle, unless `--running` names one.
pub(super) fn compare(check: &Check, sources: &Sources, settings: &Settings) -> bool {
    let asked = match (&check.running, settings.admin) {
        (Some(url), _) => fetch(url, check.timeout),
        (None, Some(address)) if address.port() != 0 => {
            let url = format!("http://{}", local(address));
            let Ok(running) = fetch(&url, UNASKED.min(check.timeout)) else { return true };
            if !is_same_file(running.file.as_deref(), check.config.as_deref()) {
                return true;
            }
            Ok(running)
        }
        (None, _) => return true,
    };
    match asked {
        Ok(running) => tell(&running, sources),
        Err(why) => {
            complain(format_args!("error: {why}"));
            false
        }
    }
}

/// Where this machine reaches what listens at `address`.
fn local(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn is_same_file(theirs: Option<&str>, ours: Option<&Path>) -> bool {
    match (theirs, ours) {
        (Some(theirs), Some(ours)) => {
            let whole = |path: &Path| std::fs::canonicalize(path).ok();
            let theirs = Path::new(theirs);
            theirs == ours || whole(theirs).is_some_and(|path| whole(ours) == Some(path))
        }
        (None, None) => true,
        _ => false,
    }
}

fn fetch(url: &str, timeout: Duration) -> Result<Running, String> {
    let base = url.trim_end_matches('/').trim_end_matches("/configz");
    let failed = |why: &dyn std::fmt::Display| format!("no daemon could be asked at {base}: {why}");
    let client = reqwest::blocking::Client::builder()
        .timeout(timeout)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        // No TLS is spoken: a machine without CA certificates is no obstacle.
        .tls_certs_only([])
        .build()
        .map_err(|error| failed(&error))?;
    let answer = client.get(format!("{base}/configz")).send().map_err(|error| failed(&error))?;
    if !answer.status().is_success() {
        return Err(failed(&format_args!("HTTP {}", answer.status().as_u16())));
    }
    let mut json = Vec::new();
    answer.take(MAX_BYTES).read_to_end(&mut json).map_err(|error| failed(&error))?;
    serde_json::from_slice(&json).map_err(|_| failed(&"its answer is none of this program's"))
}

fn tell(running: &Running, sources: &Sources) -> bool {
    // What the daemon's command line says holds for it whatever the file says.
    let theirs = Sources { flags: running.flags.clone(), ..sources.clone() };
    let loaded = match load::load(&theirs) {
        Ok(loaded) => loaded,
        Err(problems) => {
            complain(format_args!("{problems}"));
            return false;
        }
    };
    let wanted = Outline::of(&loaded.settings);
    let retired: BTreeSet<&str> =
        loaded.settings.reload.retired.iter().map(KekName::as_str).collect();
    let mut refused = needs_restart(&running.started_with, &wanted, &loaded.places);
    let before = running.configuration.as_ref().unwrap_or(&running.started_with);
    if running.configuration.is_some() {
        refused.extend(unsafe_keys(before, &wanted, &retired, &loaded.places));
    }
    let Running { pid, generation, .. } = running;
    let generation =
        generation.map_or("no generation yet".to_owned(), |n| format!("generation {n}"));
    let changes = differences(before, &wanted);
    let daemon = format!("the daemon that runs (pid {pid}, {generation})");
    if changes.is_empty() {
        say(format_args!("A reload of {daemon} would change nothing.\n"));
    } else {
        say(format_args!("A reload of {daemon} would change:\n"));
        changes.iter().for_each(|change| say(format_args!("  {}\n", one_line(change))));
    }
    if wanted.has_unseen() || before.has_unseen() {
        say(format_args!(
            "  (a role id or a secret that stands in the configuration itself is not compared)\n"
        ));
    }
    if let Some(why) = running.last_reload.as_ref().and_then(|last| last.refused.as_ref()) {
        say(format_args!("Its last reload was refused: {}\n", one_line(why)));
    }
    if refused.is_empty() {
        return true;
    }
    say(format_args!("It would be refused:\n"));
    refused.iter().map(Problem::one_line).for_each(|why| say(format_args!("  FAIL {why}\n")));
    false
}

/// What another process says, for a terminal.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
