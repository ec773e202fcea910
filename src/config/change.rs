//! From one configuration to the next: what a reload would change, and what it refuses to.
//!
//! Two mistakes must not get through. A KEK that is dropped too early leaves objects that
//! nobody can read, and so do names that another plugin's ciphertexts are bound to. A KEK that
//! encrypts on this node before the other nodes know it makes objects that they cannot read.
//! None of it shows at the time, so the file has to say that it is meant: by `retired`, and by
//! a reload in which the new KEK only decrypts. (`legacy.key` is no such thing: it says which
//! KEK is asked first, and the others follow whatever it says.)

use std::collections::{BTreeMap, BTreeSet};

use super::diagnostics::Problem;
use super::load::Places;
use super::outline::{KekOutline, Outline};
use super::settings::RETIRED_BAO_KMS_PROVIDER;

/// What only a start reads, and why.
const FIXED: &[(&str, &str)] = &[
    (
        "statusVersion",
        "a kube-apiserver that is running must never see another version; change it together \
         with the kube-apiserver, and restart this daemon then",
    ),
    ("stateDir", "restart the daemon, or change that back"),
    ("calls.maxConcurrent", "restart the daemon, or change that back"),
    ("calls.defaultDeadline", "restart the daemon, or change that back"),
];

// === what is refused ===

/// What of `wanted` cannot be had without a restart from a daemon that was `started` so.
pub fn needs_restart(started: &Outline, wanted: &Outline, places: &Places) -> Vec<Problem> {
    let changed =
        FIXED.iter().filter(|(key, _)| started.values.get(*key) != wanted.values.get(*key));
    let problem = |(key, advice): &(&str, &str)| {
        let said =
            |outline: &Outline| outline.values.get(*key).cloned().unwrap_or("nothing".into());
        let what = format!(
            "it cannot change while the daemon runs, from {} to {}",
            said(started),
            said(wanted)
        );
        Problem::error(*key, places.of_key(key), what, *advice)
    };
    changed.map(problem).collect()
}

/// The KEKs and the names of another plugin that `running` has and `wanted` drops without a
/// word, and the KEK that it would encrypt with before it has decrypted anything.
pub fn unsafe_keys(
    running: &Outline,
    wanted: &Outline,
    retired: &BTreeSet<&str>,
    places: &Places,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    for name in running.names().filter(|name| wanted.kek(name).is_none()) {
        if !retired.contains(name) {
            problems.push(Problem::error(
                "keyNames",
                places.of_key("keyNames"),
                format!(
                    "the key `{name}` is gone, and what it encrypted could not be read any more"
                ),
                format!(
                    "put it back at the end; or, when nothing in etcd and no backup needs it, \
                     write `retired: [{name}]`"
                ),
            ));
        }
    }
    if !retired.contains(RETIRED_BAO_KMS_PROVIDER) {
        problems.extend(lost_names(running, wanted, places));
    }
    if let Some(primary) = wanted.names().next().filter(|name| running.kek(name).is_none()) {
        let known = running.names().collect::<Vec<_>>().join(", ");
        problems.push(Problem::error(
            "keyNames[0]",
            places.of_key("keyNames[0]"),
            format!(
                "the key `{primary}` would encrypt at once, and the daemons of other nodes may \
                 not know it yet"
            ),
            format!(
                "write it last (keyNames: [{known}, {primary}]) and reload on every node; then \
                 move it to the front"
            ),
        ));
    }
    problems
}

/// The names that bao-kms-provider bound its ciphertexts to, when others stand there or none:
/// to Vault they would look like damaged ones.
fn lost_names(running: &Outline, wanted: &Outline, places: &Places) -> Option<Problem> {
    let block = RETIRED_BAO_KMS_PROVIDER;
    let is_ours = |key: &str| key.strip_prefix(block).is_some_and(|rest| rest.starts_with('.'));
    let (key, before) = running
        .values
        .iter()
        .filter(|(key, _)| is_ours(key))
        .find(|(key, before)| wanted.values.get(*key) != Some(*before))?;
    let (key, change) = match wanted.values.get(key) {
        Some(after) => (key.as_str(), format!("it changes from {before} to {after}")),
        None => (block, "it is gone".to_owned()),
    };
    let written = [key, block, "legacy"].into_iter().find(|key| places.has(key));
    Some(Problem::error(
        key,
        places.of_key(written.unwrap_or(key)),
        format!("{change}, and what bao-kms-provider wrote could not be read any more"),
        format!(
            "put it back; or, when nothing in etcd and no backup needs it, write `retired: \
             [{block}]`"
        ),
    ))
}

// === what changes ===

/// Each difference in one line, those of the keys first; empty when there is none.
pub fn differences(running: &Outline, wanted: &Outline) -> Vec<String> {
    let mut lines = Vec::new();
    let (from, to) = (running.key_names.first(), wanted.key_names.first());
    if let (Some(from), Some(to)) = (from, to)
        && from.name != to.name
    {
        lines.push(format!("keyNames: {} encrypts, and no longer {}", to.name, from.name));
    }
    for added in wanted.names().filter(|name| running.kek(name).is_none()) {
        lines.push(format!("keyNames: + {added}"));
    }
    for gone in running.names().filter(|name| wanted.kek(name).is_none()) {
        lines.push(format!("keyNames: - {gone}"));
    }
    let kept = |these: &Outline, those: &Outline| -> Vec<String> {
        these.names().filter(|name| those.kek(name).is_some()).map(str::to_owned).collect()
    };
    let mut before = kept(running, wanted);
    if let Some(at) = to.and_then(|to| before.iter().position(|name| *name == to.name)) {
        // That it has moved to the front is told.
        before[..=at].rotate_right(1);
    }
    if before != kept(wanted, running) {
        let order = |outline: &Outline| outline.names().collect::<Vec<_>>().join(", ");
        lines.push(format!("keyNames: the order {} -> {}", order(running), order(wanted)));
    }
    for KekOutline { name, values } in &wanted.key_names {
        if let Some(before) = running.kek(name) {
            compare(&format!("{name}."), &before.values, values, &mut lines);
        }
    }
    compare("", &running.values, &wanted.values, &mut lines);
    lines
}

fn compare(
    prefix: &str,
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
    lines: &mut Vec<String>,
) {
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for key in keys {
        match (before.get(key), after.get(key)) {
            (Some(before), Some(after)) if before != after => {
                lines.push(format!("{prefix}{key}: {before} -> {after}"));
            }
            (None, Some(after)) => lines.push(format!("{prefix}{key}: + {after}")),
            (Some(before), None) => lines.push(format!("{prefix}{key}: - {before}")),
            _ => {}
        }
    }
}
