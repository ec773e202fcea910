//! Renewals where a login is no way out.

use std::sync::atomic::AtomicBool;

use super::*;

/// The token `t1` is still the one that goes with calls, and only one login succeeded.
async fn serves_with_the_first(cluster: &crate::cluster::Cluster, scripted: &testing::Scripted) {
    cluster.call(decrypt(), soon()).await.unwrap();
    let last = scripted.seen().pop().unwrap();
    assert_eq!(last.token.as_deref(), Some("t1"));
}

#[tokio::test(start_paused = true)]
async fn after_a_long_outage_a_token_is_renewed_when_the_secret_id_is_used_up() {
    let (cluster, scripted, vault) = logged_in(90, true);
    cluster.ready(soon()).await.unwrap();
    vault.rejects.store(true, Ordering::Relaxed);
    vault.down.store(true, Ordering::Relaxed);
    pass(80).await;
    vault.down.store(false, Ordering::Relaxed);
    pass(8).await;
    assert_eq!(cluster.token_state().last_error, None);
    pass(600).await;
    serves_with_the_first(&cluster, &scripted).await;
    let logins = scripted.count(Verb::Login);
    pass(600).await;
    assert_eq!(scripted.count(Verb::Login), logins, "renewals go on by themselves");
}

#[tokio::test(start_paused = true)]
async fn renewals_are_repeated_during_the_long_pause_after_a_rejected_login() {
    let (renewals, vault) = (Arc::new(std::sync::atomic::AtomicU64::new(0)), Vault::default());
    let counted = Arc::clone(&renewals);
    let (cluster, scripted) = testing::cluster(app_role(), move |seen| match seen.verb {
        Verb::RenewSelf if (1..=4).contains(&(counted.fetch_add(1, Ordering::Relaxed) + 1)) => {
            vault.rejects.store(true, Ordering::Relaxed);
            Reply::Http(400, r#"{"errors":["not now"]}"#.to_owned())
        }
        _ => vault.answer(seen, 90, true),
    });
    cluster.ready(soon()).await.unwrap();
    pass(600).await;
    serves_with_the_first(&cluster, &scripted).await;
    assert!(renewals.load(Ordering::Relaxed) > 9);
    let why = cluster.token_state().rehearsal_error.unwrap();
    assert!(why.contains("invalid role or secret ID"), "{why}");
    assert_eq!(scripted.count(Verb::Login), 3, "no role is locked out");
}

#[tokio::test(start_paused = true)]
async fn a_token_at_its_max_ttl_is_not_renewed_in_place_of_a_login() {
    let vault = Vault::default();
    let (cluster, scripted) = testing::cluster(app_role(), move |seen| match seen.verb {
        Verb::RenewSelf => {
            vault.rejects.store(true, Ordering::Relaxed);
            testing::login("t1", 30, true)
        }
        _ => vault.answer(seen, 90, true),
    });
    cluster.ready(soon()).await.unwrap();
    pass(95).await;
    assert_eq!(scripted.count(Verb::RenewSelf), 1);
    assert!(!cluster.token_state().has_token);
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_keeper_does_not_end_a_token_that_can_be_renewed() {
    let (vault, has_panicked) = (Vault::default(), AtomicBool::new(false));
    let (cluster, scripted) = testing::cluster(app_role(), move |seen| match seen.verb {
        Verb::RenewSelf if !has_panicked.swap(true, Ordering::Relaxed) => {
            vault.rejects.store(true, Ordering::Relaxed);
            panic!("a bug")
        }
        _ => vault.answer(seen, 90, true),
    });
    cluster.ready(soon()).await.unwrap();
    pass(600).await;
    serves_with_the_first(&cluster, &scripted).await;
}

#[tokio::test(start_paused = true)]
async fn a_configured_token_is_renewed_though_vault_refused_it_once() {
    let (vault, has_refused) = (Vault::default(), AtomicBool::new(false));
    vault.live.lock().unwrap().insert("static".to_owned());
    let (cluster, scripted) =
        testing::cluster(static_token("static"), move |seen| match seen.verb {
            Verb::RenewSelf if !has_refused.swap(true, Ordering::Relaxed) => {
                Reply::Http(400, r#"{"errors":["not now"]}"#.to_owned())
            }
            _ => vault.answer(seen, 90, true),
        });
    cluster.ready(soon()).await.unwrap();
    pass(80).await;
    assert_eq!(scripted.count(Verb::RenewSelf), 2);
    assert!(cluster.token_state().renewable);
}

/// Calls once a second for `seconds`, and is refused each time though the token lives.
async fn refused_calls(cluster: &crate::cluster::Cluster, seconds: u64) {
    for _ in 0..seconds {
        tokio::time::sleep(Duration::from_millis(900)).await;
        cluster.call(decrypt(), soon()).await.unwrap_err();
    }
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_refused_all_the_time_put_no_renewal_off() {
    let vault = Vault::default();
    let (cluster, scripted) = testing::cluster(app_role(), move |seen| match seen.verb {
        Verb::Decrypt => Reply::Http(403, BARE_403.to_owned()),
        _ => vault.answer(seen, 90, true),
    });
    cluster.ready(soon()).await.unwrap();
    refused_calls(&cluster, 75).await;
    assert!(scripted.count(Verb::LookupSelf) > 10, "the token was looked at");
    assert_eq!((scripted.count(Verb::RenewSelf), scripted.count(Verb::Login)), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn calls_that_are_refused_all_the_time_do_not_put_the_login_off_when_renewals_fail() {
    let vault = Vault::default();
    let (cluster, scripted) = testing::cluster(app_role(), move |seen| match seen.verb {
        Verb::Decrypt => Reply::Http(403, BARE_403.to_owned()),
        Verb::RenewSelf => Reply::Unreachable,
        _ => vault.answer(seen, 90, true),
    });
    cluster.ready(soon()).await.unwrap();
    refused_calls(&cluster, 90).await;
    assert!(scripted.count(Verb::RenewSelf) > 1);
    assert_eq!(scripted.count(Verb::Login), 2);
}
