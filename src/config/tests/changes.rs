//! From one configuration to the next.

use std::collections::BTreeSet;

use super::*;
use crate::config::change::{differences, needs_restart, unsafe_keys};
use crate::config::settings::KekName;
use crate::config::{Outline, Problem};

const BASE: &str = "keyNames: [kube, old]\naddr: https://v:8200\ntokenFile: /t\n";

fn outline(text: &str) -> Outline {
    Outline::of(&Case::yaml(text).accepted().settings)
}

/// What a reload from `before` to `after` is refused for.
#[track_caller]
fn refused(before: &str, after: &str) -> Vec<String> {
    let case = Case::yaml(after);
    let loaded = case.accepted();
    let (before, after) = (outline(before), Outline::of(&loaded.settings));
    let retired: BTreeSet<&str> =
        loaded.settings.reload.retired.iter().map(KekName::as_str).collect();
    let mut problems = needs_restart(&before, &after, &loaded.places);
    problems.extend(unsafe_keys(&before, &after, &retired, &loaded.places));
    problems.iter().map(Problem::one_line).map(|line| case.without_folder(&line)).collect()
}

#[test]
fn a_key_goes_only_when_it_is_retired() {
    let without = BASE.replace("[kube, old]", "[kube]");
    assert_eq!(
        refused(BASE, &format!("# moved\n{without}")),
        ["vkp.yaml:2:1: keyNames: the key `old` is gone, and what it encrypted could not be read \
          any more; put it back at the end; or, when nothing in etcd and no backup needs it, write \
          `retired: [old]`"]
    );
    assert_eq!(refused(BASE, &format!("{without}retired: [old]\n")), [""; 0]);
    assert_eq!(refused(BASE, &format!("{BASE}retired: [old]\n")), [""; 0], "on its way out");
    // Under the same name it may be reached in another way.
    let moved = BASE.replace("https://v", "https://w");
    assert_eq!(refused(BASE, &moved), [""; 0]);
}

#[test]
fn the_names_of_another_plugin_go_only_when_they_are_retired() {
    let names = "providerName: p, clusterId: c, instanceId: i";
    let with = |names: &str| format!("{BASE}legacy: {{ baoKmsProvider: {{ {names} }} }}\n");
    let before = with(names);
    assert_eq!(
        refused(&before, BASE),
        ["vkp.yaml: legacy.baoKmsProvider: it is gone, and what bao-kms-provider wrote could not \
          be read any more; put it back; or, when nothing in etcd and no backup needs it, write \
          `retired: [legacy.baoKmsProvider]`"]
    );
    // What is left of `legacy` is shown, when something is.
    let told = refused(&before, &format!("{BASE}legacy: {{ key: old }}\n"));
    assert!(told[0].starts_with("vkp.yaml:4:1: legacy.baoKmsProvider: it is gone"), "{told:?}");
    let other = with(&names.replace("clusterId: c", "clusterId: d"));
    let told = refused(&before, &other);
    assert_eq!(told.len(), 1, "{told:?}");
    let part = "vkp.yaml:4:57: legacy.baoKmsProvider.clusterId: it changes from c to d, and what";
    assert!(told[0].starts_with(part), "{told:?}");
    for after in [BASE, &other, &before] {
        let after = format!("{after}retired: [legacy.baoKmsProvider]\n");
        assert_eq!(refused(&before, &after), [""; 0]);
    }
    assert_eq!(refused(BASE, &before), [""; 0], "there was nothing to lose");
}

#[test]
fn another_legacy_key_only_changes_who_is_asked_first() {
    let with = |key: &str| format!("{BASE}legacy: {{ key: {key} }}\n");
    assert_eq!(refused(&with("old"), &with("kube")), [""; 0]);
    assert_eq!(refused(&with("old"), BASE), [""; 0]);
}

