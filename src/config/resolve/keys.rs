//! KEKs: which there are, in which order, and where each lives.

use std::collections::HashMap;
use std::sync::Arc;

use super::clusters::Cluster;
use super::report::Report;
use super::values::{self, shown, vault_path};
use crate::config::load::{Field, FileForm};
use crate::config::settings::{KekName, KekSettings, ReplicaSettings};

/// The list `keyNames`.
pub(super) fn keks(
    report: &mut Report<'_>,
    file: &Field<'_>,
    clusters: &[Cluster<'_>],
) -> Option<Vec<Arc<KekSettings>>> {
    let list = file.get("keyNames").filter(|list| !list.items().is_empty());
    let Some(list) = list else {
        report.missing(
            "keyNames",
            file.get("keyNames").and_then(|f| f.place()),
            "there is no key",
            "write the Transit key that encrypts: keyNames: [kube]",
        );
        return None;
    };
    let mut keks = Vec::new();
    let mut sound = true;
    let mut seen: HashMap<KekName, Field<'_>> = HashMap::new();
    for item in list.items() {
        let Some(kek) = kek(report, &item, clusters) else {
            sound = false;
            continue;
        };
        if let Some(first) = seen.get(&kek.name) {
            report.refuse_unless_oracle(
                &item,
                format!("the key `{}` stands in {} already", kek.name, first.path()),
                "give each entry its own name; two keys that Vault calls the same differ in \
                 `name` and share `transitKey`",
            );
            sound &= report.form == FileForm::Oracle;
            continue;
        }
        seen.insert(kek.name.clone(), item);
        keks.push(Arc::new(kek));
    }
    warn_of_unused(report, clusters, &keks, sound);
    sound.then_some(keks)
}

fn kek(report: &mut Report<'_>, item: &Field<'_>, clusters: &[Cluster<'_>]) -> Option<KekSettings> {
    let name_field = if item.is_block() {
        let Some(name) = item.get("name") else {
            report.missing(
                format!("{}.name", item.path()),
                item.place(),
                "the key has no name",
                "add `name`; it is written into every ciphertext and never changes",
            );
            return None;
        };
        name
    } else {
        item.clone()
    };
    let name = KekName::try_new(name_field.text());
    if let Err(error) = &name {
        let advice = "choose another `name`, and write Vault's own name for it in `transitKey`";
        report.error(&name_field, error.to_string(), advice);
    }
    let transit_key = match item.get("transitKey") {
        Some(field) => transit_key(report, &field),
        None => Some(name_field.text().to_owned()),
    };
    let active_version = item.get("activeVersion").map(|field| {
        report.warn(
            &field,
            "a pinned version does not follow rotations",
            "remove it when the emergency is over",
        );
        values::number(report, &field, 1..=u32::MAX)
    });
    let own_mount = mount(report, item);
    let namespace = item.get("namespace").map(|field| vault_path(report, &field));
    let clusters = clusters_of(report, item, clusters)?;
    let own_mount = match own_mount {
        Some(own) => Some(own?),
        None => None,
    };
    let namespace = match namespace {
        Some(own) => Some(own?),
        None => None,
    };
    let mut places = clusters.iter().map(|cluster| ReplicaSettings {
        mount: own_mount.clone().unwrap_or_else(|| cluster.transit.clone()),
        namespace: namespace.clone().or_else(|| cluster.namespace.clone()),
    });
    let ReplicaSettings { mount, namespace } = places.next()?;
    Some(KekSettings {
        name: name.ok()?,
        transit_key: transit_key?,
        mount,
        namespace,
        replicas: places.collect(),
        clusters: clusters.iter().map(|cluster| cluster.name.clone()).collect(),
        epoch: item.get("epoch").map(|field| field.text().to_owned()),
        active_version: match active_version {
            Some(pinned) => Some(pinned?),
            None => None,
        },
    })
}

/// `mount`, which may also be called `transitPath`; `None` outside when neither is there.
fn mount(report: &mut Report<'_>, item: &Field<'_>) -> Option<Option<String>> {
    match (item.get("mount"), item.get("transitPath")) {
        (Some(_), Some(alias)) => {
            report.error(&alias, "it means the same as `mount`, which is there too", "keep one");
            Some(None)
        }
        (Some(field), None) | (None, Some(field)) => Some(vault_path(report, &field)),
        (None, None) => None,
    }
}

fn transit_key(report: &mut Report<'_>, field: &Field<'_>) -> Option<String> {
    let text = field.text();
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let sound = text.starts_with(word)
        && text.ends_with(word)
        && text.chars().all(|c| word(c) || c == '-' || c == '.');
    if !sound {
        report.error(
            field,
            format!("`{}` cannot be the name of a Transit key", shown(text)),
            "write it as `vault list transit/keys` prints it",
        );
    }
    sound.then(|| text.to_owned())
}

/// The clusters that hold a KEK, in their order; not empty.
fn clusters_of<'c, 'a>(
    report: &mut Report<'_>,
    item: &Field<'_>,
    clusters: &'c [Cluster<'a>],
) -> Option<Vec<&'c Cluster<'a>>> {
    let list = match (item.get("cluster"), item.get("clusters")) {
        (Some(_), Some(list)) => {
            report.error(&list, "it means the same as `cluster`, which is there too", "keep one");
            return None;
        }
        (named, None) => return Some(vec![cluster_of(report, item, named, clusters)?]),
        (None, Some(list)) => list,
    };
    let items = list.items();
    if items.is_empty() {
        report.error(&list, "the list is empty", "write the cluster's name");
        return None;
    }
    let mut found: Vec<&Cluster<'_>> = Vec::with_capacity(items.len());
    let mut sound = true;
    for named in items {
        let Some(cluster) = cluster_of(report, item, Some(named.clone()), clusters) else {
            sound = false;
            continue;
        };
        if found.iter().any(|known| known.name == cluster.name) {
            let what = format!("the cluster `{}` stands here twice", cluster.name);
            report.error(&named, what, "name each cluster once, in the order of failover");
            sound = false;
        }
        found.push(cluster);
    }
    sound.then_some(found)
}

/// The cluster that is `named`, or the only one.
fn cluster_of<'c, 'a>(
    report: &mut Report<'_>,
    item: &Field<'_>,
    named: Option<Field<'_>>,
    clusters: &'c [Cluster<'a>],
) -> Option<&'c Cluster<'a>> {
    let names = || clusters.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ");
    let Some(field) = named else {
        if clusters.len() > 1 {
            report.missing(
                format!("{}.cluster", item.path()),
                item.place(),
                "there are several clusters, and the key does not say in which it lives",
                format!("write `{{ name: …, cluster: … }}` with one of {}", names()),
            );
            return None;
        }
        return clusters.first();
    };
    let wanted = field.text();
    let found = clusters.iter().find(|cluster| cluster.name.as_str() == wanted);
    if found.is_none() {
        let closest = clusters
            .iter()
            .map(|c| (strsim::damerau_levenshtein(c.name.as_str(), wanted), c.name.as_str()))
            .filter(|(distance, _)| *distance <= 2)
            .min();
        let advice = match closest {
            Some((_, name)) => format!("did you mean `{name}`?"),
            None if clusters.is_empty() => "add it under `clusters`".to_owned(),
            None => format!("write one of {}, or add it under `clusters`", names()),
        };
        report.error(&field, format!("there is no cluster `{}`", shown(wanted)), advice);
    }
    found
}

/// A cluster that no KEK uses is logged in to for nothing. When a KEK had a problem, it
/// may be the one that would have used it.
fn warn_of_unused(
    report: &mut Report<'_>,
    clusters: &[Cluster<'_>],
    keks: &[Arc<KekSettings>],
    all_sound: bool,
) {
    for cluster in clusters.iter().filter(|_| all_sound) {
        let used = keks.iter().any(|kek| kek.clusters.contains(&cluster.name));
        if let Some(block) = cluster.block.as_ref().filter(|_| !used) {
            report.warn(block, "no key uses this cluster", "remove it, or name it in a key");
        }
    }
}
