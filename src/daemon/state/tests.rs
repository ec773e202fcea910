use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::json;

use super::file::{FILE, NEXT};
use super::*;
use crate::clock::UnixSeconds;
use crate::config::settings::{ClusterName, KekName};
use crate::keyring::memory::Snapshot;
use crate::keyring::rotation::Activation;

fn kek(name: &str) -> KekSettings {
    KekSettings {
        name: KekName::try_new(name).unwrap(),
        transit_key: "kube".into(),
        mount: "transit".into(),
        namespace: Some("ops".into()),
        clusters: vec![ClusterName::try_new("default").unwrap()],
        replicas: Vec::new(),
        epoch: None,
        active_version: None,
    }
}

fn version(version: u32) -> Activation {
    Activation { version, created: UnixSeconds(1_767_225_600) }
}

fn snapshot(activated: u32) -> Snapshot {
    let active = Some(version(activated));
    let proven = Some(UnixSeconds(1_800_000_000));
    Snapshot { activated: active, active, newest: Some(version(activated + 1)), proven, lost: None }
}

fn state(known: &[(&KekSettings, Snapshot)]) -> State {
    let keks = known.iter().filter_map(|(kek, snapshot)| Entry::of(kek, snapshot.clone()));
    State { keks: keks.collect(), ..State::default() }
}

fn memory(snapshot: Snapshot) -> Arc<KekMemory> {
    Arc::new(KekMemory::restored(snapshot, UnixSeconds(1_800_000_001)))
}

#[test]
fn what_was_written_is_read_again_and_closed_to_others() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("made");
    assert_eq!(State::read(&folder), State::default());
    for latest in [3, 4] {
        let lost = Snapshot { lost: Some("gone".into()), ..snapshot(1) };
        let known = state(&[(&kek("a"), snapshot(latest)), (&kek("b"), lost.clone())]);
        known.write(&folder).unwrap();
        let read = State::read(&folder);
        assert_eq!(read, known);
        assert_eq!(read.of(&kek("a")), Some(snapshot(latest)));
        assert_eq!(read.of(&kek("b")), Some(lost));
        assert_eq!(read.of(&kek("c")), None);
    }
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&folder), mode(&folder.join(FILE))), (0o700, 0o600));
    assert!(!folder.join(NEXT).exists());
}

#[test]
fn what_is_known_of_a_key_is_not_believed_of_another() {
    let known = state(&[(&kek("a"), snapshot(3))]);
    assert!(known.of(&kek("a")).is_some());
    for other in [
        KekSettings { mount: "transit2".into(), ..kek("a") },
        KekSettings { transit_key: "kube2".into(), ..kek("a") },
        KekSettings { namespace: None, ..kek("a") },
        KekSettings { epoch: Some("2".into()), ..kek("a") },
        kek("b"),
    ] {
        assert_eq!(known.of(&other), None, "{other:?}");
    }
    // In another cluster it is not proven, nor lost, but its key_id must not go back.
    let elsewhere = KekSettings { clusters: vec![ClusterName::try_new("b").unwrap()], ..kek("a") };
    let active = Some(version(3));
    let named = Snapshot { activated: active, active, ..Snapshot::default() };
    assert_eq!(known.of(&elsewhere), Some(named));
    // Where it is pinned, and which replicas it has besides, makes no other key of it.
    let clusters = ["default", "b"].map(|name| ClusterName::try_new(name).unwrap());
    let same = KekSettings { active_version: Some(1), clusters: clusters.into(), ..kek("a") };
    assert!(known.of(&same).is_some());
}

#[test]
fn what_is_learnt_while_running_takes_the_place_of_what_was() {
    let there = KekSettings { clusters: vec![ClusterName::try_new("b").unwrap()], ..kek("a") };
    let mut known = state(&[(&kek("a"), snapshot(1)), (&kek("c"), snapshot(2))]);
    known.take_in(&vec![
        (Arc::new(kek("a")), memory(snapshot(5))),
        (Arc::new(there.clone()), memory(snapshot(6))),
        (Arc::new(kek("c")), Arc::new(KekMemory::new())),
    ]);
    assert_eq!(known.of(&kek("a")), Some(snapshot(5)));
    assert_eq!(known.of(&there), Some(snapshot(6)));
    assert_eq!(known.of(&kek("c")), Some(snapshot(2)), "nothing was learnt of it");
    assert_eq!(known.keks.len(), 3);
}

#[test]
fn a_changed_digit_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    state(&[(&kek("a"), snapshot(3))]).write(folder.path()).unwrap();
    let path = folder.path().join(FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    for (from, to) in [("\"version\": 3", "\"version\": 2"), ("1767225600", "1767225601")] {
        assert!(text.contains(from));
        std::fs::write(&path, text.replace(from, to)).unwrap();
        assert_eq!(State::read(folder.path()).of(&kek("a")), None, "{to}");
    }
}

#[test]
fn a_write_that_was_cut_off_is_no_hindrance() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(NEXT), "{\"form").unwrap();
    let known = state(&[(&kek("a"), snapshot(3))]);
    known.write(folder.path()).unwrap();
    assert_eq!(State::read(folder.path()), known);
}

#[test]
fn a_file_that_cannot_be_understood_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    state(&[(&kek("a"), snapshot(3))]).write(folder.path()).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert_eq!(State::read(folder.path()), State::default(), "cut at {length}");
    }
    for text in ["\0\u{1}", "[]", "{\"format\":1}", "{\"keks\":[]}"] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(State::read(folder.path()), State::default(), "{text}");
    }
    assert!(State::default().write(&path).is_err(), "a file, no folder");
}