#[test]
fn a_key_decrypts_before_it_encrypts() {
    let new_first = BASE.replace("[kube, old]", "[new, kube, old]");
    assert_eq!(
        refused(BASE, &new_first),
        ["vkp.yaml:1:12: keyNames[0]: the key `new` would encrypt at once, and the daemons of \
          other nodes may not know it yet; write it last (keyNames: [kube, old, new]) and reload \
          on every node; then move it to the front."]
    );
    let new_last = BASE.replace("[kube, old]", "[kube, old, new]");
    assert_eq!(refused(BASE, &new_last), [""; 0]);
    assert_eq!(refused(&new_last, &new_first), [""; 0]);
    // A name that was mistyped is both: gone, and new.
    assert_eq!(refused(BASE, &BASE.replace("[kube,", "[kubee,")).len(), 2);
}

#[test]
fn the_key_that_encrypts_cannot_be_retired() {
    let text = Case::yaml(&format!("{BASE}retired: [old, kube]\n")).refused();
    let told = "vkp.yaml:4:16: error: retired[1]: `kube` is the first of keyNames, so it encrypts";
    assert!(text.contains(told), "{text}");
}

#[test]
fn what_only_a_restart_changes_is_refused_by_name_and_place() {
    let changed = format!(
        "{BASE}statusVersion: v2beta1\nstateDir: /var/lib/x\ncalls: {{ maxConcurrent: 7 }}\n"
    );
    let told = refused(BASE, &changed);
    for part in [
        "vkp.yaml:4:16: statusVersion: it cannot change while the daemon runs, from v2 to v2beta1; ",
        "vkp.yaml:5:11: stateDir: it cannot change while the daemon runs, from nothing to /var/lib/x; ",
        "vkp.yaml:6:25: calls.maxConcurrent: it cannot change while the daemon runs, from 1024 to 7; ",
    ] {
        assert!(told.iter().any(|line| line.starts_with(part)), "{part}\n{told:#?}");
    }
    assert_eq!(told.len(), 3);
    // What was taken out stands nowhere: the file is named.
    assert!(refused(&changed, BASE)[0].starts_with("vkp.yaml: statusVersion: "));
}

#[test]
fn differences_are_told_by_key() {
    let before =
        "keyNames: [kube, old]\nclusters: { bao: { addr: https://b, auth: { token: s.x } } }\n";
    let after = "keyNames: [old, { name: new, epoch: 2 }, kube]\nlog: { level: debug }\n\
                 clusters: { bao: { addr: [https://b, https://c], auth: { tokenFile: /t } } }\n";
    assert_eq!(
        differences(&outline(before), &outline(after)),
        [
            "keyNames: old encrypts, and no longer kube",
            "keyNames: + new",
            "clusters.bao.addr: https://b/ -> https://b/, https://c/",
            "clusters.bao.auth: token (not shown) -> tokenFile /t",
            "log.level: info -> debug",
        ]
    );
    assert_eq!(differences(&outline(after), &outline(after)), [""; 0]);
    let [three, turned] = ["[a, b, c]", "[a, c, b]"].map(|keys| BASE.replace("[kube, old]", keys));
    let order = differences(&outline(&three), &outline(&turned));
    assert_eq!(order, ["keyNames: the order a, b, c -> a, c, b"]);
    let gone = differences(&outline(BASE), &outline(&BASE.replace("kube, old", "kube")));
    assert_eq!(gone, ["keyNames: - old"]);
}

#[test]
fn an_outline_holds_no_secret_and_survives_the_wire() {
    let text = "keyNames: [k]\nclusters:\n  a: { addr: https://a, auth: { token: s.hidden } }\n  \
         b: { addr: https://b, auth: { appRole: { roleID: r.hidden, secretID: x.hidden } } }\n  \
         c: { addr: https://c, auth: { userpass: { username: u, password: p.hidden } } }\n"
        .replace("keyNames: [k]", "keyNames: [{ name: k, cluster: a }]");
    let outline = outline(&text);
    let json = serde_json::to_string(&outline).unwrap();
    assert!(!json.contains("hidden"), "{json}");
    assert!(outline.has_unseen());
    assert_eq!(serde_json::from_str::<Outline>(&json).unwrap(), outline);
}
