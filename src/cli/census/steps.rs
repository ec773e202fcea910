//! At which step of a move one is, and what comes next.
//!
//! What is known is one node's configuration and what etcd holds. So the words say what to see
//! to on the other nodes, and where two readings are possible, both are given.

use std::collections::BTreeSet;
use std::path::Path;

use indicatif::HumanCount;

use super::tally::{Kek, Kind, Tally};
use crate::config::settings::{KekSettings, RETIRED_BAO_KMS_PROVIDER, Settings};
use crate::stored::Api;

/// What a configuration says about keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Configured {
    /// The file, as it was named.
    pub(super) file: String,
    /// The names of `keyNames`, in order; never empty.
    pub(super) keks: Vec<String>,
    /// The names of `retired`.
    pub(super) retired: Vec<String>,
    /// Each name, and another that is or may be the same key of Vault.
    pub(super) twins: BTreeSet<(String, String)>,
}

/// Lines that end a census.
pub(super) type Lines = Vec<String>;

/// The steps of a move to `to`, from `from`.
struct Move<'a> {
    configured: &'a Configured,
    to: &'a str,
    from: String,
}

// === impl Configured ===

impl Configured {
    /// What the resolved configuration in `file` says.
    pub(super) fn of(file: &Path, settings: &Settings) -> Self {
        let keks = &settings.keyring.keks;
        let name = |kek: &KekSettings| kek.name.to_string();
        let mut twins = BTreeSet::new();
        for a in keks {
            for b in keks.iter().filter(|b| b.name != a.name && share(a, b)) {
                twins.insert((name(a), name(b)));
            }
            // Retired, the other one was perhaps called as Vault calls this one.
            if keks.iter().all(|kek| kek.name.as_str() != a.transit_key) {
                twins.insert((a.transit_key.clone(), name(a)));
            }
        }
        let retired = settings.reload.retired.iter();
        let retired = retired.filter(|name| name.as_str() != RETIRED_BAO_KMS_PROVIDER);
        Self {
            file: file.display().to_string(),
            keks: keks.iter().map(|kek| name(kek)).collect(),
            // Another plugin's names are no key that a move could end with.
            retired: retired.map(ToString::to_string).collect(),
            twins,
        }
    }

    /// Whether it has, or has had, a KEK of this name.
    pub(super) fn knows(&self, name: &str) -> bool {
        self.keks.iter().chain(&self.retired).any(|known| known == name)
    }

    /// Whether these two names are, or may be, the same key of Vault.
    pub(super) fn is_same(&self, name: &str, other: &str) -> bool {
        self.twins.iter().any(|(a, b)| a == name && b == other)
    }
}

/// Whether Vault has one key for both, in one of the clusters at least.
fn share(a: &KekSettings, b: &KekSettings) -> bool {
    let places = |kek: &KekSettings| -> Vec<KekSettings> {
        (0..kek.clusters.len()).map(|n| kek.in_cluster(n)).collect()
    };
    let b = places(b);
    let is_same = |a: &KekSettings, b: &KekSettings| {
        (&a.clusters, &a.namespace, &a.mount, &a.transit_key)
            == (&b.clusters, &b.namespace, &b.mount, &b.transit_key)
    };
    places(a).iter().any(|a| b.iter().any(|b| is_same(a, b)))
}

/// What comes next. `met` are the KEKs of which `--require-none-on` has just found none.
pub(super) fn next(configured: &Configured, tally: &Tally, met: &[&str]) -> Lines {
    let mut lines = strangers(configured, tally);
    if lines.is_empty() {
        lines = step(configured, tally, met);
    }
    lines.extend(old_api(tally));
    lines
}

/// The KEKs that objects need and the configuration does not have: nothing is more urgent.
fn strangers(configured: &Configured, tally: &Tally) -> Lines {
    let mut names = BTreeSet::new();
    for (kind, _) in tally.sorted() {
        if let Kek::Named(name) = &kind.kek
            && !configured.keks.contains(name)
        {
            names.insert(name.as_str());
        }
    }
    let line = |name: &str| {
        let count = tally.of(|kind| kind.is_on(name));
        format!(
            "WARNING: {} on `{name}`, which is not in keyNames of {}: daemons with this \
             configuration cannot decrypt them. Put it back as the last of keyNames and reload. \
             First of all: {}",
            are(count.objects),
            configured.file,
            count.examples.join(", ")
        )
    };
    names.into_iter().map(line).collect()
}

