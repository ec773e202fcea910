//! A KEK in two clusters, `a` and then `b`, over fakes of both.

use std::sync::Arc;

use tokio::time::Instant;

use super::super::fake::{FakeTransit, Script, kek_settings, keyring_settings};
use super::super::memory::{KekMemory, Snapshot};
use super::super::rotation::Activation;
use super::*;
use crate::clock::{Jitter, node_time};
use crate::config::settings::{ClusterName, ReplicaSettings};
use crate::transit::replicas::{Canaries, CanaryMemory, Replicas};
use crate::transit::{KeyVersion, TransitCause, TransitKey, Vouch};

/// Two clusters and a keyring over them.
struct Pair {
    a: Arc<FakeTransit>,
    b: Arc<FakeTransit>,
    transit: Arc<Replicas>,
    memory: Arc<KekMemory>,
    canaries: Arc<CanaryMemory>,
    keyring: Arc<Keyring>,
}

impl Pair {
    /// `b` is a replica, and proven.
    async fn ready() -> Self {
        let pair = Self::start(|_, _| ());
        pair.wait(1).await;
        assert_eq!(pair.why_unproven(), None);
        pair
    }

    /// `b` begins as a replica, then both are changed.
    fn start(change: impl FnOnce(&mut Script, &mut Script)) -> Self {
        let (a, b) = (("a", 7), ("b", 7));
        let fakes = [a, b].map(|(name, m)| FakeTransit::in_cluster(name, m, key(1, 1_000)));
        let [a, b] = fakes;
        change(&mut a.script.lock().unwrap(), &mut b.script.lock().unwrap());
        Self::over(a, b, KekMemory::new(), Canaries::new())
    }

    fn over(a: Arc<FakeTransit>, b: Arc<FakeTransit>, memory: KekMemory, kept: Canaries) -> Self {
        let mut kek = kek_settings("kube");
        kek.clusters = ["a", "b"].map(|name| ClusterName::try_new(name).unwrap()).into();
        kek.replicas = vec![ReplicaSettings { mount: "other".into(), namespace: None }];
        let (kek, jitter) = (Arc::new(kek), Arc::new(Jitter::off()));
        let settings = keyring_settings(vec![Arc::clone(&kek)]);
        let canaries = Arc::new(CanaryMemory::new("a".into(), kept));
        let keys = vec![Arc::clone(&a) as Arc<dyn TransitKey>, Arc::clone(&b) as _];
        let transit = Arc::new(Replicas::new(
            Arc::clone(&kek),
            keys,
            Arc::clone(&canaries),
            settings.rotation.refresh,
            Arc::clone(&jitter),
        ));
        let memory = Arc::new(memory);
        let rotation = settings.rotation.clone();
        let kek = Kek::new(kek, Arc::clone(&transit) as _, Arc::clone(&memory), rotation, jitter);
        let keyring = Keyring::new(settings, vec![kek]);
        Self { a, b, transit, memory, canaries, keyring }
    }

    /// Another process, that remembers what `stateDir` keeps, over the same clusters.
    fn restart(self, with_canaries: bool) -> Self {
        let Self { a, b, memory, canaries, keyring, transit } = self;
        drop((keyring, transit));
        let memory = KekMemory::restored(memory.snapshot(), node_time());
        let kept = if with_canaries { canaries.follow().borrow().clone() } else { Canaries::new() };
        Self::over(a, b, memory, kept)
    }

