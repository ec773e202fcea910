//! The token's life under paused time, without jitter, against a Vault by script.

use std::sync::atomic::Ordering;

mod recalled;
mod rehearsed;
mod renewed;

use super::*;
use crate::cluster::testing::{
    self, BARE_403, POLICY_403, Reply, Vault, app_role, decrypt, logged_in, ok, pass, soon,
    static_token,
};
use crate::cluster::{CallErrorKind, Verb};
use crate::config::settings::AuthSettings;

#[tokio::test(start_paused = true)]
async fn a_renewable_token_is_renewed_at_two_thirds_of_its_ttl() {
    let (cluster, scripted, _) = logged_in(90, true);
    cluster.ready(soon()).await.unwrap();
    pass(59).await;
    assert_eq!(scripted.count(Verb::RenewSelf), 0);
    pass(1).await;
    assert_eq!(scripted.count(Verb::RenewSelf), 1);
    assert_eq!(scripted.seen()[1].body, r#"{"increment":90}"#);
    pass(600).await;
    assert_eq!(scripted.count(Verb::RenewSelf), 11);
    assert_eq!(scripted.count(Verb::Login), 1);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_cannot_be_renewed_is_got_anew_at_two_thirds_of_its_ttl() {
    let (cluster, scripted, _) = logged_in(90, false);
    cluster.ready(soon()).await.unwrap();
    pass(59).await;
    assert_eq!(scripted.count(Verb::Login), 1);
    pass(1).await;
    assert_eq!((scripted.count(Verb::Login), scripted.count(Verb::RenewSelf)), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn near_its_max_ttl_a_token_is_got_anew_instead_of_renewed() {
    let (cluster, scripted) = testing::cluster(app_role(), |seen| match seen.verb {
        Verb::Login => testing::login("t", 90, true),
        _ => testing::login("t", 30, true), // capped
    });
    cluster.ready(soon()).await.unwrap();
    pass(60).await;
    assert_eq!((scripted.count(Verb::RenewSelf), scripted.count(Verb::Login)), (1, 1));
    pass(20).await;
    assert_eq!((scripted.count(Verb::RenewSelf), scripted.count(Verb::Login)), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_vault_refuses_is_followed_by_a_login() {
    let (cluster, scripted) = testing::cluster(app_role(), |seen| match seen.verb {
        Verb::Login => testing::login("t", 90, true),
        _ => Reply::Http(400, r#"{"errors":["lease is not renewable"]}"#.to_owned()),
    });
    cluster.ready(soon()).await.unwrap();
    pass(61).await;
    assert_eq!((scripted.count(Verb::RenewSelf), scripted.count(Verb::Login)), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_keeper_is_followed_by_a_login() {
    let (cluster, scripted) = testing::cluster(app_role(), |seen| match seen.verb {
        Verb::Login => testing::login("t", 90, true),
        _ => panic!("a bug"),
    });
    cluster.ready(soon()).await.unwrap();
    pass(62).await;
    assert_eq!((scripted.count(Verb::RenewSelf), scripted.count(Verb::Login)), (1, 2));
    assert!(cluster.token_state().is_proven);
}

#[tokio::test(start_paused = true)]
async fn an_outage_during_renewal_keeps_the_token_and_the_renewal_is_repeated() {
    let (cluster, scripted, vault) = logged_in(90, true);
    cluster.ready(soon()).await.unwrap();
    vault.down.store(true, Ordering::Relaxed);
    pass(65).await;
    let tries = scripted.count(Verb::RenewSelf);
    assert!((2..=4).contains(&tries), "{tries}");
    let state = cluster.token_state();
    assert!(state.has_token);
    assert!(state.last_error.unwrap().starts_with("renewal failed"));
    vault.down.store(false, Ordering::Relaxed);
    pass(4).await;
    assert_eq!(cluster.token_state().last_error, None);
    assert_eq!(scripted.count(Verb::Login), 1);
}

#[tokio::test(start_paused = true)]
async fn a_root_token_is_left_alone() {
    let (cluster, scripted) = testing::rooted(|_| ok(r#"{"data":{}}"#));
    cluster.ready(soon()).await.unwrap();
    pass(365 * 86_400).await;
    assert_eq!(scripted.seen().len(), 1);
    assert_eq!(cluster.token_state().lifetime, Lifetime::Unlimited);
}

#[tokio::test(start_paused = true)]
async fn an_absurd_ttl_overflows_nothing() {
    let (cluster, _) = testing::cluster(app_role(), |_| testing::login("t", u64::MAX, true));
    cluster.ready(soon()).await.unwrap();
    assert!(cluster.token_state().remaining().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_static_token_is_renewed_to_the_end_and_its_death_says_what_to_do() {
    let vault = Arc::new(Vault::default());
    vault.live.lock().unwrap().insert("static".to_owned());
    let answering = Arc::clone(&vault);
    let (cluster, scripted) =
        testing::cluster(static_token("static"), move |seen| answering.answer(seen, 90, true));
    cluster.ready(soon()).await.unwrap();
    pass(121).await;
    assert_eq!(scripted.count(Verb::RenewSelf), 2);

    vault.revoke_all();
    let error = cluster.call(decrypt(), soon()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "cluster bao: no token: Vault does not accept the token: it has expired or was revoked; \
         put another into the configuration and reload"
    );
    assert_eq!(scripted.count(Verb::Login), 0);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_may_not_look_at_itself_is_used_all_the_same() {
    let (cluster, scripted) = testing::cluster(static_token("static"), |seen| match seen.verb {
        Verb::LookupSelf => Reply::Http(403, POLICY_403.to_owned()),
        _ => ok(r#"{"data":{}}"#),
    });
    cluster.call(decrypt(), soon()).await.unwrap();
    assert_eq!(cluster.token_state().lifetime, Lifetime::Unknown);
    pass(86_400).await;
    assert_eq!(scripted.seen().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn while_nobody_answers_a_static_token_goes_with_calls_but_is_not_ready() {
    let vault = Arc::new(Vault::default());
    vault.live.lock().unwrap().insert("static".to_owned());
    vault.down.store(true, Ordering::Relaxed);
    let answering = Arc::clone(&vault);
    let (cluster, _) =
        testing::cluster(static_token("static"), move |seen| answering.answer(seen, 90, true));
    let error = cluster.call(decrypt(), soon()).await.unwrap_err();
    assert!(matches!(error.kind, CallErrorKind::Exhausted), "{error}");
    let error = cluster.ready(soon()).await.unwrap_err().to_string();
    assert!(error.contains("https://b0:8200: connection refused"), "{error}");
    vault.down.store(false, Ordering::Relaxed);
    cluster.call(decrypt(), soon()).await.unwrap();
    cluster.ready(Deadline::after(Duration::from_secs(6))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn tries_to_log_in_are_at_most_five_seconds_apart_while_nobody_answers() {
    let (_cluster, scripted, vault) = logged_in(90, true);
    vault.down.store(true, Ordering::Relaxed);
    pass(60).await;
    let tries = scripted.count(Verb::Login);
    assert!((12..=16).contains(&tries), "{tries}");
}

#[tokio::test(start_paused = true)]
async fn a_token_whose_time_is_up_is_not_sent_and_its_callers_get_the_next() {
    // The leader is away for longer than the token lives, so nodes answer 307 to everything
    // that is sent with it, and nobody can log in.
    let vault = Arc::new(Vault::default());
    let answering = Arc::clone(&vault);
    let (cluster, scripted) = testing::cluster(app_role(), move |seen| {
        let is_write = matches!(seen.verb, Verb::Login | Verb::RenewSelf);
        if answering.down.load(Ordering::Relaxed) && is_write {
            return Reply::Http(307, String::new());
        }
        match seen.verb {
            Verb::Decrypt => ok(r#"{"data":{}}"#),
            _ => testing::login("t", 90, true),
        }
    });
    cluster.ready(soon()).await.unwrap();
    vault.down.store(true, Ordering::Relaxed);
    pass(85).await;
    cluster.call(decrypt(), soon()).await.unwrap();
    pass(6).await;
    let sent = scripted.count(Verb::Decrypt);
    let error = cluster.call(decrypt(), soon()).await.unwrap_err().to_string();
    assert!(error.contains("no token: the last one has expired"), "{error}");
    assert!(!cluster.token_state().has_token);
    assert_eq!(scripted.count(Verb::Decrypt), sent);
    let waiting = tokio::spawn({
        let cluster = Arc::clone(&cluster);
        async move { cluster.call(decrypt(), Deadline::after(Duration::from_secs(8))).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    vault.down.store(false, Ordering::Relaxed);
    waiting.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_token_from_a_file_is_sent_past_the_end_that_we_know() {
    // Whoever writes the file may have renewed it.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "t1").unwrap();
    let (cluster, _) = testing::cluster(AuthSettings::TokenFile(path), |seen| match seen.verb {
        Verb::LookupSelf => testing::lookup(90, false),
        _ => ok(r#"{"data":{}}"#),
    });
    cluster.ready(soon()).await.unwrap();
    pass(100).await;
    cluster.call(decrypt(), soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_task_ends_with_the_last_user_of_the_cluster() {
    let (cluster, scripted, _) = logged_in(90, true);
    cluster.ready(soon()).await.unwrap();
    let other = Arc::clone(&cluster);
    drop(cluster);
    pass(61).await;
    assert_eq!(scripted.count(Verb::RenewSelf), 1);
    drop(other);
    pass(600).await;
    assert_eq!(scripted.count(Verb::RenewSelf), 1);
}