#[test]
fn a_newer_form_is_refused_by_its_number_whatever_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    std::fs::write(&path, r#"{"format":2,"keks":"elsewhere"}"#).unwrap();
    let error = State::try_read(&path).unwrap_err().to_string();
    assert_eq!(error, "its format is 2, and this version reads 1");
}

#[tokio::test]
async fn the_file_follows_each_change_and_survives_a_time_of_knowing_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let keeper = StateKeeper::start(path.clone(), &State::default());
    let (a, b) = (Arc::new(kek("a")), Arc::new(kek("b")));
    keeper.follow(vec![(Arc::clone(&a), memory(snapshot(3)))]);
    wait(&path, &state(&[(&a, snapshot(3))])).await;
    keeper.follow(vec![(a, Arc::new(KekMemory::new()))]);
    let last = memory(snapshot(9));
    keeper.follow(vec![(Arc::clone(&b), Arc::clone(&last))]);
    wait(&path, &state(&[(&b, snapshot(9))])).await;
    last.with(|m| m.proofs.lose(9, "gone".into()));
    wait(&path, &state(&[(&b, Snapshot { lost: Some("gone".into()), ..snapshot(9) })])).await;
}

#[tokio::test]
async fn sections_of_other_parts_are_carried_along_and_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let mut earlier = state(&[(&kek("a"), snapshot(2))]);
    earlier.sections = [("old".to_owned(), json!([1])), ("other".to_owned(), json!(1))].into();
    earlier.write(&path).unwrap();

    let earlier = State::read(&path);
    assert_eq!(earlier.section("old"), Some(&json!([1])));
    let keeper = StateKeeper::start(path.clone(), &earlier);
    keeper.put("other", json!({ "n": 2 }));
    keeper.follow(vec![(Arc::new(kek("a")), memory(snapshot(3)))]);
    let mut wanted = state(&[(&kek("a"), snapshot(3))]);
    wanted.sections =
        [("old".to_owned(), json!([1])), ("other".to_owned(), json!({ "n": 2 }))].into();
    wait(&path, &wanted).await;
}

#[tokio::test]
async fn proofs_alone_are_written_every_half_minute() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let keeper = StateKeeper::start(path.clone(), &State::default());
    let kek = Arc::new(kek("a"));
    let proven = memory(snapshot(3));
    keeper.follow(vec![(Arc::clone(&kek), Arc::clone(&proven))]);
    wait(&path, &state(&[(&kek, snapshot(3))])).await;
    let prove = |second| proven.with(|m| m.proofs.prove(Instant::now(), UnixSeconds(second)));
    let later = |second| Snapshot { proven: Some(UnixSeconds(second)), ..snapshot(3) };
    tokio::time::pause();
    prove(1_800_000_010);
    tokio::time::sleep(PROOFS_EVERY / 2).await;
    assert_eq!(State::read(&path), state(&[(&kek, snapshot(3))]));
    prove(1_800_000_020);
    tokio::time::sleep(PROOFS_EVERY).await;
    tokio::time::resume();
    wait(&path, &state(&[(&kek, later(1_800_000_020))])).await;
}

#[tokio::test]
async fn the_last_proof_is_written_when_the_process_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let keeper = StateKeeper::start(path.clone(), &State::default());
    let kek = Arc::new(kek("a"));
    let proven = memory(snapshot(3));
    keeper.follow(vec![(Arc::clone(&kek), Arc::clone(&proven))]);
    wait(&path, &state(&[(&kek, snapshot(3))])).await;
    let last = UnixSeconds(1_800_000_020);
    proven.with(|m| m.proofs.prove(Instant::now(), last));
    keeper.finish().await;
    let later = Snapshot { proven: Some(last), ..snapshot(3) };
    assert_eq!(State::read(&path), state(&[(&kek, later)]));
    // Nothing known is nothing to say, at the end too.
    StateKeeper::start(path.clone(), &State::default()).finish().await;
    assert!(State::read(&path).of(&kek).is_some());
}

async fn wait(folder: &Path, wanted: &State) {
    let end = Instant::now() + Duration::from_secs(10);
    while State::read(folder) != *wanted {
        assert!(Instant::now() < end, "{:?}", State::read(folder));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn another_version_that_encrypts_is_written_at_once_and_other_news_after_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let known = memory(snapshot(1));
    let a = Arc::new(kek("a"));
    let keeper = StateKeeper::start(folder.path().to_owned(), &State::default());
    keeper.follow(vec![(Arc::clone(&a), Arc::clone(&known))]);
    wait(folder.path(), &state(&[(&a, snapshot(1))])).await;

    let began = Instant::now();
    let news = Snapshot { lost: Some("gone".into()), ..snapshot(1) };
    known.with(|m| m.key.lose("gone".into()));
    wait(folder.path(), &state(&[(&a, news)])).await;
    assert!(began.elapsed() >= GAP - Duration::from_millis(100), "{:?}", began.elapsed());

    let began = Instant::now();
    known.with(|m| m.active = Some(version(2)));
    eventually_is(folder.path(), 2).await;
    assert!(began.elapsed() < GAP / 2, "{:?}", began.elapsed());
}

/// Waits until the file says that this version of the one key encrypts.
async fn eventually_is(folder: &Path, number: u32) {
    while State::read(folder).of(&kek("a")).and_then(|s| s.active) != Some(version(number)) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
