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

mod proofs;

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
    let KeyringError::Transit { source, .. } = &error else { panic!("{error}") };
    assert!(source.is_final(), "{error}");
    assert_eq!(pair.at_b(|s| s.encrypts.len()), 0);
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
