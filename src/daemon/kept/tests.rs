//! Which configuration a start takes.

use super::*;
use crate::clock::UnixSeconds;
use crate::daemon::state::replace;
use crate::keyring::memory::Snapshot;
use crate::keyring::rotation::Activation;

#[test]
fn the_folder_is_made_out_of_a_file_that_cannot_be_read_as_a_whole() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken.yaml");
    for (text, found) in [
        ("keyNames: [\nstateDir: /a/b # here\n", Some("/a/b")),
        ("a = \nstateDir = \"/a/b\"\n", Some("/a/b")),
        ("# stateDir: /a/b\n", None),
        ("stateDir: relative\n", None),
        ("stateDirs: /a\n", None),
    ] {
        std::fs::write(&file, text).unwrap();
        assert_eq!(written_folder(&file).as_deref(), found, "{text}");
    }
}

#[test]
fn the_folder_is_the_one_that_is_named_first_and_the_usual_ones_where_none_is() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("broken.yaml");
    std::fs::write(&file, "keyNames: [\nstateDir: /file\n").unwrap();
    let mut sources = Sources::default();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    sources.environment.push(pair("STATE_DIRECTORY", "/systemd:/other"));
    let usual = ["/systemd", USUAL_FOLDER].map(PathBuf::from);
    assert_eq!(folders(&sources, Path::new("/nowhere")), usual);
    assert_eq!(folders(&sources, &file), [PathBuf::from("/file")]);
    sources.environment.push(pair("VAULT_KMS_PROXY_STATE_DIR", "/variable"));
    assert_eq!(folders(&sources, &file), [PathBuf::from("/variable")]);
    sources.flags.state_dir = Some("/flag".into());
    assert_eq!(folders(&sources, &file), [PathBuf::from("/flag")]);
}

#[test]
fn what_others_could_have_written_or_another_file_made_is_not_used() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let (kept, file) = (folder.path().join(FILE), Path::new("/etc/vkp.yaml"));
    let text = format!("{}\nkeyNames: [kube]\n", head(file));
    replace(folder.path(), FILE, text.as_bytes()).unwrap();
    let mode = kept.metadata().unwrap().mode() & 0o777;
    assert_eq!(mode, 0o600);
    assert!(is_kept_of(&kept, file).unwrap());
    assert!(!is_kept_of(&kept, Path::new("/etc/other.yaml")).unwrap());
    std::fs::set_permissions(&kept, std::fs::Permissions::from_mode(0o620)).unwrap();
    assert!(!is_kept_of(&kept, file).unwrap());
}

/// A machine on which `kube` has answered and `[kube, old]` was accepted last.
struct Machine {
    folder: tempfile::TempDir,
    sources: Sources,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vkp.yaml");
        let socket = folder.path().join("kms.sock").display().to_string();
        let flags = load::Flags { socket: Some(socket), ..load::Flags::default() };
        let machine =
            Self { folder, sources: Sources { file: Some(file), flags, ..Sources::default() } };
        machine.write("keyNames: [kube, old]");
        let loaded = choose(&machine.sources).unwrap().loaded;
        machine.keep(&loaded);
        let newest = Some(Activation { version: 1, created: UnixSeconds(7) });
        machine.know(&loaded, Snapshot { newest, ..Snapshot::default() });
        machine
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn write(&self, keys: &str) {
        let state = self.state();
        let text = format!(
            "{keys}\naddr: https://127.0.0.1:1\nauth: {{ token: s.one }}\nstateDir: {}\n",
            state.display()
        );
        let file = self.sources.file.as_ref().unwrap();
        replace(self.folder.path(), "vkp.yaml", text.as_bytes()).unwrap();
        assert!(file.exists());
    }

    /// As the keeper does, but with the token that these tests log in with.
    fn keep(&self, loaded: &Loaded) {
        let file = self.sources.file.as_ref().unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        assert!(loaded.written.is_some());
        replace(&self.state(), FILE, format!("{}\n{text}", head(file)).as_bytes()).unwrap();
    }

    fn know(&self, loaded: &Loaded, snapshot: Snapshot) {
        State::knowing(&loaded.settings.keyring.keks[0], snapshot).write(&self.state()).unwrap();
    }

    /// The keys that a start with these `keys` in the file runs on, and what it has against
    /// the file.
    fn starts(&self, keys: &str) -> (String, Option<String>) {
        self.write(keys);
        let Chosen { loaded, fallback, .. } = choose(&self.sources).unwrap();
        let names: Vec<_> = loaded.settings.keyring.keks.iter().map(|k| k.name.as_str()).collect();
        let why = fallback.map(|fallback| match fallback.cause {
            Cause::Refused(problems) => one_line(&problems),
            Cause::Broken(problems) => panic!("{problems}"),
        });
        (names.join(" "), why)
    }
}

#[test]
fn a_start_refuses_what_a_reload_refuses() {
    let machine = Machine::new();
    for (keys, key) in [
        ("keyNames: [kube]", "the key `old` is gone"),
        ("keyNames: [new, kube, old]", "the key `new` would encrypt at once"),
        ("keyNames: [kubee, old]", "the key `kube` is gone"),
        ("keyNames: [new]\nretired: [kube, old]", "the key `new` would encrypt at once"),
    ] {
        let (names, why) = machine.starts(keys);
        assert_eq!(names, "kube old", "{keys}");
        let why = why.unwrap();
        assert!(why.contains(key) && why.contains("vkp.yaml:1:"), "{why}");
    }
    for (keys, names) in [
        ("keyNames: [kube, old, new]", "kube old new"),
        ("keyNames: [old, kube]", "old kube"),
        ("keyNames: [kube]\nretired: [old]", "kube"),
    ] {
        assert_eq!(machine.starts(keys), (names.to_owned(), None), "{keys}");
    }
}

#[test]
fn a_copy_says_nothing_where_no_key_of_it_has_answered_or_where_it_is_gone() {
    let only_new = "keyNames: [new]";
    let machine = Machine::new();
    assert!(machine.starts(only_new).1.is_some());
    // What cannot be read may have said so.
    std::fs::write(machine.state().join("state.json"), "\0\0").unwrap();
    assert!(machine.starts(only_new).1.is_some());
    // Vault knows no such key: the name was mistyped when the machine was set up.
    machine.write("keyNames: [kube]");
    let loaded = load::load(&machine.sources).unwrap();
    machine.know(&loaded, Snapshot { lost: Some("no such key".into()), ..Snapshot::default() });
    assert_eq!(machine.starts(only_new), ("new".to_owned(), None));

    let machine = Machine::new();
    std::fs::remove_file(machine.state().join("state.json")).unwrap();
    assert_eq!(machine.starts(only_new), ("new".to_owned(), None));

    let machine = Machine::new();
    std::fs::remove_file(machine.state().join(FILE)).unwrap();
    assert_eq!(machine.starts(only_new), ("new".to_owned(), None), "it is meant");
}

#[test]
fn a_copy_that_cannot_be_used_is_told_and_not_compared() {
    let machine = Machine::new();
    let head = head(machine.sources.file.as_ref().unwrap());
    let text = format!("{head}\nkeyNames: [kube, old]\naddr: nonsense\n");
    replace(&machine.state(), FILE, text.as_bytes()).unwrap();
    assert_eq!(machine.starts("keyNames: [kube]"), ("kube".to_owned(), None));
    let warnings = choose(&machine.sources).unwrap().loaded.warnings;
    let told = warnings.iter().any(|warning| warning.what.starts_with("the file was not compared"));
    assert!(told, "{warnings:?}");
}
