//! What makes the proof of a replica, what ends it, and what a restart knows of it.

use super::*;

#[tokio::test(start_paused = true)]
async fn the_proof_of_a_new_version_is_made_before_it_encrypts() {
    let pair = Pair::ready().await;
    pair.a.rotate();
    pair.wait(31).await;
    let why = pair.why_unproven().unwrap();
    assert!(why.contains("no v2; restore a backup of cluster a's"), "{why}");
    // The old one still encrypts, at either.
    pair.at_a(|s| s.down = true);
    assert!(pair.encrypt().await.unwrap().ciphertext.starts_with(b"kube:v1:"));
    pair.at_a(|s| s.down = false);
    pair.replicate();
    pair.wait(28).await;
    assert!(pair.encrypt().await.unwrap().ciphertext.starts_with(b"kube:v1:"));
    assert_eq!(pair.why_unproven(), None);
    pair.at_a(|s| s.down = true);
    pair.wait(2).await;
    let made = pair.encrypt().await.unwrap();
    assert!(made.ciphertext.starts_with(b"kube:v2:"));
    assert_eq!(pair.keyring.status().unwrap().key_id, made.key_id);
}

#[tokio::test(start_paused = true)]
async fn a_version_that_was_not_brought_over_makes_encrypt_unavailable_and_no_rollback() {
    let pair = Pair::ready().await;
    pair.a.rotate();
    pair.wait(100).await;
    let made = pair.encrypt().await.unwrap();
    assert!(made.ciphertext.starts_with(b"kube:v2:"));
    pair.at_a(|s| s.down = true);
    let error = pair.encrypt().await.unwrap_err();
    is_undecided(&error, &["cluster b may not encrypt: it has no v2"]);
    assert_eq!(pair.keyring.status().unwrap().key_id, made.key_id);
}

