//! The token that an earlier process left in `tokenCache`.

use super::*;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::clock::Deadline;
use crate::cluster::testing::{BARE_403, POLICY_403, Scripted, cluster_of};
use crate::config::settings::{ClusterSettings, SecretSource};

struct Cache {
    folder: tempfile::TempDir,
    vault: Arc<Vault>,
}

// === impl Cache ===

impl Cache {
    /// One that holds the token of a process that logged in once and has ended.
    async fn filled() -> Self {
        let cache = Self { folder: tempfile::tempdir().unwrap(), vault: Arc::default() };
        let (cluster, _) = cache.start();
        cluster.ready(soon()).await.unwrap();
        cache.written().await;
        drop(cluster);
        cache
    }

    fn settings(&self) -> ClusterSettings {
        let mut settings = ClusterSettings::clone(&testing::settings(app_role()));
        settings.token_cache = Some(self.folder.path().join("token"));
        settings
    }

    fn start(&self) -> (Arc<crate::cluster::Cluster>, Arc<Scripted>) {
        self.start_with(self.settings())
    }

    fn start_with(
        &self,
        settings: ClusterSettings,
    ) -> (Arc<crate::cluster::Cluster>, Arc<Scripted>) {
        let vault = Arc::clone(&self.vault);
        cluster_of(Arc::new(settings), move |seen| vault.answer(seen, 3_600, true))
    }

    /// Waits until there is a file.
    async fn written(&self) {
        let path = self.folder.path().join("token");
        for _ in 0..1_000 {
            if path.exists() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("nothing was kept");
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_goes_on_with_the_token_and_needs_no_login() {
    let cache = Cache::filled().await;
    let (cluster, scripted) = cache.start();
    cluster.call(decrypt(), soon()).await.unwrap();
    cluster.ready(soon()).await.unwrap();
    assert_eq!((scripted.count(Verb::Login), scripted.count(Verb::LookupSelf)), (0, 1));
    // It says nothing about whether a login works; that is rehearsed soon.
    assert_eq!(cluster.token_state().last_login, None);
    pass(300).await;
    assert_eq!((scripted.count(Verb::Login), scripted.count(Verb::RevokeSelf)), (1, 1));
    assert!(cluster.token_state().last_login.is_some());
    pass(2_200).await;
    assert_eq!(scripted.count(Verb::RenewSelf), 1, "it is renewed as if it were our own");
}

#[tokio::test(start_paused = true)]
async fn while_nobody_answers_the_lookup_calls_go_on_with_the_token() {
    let cache = Cache::filled().await;
    let vault = Arc::clone(&cache.vault);
    let (cluster, scripted) = cluster_of(Arc::new(cache.settings()), move |seen| match seen.verb {
        Verb::LookupSelf | Verb::Login => Reply::Unreachable,
        _ => vault.answer(seen, 3_600, true),
    });
    for _ in 0..100 {
        cluster.call(decrypt(), soon()).await.unwrap();
        pass(10).await;
    }
    assert_eq!(scripted.count(Verb::Login), 0);
    assert!(!cluster.token_state().is_proven);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_died_meanwhile_is_replaced_by_one_login() {
    let cache = Cache::filled().await;
    cache.vault.revoke_all();
    let (cluster, scripted) = cache.start();
    let calls = (0..64).map(|_| cluster.call(decrypt(), soon()));
    for outcome in futures_util::future::join_all(calls).await {
        outcome.unwrap();
    }
    assert_eq!(scripted.count(Verb::Login), 1);
    let (again, scripted) = cache.start();
    again.ready(soon()).await.unwrap();
    assert_eq!(scripted.count(Verb::Login), 0, "the new one was kept");
}

#[tokio::test(start_paused = true)]
async fn a_token_is_never_shown_to_another_vault() {
    let cache = Cache::filled().await;
    let mut settings = cache.settings();
    settings.addresses = vec![http::Uri::from_static("https://elsewhere:8200")];
    let (cluster, scripted) = cluster_of(Arc::new(settings), |seen| match seen.verb {
        Verb::Login => testing::login("other", 3_600, true),
        _ => Reply::Http(403, BARE_403.to_owned()),
    });
    cluster.ready(soon()).await.unwrap();
    assert!(scripted.seen().iter().all(|seen| seen.token.as_deref() != Some("t1")));
}

#[tokio::test(start_paused = true)]
async fn the_token_of_another_role_id_in_the_same_file_is_not_used() {
    let cache = Cache { folder: tempfile::tempdir().unwrap(), vault: Arc::default() };
    let role_id = cache.folder.path().join("role-id");
    let settings = || {
        let mut settings = cache.settings();
        let AuthSettings::AppRole(role) = &mut settings.auth else { panic!() };
        role.role_id = SecretSource::File(role_id.clone());
        settings
    };
    std::fs::write(&role_id, "kms\n").unwrap();
    let (cluster, _) = cache.start_with(settings());
    cluster.ready(soon()).await.unwrap();
    cache.written().await;
    let text = std::fs::read_to_string(cache.settings().token_cache.unwrap()).unwrap();
    assert!(!text.contains("kms"), "the role id is in the file: {text}");
    drop(cluster);

    // The same one, in a file that was written anew.
    std::fs::write(&role_id, "kms").unwrap();
    let (cluster, scripted) = cache.start_with(settings());
    cluster.ready(soon()).await.unwrap();
    assert_eq!(scripted.count(Verb::Login), 0);
    drop(cluster);

    std::fs::write(&role_id, "another").unwrap();
    let (cluster, scripted) = cache.start_with(settings());
    cluster.ready(soon()).await.unwrap();
    assert_eq!(scripted.count(Verb::Login), 1);
    assert_eq!(scripted.seen()[0].verb, Verb::Login, "the old role's token was shown");
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_a_token_that_may_not_look_at_itself_ends_when_it_was_to_end() {
    for (outage, is_over) in [(3_000, false), (3_700, true)] {
        let cache = Cache::filled().await;
        let (vault, is_back) = (Arc::clone(&cache.vault), Arc::new(AtomicBool::new(false)));
        let answers = Arc::clone(&is_back);
        let settings = Arc::new(cache.settings());
        let (cluster, scripted) = cluster_of(settings, move |seen| match seen.verb {
            _ if !answers.load(Ordering::Relaxed) => Reply::Unreachable,
            Verb::LookupSelf => Reply::Http(403, POLICY_403.to_owned()),
            _ => vault.answer(seen, 3_600, true),
        });
        pass(outage).await;
        let before = scripted.count(Verb::Login);
        is_back.store(true, Ordering::Relaxed);
        cluster.ready(Deadline::after(Duration::from_secs(60))).await.unwrap();
        assert_eq!(scripted.count(Verb::Login) > before, is_over);
        let longest = Duration::from_secs(if is_over { 3_600 } else { 3_600 - outage });
        let left = cluster.token_state().remaining().unwrap();
        assert!(left <= longest && left + Duration::from_secs(60) > longest, "{left:?}");

        // Nor does the next process take it for younger.
        let file = cache.settings().token_cache.unwrap();
        let is_kept = || {
            let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
            let expires = kept["expires"].as_i64().unwrap();
            std::io::Result::Ok(expires <= crate::clock::node_time().plus(longest).0)
        };
        for _ in 0..1_000 {
            if is_kept().is_ok_and(|is_kept| is_kept) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(is_kept().unwrap());
    }
}
