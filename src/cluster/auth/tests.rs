use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::clock::Deadline;
use crate::cluster::Verb;
use crate::cluster::testing::{
    self, BARE_403, ROLE_ID, Reply, SECRET_ID, Vault, app_role, decrypt, logged_in, ok, pass, soon,
};
use crate::config::settings::{
    AppRoleSettings, AuthSettings, ClusterSettings, SecretId, SecretSource,
};

#[tokio::test(start_paused = true)]
async fn a_login_names_role_and_secret_at_its_mount_and_nothing_else() {
    let (cluster, scripted, _) = logged_in(3_600, true);
    cluster.ready(soon()).await.unwrap();
    let seen = scripted.seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!((seen[0].verb, seen[0].method.as_str()), (Verb::Login, "POST"));
    assert_eq!(seen[0].path, "/v1/auth/approle/login");
    assert_eq!(seen[0].namespace.as_deref(), Some("ops"));
    assert_eq!(seen[0].token, None);
    assert_eq!(seen[0].body, format!(r#"{{"role_id":"{ROLE_ID}","secret_id":"{SECRET_ID}"}}"#));
    let state = cluster.token_state();
    assert!(state.has_token && state.is_proven && state.renewable);
    assert!(state.remaining().is_some_and(|left| left > Duration::from_secs(3_590)));
}

#[tokio::test(start_paused = true)]
async fn a_role_without_secret_id_sends_none() {
    let settings = AuthSettings::AppRole(AppRoleSettings {
        mount: "team a/approle".to_owned(),
        role_id: SecretSource::Inline("quoted\"role".into()),
        secret_id: SecretId::None,
    });
    let (cluster, scripted) = testing::cluster(settings, |_| testing::login("t1", 60, true));
    cluster.ready(soon()).await.unwrap();
    assert_eq!(scripted.seen()[0].path, "/v1/auth/team%20a/approle/login");
    assert_eq!(scripted.seen()[0].body, r#"{"role_id":"quoted\"role"}"#);
}

#[tokio::test(start_paused = true)]
async fn a_rejected_secret_id_is_not_tried_often_enough_to_lock_the_role_out() {
    let (cluster, scripted) = testing::cluster(app_role(), |_| {
        Reply::Http(400, r#"{"errors":["invalid role or secret ID"]}"#.to_owned())
    });
    for _ in 0..8 {
        let before = scripted.count(Verb::Login);
        pass(900).await;
        let tries = scripted.count(Verb::Login) - before;
        assert!(tries < 5, "{tries} in 15 minutes");
    }
    assert!(scripted.count(Verb::Login) >= 8, "it is never given up");
    let error = cluster.call(decrypt(), soon()).await.unwrap_err().to_string();
    assert!(error.contains("invalid role or secret ID"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_login_at_the_wrong_mount_says_so() {
    let (cluster, _) = testing::cluster(app_role(), |_| Reply::Http(403, BARE_403.to_owned()));
    let error = cluster.ready(soon()).await.unwrap_err().to_string();
    assert!(error.contains("check that the auth method is mounted"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_new_token_in_the_file_is_taken_and_a_worse_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let vault = Arc::new(Vault::default());
    vault.live.lock().unwrap().extend(["old".to_owned(), "new".to_owned()]);
    let answering = Arc::clone(&vault);
    std::fs::write(&path, "old\n").unwrap();
    let (cluster, scripted) =
        testing::cluster(AuthSettings::TokenFile(path.clone()), move |seen| {
            answering.answer(seen, 3_600, true)
        });
    let token_of_a_call = async || {
        cluster.call(decrypt(), Deadline::after(Duration::from_secs(30))).await.unwrap();
        scripted.seen().pop().unwrap().token.unwrap()
    };
    assert_eq!(token_of_a_call().await, "old");

    std::fs::write(&path, "dead").unwrap();
    pass(12).await;
    assert_eq!(token_of_a_call().await, "old");

    std::fs::write(folder.path().join("next"), "new\n").unwrap();
    std::fs::rename(folder.path().join("next"), &path).unwrap();
    pass(12).await;
    assert_eq!(token_of_a_call().await, "new");
}

#[tokio::test(start_paused = true)]
async fn a_refused_token_makes_the_file_be_read_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let vault = Arc::new(Vault::default());
    vault.live.lock().unwrap().insert("old".to_owned());
    let answering = Arc::clone(&vault);
    std::fs::write(&path, "old").unwrap();
    let (cluster, scripted) =
        testing::cluster(AuthSettings::TokenFile(path.clone()), move |seen| {
            answering.answer(seen, 3_600, true)
        });
    cluster.call(decrypt(), soon()).await.unwrap();
    pass(1).await;
    vault.revoke_all();
    vault.live.lock().unwrap().insert("new".to_owned());
    std::fs::write(&path, "new").unwrap();
    cluster.call(decrypt(), Deadline::after(Duration::from_secs(4))).await.unwrap();
    assert_eq!(scripted.seen().pop().unwrap().token.as_deref(), Some("new"));
}

#[tokio::test(start_paused = true)]
async fn files_that_hold_no_secret_are_named_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    for (path, says) in [
        (folder.path().join("missing"), "cannot read it: No such file"),
        (folder.path().to_owned(), "not a regular file"),
        (file("empty", b" \n"), "it is empty"),
        (file("binary", &[0xff, 0xfe, 0x00]), "it is not text"),
        (file("huge", &vec![b'a'; 70_000]), "too long for a secret"),
        (file("two", b"hvs.one\nhvs.two\n"), "holds white space"),
    ] {
        let shown = path.display().to_string();
        let (cluster, _) =
            testing::cluster(AuthSettings::TokenFile(path), |_| ok(r#"{"data":{}}"#));
        let error = cluster.ready(Deadline::after(Duration::from_secs(20))).await.unwrap_err();
        let error = error.to_string();
        assert!(error.contains(says), "{shown}: {error}");
        assert!(!error.contains("hvs."), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_secret_id_in_its_file_ends_the_wait_after_a_rejection() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret-id");
    std::fs::write(&path, "expired").unwrap();
    let settings = AuthSettings::AppRole(AppRoleSettings {
        mount: "approle".to_owned(),
        role_id: SecretSource::Inline(ROLE_ID.into()),
        secret_id: SecretId::Given(SecretSource::File(path.clone())),
    });
    let (cluster, scripted) = testing::cluster(settings, |seen| {
        if seen.body.contains("expired") {
            Reply::Http(400, r#"{"errors":["invalid role or secret ID"]}"#.to_owned())
        } else {
            testing::login("t", 3_600, true)
        }
    });
    cluster.ready(Deadline::after(Duration::from_secs(20))).await.unwrap_err();
    std::fs::write(&path, SECRET_ID).unwrap();
    cluster.ready(Deadline::after(Duration::from_secs(30))).await.unwrap();
    assert_eq!(scripted.count(Verb::Login), 3, "one, one soon after, and the good one");
}

/// AppRole with a secret id that `token` wraps.
fn wrapped(token: &str, kept_in: &std::path::Path) -> AuthSettings {
    AuthSettings::AppRole(AppRoleSettings {
        mount: "approle".to_owned(),
        role_id: SecretSource::Inline(ROLE_ID.into()),
        secret_id: SecretId::Wrapped {
            token: SecretSource::Inline(token.into()),
            kept_in: kept_in.to_owned(),
        },
    })
}

#[tokio::test(start_paused = true)]
async fn an_unwrapped_secret_id_outlives_its_cluster_and_a_new_token_that_nobody_can_look_at() {
    let folder = tempfile::tempdir().unwrap();
    let kept_in = folder.path().join("secret-id");
    let is_unwrapping = Arc::new(tokio::sync::Notify::new());
    let unwrapping = Arc::clone(&is_unwrapping);
    let (cluster, _) = testing::cluster(wrapped("w1", &kept_in), move |seen| match seen.verb {
        Verb::LookupWrapping => {
            ok(r#"{"data":{"creation_path":"auth/approle/role/kms/secret-id"}}"#)
        }
        Verb::Unwrap => {
            unwrapping.notify_one();
            ok(format!(r#"{{"data":{{"secret_id":"{SECRET_ID}"}}}}"#))
        }
        _ => testing::login("t1", 60, true),
    });
    is_unwrapping.notified().await;
    drop(cluster);
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let kept = std::fs::read_to_string(&kept_in).unwrap();
    assert!(kept.contains(SECRET_ID));

    let (cluster, scripted) = testing::cluster(wrapped("w2", &kept_in), |seen| match seen.verb {
        Verb::LookupWrapping => Reply::Unreachable,
        _ => testing::login("t1", 60, true),
    });
    cluster.ready(soon()).await.unwrap();
    assert_eq!(scripted.count(Verb::LookupWrapping), 1);
}

/// A Vault that unwraps each wrapping token once, and the unwraps that it was asked for.
fn unwraps_once(unwraps: &Arc<AtomicUsize>) -> impl Fn(&testing::Seen) -> Reply + use<> {
    let unwraps = Arc::clone(unwraps);
    move |seen| match seen.verb {
        Verb::LookupWrapping => {
            ok(r#"{"data":{"creation_path":"auth/approle/role/kms/secret-id"}}"#)
        }
        Verb::Unwrap if unwraps.fetch_add(1, Ordering::SeqCst) > 0 => Reply::Http(
            400,
            r#"{"errors":["wrapping token is not valid or does not exist"]}"#.into(),
        ),
        Verb::Unwrap => ok(format!(r#"{{"data":{{"secret_id":"{SECRET_ID}"}}}}"#)),
        _ => testing::login("t1", 60, true),
    }
}

#[tokio::test(start_paused = true)]
async fn two_that_keep_in_one_place_unwrap_once() {
    let folder = tempfile::tempdir().unwrap();
    let kept_in = folder.path().join("secret-id");
    // What a crash left.
    std::fs::write(folder.path().join("secret-id.1-1.new"), SECRET_ID).unwrap();
    let unwraps = Arc::new(AtomicUsize::new(0));
    let one = testing::cluster(wrapped("w1", &kept_in), unwraps_once(&unwraps)).0;
    let two = testing::cluster(wrapped("w1", &kept_in), unwraps_once(&unwraps)).0;
    one.ready(soon()).await.unwrap();
    two.ready(soon()).await.unwrap();
    assert_eq!(unwraps.load(Ordering::SeqCst), 1);
    let mut there: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    there.sort();
    assert_eq!(there, ["secret-id", "secret-id.lock"]);
}

#[tokio::test(start_paused = true)]
async fn while_another_process_unwraps_it_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let (theirs, ours) = (folder.path().join("theirs"), folder.path().join("ours"));
    let unwraps = Arc::new(AtomicUsize::new(0));
    let other = testing::cluster(wrapped("w1", &theirs), unwraps_once(&unwraps)).0;
    other.ready(soon()).await.unwrap();

    let lock = std::fs::File::create(folder.path().join("ours.lock")).unwrap();
    lock.lock().unwrap();
    let cluster = testing::cluster(wrapped("w1", &ours), unwraps_once(&unwraps)).0;
    pass(5).await;
    assert!(!cluster.token_state().has_token, "the lock was not heeded");
    std::fs::copy(&theirs, &ours).unwrap();
    drop(lock);
    cluster.ready(soon()).await.unwrap();
    assert_eq!(unwraps.load(Ordering::SeqCst), 1, "it was unwrapped by both");
}

#[tokio::test(start_paused = true)]
async fn a_kept_secret_id_is_not_shown_to_another_vault_or_role() {
    let folder = tempfile::tempdir().unwrap();
    let kept_in = folder.path().join("secret-id");
    let unwraps = Arc::new(AtomicUsize::new(0));
    testing::cluster(wrapped("w1", &kept_in), unwraps_once(&unwraps))
        .0
        .ready(soon())
        .await
        .unwrap();
    assert_eq!(unwraps.load(Ordering::SeqCst), 1);

    let same = testing::settings(wrapped("w1", &kept_in));
    let with = |change: fn(&mut ClusterSettings)| {
        let mut other = ClusterSettings::clone(&same);
        change(&mut other);
        Arc::new(other)
    };
    let elsewhere =
        |s: &mut ClusterSettings| s.addresses = vec!["https://x0:8200".parse().unwrap()];
    let others = [
        with(elsewhere),
        with(|s| s.auth_namespace = None),
        with(|s| {
            let AuthSettings::AppRole(role) = &mut s.auth else { panic!() };
            role.mount = "team".into();
        }),
        with(|s| {
            let AuthSettings::AppRole(role) = &mut s.auth else { panic!() };
            role.role_id = SecretSource::Inline("another".into());
        }),
    ];
    for other in others {
        let (cluster, scripted) = testing::cluster_of(other, unwraps_once(&unwraps));
        let error = cluster.ready(soon()).await.unwrap_err().to_string();
        assert!(
            error.contains("secret-id: the secret ID that is kept there was unwrapped for"),
            "{error}"
        );
        assert!(scripted.seen().is_empty(), "{:?}", scripted.seen());
    }

    // A cluster that gets another address is the same one, and a new token serves another.
    let grown = with(|s| s.addresses.push("https://b1:8200".parse().unwrap()));
    testing::cluster_of(grown, unwraps_once(&unwraps)).0.ready(soon()).await.unwrap();
    let mut other = ClusterSettings::clone(&with(elsewhere));
    other.auth = wrapped("w2", &kept_in);
    let unwrapped = Arc::new(AtomicUsize::new(0));
    let (cluster, _) = testing::cluster_of(Arc::new(other), unwraps_once(&unwrapped));
    cluster.ready(soon()).await.unwrap();
    assert_eq!((unwraps.load(Ordering::SeqCst), unwrapped.load(Ordering::SeqCst)), (1, 1));
}
