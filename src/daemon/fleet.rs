//! A fleet of daemons against one Vault: what they do to it while it is away, and when it
//! comes back.
//!
//! Each daemon is whole from the keyring's tasks down to the transport, with jitter of its
//! own seed; the transport is a [`model`] of three nodes. Time is paused, so that minutes
//! take seconds.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::clock::{Deadline, Jitter};
use crate::cluster::stack::Stack;
use crate::cluster::{Cluster, Operation, Verb};
use crate::config::load::{self, Sources};
use crate::config::settings::Settings;
use crate::keyring::Keyring;
use crate::keyring::kek::Kek;
use crate::keyring::memory::KekMemory;
use crate::transit::http_key::HttpTransitKey;
use model::{Course, Kind, Model, Phase};

mod model;

/// The mean time between two calls of one daemon: three in a second.
const BETWEEN_CALLS: Duration = Duration::from_millis(333);

/// The daemons start within this time; from then on all is steady.
const START: u64 = 10;

/// kube-apiserver's 3 s less what the daemon keeps for itself.
const DEADLINE: Duration = Duration::from_millis(2_950);

/// One day of bad luck, in seconds.
const COURSE: Course = &[
    (15, Phase::LeaderLost),
    (19, Phase::Calm),
    (21, Phase::NobodyServes),
    (23, Phase::Calm),
    (28, Phase::Down),
    (RETURN, Phase::Calm),
];
const RETURN: u64 = 88;
const END: u64 = 105;

/// Requests are counted in slots of this many milliseconds.
const SLOT: u64 = 100;

/// One virtual daemon.
struct Daemon {
    cluster: Arc<Cluster>,
    _keyring: Arc<Keyring>,
}

/// How one call of kube-apiserver ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ended {
    began: Duration,
    took: Duration,
    is_good: bool,
}

/// What happened, in the order in which it did.
#[derive(PartialEq, Eq)]
struct Story {
    requests: Vec<(Duration, Kind)>,
    calls: Vec<Ended>,
}

// === impl Daemon ===

impl Daemon {
    fn start(settings: &Settings, model: &Arc<Model>, jitter: &Arc<Jitter>) -> Self {
        let stack = Stack::modelled(&settings.clusters[0], jitter, |address| model.node(address));
        let cluster =
            Cluster::new(Arc::clone(&settings.clusters[0]), Arc::new(stack), Arc::clone(jitter));
        let (wanted, rotation) = (&settings.keyring.keks[0], &settings.keyring.rotation);
        let transit = HttpTransitKey::new(Arc::clone(&cluster), wanted);
        let kek = Kek::new(
            Arc::clone(wanted),
            Arc::new(transit),
            Arc::new(KekMemory::new()),
            rotation.clone(),
            Arc::clone(jitter),
        );
        let keyring = Keyring::new(settings.keyring.clone(), vec![kek]);
        Self { cluster, _keyring: keyring }
    }

    /// kube-apiserver reads secrets until `end`.
    async fn serve(self, model: Arc<Model>, jitter: Arc<Jitter>, end: Duration) -> Vec<Ended> {
        let mut calls = JoinSet::new();
        while model.elapsed() < end {
            let (cluster, began) = (Arc::clone(&self.cluster), model.elapsed());
            calls.spawn(async move {
                let called = Instant::now();
                let outcome = cluster.call(decrypt(), Deadline::after(DEADLINE)).await;
                let is_good = outcome.is_ok_and(|answer| answer.status.is_success());
                Ended { began, took: called.elapsed(), is_good }
            });
            tokio::time::sleep(jitter.full(BETWEEN_CALLS * 2)).await;
        }
        calls.join_all().await
    }
}

fn decrypt() -> Operation {
    let body = r#"{"ciphertext":"vault:v1:AAAAAAAAAAAAAAAAcGluZwAAAAAAAAAAAAAAAAAAAAA="}"#;
    Operation {
        verb: Verb::Decrypt,
        method: http::Method::POST,
        path: "/v1/transit/decrypt/kube".to_owned(),
        namespace: None,
        body: Some(body.as_bytes().to_vec().into()),
    }
}

fn settings() -> Settings {
    let variables = [
        ("KEY_NAMES", "[kube]"),
        ("ADDR", "[\"https://b0:8200\", \"https://b1:8200\", \"https://b2:8200\"]"),
        ("ROLE_ID", "6a174c20-f6de-a53c-74d2-6018fcceff64"),
        ("SECRET_ID", "0d1f2e3a-aaaa-bbbb-cccc-1234567890ab"),
    ];
    let environment =
        variables.map(|(name, value)| (format!("VAULT_KMS_PROXY_{name}"), value.to_owned()));
    let sources = Sources { environment: environment.into_iter().collect(), ..Sources::default() };
    load::load(&sources).unwrap_or_else(|problems| panic!("{problems}")).settings
}

