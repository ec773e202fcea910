use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn kek(name: &str) -> KekIdentity {
    KekIdentity {
        name: KekName::try_new(name).unwrap(),
        clusters: vec![ClusterName::try_new("default").unwrap()],
        namespace: Some("ops".into()),
        mount: "transit".into(),
        transit_key: "kube".into(),
    }
}

fn version(version: u32) -> Activation {
    Activation { version, created: UnixSeconds(1_767_225_600) }
}

#[test]
fn what_was_written_is_read_again_and_closed_to_others() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("made");
    assert!(read(&folder).is_empty());
    for latest in [3, 4] {
        let known = Activations::from([(kek("a"), version(latest)), (kek("b"), version(1))]);
        write(&folder, &known).unwrap();
        assert_eq!(read(&folder), known);
    }
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&folder), mode(&folder.join(FILE))), (0o700, 0o600));
    assert!(!folder.join(NEXT).exists());
}

#[test]
fn a_write_that_was_cut_off_is_no_hindrance() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(NEXT), "{\"form").unwrap();
    let known = Activations::from([(kek("a"), version(3))]);
    write(folder.path(), &known).unwrap();
    assert_eq!(read(folder.path()), known);
}

#[test]
fn a_file_that_cannot_be_understood_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let bad_name = r#"{"format":1,"keks":[{"name":"a:b","clusters":[],"namespace":null,
        "mount":"t","transitKey":"k","version":1,"created":1}]}"#;
    for text in ["", "\0\u{1}", "{\"format\":2,\"keks\":[]}", "[]", bad_name] {
        std::fs::write(folder.path().join(FILE), text).unwrap();
        assert!(read(folder.path()).is_empty(), "{text}");
    }
    assert!(write(&folder.path().join(FILE), &Activations::new()).is_err(), "a file, no folder");
}

#[tokio::test]
async fn the_file_follows_each_activation_and_survives_a_time_of_knowing_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let keeper = StateKeeper::start(path.clone());
    keeper.follow(vec![(kek("a"), Arc::new(KekMemory::with_activation(version(3))))]);
    wait(&path, &Activations::from([(kek("a"), version(3))])).await;
    keeper.follow(vec![(kek("a"), Arc::new(KekMemory::new()))]);
    keeper.follow(vec![(kek("b"), Arc::new(KekMemory::with_activation(version(9))))]);
    wait(&path, &Activations::from([(kek("b"), version(9))])).await;
}

async fn wait(folder: &Path, wanted: &Activations) {
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    while read(folder) != *wanted {
        assert!(tokio::time::Instant::now() < end, "{:?}", read(folder));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
