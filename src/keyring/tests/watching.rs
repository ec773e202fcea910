use super::*;

fn healthz(bench: &Bench) -> String {
    match bench.keyring.status() {
        Ok(report) => report.healthz,
        Err(error) => format!("RPC error: {error}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_version_is_active_in_the_second_in_which_it_is_old_enough() {
    let bench = Bench::ready(&["kube"]).await;
    let first = bench.keyring.status().unwrap().key_id;
    bench.wait(10).await;
    bench.fakes[0].rotate();
    bench.wait(59).await;
    assert_eq!(bench.primary().latest_version, Some(2));
    assert_eq!(bench.keyring.status().unwrap().key_id, first);
    bench.wait(1).await;
    let second = bench.keyring.status().unwrap().key_id;
    assert!(second.as_str().starts_with("kube:v2:"), "{second:?}");
    assert_eq!(bench.encrypt_v2().await.unwrap().key_id, second);
    assert_eq!(healthz(&bench), "ok");
}

#[tokio::test(start_paused = true)]
async fn a_new_version_is_proven_at_once() {
    let bench = Bench::ready(&["kube"]).await;
    bench.fakes[0].rotate();
    bench.wait(60).await;
    assert_eq!(bench.primary().active.unwrap().0, 2);
    assert_eq!(bench.script(0, |s| s.encrypts.last().copied()), Some(Some(2)));
}

#[tokio::test(start_paused = true)]
async fn a_key_is_read_at_the_start_again_soon_after_a_failure_and_then_at_its_pace() {
    let bench = Bench::start(&["kube"], |_| ());
    bench.script(0, |s| s.down = true);
    bench.wait(4).await;
    assert!(bench.primary().read_error.is_some());
    bench.script(0, |s| s.down = false);
    bench.wait(4).await; // at 0, 0.5, 1.5, 3.5 and 7.5 s
    assert_eq!(bench.script(0, |s| s.reads), 1);
    assert_eq!(bench.primary().read_error, None);
    assert_eq!(healthz(&bench), "ok");
    bench.wait(300).await;
    assert_eq!(bench.script(0, |s| s.reads), 11);
}

#[tokio::test(start_paused = true)]
async fn status_stays_ok_for_the_grace_of_an_outage_then_tells_the_reason_with_key_id() {
    let bench = Bench::ready(&["kube"]).await;
    let stay = Bench::start(&["kube"], |s| s.status.on_outage = OnOutage::Ok);
    stay.settle().await;
    let key_id = bench.keyring.status().unwrap().key_id;
    for bench in [&bench, &stay] {
        bench.script(0, |s| s.down = true);
    }
    bench.wait(119).await;
    assert_eq!(healthz(&bench), "ok");
    bench.wait(1).await;
    let report = bench.keyring.status().unwrap();
    assert_eq!(report.key_id, key_id);
    assert!(report.healthz.contains("not proven for 120 s"), "{}", report.healthz);
    assert!(report.healthz.contains("no address could answer"), "{}", report.healthz);
    assert_eq!(healthz(&stay), "ok");
    assert!(!bench.keyring.condition().is_ready());
    bench.script(0, |s| s.down = false);
    bench.wait(10).await;
    assert_eq!(healthz(&bench), "ok");
}

#[tokio::test(start_paused = true)]
async fn a_vault_that_answers_and_does_not_encrypt_is_no_outage() {
    let bench = Bench::start(&["kube"], |s| s.status.on_outage = OnOutage::Ok);
    bench.settle().await;
    bench.script(0, |s| s.refuse_encrypt = Some(Refusal::BadRequest("odd".into())));
    bench.wait(121).await;
    assert!(healthz(&bench).contains("odd"), "{}", healthz(&bench));
    bench.script(0, |s| (s.refuse_encrypt = None, s.down = true));
    bench.wait(11).await;
    assert_eq!(healthz(&bench), "ok");
}

#[tokio::test(start_paused = true)]
async fn status_is_an_error_while_the_active_version_is_gone_forbidden_or_unreadable() {
    type Change = fn(&mut fake::Script);
    let changes: [(&str, Change); 5] = [
        ("gone", |s| s.key = None),
        ("deleted softly", |s| s.key.as_mut().unwrap().soft_deleted = true),
        ("forbidden", |s| s.refuse_encrypt = Some(Refusal::PolicyDenied)),
        ("unreadable", |s| s.refuse_decrypt = Some(Refusal::TooOld)),
        ("no mount", |s| s.refuse_read = Some(Refusal::Misconfigured("transit".into()))),
    ];
    for (what, change) in changes {
        let bench = Bench::ready(&["kube"]).await;
        let before = bench.script(0, |s| {
            let before = s.clone();
            change(s);
            before
        });
        bench.wait(31).await;
        assert!(matches!(bench.keyring.status(), Err(KeyringError::Lost { .. })), "{what}");
        bench.script(0, |s| *s = before);
        bench.wait(31).await;
        assert_eq!(healthz(&bench), "ok", "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_gone_is_not_encrypted_with_lest_that_makes_a_new_one() {
    let bench = Bench::ready(&["kube"]).await;
    bench.script(0, |s| s.refuse_read = Some(Refusal::KeyNotFound));
    bench.wait(31).await;
    let sent = bench.script(0, |s| s.encrypts.len());
    bench.wait(300).await;
    let error = bench.encrypt(EncryptFor::V1).await.unwrap_err();
    assert!(matches!(error, KeyringError::Lost { .. }), "{error}");
    assert_eq!(bench.script(0, |s| s.encrypts.len()), sent);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_made_again_gets_a_key_id_that_never_was() {
    let bench = Bench::ready(&["kube"]).await;
    let old = bench.keyring.status().unwrap().key_id;
    let created = bench.fakes[0].time();
    bench.script(0, |s| {
        let again = s.key.as_mut().unwrap();
        again.versions.insert(1, created);
        s.material += 1;
    });
    bench.wait(31).await;
    let new = bench.keyring.status().unwrap().key_id;
    assert!(new.as_str().starts_with("kube:v1:") && new != old, "{new:?}");
}

#[tokio::test(start_paused = true)]
async fn a_restored_snapshot_is_believed_after_a_minute_and_a_standby_behind_is_not() {
    let bench = Bench::ready(&["kube"]).await;
    let old = bench.script(0, |s| s.key.clone());
    bench.fakes[0].rotate();
    bench.wait(90).await;
    assert_eq!(bench.primary().active.unwrap().0, 2);
    // The active node knows better; and while it cannot be asked, nobody can say.
    for leaderless in [false, true, false] {
        bench.script(0, |s| (s.stale_read, s.leaderless) = (old.clone(), leaderless));
        bench.wait(300).await;
        assert_eq!(bench.primary().active.unwrap().0, 2, "{leaderless}");
    }
    bench.script(0, |s| (s.stale_read, s.key) = (None, old));
    bench.wait(59).await;
    assert_eq!(bench.primary().latest_version, Some(2));
    bench.wait(60).await;
    assert_eq!(bench.primary().active.unwrap().0, 1);
}

#[tokio::test(start_paused = true)]
async fn the_canary_rests_while_real_traffic_proves_the_version() {
    let bench = Bench::ready(&["kube"]).await;
    let before = bench.script(0, |s| s.encrypts.len());
    for _ in 0..10 {
        bench.wait(20).await;
        bench.encrypt_v2().await.unwrap();
    }
    assert_eq!(bench.script(0, |s| s.encrypts.len()), before + 10);
    bench.wait(300).await;
    assert_eq!(bench.script(0, |s| s.encrypts.len()), before + 20);
}

#[tokio::test(start_paused = true)]
async fn a_loss_that_a_call_finds_ends_soon_after_its_cause() {
    let bench = Bench::ready(&["kube"]).await;
    bench.script(0, |s| s.refuse_decrypt = Some(Refusal::PolicyDenied));
    bench.encrypt_v2().await.unwrap_err();
    bench.wait(3).await;
    bench.keyring.status().unwrap_err();
    bench.script(0, |s| s.refuse_decrypt = None);
    bench.wait(5).await;
    assert_eq!(bench.keyring.status().unwrap().healthz, "ok");
}

#[tokio::test(start_paused = true)]
async fn a_healthy_key_is_proven_more_often_than_the_grace_demands() {
    let bench = Bench::start(&["kube"], |s| s.status.grace = Duration::from_secs(4));
    bench.settle().await;
    for second in 0..90 {
        assert_eq!(bench.keyring.status().unwrap().healthz, "ok", "after {second} s");
        bench.wait(1).await;
    }
    assert!(bench.script(0, |s| s.encrypts.len()) < 120, "canaries in a storm");
}

#[tokio::test(start_paused = true)]
async fn a_proof_of_the_version_before_proves_nothing_of_the_active_one() {
    let bench = Bench::ready(&["kube"]).await;
    let told = bench.keyring.status().unwrap().key_id;
    bench.fakes[0].rotate();
    bench.wait(60).await;
    let age = bench.primary().proof_age;
    bench.wait(5).await;
    bench.encrypt(EncryptFor::V2 { reported: Some(told) }).await.unwrap();
    assert_eq!(bench.primary().proof_age, age.map(|age| age + Duration::from_secs(5)));
}

#[tokio::test(start_paused = true)]
async fn what_was_seen_outlives_a_reload() {
    let mut bench = Bench::ready(&["kube"]).await;
    bench.fakes[0].rotate();
    bench.wait(60).await;
    let key_id = bench.keyring.status().unwrap().key_id;
    bench.script(0, |s| s.down = true);
    bench.reload(|_| ());
    // At once, before any read of its own; and still refusing to go back.
    assert_eq!(bench.keyring.status().unwrap(), StatusReport { healthz: "ok".into(), key_id });
    let ready = bench.keyring.ready(|_| true, soon()).await;
    assert!(matches!(ready[0].result, Err(KeyringError::NotReady { .. })), "{ready:?}");
}

#[tokio::test(start_paused = true)]
async fn an_encrypt_right_after_the_start_waits_for_the_first_read() {
    let bench = Bench::start(&["kube"], |_| ());
    assert!(bench.keyring.status().is_err(), "nothing has been read yet");
    assert_eq!(bench.encrypt_v2().await.unwrap().key_id.as_str().split(':').nth(1), Some("v1"));
}

#[tokio::test(start_paused = true)]
async fn ready_tells_of_each_kek_by_its_deadline() {
    let bench = Bench::start(&["kube", "away", "odd", "missing"], |_| ());
    bench.script(1, |s| s.down = true);
    bench.script(2, |s| s.key = Some(KeyMetadata { key_type: "rsa-2048".into(), ..key(1, 9) }));
    bench.script(3, |s| s.key = None);
    let begun = tokio::time::Instant::now();
    let ready = bench.keyring.ready(|_| true, soon()).await;
    assert_eq!(begun.elapsed(), Duration::from_secs(3));
    let told: Vec<_> =
        ready.iter().map(|r| (r.kek.as_str(), r.primary, r.result.is_ok())).collect();
    let expected = [
        ("kube", true, true),
        ("away", false, false),
        ("odd", false, false),
        ("missing", false, false),
    ];
    assert_eq!(told, expected);
    assert!(bench.script(0, |s| s.decrypts >= 1), "the first one is proven");
}

#[tokio::test(start_paused = true)]
async fn ready_does_not_wait_for_a_deadline_when_the_answer_is_no() {
    let bench = Bench::start(&["kube"], |_| ());
    bench.script(0, |s| s.key = None);
    let begun = tokio::time::Instant::now();
    let ready = bench.keyring.ready(|_| true, soon()).await;
    assert!(ready[0].result.is_err());
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_hangs_holds_up_neither_calls_nor_activation() {
    let bench = Bench::ready(&["kube"]).await;
    let mut rotated = key(1, 1_000);
    rotated.versions.insert(2, UnixSeconds(EPOCH - 29));
    rotated.latest_version = 2;
    bench.script(0, |s| s.key = Some(rotated));
    bench.wait(30).await;
    assert_eq!(bench.primary().active.unwrap().0, 1);
    bench.script(0, |s| s.latency = Duration::from_secs(60));
    bench.wait(1).await;
    assert_eq!(bench.primary().active.unwrap().0, 2);
}

#[tokio::test(start_paused = true)]
async fn however_many_calls_want_it_the_key_is_read_ten_times_a_second_at_most() {
    let bench = Bench::ready(&["kube"]).await;
    bench.script(0, |s| (s.refuse_encrypt = Some(Refusal::AboveLatest), s.reads = 0));
    let begun = tokio::time::Instant::now();
    for _ in 0..20 {
        bench.encrypt_v2().await.unwrap_err();
    }
    assert_eq!(bench.script(0, |s| s.reads), 20);
    assert!(begun.elapsed() >= Duration::from_millis(1_900), "{:?}", begun.elapsed());
}

#[test]
fn calls_can_be_spawned() {
    fn spawnable<T: Send>(_: impl FnOnce(&'static Keyring) -> T) {}
    static PLAINTEXT: std::sync::LazyLock<Plaintext> =
        std::sync::LazyLock::new(|| Plaintext::new(vec![1]));
    static HINTS: std::sync::LazyLock<DecryptHints> = std::sync::LazyLock::new(Default::default);
    spawnable(|k| k.encrypt(&PLAINTEXT, EncryptFor::V1, soon()));
    spawnable(|k| k.decrypt(b"", &HINTS, soon()));
    spawnable(|k| k.ready(|_| true, soon()));
}

#[tokio::test(start_paused = true)]
async fn the_tasks_end_with_the_keyring() {
    let Bench { fakes, keyring, .. } = Bench::ready(&["kube", "old"]).await;
    drop(keyring);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    for fake in fakes {
        assert_eq!(Arc::strong_count(&fake), 1, "a task still holds the key");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_a_standby_that_is_behind_does_not_take_the_key_id_back() {
    let mut bench = Bench::ready(&["kube"]).await;
    let older = bench.script(0, |s| s.key.clone());
    bench.fakes[0].rotate();
    bench.wait(100).await;
    let told = bench.keyring.status().unwrap().key_id;
    assert!(told.as_str().starts_with("kube:v2:"));
    bench.script(0, |s| (s.stale_read, s.leaderless) = (older, true));
    bench.restart(0, |_| ());
    bench.settle().await;
    let status = bench.keyring.status().unwrap();
    assert_eq!(status.key_id, told);
    let error = bench.encrypt_v2().await.unwrap_err();
    assert!(matches!(error, KeyringError::NotReady { .. }), "{error}");
    assert!(error.to_string().contains("an older state"), "{error}");
    bench.wait(20).await;
    assert_eq!(bench.keyring.status().unwrap().key_id, told);
    // As soon as the active node can be asked, the standby does not matter.
    bench.script(0, |s| s.leaderless = false);
    bench.wait(6).await;
    assert_eq!(bench.encrypt_v2().await.unwrap().key_id, told);
    bench.restart(0, |_| ());
    bench.settle().await;
    assert_eq!(bench.encrypt_v2().await.unwrap().key_id, told);
    bench.script(0, |s| s.stale_read = None);
    // Vault was restored from a snapshot: that lasts, so it is believed.
    bench.script(0, |s| {
        let key = s.key.as_mut().unwrap();
        key.latest_version = 1;
        key.versions.remove(&2);
    });
    bench.restart(0, |_| ());
    bench.wait(70).await;
    assert!(bench.encrypt_v2().await.unwrap().key_id.as_str().starts_with("kube:v1:"));
}