/// Plays `course` with so many daemons.
async fn play(daemons: u32, course: Course, end: u64) -> Story {
    let (settings, model) = (settings(), Model::new(course, daemons));
    let fleet: Vec<_> = (0..daemons)
        .map(|number| {
            let (settings, model) = (settings.clone(), Arc::clone(&model));
            tokio::spawn(async move {
                let number = u64::from(number);
                let jitter = Arc::new(Jitter::seeded(number));
                tokio::time::sleep(jitter.full(Duration::from_secs(START))).await;
                let daemon = Daemon::start(&settings, &model, &jitter);
                // its own, so that how often it is called changes nothing else
                let arrivals = Arc::new(Jitter::seeded(number + 1_000_000));
                daemon.serve(model, arrivals, Duration::from_secs(end)).await
            })
        })
        .collect();
    let calls = Mutex::new(Vec::new());
    for daemon in fleet {
        calls.lock().unwrap().extend(daemon.await.unwrap());
    }
    Story { requests: model.requests(), calls: calls.into_inner().unwrap() }
}

// === impl Story ===

impl Story {
    /// Requests of these kinds between two seconds, by slots.
    fn slots(&self, from: u64, to: u64, kinds: &[Kind]) -> Vec<usize> {
        let mut slots = vec![0; usize::try_from((to - from) * 1_000 / SLOT).unwrap()];
        for (at, kind) in &self.requests {
            let slot = (at.as_millis().checked_sub(u128::from(from) * 1_000))
                .map(|millis| usize::try_from(millis / u128::from(SLOT)).unwrap());
            if let Some(count) = slot.and_then(|slot| slots.get_mut(slot))
                && kinds.contains(kind)
            {
                *count += 1;
            }
        }
        slots
    }

    fn count(&self, from: u64, to: u64, kinds: &[Kind]) -> usize {
        self.slots(from, to, kinds).iter().sum()
    }

    /// The most within one second that begins with a slot.
    fn peak(&self, from: u64, to: u64, kinds: &[Kind]) -> usize {
        let a_second = usize::try_from(1_000 / SLOT).unwrap();
        let slots = self.slots(from, to, kinds);
        slots.windows(a_second).map(|slots| slots.iter().sum()).max().unwrap_or(0)
    }

    fn calls(&self, from: u64, to: u64) -> impl Iterator<Item = &Ended> {
        let span = Duration::from_secs(from)..Duration::from_secs(to);
        self.calls.iter().filter(move |call| span.contains(&call.began))
    }

    fn failed(&self, from: u64, to: u64) -> usize {
        self.calls(from, to).filter(|call| !call.is_good).count()
    }

    fn print(&self, course: Course, end: u64) {
        println!(
            "   from  phase            calls  failed  transit  peak/s  reads  logins  renewals  probes"
        );
        for from in (0..end).step_by(5) {
            let to = (from + 5).min(end);
            let phase = format!("{:?}", Model::phase_at(course, Duration::from_secs(from)));
            let count = |kind| self.count(from, to, &[kind]);
            println!(
                "{from:5} s  {phase:14} {:7} {:7} {:8} {:7} {:6} {:7} {:9} {:7}",
                self.calls(from, to).count(),
                self.failed(from, to),
                count(Kind::Transit),
                self.peak(from, to, &[Kind::Transit]),
                count(Kind::Read),
                count(Kind::Login),
                count(Kind::Renewal),
                count(Kind::Probe),
            );
        }
    }
}

const ALL_BUT_PROBES: &[Kind] = &[Kind::Transit, Kind::Read, Kind::Login, Kind::Renewal];

/// What holds for a fleet of any size.
fn judge(story: &Story, daemons: usize) {
    story.print(COURSE, END);
    let steady = story.count(START, 15, ALL_BUT_PROBES) / 5;
    let asked = story.count(29, RETURN - 1, ALL_BUT_PROBES);
    let calls = story.calls(29, RETURN - 1).count();
    let peak = story.peak(RETURN, RETURN + 5, ALL_BUT_PROBES);
    let beside = &[Kind::Read, Kind::Login, Kind::Renewal];
    let beside = story.peak(RETURN, END, beside);
    println!(
        "steady {steady}/s; outage: {asked} requests for {calls} calls; peak after it {peak}/s; \
         of logins, renewals and reads {beside}/s"
    );
    assert_eq!(story.failed(START, 25), 0, "a leader was lost, twice, and no call had to fail");
    assert!(asked * 10 < calls * 12, "the outage was multiplied");
    let longest = story.calls.iter().map(|call| call.took).max().unwrap();
    assert!(longest <= DEADLINE + Duration::from_millis(5), "a call took {longest:?}");
    assert_eq!(story.failed(RETURN, END), 0, "all is well again");
    assert!(peak <= steady * 6, "a thundering herd");
    assert!(beside <= daemons, "renewals and reads came in step");
}

#[tokio::test(start_paused = true)]
async fn a_fleet_neither_multiplies_an_outage_nor_tramples_what_comes_back() {
    judge(&play(60, COURSE, END).await, 60);
}

/// `cargo test --release --lib fleet -- --ignored --nocapture`
#[tokio::test(start_paused = true)]
#[ignore = "takes some minutes in a debug build"]
async fn nor_does_a_fleet_of_a_thousand() {
    judge(&play(1_000, COURSE, END).await, 1_000);
}