#[tokio::test(start_paused = true)]
async fn what_contradicts_a_proof_ends_it() {
    // The first one decrypts what the replica cannot.
    let pair = Pair::ready().await;
    let made = pair.encrypt().await.unwrap();
    pair.at_b(|s| s.material = 9);
    pair.at_a(|s| s.left_out = true); // so the replica is asked first
    pair.decrypt(&made).await.unwrap();
    assert!(pair.why_unproven().unwrap().contains("cluster a decrypted what cluster b could not"));
    pair.at_a(|s| s.down = true);
    is_undecided(&pair.encrypt().await.unwrap_err(), &["cluster b may not encrypt"]);
    assert_eq!(pair.at_b(|s| s.encrypts.len()), 0);

    // Its metadata says something else.
    let pair = Pair::ready().await;
    pair.at_b(|s| s.key = Some(key(1, 500)));
    pair.wait(31).await;
    assert!(pair.why_unproven().unwrap().contains("made at another time"));

    // It is silent: that contradicts nothing.
    let pair = Pair::ready().await;
    pair.at_b(|s| s.down = true);
    pair.wait(100).await;
    assert_eq!(pair.why_unproven(), None);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_swapped_during_an_outage_encrypts_nothing_that_counts() {
    let pair = Pair::ready().await;
    pair.at_a(|s| s.down = true);
    pair.encrypt().await.unwrap();
    pair.at_b(|s| s.material = 9);
    for caller in [EncryptFor::V1, EncryptFor::V2 { reported: None }] {
        let plaintext = Plaintext::new(vec![7; 32]);
        let error = pair.keyring.encrypt(&plaintext, caller, soon()).await.unwrap_err();
        is_undecided(&error, &["cluster b"]);
    }
    assert!(pair.why_unproven().unwrap().contains("decrypts its canary no longer"));
    // That takes a new canary, and so the first cluster.
    pair.at_b(|s| s.material = 7);
    pair.wait(60).await;
    assert!(pair.why_unproven().is_some());
    pair.at_a(|s| s.down = false);
    pair.wait(60).await;
    assert_eq!(pair.why_unproven(), None);
}

#[tokio::test(start_paused = true)]
async fn what_a_replica_made_and_the_first_cluster_cannot_decrypt_is_thrown_away() {
    let pair = Pair::ready().await;
    let version = pair.canaries.follow().borrow().keys().next().copied();
    let plaintext = Plaintext::new(vec![7; 32]);
    pair.at_b(|s| s.material = 9);
    let foreign = pair.b.encrypt(&plaintext, version, soon()).await.unwrap();
    let error = pair.transit.verify(&plaintext, &foreign, soon()).await.unwrap_err();
    assert!(matches!(error.cause, TransitCause::Unacceptable { .. }), "{error}");
    assert!(pair.why_unproven().unwrap().contains("did not decrypt"));
    // Of the first cluster's own, its word counts.
    pair.at_a(|s| s.material = 8);
    let own = pair.a.encrypt(&plaintext, version, soon()).await.unwrap();
    pair.at_a(|s| s.material = 9);
    let error = pair.transit.verify(&plaintext, &own, soon()).await.unwrap_err();
    assert_eq!(error.refusal(), Some(&Refusal::WrongKey));
    assert_eq!(pair.keyring.status().unwrap().healthz, "ok", "nobody called it lost");
}

#[tokio::test(start_paused = true)]
async fn a_restart_during_the_outage_goes_on_with_what_a_replica_vouches_for() {
    for (canaries, impostor, serves) in
        [(true, false, true), (false, false, false), (true, true, false)]
    {
        let pair = Pair::ready().await;
        let made = pair.encrypt().await.unwrap();
        pair.at_a(|s| s.down = true);
        pair.at_b(|s| s.material = if impostor { 9 } else { 7 });
        let pair = pair.restart(canaries);
        let again = pair.encrypt().await;
        match again {
            Ok(again) => {
                assert!(serves, "{canaries} {impostor}");
                assert_eq!(again.key_id, made.key_id);
                assert_eq!(pair.keyring.status().unwrap().key_id, made.key_id);
            }
            Err(KeyringError::NotReady { why, .. }) => {
                assert!(!serves, "{canaries} {impostor}: {why}");
                assert!(why.contains("cluster a: no address could answer"), "{why}");
            }
            Err(other) => panic!("{canaries} {impostor}: {other}"),
        }
        if impostor {
            is_undecided(&pair.decrypt(&made).await.unwrap_err(), &["cluster a", "cluster b"]);
        } else {
            assert_eq!(pair.decrypt(&made).await.unwrap().expose(), [7; 32]);
        }
        pair.at_a(|s| s.down = false);
        pair.wait(40).await;
        assert_eq!(pair.encrypt().await.unwrap().key_id, made.key_id);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_came_before_the_proof_is_answered_with_it() {
    let pair = Pair::ready().await;
    let made = pair.encrypt().await.unwrap();
    pair.at_a(|s| (s.latency = Duration::from_secs(60), s.left_out = true));
    pair.at_b(|s| s.latency = Duration::from_millis(600));
    let pair = pair.restart(true);
    let begun = Instant::now();
    let again = pair.encrypt().await.unwrap();
    assert_eq!(again.key_id, made.key_id);
    // Two answers make the proof, two more the call; the first cluster's read is still on.
    assert_eq!(begun.elapsed(), Duration::from_millis(2_400));
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_the_first_cluster_is_heard_before_a_replica_vouches() {
    let pair = Pair::ready().await;
    let made = pair.encrypt().await.unwrap();
    pair.a.rotate();
    pair.at_a(|s| s.latency = Duration::from_millis(300));
    tokio::time::advance(Duration::from_secs(61)).await;
    let Pair { a, b, canaries, keyring, transit, .. } = pair;
    drop((keyring, transit));
    let version = canaries.follow().borrow().keys().next().copied().unwrap();
    let last = Activation { version: version.number, created: version.created };
    let kept = canaries.follow().borrow().clone();
    let known = Snapshot { activated: Some(last), active: Some(last), ..Snapshot::default() };
    let pair = Pair::over(a, b, KekMemory::restored(known, node_time()), kept);
    let again = pair.encrypt().await.unwrap();
    assert_ne!(again.key_id, made.key_id, "the other nodes have switched meanwhile");
    assert!(again.ciphertext.starts_with(b"kube:v2:"));
}

#[tokio::test(start_paused = true)]
async fn a_canary_of_a_key_that_was_made_again_proves_nothing() {
    let pair = Pair::ready().await;
    let old = pair.canaries.follow().borrow().keys().next().copied().unwrap();
    assert_eq!(pair.transit.vouches_for(old), Vouch::Yes);
    let created = pair.a.time();
    let new = KeyVersion { number: 1, created };
    pair.at_a(|s| {
        s.material = 9;
        s.key.as_mut().unwrap().versions.insert(1, created);
    });
    pair.wait(31).await;
    assert_eq!(pair.transit.vouches_for(old), Vouch::No);
    assert_eq!(pair.transit.vouches_for(new), Vouch::No);
    let kept: Vec<_> = pair.canaries.follow().borrow().keys().copied().collect();
    assert_eq!(kept, [new]);
    pair.replicate();
    pair.wait(31).await;
    assert_eq!(pair.transit.vouches_for(new), Vouch::Yes);
}

#[tokio::test(start_paused = true)]
async fn the_first_cluster_alone_says_which_versions_there_are() {
    let pair = Pair::start(|_, b| b.key = Some(key(3, 1_000)));
    pair.wait(60).await;
    let status = pair.keyring.status().unwrap();
    assert!(status.key_id.as_str().starts_with("kube:v1:"), "{status:?}");
    let alone = Bench::ready(&["kube"]).await;
    assert_eq!(alone.keyring.status().unwrap().key_id, status.key_id);
}

#[tokio::test(start_paused = true)]
async fn no_canary_is_made_with_a_key_that_the_first_cluster_has_no_longer() {
    let pair = Pair::start(|a, _| a.refuse_encrypt = Some(Refusal::PolicyDenied));
    pair.wait(1).await;
    // With a policy that grants `create`, each attempt would make a new key.
    pair.at_a(|s| (s.key, s.refuse_encrypt) = (None, None));
    pair.wait(31).await;
    pair.at_a(|s| s.encrypts.clear());
    pair.wait(100).await;
    assert_eq!(pair.at_a(|s| s.encrypts.len()), 0);
}

#[tokio::test(start_paused = true)]
async fn the_first_cluster_is_not_encrypted_at_unread_unless_it_decrypts_the_canary() {
    for (material, serves) in [(7, true), (9, false)] {
        let pair = Pair::ready().await;
        let made = pair.encrypt().await.unwrap();
        pair.at_a(|s| (s.refuse_read, s.material) = (Some(Refusal::PolicyDenied), material));
        pair.at_a(|s| s.encrypts.clear());
        let pair = pair.restart(true);
        let again = pair.encrypt().await;
        assert_eq!(again.is_ok_and(|again| again.key_id == made.key_id), serves);
        pair.wait(20).await;
        assert_eq!(pair.at_a(|s| !s.encrypts.is_empty()), serves);
    }
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_loses_its_proof_takes_no_canary_from_another() {
    let fakes = ["a", "b", "c"].map(|name| FakeTransit::in_cluster(name, 7, key(1, 1_000)));
    let mut kek = kek_settings("kube");
    kek.clusters = ["a", "b", "c"].map(|name| ClusterName::try_new(name).unwrap()).into();
    kek.replicas = vec![ReplicaSettings { mount: "other".into(), namespace: None }; 2];
    let keys = fakes.iter().map(|fake| Arc::clone(fake) as Arc<dyn TransitKey>).collect();
    let canaries = Arc::new(CanaryMemory::new("a".into(), Canaries::new()));
    let (refresh, jitter) = (Duration::from_secs(30), Arc::new(Jitter::off()));
    let transit = Replicas::new(Arc::new(kek), keys, canaries, refresh, jitter);
    let version = transit.read(soon()).await.unwrap().version(1).unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    fakes[0].script.lock().unwrap().down = true;
    fakes[1].script.lock().unwrap().material = 9;
    for _ in 0..3 {
        let plaintext = Plaintext::new(vec![7; 32]);
        let wrapped = transit.encrypt(&plaintext, Some(version), soon()).await.unwrap();
        assert_eq!(wrapped.cluster.as_str(), "c");
        tokio::time::sleep(Duration::from_secs(31)).await;
    }
    assert!(transit.tiers()[1].unproven.is_some() && transit.tiers()[2].unproven.is_none());
    fakes[0].script.lock().unwrap().down = false;
    fakes[1].script.lock().unwrap().material = 7;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(transit.tiers().iter().all(|tier| tier.unproven.is_none()));
}

#[tokio::test(start_paused = true)]
async fn what_a_key_made_that_took_the_firsts_place_in_that_moment_is_no_canary() {
    let pair = Pair::start(|a, _| a.remade_for = Some(b"vault-kms-proxy asks a replica.."));
    let before = pair.at_a(|s| s.key.as_ref().unwrap().version(1).unwrap());
    pair.wait(1).await;
    assert!(pair.at_a(|s| s.remade_for.is_none()), "it was made again");
    assert!(!pair.canaries.follow().borrow().contains_key(&before));
}
