//! Logins that are made only to see that they work.

use super::*;
use crate::cluster::testing::cluster_of;
use crate::config::settings::{AppRoleSettings, SecretId, SecretSource};

const DAY: u64 = 86_400;

/// (logins, revocations) so far.
fn seen(scripted: &testing::Scripted) -> (usize, usize) {
    (scripted.count(Verb::Login), scripted.count(Verb::RevokeSelf))
}

#[tokio::test(start_paused = true)]
async fn a_login_is_rehearsed_once_a_day_and_its_token_given_back() {
    let (cluster, scripted, vault) = logged_in(7 * DAY, true);
    cluster.ready(soon()).await.unwrap();
    pass(DAY - 10).await;
    assert_eq!(seen(&scripted), (1, 0));
    pass(20).await;
    assert_eq!(seen(&scripted), (2, 1));
    let gone = scripted.seen().into_iter().rfind(|s| s.verb == Verb::RevokeSelf).unwrap();
    assert_eq!(gone.token.as_deref(), Some("t2"));
    assert!(vault.live.lock().unwrap().contains("t1"), "the token in use lives on");
    pass(2 * DAY).await;
    assert_eq!(seen(&scripted), (4, 3));
    cluster.call(decrypt(), soon()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_login_that_was_needed_is_as_good_as_a_rehearsal() {
    let (cluster, scripted, _) = logged_in(DAY, false);
    cluster.ready(soon()).await.unwrap();
    pass(7 * DAY).await;
    assert_eq!(scripted.count(Verb::RevokeSelf), 0);
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_has_expired_shows_while_the_token_still_works() {
    let (cluster, scripted, vault) = logged_in(7 * DAY, true);
    cluster.ready(soon()).await.unwrap();
    vault.rejects.store(true, Ordering::Relaxed);
    pass(DAY).await;
    let state = cluster.token_state();
    let why = state.rehearsal_error.unwrap();
    assert!(why.contains("invalid role or secret ID"), "{why}");
    assert_eq!((state.has_token, state.last_error), (true, None));
    cluster.call(decrypt(), soon()).await.unwrap();
    // Seldom enough that no role is locked out.
    pass(6 * 3_600).await;
    assert_eq!(scripted.count(Verb::Login), 8);
    vault.rejects.store(false, Ordering::Relaxed);
    pass(3_600).await;
    assert_eq!(cluster.token_state().rehearsal_error, None);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_no_failed_rehearsal() {
    let (cluster, scripted, vault) = logged_in(30 * DAY, true);
    cluster.ready(soon()).await.unwrap();
    vault.down.store(true, Ordering::Relaxed);
    pass(DAY + 10).await;
    assert_eq!(cluster.token_state().rehearsal_error, None);
    vault.down.store(false, Ordering::Relaxed);
    pass(600).await;
    assert_eq!(seen(&scripted), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_secret_id_that_is_good_for_so_many_logins_is_not_used_up_by_rehearsals() {
    let (cluster, scripted, vault) = logged_in(30 * DAY, true);
    vault.uses.store(5, Ordering::Relaxed);
    cluster.ready(soon()).await.unwrap();
    pass(10 * DAY).await;
    assert_eq!(seen(&scripted), (1, 0));
    assert_eq!(cluster.token_state().rehearsal_error, None);
}

#[tokio::test(start_paused = true)]
async fn while_nobody_says_what_a_login_costs_none_is_rehearsed() {
    let (cluster, scripted) = testing::cluster(app_role(), |seen| match seen.verb {
        Verb::Login => testing::login("t", 30 * DAY, true),
        Verb::Read => Reply::Http(403, POLICY_403.to_owned()),
        _ => ok(r#"{"data":{}}"#),
    });
    cluster.ready(soon()).await.unwrap();
    pass(10 * DAY).await;
    assert_eq!(scripted.count(Verb::Login), 1);
}

#[tokio::test(start_paused = true)]
async fn a_changed_file_is_tried_soon_and_a_file_that_changes_all_the_time_seldom() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret-id");
    std::fs::write(&file, "one").unwrap();
    let auth = AuthSettings::AppRole(AppRoleSettings {
        mount: "approle".to_owned(),
        role_id: SecretSource::Inline("kms".into()),
        secret_id: SecretId::Given(SecretSource::File(file.clone())),
    });
    let vault = Arc::new(Vault::default());
    let answering = Arc::clone(&vault);
    let (cluster, scripted) =
        cluster_of(testing::settings(auth), move |seen| answering.answer(seen, 30 * DAY, true));
    cluster.ready(soon()).await.unwrap();
    pass(1_000).await;
    std::fs::write(&file, "two").unwrap();
    pass(40).await;
    assert_eq!(seen(&scripted), (2, 1));
    let body = scripted.seen().into_iter().rfind(|s| s.verb == Verb::Login).unwrap().body;
    assert!(body.contains("two"), "{body}");
    for change in 0..20 {
        std::fs::write(&file, format!("change {change}")).unwrap();
        pass(60).await;
    }
    assert_eq!(seen(&scripted), (4, 3), "two in twenty minutes");
}

#[tokio::test(start_paused = true)]
async fn a_rehearsal_without_end_puts_no_renewal_off() {
    let (vault, has_login) = (Vault::default(), std::sync::atomic::AtomicBool::new(false));
    let (cluster, scripted) = testing::cluster(app_role(), move |seen| match seen.verb {
        Verb::Login if has_login.swap(true, Ordering::Relaxed) => Reply::Never,
        _ => vault.answer(seen, (DAY + 20) * 3 / 2, true),
    });
    cluster.ready(soon()).await.unwrap();
    pass(DAY + 10).await;
    assert_eq!((scripted.count(Verb::Login), scripted.count(Verb::RenewSelf)), (2, 0));
    pass(20).await;
    assert_eq!(scripted.count(Verb::RenewSelf), 1);
}