    async fn wait(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    fn at_a<R>(&self, change: impl FnOnce(&mut Script) -> R) -> R {
        change(&mut self.a.script.lock().unwrap())
    }

    fn at_b<R>(&self, change: impl FnOnce(&mut Script) -> R) -> R {
        change(&mut self.b.script.lock().unwrap())
    }

    /// The key of `a` is brought over to `b`.
    fn replicate(&self) {
        let (key, material) = self.at_a(|s| (s.key.clone(), s.material));
        self.at_b(|s| (s.key = key, s.material = material));
    }

    fn why_unproven(&self) -> Option<String> {
        self.transit.tiers().pop().unwrap().unproven
    }

    fn is_passed_over(&self, tier: usize) -> bool {
        self.transit.tiers()[tier].passed_over.is_some()
    }

    async fn encrypt(&self) -> Result<Encrypted, KeyringError> {
        let caller = EncryptFor::V2 { reported: None };
        self.keyring.encrypt(&Plaintext::new(vec![7; 32]), caller, soon()).await
    }

    async fn decrypt(&self, made: &Encrypted) -> Result<Plaintext, KeyringError> {
        self.keyring.decrypt(&made.ciphertext, &DecryptHints::default(), soon()).await
    }
}

/// The call ended without a verdict, and says so of each of `words`.
#[track_caller]
fn is_undecided(error: &KeyringError, words: &[&str]) {
    let KeyringError::Transit { source, .. } = error else { panic!("{error}") };
    assert!(matches!(source.cause, TransitCause::Clusters(_)), "{error}");
    assert!(source.is_outage() && !source.is_final(), "{error}");
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
}

#[tokio::test(start_paused = true)]
async fn with_the_first_cluster_dead_calls_go_on_under_the_same_key_id_and_do_not_wait() {
    let pair = Pair::ready().await;
    let before = pair.encrypt().await.unwrap();
    pair.at_a(|s| s.down = true);
    let begun = Instant::now();
    let after = pair.encrypt().await.unwrap();
    assert_eq!(after.key_id, before.key_id);
    assert_eq!(pair.decrypt(&before).await.unwrap().expose(), [7; 32]);
    assert_eq!(pair.decrypt(&after).await.unwrap().expose(), [7; 32]);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    // The canary goes the same way, so Status stays as it is however long it takes.
    pair.wait(600).await;
    let status = pair.keyring.status().unwrap();
    assert_eq!((status.healthz.as_str(), &status.key_id), ("ok", &before.key_id));
    pair.at_a(|s| s.down = false);
    pair.wait(10).await;
    pair.at_b(|s| s.decrypts = 0);
    assert_eq!(pair.decrypt(&after).await.unwrap().expose(), [7; 32]);
    assert_eq!(pair.at_b(|s| s.decrypts), 0, "the first one serves again");
}

#[tokio::test(start_paused = true)]
async fn a_silence_is_waited_for_once_and_not_by_every_call() {
    let pair = Pair::ready().await;
    let made = pair.encrypt().await.unwrap();
    pair.at_a(|s| s.latency = Duration::from_secs(60));
    for (call, waits) in [(1, 1), (2, 0), (3, 0)] {
        let begun = Instant::now();
        pair.decrypt(&made).await.unwrap();
        assert_eq!(begun.elapsed(), Duration::from_secs(waits), "call {call}");
    }
    assert!(pair.is_passed_over(0) && !pair.is_passed_over(1));
    let begun = Instant::now();
    assert_eq!(pair.encrypt().await.unwrap().key_id, made.key_id);
    assert_eq!(begun.elapsed(), Duration::ZERO);
    // A scout brings it back, and only when it answers as fast as a call may wait.
    pair.at_a(|s| s.latency = Duration::from_millis(1_500));
    pair.wait(30).await;
    assert!(pair.is_passed_over(0));
    pair.at_a(|s| s.latency = Duration::ZERO);
    pair.wait(11).await;
    assert!(!pair.is_passed_over(0));
}

#[tokio::test(start_paused = true)]
async fn of_a_short_deadline_the_next_cluster_gets_the_larger_part() {
    let pair = Pair::ready().await;
    let made = pair.encrypt().await.unwrap();
    pair.at_a(|s| s.latency = Duration::from_secs(60));
    pair.at_b(|s| s.latency = Duration::from_millis(500));
    let hints = DecryptHints::default();
    let deadline = Deadline::after(Duration::from_secs(1));
    let begun = Instant::now();
    pair.keyring.decrypt(&made.ciphertext, &hints, deadline).await.unwrap();
    assert_eq!(begun.elapsed(), Duration::from_millis(900));
}

#[tokio::test(start_paused = true)]
async fn a_cluster_whose_addresses_are_all_left_out_is_not_asked_while_another_serves() {
    let pair = Pair::ready().await;
    let made = pair.encrypt().await.unwrap();
    pair.at_a(|s| (s.left_out = true, s.latency = Duration::from_secs(60), s.decrypts = 0));
    let begun = Instant::now();
    pair.decrypt(&made).await.unwrap();
    pair.encrypt().await.unwrap();
    assert_eq!((begun.elapsed(), pair.at_a(|s| s.decrypts)), (Duration::ZERO, 0));
}

#[tokio::test(start_paused = true)]
async fn at_the_deadline_the_error_names_every_cluster() {
    let pair = Pair::ready().await;
    let made = pair.encrypt().await.unwrap();
    pair.at_a(|s| s.latency = Duration::from_secs(60));
    pair.at_b(|s| s.latency = Duration::from_secs(60));
    let begun = Instant::now();
    let error = pair.decrypt(&made).await.unwrap_err();
    is_undecided(&error, &["cluster a: no answer in time", "cluster b: no answer in time"]);
    assert_eq!(begun.elapsed(), Duration::from_secs(3));
    is_undecided(&pair.encrypt().await.unwrap_err(), &["cluster a", "cluster b"]);
}

#[tokio::test(start_paused = true)]
async fn an_impostor_never_encrypts_and_is_never_the_reason_of_a_failed_decrypt() {
    type Change = fn(&mut Script, &mut Script);
    let impostors: [(&str, Change, &str); 2] = [
        ("twin", |_, b| b.material = 9, "cannot decrypt what cluster a encrypts"),
        ("later", |_, b| (b.material, b.key) = (9, Some(key(1, 500))), "made at another time"),
    ];
    for (what, change, why) in impostors {
        let pair = Pair::start(change);
        pair.wait(1).await;
        assert!(pair.why_unproven().unwrap().contains(why), "{what}: {:?}", pair.why_unproven());
        let made = pair.encrypt().await.unwrap();
        pair.at_a(|s| s.down = true);
        let error = pair.encrypt().await.unwrap_err();
        is_undecided(&error, &["cluster a: no address", "cluster b may not encrypt", why]);
        is_undecided(&pair.decrypt(&made).await.unwrap_err(), &["cluster a", "cluster b"]);
        pair.wait(60).await;
        assert_eq!(pair.at_b(|s| s.encrypts.len()), 0, "{what}");
        // Passed over, the first one is asked after the impostor, and its answer counts.
        pair.at_a(|s| s.down = false);
        assert!(pair.is_passed_over(0));
        assert_eq!(pair.decrypt(&made).await.unwrap().expose(), [7; 32], "{what}");
        pair.encrypt().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn cannot_decrypt_is_final_only_when_every_cluster_says_so() {
    let pair = Pair::ready().await;
    let bench = Bench::ready(&["kube"]).await; // of other material
    let foreign = bench.encrypt_v2().await.unwrap();
    let refusal = |error: &KeyringError| match error {
        KeyringError::Transit { source, .. } => source.refusal().cloned(),
        _ => None,
    };
    let error = pair.decrypt(&foreign).await.unwrap_err();
    assert_eq!(refusal(&error), Some(Refusal::WrongKey), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("cluster a: https") && text.contains("cluster b: the ciphertext"),
        "{text}"
    );
    for down in [FakeDown::A, FakeDown::B] {
        pair.at_a(|s| s.down = down == FakeDown::A);
        pair.at_b(|s| s.down = down == FakeDown::B);
        is_undecided(&pair.decrypt(&foreign).await.unwrap_err(), &["was not made by this key"]);
    }
    // A cluster that forbids it says nothing of the ciphertext.
    pair.at_a(|s| s.down = false);
    pair.at_b(|s| (s.down = false, s.refuse_decrypt = Some(Refusal::PolicyDenied)));
    let error = pair.decrypt(&foreign).await.unwrap_err();
    assert_eq!(refusal(&error), Some(Refusal::PolicyDenied), "{error}");
}

#[derive(PartialEq)]
enum FakeDown {
    A,
    B,
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_the_first_cluster_to_encrypt_is_not_evaded() {
    let pair = Pair::ready().await;
    pair.at_a(|s| s.refuse_encrypt = Some(Refusal::PolicyDenied));
    pair.at_b(|s| s.encrypts.clear());
    let error = pair.encrypt().await.unwrap_err();
    assert!(error.is_refusal(), "{error}");
    assert_eq!(pair.at_b(|s| s.encrypts.len()), 0);
}

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
async fn the_tasks_of_replicas_end_with_them() {
    let Pair { a, b, keyring, transit, .. } = Pair::ready().await;
    drop((keyring, transit));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!((Arc::strong_count(&a), Arc::strong_count(&b)), (1, 1));
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