fn step(configured: &Configured, tally: &Tally, met: &[&str]) -> Lines {
    let primary = configured.keks[0].as_str();
    let others = &configured.keks[1..];
    let on = |name: &str| tally.of(|kind| kind.is_on(name)).objects;
    let unnamed = tally.of(|kind| kind.kek == Kek::Unnamed).objects;
    let used: Vec<&str> = others.iter().map(String::as_str).filter(|name| on(name) > 0).collect();

    if !used.is_empty() || unnamed > 0 {
        let from = if used.is_empty() { "another plugin".to_owned() } else { used.join(", ") };
        return Move { configured, to: primary, from }.rewrite(tally, &used, unnamed);
    }
    if on(primary) == 0 {
        return vec![
            "No object is encrypted with a key of Vault. Next: make the KMS provider the first of \
             the EncryptionConfiguration of every kube-apiserver, and then write the objects anew."
                .to_owned(),
        ];
    }
    let unknown = tally.of(|kind| kind.kek == Kek::Unknown);
    if unknown.objects > 0 {
        return vec![format!(
            "No key may go before it is known which one the {} of unknown form need, such as {}: see \
             `vault-kms-proxy inspect`.",
            objects(unknown.objects),
            unknown.examples.join(", ")
        )];
    }
    let mut lines = Vec::new();
    for name in others {
        let plan = Move { configured, to: primary, from: name.clone() };
        lines
            .extend(plan.unused(met.contains(&name.as_str()) || configured.retired.contains(name)));
    }
    for name in configured.retired.iter().filter(|name| !configured.keks.contains(name)) {
        lines.push(format!(
            "`{name}` is retired and no object is on it: step 5 of 5 is done on this node. {}",
            removal(configured, name)
        ));
    }
    lines.extend(rotation(configured, tally, primary));
    if lines.is_empty() {
        lines.push(format!("Every object is on {primary}. No move is under way."));
    }
    lines
}

fn removal(configured: &Configured, name: &str) -> String {
    let same = configured.twins.iter().filter(|(a, _)| a == name).map(|(_, b)| b.as_str());
    let same: Vec<&str> = same.collect();
    if !same.is_empty() {
        return format!(
            "The Transit key stays, unless that of {} is in another Vault: they are, or may be, one.",
            same.join(", ")
        );
    }
    format!(
        "When that is so on every node, the Transit key of {name} may go, but not before the last \
         backup of etcd that holds objects from before the move is gone too."
    )
}

// === impl Move ===

impl Move<'_> {
    fn steps(&self, here: usize, what: &str) -> Lines {
        let Self { configured, to, from } = self;
        let steps = [
            format!("{to} is in keyNames on every node"),
            format!("{to} is the first of them on every node"),
            format!("every object is written anew{what}"),
            format!("a census finds none on {from}"),
            format!("{from} is under `retired`, and gone from keyNames"),
        ];
        let keys = configured.keks.join(", ");
        let mut lines = vec![format!(
            "The move from {from} to {to}, by {} (keyNames: {keys}):",
            configured.file
        )];
        for (n, step) in steps.iter().enumerate() {
            let mark = match (n + 1).cmp(&here) {
                std::cmp::Ordering::Less => "done",
                std::cmp::Ordering::Equal => "HERE",
                std::cmp::Ordering::Greater => "    ",
            };
            lines.push(format!("  {mark}  {}. {step}", n + 1));
        }
        lines
    }

    fn rewrite(&self, tally: &Tally, used: &[&str], unnamed: u64) -> Lines {
        let mut left: Vec<String> = Vec::new();
        for name in used {
            let objects = tally.of(|kind| kind.is_on(name)).objects;
            left.push(format!("{} on {name}", HumanCount(objects)));
        }
        if unnamed > 0 {
            left.push(format!("{} name no key", HumanCount(unnamed)));
        }
        let mut lines = self.steps(3, &format!(": {} are left", left.join(" and ")));
        lines.push(format!(
            "Next: see that {} is the first on every other node too. When it has been so for three \
             minutes on the last one (a kube-apiserver may go on with the old key for so long), \
             write the objects anew:",
            self.to
        ));
        let wanted =
            |kind: &Kind| kind.kek == Kek::Unnamed || used.iter().any(|name| kind.is_on(name));
        lines.extend(commands(tally, wanted));
        let gates: Vec<String> =
            used.iter().map(|name| format!(" --require-none-on {name}")).collect();
        lines.push(match unnamed {
            0 => format!("and count again: vault-kms-proxy census{}", gates.concat()),
            _ => "and count again: every object should then name its key.".to_owned(),
        });
        lines
    }

    /// No object is on `from`, which is in keyNames.
    fn unused(&self, is_old: bool) -> Lines {
        let Self { configured, to, from } = self;
        let rest: Vec<&str> =
            configured.keks.iter().map(String::as_str).filter(|name| name != from).collect();
        let retire = format!(
            "write `retired: [{from}]` and `keyNames: [{}]` and reload on every node",
            rest.join(", ")
        );
        if is_old {
            let mut lines = self.steps(5, "");
            lines.push(format!("Next: {retire}. {}", removal(self.configured, from)));
            return lines;
        }
        let turned: Vec<&str> =
            std::iter::once(from.as_str()).chain(rest.iter().copied()).collect();
        vec![
            format!("No object is on {from}."),
            format!(
                "  If you move from {to} to it, step 1 of 5 is done on this node. Next: see that \
                 every node has it in keyNames, and then write `keyNames: [{}]` on every node and \
                 reload.",
                turned.join(", ")
            ),
            format!(
                "  If you have moved from it to {to}, step 4 of 5 is done. Next: {retire}. {}",
                removal(self.configured, from)
            ),
        ]
    }
}

