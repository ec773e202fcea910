use super::super::tally::tests::v1;
use super::*;

const SECRETS: &str = "/registry/secrets/a/";

fn tally(ciphers: &[&str]) -> Tally {
    let mut tally = Tally::default();
    for (n, cipher) in ciphers.iter().enumerate() {
        let key = format!("{SECRETS}{n}");
        tally.add(key.as_bytes(), &v1("vault", cipher), "/registry/");
    }
    tally
}

fn told(keks: &[&str], retired: &[&str], ciphers: &[&str], met: &[&str]) -> String {
    let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let configured = Configured {
        file: "vkp.yaml".into(),
        keks: texts(keks),
        retired: texts(retired),
        twins: [("again".to_owned(), "new".to_owned())].into(),
    };
    next(&configured, &tally(ciphers), met).join("\n")
}

#[test]
fn objects_on_a_key_that_is_not_configured_come_before_everything_else() {
    let told = told(&["new"], &[], &["new:v1:AA", "old:v1:AA"], &[]);
    assert!(told.starts_with("WARNING: 1 object is on `old`, which is not in keyNames"), "{told}");
    assert!(told.contains("/registry/secrets/a/1") && !told.contains("step"), "{told}");
}

#[test]
fn a_key_that_nothing_is_on_is_new_or_old_and_both_are_said() {
    let told = told(&["old", "new"], &[], &["old:v1:AA"], &[]);
    assert!(told.contains("If you move from old to it, step 1 of 5 is done"), "{told}");
    assert!(told.contains("`keyNames: [new, old]` on every node"), "{told}");
    assert!(told.contains("If you have moved from it to old, step 4 of 5"), "{told}");
}

#[test]
fn objects_left_on_the_old_key_are_written_anew_by_the_commands_that_fit() {
    let told = told(&["new", "old"], &[], &["old:v1:AA", "old:v1:BB", "new:v1:AA"], &[]);
    assert!(told.contains("HERE  3. every object is written anew: 2 on old are left"), "{told}");
    let annotate = "kubectl annotate secrets --all --all-namespaces --overwrite";
    assert!(told.contains(annotate) && !told.contains("kubectl replace"), "{told}");
    assert!(told.ends_with("vault-kms-proxy census --require-none-on old"), "{told}");
}

#[test]
fn when_none_is_left_the_old_key_is_retired() {
    for (met, retired) in [(&["old"][..], &[][..]), (&[], &["old"])] {
        let told = told(&["new", "old"], retired, &["new:v1:AA"], met);
        assert!(told.contains("HERE  5. old is under `retired`"), "{told}");
        assert!(told.contains("write `retired: [old]` and `keyNames: [new]`"), "{told}");
        assert!(told.contains("backup of etcd"), "{told}");
    }
    let told = told(&["new"], &["old"], &["new:v1:AA"], &[]);
    assert!(told.contains("`old` is retired and no object is on it: step 5 of 5"), "{told}");
}

#[test]
fn no_key_may_go_while_an_object_cannot_be_read() {
    let told = told(&["new", "old"], &["old"], &["new:v1:AA", "damaged"], &[]);
    assert!(told.starts_with("No key may go before it is known which one the 1 object"), "{told}");
    assert!(!told.contains("reload on every node"), "{told}");
}

#[test]
fn objects_that_name_no_key_came_from_another_plugin() {
    let told = told(&["kube"], &[], &["vault:v1:AA", "kube:v1:AA"], &[]);
    assert!(told.contains("The move from another plugin to kube"), "{told}");
    assert!(told.contains("1 name no key are left"), "{told}");
}

#[test]
fn after_a_rotation_the_older_versions_are_told() {
    let told = told(&["kube"], &[], &["kube:v1:AA", "kube:v2:AA", "kube:v3:AA"], &[]);
    assert!(told.contains("2 objects are on versions of kube before v3"), "{told}");
    assert!(told.contains("--require-none-on kube:v1-v2"), "{told}");
    let settled = self::told(&["kube"], &[], &["kube:v3:AA"], &[]);
    assert_eq!(settled, "Every object is on kube v3. No move is under way.");
}

#[test]
fn without_any_object_there_is_nothing_to_move() {
    let told = told(&["kube"], &[], &[], &[]);
    assert!(told.starts_with("No object is encrypted with a key of Vault."), "{told}");
}

#[test]
fn a_transit_key_that_another_name_has_too_never_may_go() {
    for (keks, retired) in [(&["new", "again"][..], &["again"]), (&["new"], &["again"])] {
        let told = told(keks, retired, &["new:v1:AA"], &["again"]);
        assert!(told.contains("The Transit key stays, unless that of new is in another"), "{told}");
        assert!(!told.contains("may go"), "{told}");
    }
}
