//! A fleet of daemons against one Vault: what they do to it while it is away, and when it
//! comes back.
//!
//! Each daemon is whole from the keyring's tasks down to the transport, with jitter of its
//! own seed; the transport is a [`model`] of three nodes. Time is paused, so that minutes
//! take seconds.

use std::sync::Arc;
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
use model::{Course, Kind, Model, Phase, SLOT, Slot};

mod model;

/// The mean time between two calls of one daemon: a control plane keeps what it has unwrapped.
const BETWEEN_CALLS: Duration = Duration::from_secs(5);

/// The daemons start within this time; from then on all is steady.
const START: u64 = 5;

/// kube-apiserver's 3 s less what the daemon keeps for itself.
const DEADLINE: Duration = Duration::from_millis(2_950);

/// One day of bad luck, in seconds.
const COURSE: Course = &[
    (10, Phase::LeaderLost),
    (13, Phase::Calm),
    (15, Phase::NobodyServes),
    (17, Phase::Calm),
    (DOWN, Phase::Down),
    (RETURN, Phase::Calm),
];
const DOWN: u64 = 20;
const RETURN: u64 = 80;
const END: u64 = 88;

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
    requests: Vec<Slot>,
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
    Operation {
        needs_active: false,
        verb: Verb::Decrypt,
        method: http::Method::POST,
        path: "/v1/transit/decrypt/kube".to_owned(),
        namespace: None,
        body: Some(model::OF_A_CALL.as_bytes().to_vec().into()),
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
    let mut calls = Vec::new();
    for daemon in fleet {
        calls.extend(daemon.await.unwrap());
    }
    Story { requests: model.requests(), calls }
}

// === impl Story ===

impl Story {
    /// Requests of these kinds between two seconds, by slots.
    fn slots(&self, from: u64, to: u64, kinds: &[Kind]) -> Vec<usize> {
        let slot = |second: u64| usize::try_from(second).unwrap() * 1_000 / SLOT;
        let slots = self.requests.iter().take(slot(to)).skip(slot(from));
        slots.map(|slot| kinds.iter().map(|kind| slot[*kind as usize]).sum()).collect()
    }

    fn count(&self, from: u64, to: u64, kinds: &[Kind]) -> usize {
        self.slots(from, to, kinds).iter().sum()
    }

    /// The most within one second that begins with a slot.
    fn peak(&self, from: u64, to: u64, kinds: &[Kind]) -> usize {
        let slots = self.slots(from, to, kinds);
        slots.windows(1_000 / SLOT).map(|slots| slots.iter().sum()).max().unwrap_or(0)
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
            "   from  phase            calls  failed     sent  peak/s  canaries  reads  logins  renewals  probes"
        );
        for from in (0..end).step_by(5) {
            let to = (from + 5).min(end);
            let phase = format!("{:?}", Model::phase_at(course, Duration::from_secs(from)));
            let count = |kind| self.count(from, to, &[kind]);
            println!(
                "{from:5} s  {phase:14} {:7} {:7} {:8} {:7} {:9} {:6} {:7} {:9} {:7}",
                self.calls(from, to).count(),
                self.failed(from, to),
                count(Kind::Call),
                self.peak(from, to, ALL_BUT_PROBES),
                count(Kind::Canary),
                count(Kind::Read),
                count(Kind::Login),
                count(Kind::Renewal),
                count(Kind::Probe),
            );
        }
    }
}

const ALL_BUT_PROBES: &[Kind] = &[Kind::Call, Kind::Canary, Kind::Read, Kind::Login, Kind::Renewal];

/// What holds for a fleet of any size.
fn judge(story: &Story, daemons: usize) {
    story.print(COURSE, END);
    let steady = story.calls(START, END).count() / usize::try_from(END - START).unwrap();
    let asked = story.count(DOWN, RETURN, &[Kind::Call]);
    let calls = story.calls(DOWN, RETURN).count();
    let peak = story.peak(RETURN, RETURN + 5, ALL_BUT_PROBES);
    let beside = story.peak(DOWN, END, &[Kind::Read, Kind::Login, Kind::Renewal]);
    let canaries = story.peak(DOWN, END, &[Kind::Canary]);
    println!(
        "steady {steady}/s; outage: {asked} requests for {calls} calls; peak after it {peak}/s; \
         of logins, renewals and reads {beside}/s, of canaries {canaries}/s"
    );
    assert_eq!(
        story.failed(START, DOWN - 3),
        0,
        "a leader was lost, twice, and no call had to fail"
    );
    assert!(asked * 10 < calls * 12, "the outage was multiplied");
    let longest = story.calls.iter().map(|call| call.took).max().unwrap();
    assert!(longest <= DEADLINE + Duration::from_millis(5), "a call took {longest:?}");
    assert_eq!(story.failed(RETURN, END), 0, "all is well again");
    // Who waits for a call's answer is served at once, and so is the first canary.
    assert!(peak <= steady * 11, "a thundering herd");
    // Each has a renewal and a read to make up for, and a canary is two requests.
    assert!(beside * 5 <= daemons * 4, "renewals and reads came in step");
    assert!(canaries <= daemons, "canaries came in step");
}

#[tokio::test(start_paused = true)]
async fn a_fleet_of_a_thousand_neither_multiplies_an_outage_nor_tramples_what_comes_back() {
    judge(&play(1_000, COURSE, END).await, 1_000);
}