/// Objects on versions of the only key that are older than the newest that one is on.
fn rotation(configured: &Configured, tally: &Tally, primary: &str) -> Lines {
    let kinds = tally.sorted();
    let versions = kinds.iter().filter(|(kind, _)| kind.is_on(primary));
    let Some(newest) = versions.filter_map(|(kind, _)| kind.version).max() else {
        return Vec::new();
    };
    let is_old =
        |kind: &Kind| kind.is_on(primary) && kind.version.is_some_and(|version| version < newest);
    let old = tally.of(is_old);
    if old.objects == 0 {
        return if configured.keks.len() > 1 || !configured.retired.is_empty() {
            Vec::new()
        } else {
            vec![format!("Every object is on {primary} v{newest}. No move is under way.")]
        };
    }
    let before = if newest == 2 { "v1".to_owned() } else { format!("v1-v{}", newest - 1) };
    let mut lines = vec![format!(
        "{} on versions of {primary} before v{newest}, the newest that an object is on. To move \
             them to the version that encrypts now, write them anew:",
        are(old.objects)
    )];
    lines.extend(commands(tally, is_old));
    lines.push(format!(
        "Before min_decryption_version is raised to {newest}: vault-kms-proxy census \
         --require-none-on {primary}:{before}, and no backup that needs an older one."
    ));
    lines
}

/// Objects that KMS v1 stores, where KMS v2 stores others.
fn old_api(tally: &Tally) -> Lines {
    let v1 = tally.of(|kind| kind.api == Some(Api::V1)).objects;
    let v2 = tally.of(|kind| kind.api == Some(Api::V2)).objects;
    if v1 == 0 || v2 == 0 {
        return Vec::new();
    }
    vec![format!(
        "KMS v1 stores {} and KMS v2 {}. With the v2 provider first in every \
         EncryptionConfiguration, objects that are written anew move to v2; the v1 provider may go \
         when this passes: vault-kms-proxy census --require-none-on k8s:enc:kms:v1",
        HumanCount(v1),
        HumanCount(v2)
    )]
}

/// The commands that write the objects of these kinds anew.
fn commands(tally: &Tally, wanted: impl Fn(&Kind) -> bool) -> Lines {
    let of = |is_v1: bool| -> Vec<&str> {
        let kinds = tally.sorted().into_iter().map(|(kind, _)| kind);
        let these = kinds.filter(|kind| wanted(kind) && (kind.api == Some(Api::V1)) == is_v1);
        let resources = these.map(|kind| kind.resource.as_str());
        let named: BTreeSet<&str> = resources.filter(|name| !name.starts_with('(')).collect();
        named.into_iter().collect()
    };
    let mut lines = Vec::new();
    let (v1, rest) = (of(true), of(false));
    if !rest.is_empty() {
        lines.push(format!(
            "    kubectl get {} --all-namespaces -o json | kubectl replace -f -",
            rest.join(",")
        ));
    }
    if !v1.is_empty() {
        lines.push(format!(
            "    kubectl annotate {} --all --all-namespaces --overwrite \
             vault-kms-proxy.io/rewritten=\"$(date +%s)\"",
            v1.join(",")
        ));
        lines.push(
            "    (With KMS v1, a kube-apiserver leaves out a write that changes nothing, so \
             something has to change.)"
                .to_owned(),
        );
    }
    lines
}

fn are(n: u64) -> String {
    format!("{} {}", objects(n), if n == 1 { "is" } else { "are" })
}

fn objects(n: u64) -> String {
    format!("{} object{}", HumanCount(n), if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests;
