//! What a census prints.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use indicatif::HumanCount;
use serde_json::{Value, json};

use super::gate::Verdict;
use super::steps::Lines;
use super::sweep::Sweep;
use super::tally::{Count, Kek, Kind};

/// What is said each time.
const NOT_COUNTED: &str = "Not counted: backups and snapshots of etcd, and what other etcd \
                           clusters hold (--etcd-servers-overrides). What they hold needs its keys \
                           for as long as it may be restored.";

/// Everything that there is to print.
#[derive(Debug)]
pub(super) struct Report<'a> {
    /// What was counted.
    pub(super) sweep: &'a Sweep,
    /// What was looked at, in words.
    pub(super) scope: String,
    /// Where nothing was found that should be there.
    pub(super) missing: Vec<String>,
    /// Whether nothing needs an old key.
    pub(super) verdicts: Vec<Verdict>,
    /// What comes next.
    pub(super) next: Lines,
}

// === impl Report ===

impl Report<'_> {
    /// Whether every `--require-none-on` holds, of everything that was to be looked at.
    pub(super) fn is_met(&self) -> bool {
        self.verdicts.iter().all(Verdict::is_met)
            && (self.verdicts.is_empty() || self.missing.is_empty())
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let Sweep { tally, revision, restarts, took, .. } = self.sweep;
        let mut out = format!(
            "{} objects {} at revision {revision}, in {:.1} s",
            HumanCount(tally.total()),
            self.scope,
            took.as_secs_f64()
        );
        if *restarts > 0 {
            let _ = write!(out, " (begun again {restarts} times: etcd had compacted the revision)");
        }
        out.push_str("\n\n");
        out.push_str(&table(&self.rows()));
        out.push('\n');
        let unknown = tally.of(|kind| kind.kek == Kek::Unknown);
        if unknown.objects > 0 {
            let _ = writeln!(
                out,
                "WARNING: the key of {} cannot be told, such as {} (see `vault-kms-proxy inspect`)",
                HumanCount(unknown.objects),
                unknown.examples.join(", ")
            );
        }
        for missing in &self.missing {
            let _ = writeln!(out, "WARNING: {missing}");
        }
        let _ = writeln!(out, "{NOT_COUNTED}");
        for verdict in &self.verdicts {
            let _ = writeln!(out, "{verdict}");
        }
        if !self.next.is_empty() {
            out.push('\n');
            for line in &self.next {
                let _ = writeln!(out, "{line}");
            }
        }
        out
    }

    /// The table's rows. Resources of which nothing is encrypted are one, but for secrets.
    fn rows(&self) -> Vec<[String; 7]> {
        let kinds = self.sweep.tally.sorted();
        let encrypted = |resource: &str| {
            kinds.iter().any(|(kind, _)| kind.resource == resource && !kind.is_plain())
        };
        let mut rows = Vec::new();
        let mut plain: BTreeMap<&str, u64> = BTreeMap::new();
        for (kind, count) in &kinds {
            if kind.is_plain() && kind.resource != "secrets" && !encrypted(&kind.resource) {
                *plain.entry(kind.resource.as_str()).or_default() += count.objects;
            } else {
                rows.push(row(kind, count));
            }
        }
        let objects = plain.values().sum::<u64>();
        match plain.len() {
            0 => {}
            1 => {
                let resource = plain.keys().next().copied().unwrap_or_default();
                rows.push(plain_row(resource.to_owned(), objects));
            }
            n => rows.push(plain_row(format!("({n} more resources)"), objects)),
        }
        rows
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let Sweep { tally, revision, restarts, took, .. } = self.sweep;
        let kinds = tally.sorted();
        let counts: Vec<Value> = kinds
            .iter()
            .map(|(kind, count)| {
                json!({
                    "resource": kind.resource,
                    "objects": count.objects,
                    "provider": kind.provider,
                    "prefix": kind.prefix,
                    "api": kind.api.map(|api| api.as_str()),
                    "kek": named(kind),
                    "kek_is": is(kind),
                    "version": kind.version,
                    "key_id": kind.key_id,
                    "writer": kind.writer.map(|writer| writer.id()),
                    "examples": count.examples,
                })
            })
            .collect();
        let verdicts: Vec<Value> = self
            .verdicts
            .iter()
            .map(|verdict| {
                let count = |count: &Count| {
                    json!({
                        "objects": count.objects,
                        "examples": count.examples,
                    })
                };
                json!({
                    "old": verdict.old.to_string(),
                    "met": verdict.is_met(),
                    "on": count(&verdict.on),
                    "maybe": count(&verdict.maybe),
                    "shared": count(&verdict.shared),
                    "strangers": count(&verdict.strangers),
                    "unknown": count(&verdict.unknown),
                    "is_configured": verdict.is_configured,
                    "encrypts": verdict.encrypts,
                })
            })
            .collect();
        json!({
            "objects": tally.total(),
            "scope": self.scope,
            "revision": revision.0,
            "restarts": restarts,
            "seconds": took.as_secs_f64(),
            "counts": counts,
            "missing": self.missing,
            "backups_counted": false,
            "require_none_on": verdicts,
            "met": self.is_met(),
            "next": self.next,
        })
    }
}

fn named(kind: &Kind) -> Option<&str> {
    if let Kek::Named(name) = &kind.kek { Some(name) } else { None }
}

/// The KEK in one word, for programs.
const fn is(kind: &Kind) -> &'static str {
    match kind.kek {
        Kek::Named(_) => "named",
        Kek::Unnamed => "unnamed",
        Kek::Elsewhere => "elsewhere",
        Kek::None => "none",
        Kek::Unknown => "unknown",
    }
}

fn row(kind: &Kind, count: &Count) -> [String; 7] {
    let kek = match &kind.kek {
        Kek::Named(name) => name.clone(),
        Kek::Unnamed => "(not named)".to_owned(),
        Kek::Elsewhere => "(not of Vault)".to_owned(),
        Kek::None => "-".to_owned(),
        Kek::Unknown => "UNKNOWN".to_owned(),
    };
    let dash = || "-".to_owned();
    [
        kind.resource.clone(),
        HumanCount(count.objects).to_string(),
        kind.provider.clone(),
        kind.api.map_or_else(dash, |api| api.as_str().to_owned()),
        kek,
        kind.version.map_or_else(dash, |version| format!("v{version}")),
        kind.key_id.clone().unwrap_or_else(dash),
    ]
}

fn plain_row(resource: String, objects: u64) -> [String; 7] {
    let dash = || "-".to_owned();
    let objects = HumanCount(objects).to_string();
    [resource, objects, "identity".to_owned(), dash(), dash(), dash(), dash()]
}

/// Columns as wide as their widest cell; numbers to the right.
fn table(rows: &[[String; 7]]) -> String {
    let head = ["RESOURCE", "OBJECTS", "PROVIDER", "API", "KEK", "VERSION", "KEY_ID"];
    let head = head.map(str::to_owned);
    let mut widths = [0; 7];
    for row in std::iter::once(&head).chain(rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (n, (cell, width)) in row.iter().zip(widths).enumerate() {
            let _ = match n {
                1 => write!(line, "{cell:>width$}  "),
                _ => write!(line, "{cell:width$}  "),
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
