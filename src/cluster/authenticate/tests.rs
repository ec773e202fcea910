use std::sync::atomic::Ordering;

use tokio::time::{Instant, sleep};

use super::*;
use crate::cluster::Verb;
use crate::cluster::testing::{
    self, BARE_403, POLICY_403, ROLE_ID, Reply, SECRET_ID, Seen, app_role, decrypt, logged_in, ok,
    pass, soon, static_token,
};

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_the_first_login_until_its_deadline() {
    let (cluster, scripted, vault) = logged_in(90, true);
    vault.down.store(true, Ordering::Relaxed);
    let began = Instant::now();
    let error = cluster.call(decrypt(), soon()).await.unwrap_err();
    assert!(matches!(&error.kind, CallErrorKind::NoToken(_)), "{error}");
    assert!(error.to_string().contains("connection refused"), "{error}");
    assert_eq!(began.elapsed().as_secs(), 3);
    vault.down.store(false, Ordering::Relaxed);
    cluster.call(decrypt(), Deadline::after(Duration::from_secs(6))).await.unwrap();
    assert!(scripted.count(Verb::Login) <= 5);
}

#[tokio::test(start_paused = true)]
async fn a_call_does_not_wait_for_a_login_that_is_not_due_before_its_deadline() {
    let (cluster, scripted) = testing::cluster(app_role(), |_| {
        Reply::Http(400, r#"{"errors":["invalid role or secret ID"]}"#.to_owned())
    });
    pass(5).await;
    for _ in 0..100 {
        let began = Instant::now();
        let error = cluster.call(decrypt(), soon()).await.unwrap_err();
        assert!(error.to_string().contains("invalid role or secret ID"), "{error}");
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
    assert_eq!(scripted.count(Verb::Login), 2, "one, and one soon after");
}

#[tokio::test(start_paused = true)]
async fn sixty_four_callers_with_a_revoked_token_make_one_login() {
    let (cluster, scripted, vault) = logged_in(3_600, true);
    cluster.ready(soon()).await.unwrap();
    pass(10).await;
    vault.revoke_all();
    let calls = (0..64).map(|_| cluster.call(decrypt(), soon()));
    for outcome in futures_util::future::join_all(calls).await {
        outcome.unwrap();
    }
    assert_eq!(scripted.count(Verb::Login), 2, "one at the start, one now");
    assert_eq!(scripted.count(Verb::LookupSelf), 1);
    assert_eq!(scripted.count(Verb::Decrypt), 128);
}

#[tokio::test(start_paused = true)]
async fn callers_spread_over_time_share_one_login_too() {
    let (cluster, scripted, vault) = logged_in(3_600, true);
    cluster.ready(soon()).await.unwrap();
    pass(10).await;
    vault.revoke_all();
    let calls = (0..64).map(|n| {
        let cluster = Arc::clone(&cluster);
        async move {
            sleep(Duration::from_micros(100 * n)).await;
            cluster.call(decrypt(), soon()).await
        }
    });
    for outcome in futures_util::future::join_all(calls).await {
        outcome.unwrap();
    }
    assert_eq!((scripted.count(Verb::Login), scripted.count(Verb::LookupSelf)), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_policy_denial_never_logs_in() {
    let (cluster, scripted) = testing::cluster(app_role(), |seen| match seen.verb {
        Verb::Login => testing::login("t", 3_600, true),
        _ => Reply::Http(403, POLICY_403.to_owned()),
    });
    for _ in 0..100 {
        let answer = cluster.call(decrypt(), soon()).await.unwrap();
        assert_eq!(answer.status, 403);
    }
    assert_eq!((scripted.count(Verb::Login), scripted.count(Verb::LookupSelf)), (1, 0));
    assert_eq!(scripted.count(Verb::Decrypt), 100);
}

#[tokio::test(start_paused = true)]
async fn a_bare_denial_with_a_live_token_is_looked_into_at_most_once_a_second() {
    let (cluster, scripted) = testing::cluster(app_role(), |seen| match seen.verb {
        Verb::Login => testing::login("t", 3_600, true),
        Verb::LookupSelf => testing::lookup(3_600, true),
        _ => Reply::Http(403, BARE_403.to_owned()),
    });
    cluster.ready(soon()).await.unwrap();
    pass(10).await;
    let began = Instant::now();
    for _ in 0..10 {
        let error = cluster.call(decrypt(), soon()).await.unwrap_err();
        assert!(matches!(error.kind, CallErrorKind::TokenRefused), "{error}");
    }
    let lookups = scripted.count(Verb::LookupSelf) as u64;
    assert!(lookups <= began.elapsed().as_secs() + 1, "{lookups} in {:?}", began.elapsed());
    assert_eq!(scripted.count(Verb::Login), 1);
    assert_eq!(scripted.count(Verb::Decrypt), 20, "each call is repeated once");
}

#[tokio::test(start_paused = true)]
async fn a_standby_that_does_not_know_a_new_token_yet_costs_no_login() {
    let born = Instant::now();
    let (cluster, scripted) = testing::cluster(app_role(), move |seen| match seen.verb {
        Verb::Login => testing::login("t", 3_600, true),
        _ if born.elapsed() < Duration::from_millis(126) => Reply::Http(403, BARE_403.to_owned()),
        _ => ok(r#"{"data":{}}"#),
    });
    cluster.call(decrypt(), soon()).await.unwrap();
    assert_eq!((scripted.count(Verb::Login), scripted.count(Verb::LookupSelf)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn tokens_that_die_at_once_are_not_got_faster_and_faster() {
    let (cluster, scripted) = testing::cluster(app_role(), |seen| match seen.verb {
        Verb::Login => testing::login("t", 3_600, true),
        _ => Reply::Http(403, BARE_403.to_owned()),
    });
    for _ in 0..40 {
        let _ = cluster.call(decrypt(), soon()).await;
    }
    let logins = scripted.count(Verb::Login);
    assert!(logins <= 12, "{logins} logins in two minutes");
}

#[tokio::test(start_paused = true)]
async fn no_secret_shows_in_errors_or_debug() {
    // A Vault that echoes what it was sent.
    let echo = |seen: &Seen| {
        let text = format!("refused {} for {:?}", seen.body, seen.token);
        Reply::Http(400, serde_json::json!({ "errors": [text] }).to_string())
    };
    let secret_token = "hvs.CAESIJsecretsecret1";
    for auth in [app_role(), static_token(secret_token)] {
        let (cluster, _) = testing::cluster(auth, echo);
        let error = cluster.call(decrypt(), soon()).await.unwrap_err();
        for shown in [
            error.to_string(),
            format!("{error:?}"),
            format!("{cluster:?}"),
            format!("{:?}", cluster.token_state()),
            format!("{:?}", cluster.settings()),
        ] {
            for secret in [ROLE_ID, SECRET_ID, secret_token] {
                assert!(!shown.contains(secret), "{shown}");
            }
        }
    }
}
