//! What a generation takes over from the one before. Nobody listens at the addresses here.

use super::*;
use crate::clock::UnixSeconds;
use crate::config::load::{self, Sources};
use crate::keyring::memory::Snapshot;
use crate::keyring::rotation::{Activation, SeenKey};

/// Two KEKs, `a` in cluster `one` and `b` in cluster `two`, changed by `variables`.
fn settings(variables: &[(&str, &str)]) -> Settings {
    let base = [
        ("KEY_NAMES", "[{name: a, cluster: one}, {name: b, cluster: two}]"),
        ("CLUSTERS__ONE__ADDR", "https://127.0.0.1:1"),
        ("CLUSTERS__ONE__AUTH__TOKEN", "s.one"),
        ("CLUSTERS__TWO__ADDR", "https://127.0.0.1:1"),
        ("CLUSTERS__TWO__AUTH__TOKEN", "s.two"),
    ];
    let kept = base.iter().filter(|(name, _)| variables.iter().all(|(n, _)| n != name));
    let environment = kept.chain(variables);
    let environment = environment.map(|(n, v)| (format!("VAULT_KMS_PROXY_{n}"), (*v).to_owned()));
    let sources = Sources { environment: environment.collect(), ..Sources::default() };
    load::load(&sources).unwrap_or_else(|problems| panic!("{problems}")).settings
}

fn build(settings: &Settings, previous: Option<&Generation>) -> Generation {
    let jitter = Arc::new(Jitter::off());
    let number = previous.map_or(1, |p| p.number() + 1);
    Generation::build(number, settings, previous, &State::default(), &jitter).unwrap()
}

fn names(keks: &[KekName]) -> Vec<&str> {
    keks.iter().map(KekName::as_str).collect()
}

#[tokio::test]
async fn what_is_new_must_answer_and_nothing_else() {
    let first = build(&settings(&[]), None);
    for (what, variable, clusters, keks) in [
        ("nothing", ("LOG__LEVEL", "debug"), 0, &[][..]),
        ("a token", ("CLUSTERS__ONE__AUTH__TOKEN", "s.other"), 1, &["a"]),
        ("an address", ("CLUSTERS__TWO__ADDR", "https://127.0.0.1:2"), 1, &["b"]),
        ("the delay", ("ROTATION__ACTIVATION_DELAY", "90s"), 0, &["a", "b"]),
        (
            "a pin",
            ("KEY_NAMES", "[{name: a, cluster: one, activeVersion: 3}, {name: b, cluster: two}]"),
            0,
            &["a"],
        ),
        (
            "the order",
            ("KEY_NAMES", "[{name: b, cluster: two}, {name: a, cluster: one}]"),
            0,
            &["b"],
        ),
    ] {
        let next = build(&settings(&[variable]), Some(&first));
        assert_eq!(next.new_clusters.len(), clusters, "{what}");
        let new = names(&next.new_keks);
        let all_new = keks.iter().all(|kek| new.contains(kek));
        assert!(all_new && new.iter().all(|kek| keks.contains(kek)), "{what}: {new:?}");
    }
}

#[tokio::test]
async fn a_kek_that_did_not_change_is_kept_whole_and_another_learns_for_itself() {
    let first = build(&settings(&[]), None);
    let changed = settings(&[("CLUSTERS__ONE__AUTH__TOKEN", "s.other")]);
    let next = build(&changed, Some(&first));
    let held = |generation: &Generation, name: &str| {
        let mut keks = generation.keks.iter();
        let found = keks.find(|(identity, _)| identity.name.as_str() == name);
        found.map(|(_, held)| held.clone()).unwrap()
    };
    assert!(Arc::ptr_eq(&held(&first, "b").kek, &held(&next, "b").kek));
    let (running, trial) = (held(&first, "a"), held(&next, "a"));
    assert!(!Arc::ptr_eq(&running.kek, &trial.kek));
    assert!(!Arc::ptr_eq(&running.memory, &trial.memory), "the trial would write into it");
}

#[tokio::test]
async fn a_key_id_does_not_go_back_when_the_order_of_a_keks_clusters_changes() {
    let of = |clusters: &str, more: &str| {
        settings(&[("KEY_NAMES", &format!("[{{name: a, clusters: [{clusters}]{more}}}]"))])
    };
    let known = Activation { version: 4, created: UnixSeconds(1) };
    let first = build(&of("one, two", ""), None);
    first.keks.values().next().unwrap().memory.with(|m| {
        m.key = SeenKey::remembered(Some(known), Some(known));
        m.active = Some(known);
        m.proofs.lose(4, "permission denied".into());
    });
    let next = build(&of("two, one", ""), Some(&first));
    let begins_with = |next: &Generation| next.memories()[0].1.snapshot();
    let active = Some(known);
    let expected = Snapshot { activated: active, active, ..Snapshot::default() };
    assert_eq!(begins_with(&next), expected, "without the loss, which is the other cluster's");
    for (clusters, more) in [("two, one", ", epoch: '2'"), ("two", ", transitKey: other")] {
        let other = build(&of(clusters, more), Some(&first));
        assert_eq!(begins_with(&other), Snapshot::default(), "{more}");
    }
}

#[tokio::test]
async fn a_kek_begins_with_what_an_earlier_process_remembered() {
    let activated = Some(Activation { version: 4, created: UnixSeconds(1) });
    let known = Snapshot { activated, active: activated, ..Snapshot::default() };
    let settings = settings(&[]);
    let remembered = State::knowing(&settings.keyring.keks[1], known.clone());
    let jitter = Arc::new(Jitter::off());
    let first = Generation::build(1, &settings, None, &remembered, &jitter).unwrap();
    let all: Vec<_> = first.memories().into_iter().map(|(_, m)| m.snapshot()).collect();
    assert_eq!(all, [Snapshot::default(), known]);
}
