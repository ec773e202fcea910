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
use crate::keyring::kek::watching::{CANARY_BACKOFF, CANARY_WITHIN, READ_WITHIN};
use crate::keyring::memory::KekMemory;
use crate::transit::http_key::HttpTransitKey;
use model::{Course, Kind, Model, Phase, TOKEN_TTL};
use story::{ALL_BUT_PROBES, Ended, Story};

mod cost;
mod model;
mod story;

/// kube-apiserver's 3 s less what the daemon keeps for itself.
const DEADLINE: Duration = Duration::from_millis(2_950);

/// The mean time between two calls of one daemon: a control plane keeps what it has unwrapped.
const BETWEEN_CALLS: Duration = Duration::from_secs(5);

/// Daemons, what is done with them, and what becomes of their Vault.
struct Fleet {
    daemons: u32,
    /// The mean time between two calls of one daemon.
    between_calls: Duration,
    /// The daemons start within this time, in seconds.
    start: u64,
    /// Requests that a node does in a second, for each daemon.
    capacity: u32,
    course: Course,
    /// When all is over, in seconds.
    end: u64,
    seed: u64,
}

/// One virtual daemon.
struct Daemon {
    cluster: Arc<Cluster>,
    _keyring: Arc<Keyring>,
}

// === impl Daemon ===

impl Daemon {
    fn start(settings: &Settings, model: &Arc<Model>, number: u32, jitter: &Arc<Jitter>) -> Self {
        let stack = Stack::modelled(&settings.clusters[0], jitter, |a| model.node(number, a));
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
    async fn serve(self, model: &Model, jitter: Jitter, fleet: &Fleet) -> Vec<Ended> {
        let mut calls = JoinSet::new();
        while model.elapsed() < Duration::from_secs(fleet.end) {
            let (cluster, began) = (Arc::clone(&self.cluster), model.elapsed());
            calls.spawn(async move {
                let called = Instant::now();
                let outcome = cluster.call(decrypt(), Deadline::after(DEADLINE)).await;
                let is_good = outcome.is_ok_and(|answer| answer.status.is_success());
                Ended { began, took: called.elapsed(), is_good }
            });
            let left = Duration::from_secs(fleet.end).saturating_sub(model.elapsed());
            tokio::time::sleep(jitter.full(fleet.between_calls * 2).min(left)).await;
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

// === impl Fleet ===

impl Fleet {
    /// What happens: the same each time, for the same fleet.
    fn play(self) -> Story {
        // A runtime of its own, so that even what tokio does is the same from the start.
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(Arc::new(self).live())
    }

    async fn live(self: Arc<Self>) -> Story {
        let model = Model::new(self.course, self.capacity * self.daemons);
        let settings = settings();
        let daemons: Vec<_> = (0..self.daemons)
            .map(|number| {
                let (fleet, model) = (Arc::clone(&self), Arc::clone(&model));
                let settings = settings.clone();
                tokio::spawn(async move {
                    let seed = fleet.seed << 32 | u64::from(number);
                    let jitter = Arc::new(Jitter::seeded(seed));
                    tokio::time::sleep(jitter.full(Duration::from_secs(fleet.start))).await;
                    let daemon = Daemon::start(&settings, &model, number, &jitter);
                    // its own, so that how often it is called changes nothing else
                    let arrivals = Jitter::seeded(!seed);
                    daemon.serve(&model, arrivals, &fleet).await
                })
            })
            .collect();
        let mut calls = Vec::new();
        for daemon in daemons {
            calls.extend(daemon.await.unwrap());
        }
        let (daemons, course, end) = (self.daemons, self.course, self.end);
        let story = Story { daemons, course, end, requests: model.requests(), calls };
        story.print();
        story
    }
}

mod outage {
    //! Leaders are lost, then all is down for a minute, and comes back.

    use super::*;

    const COURSE: Course = &[
        (10, Phase::LeaderLost),
        (13, Phase::Calm),
        (15, Phase::NobodyServes),
        (17, Phase::Calm),
        (DOWN, Phase::Down),
        (RETURN, Phase::Calm),
    ];
    /// The daemons start within this time; from then on all is steady.
    const START: u64 = 5;
    const DOWN: u64 = 20;
    const RETURN: u64 = 80;
    const END: u64 = 88;

    fn fleet(daemons: u32, seed: u64) -> Fleet {
        let (start, capacity, course, end) = (START, 2, COURSE, END);
        Fleet { daemons, between_calls: BETWEEN_CALLS, start, capacity, course, end, seed }
    }

    #[test]
    fn the_same_seed_tells_the_same_story_and_another_seed_another() {
        // So many, and into the outage, that somewhere two things happen at once.
        let play = |seed| Fleet { end: DOWN + 6, ..fleet(250, seed) }.play();
        let (first, second) = (play(1), play(1));
        assert_eq!(first.differs(&second), None);
        assert!(first.differs(&play(2)).is_some());
    }

    #[test]
    fn a_thousand_neither_multiply_an_outage_nor_trample_what_comes_back() {
        judge(&fleet(1_000, 0).play(), 1_000.0);
    }

    fn judge(story: &Story, daemons: f64) {
        let calls = story.calls(DOWN, RETURN).count();
        let asked = story.count(DOWN, RETURN, &[Kind::Call]);
        assert!(asked * 10 < calls * 12, "the outage was multiplied: {asked} for {calls}");
        assert_eq!(
            story.failed(START, DOWN - 3),
            0,
            "a leader was lost, twice, and no call had to fail"
        );
        let longest = story.longest(0, END);
        assert!(longest <= DEADLINE + Duration::from_millis(5), "a call took {longest:?}");
        assert_eq!(story.failed(RETURN, END), 0, "all is well again");

        // What a daemon does within the second in which its probes find an address back.
        // Who waits for a call's answer is served in it, and a call in twenty is hedged.
        let calls = (DEADLINE.as_secs_f64() + 1.0) / BETWEEN_CALLS.as_secs_f64() * 1.05;
        // Canaries and reads fail after their time, and begin anew after half to all of their
        // longest wait. Those that wait in line go, and those that begin in that second. A
        // canary is two requests.
        let due = |within: Duration, wait: Duration| {
            let (within, wait) = (within.as_secs_f64(), wait.as_secs_f64());
            (within + 1.0) / (within + wait * 0.75)
        };
        let canaries = 2.0 * due(CANARY_WITHIN, CANARY_BACKOFF);
        let reads = due(READ_WITHIN, settings().keyring.rotation.refresh);
        // Each token was due in the outage; renewals that fail come after a tenth of its rest.
        let age = Duration::from_secs(RETURN) - Duration::from_secs(START) / 2;
        let renewals = 10.0 / (TOKEN_TTL - age).as_secs_f64();
        let mut all = 0.0;
        for (kinds, each) in [
            (&[Kind::Call][..], calls),
            (&[Kind::Canary], canaries),
            (&[Kind::Read], reads),
            (&[Kind::Renewal], renewals),
            (&[Kind::Login], 0.0),
            (ALL_BUT_PROBES, calls + canaries + reads + renewals),
        ] {
            let (peak, most) = (story.peak(RETURN, END, kinds), at_most(each * daemons));
            println!("{kinds:?}: peak {peak}/s, at most {most}/s");
            assert!(peak <= most, "{kinds:?}: {peak} in a second, where {most} are to be expected");
            all = each;
        }
        // Which is what a Vault must be able to do that so many control planes depend on.
        assert!(all < 2.5, "{all} requests of a daemon in the first second");
    }
}

/// What a figure with this mean does not exceed but in one of ten thousand fleets.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a few thousand
fn at_most(mean: f64) -> usize {
    (mean + 4.0 * mean.sqrt()).ceil() as usize
}

mod logins {
    //! Every token is gone at once.

    use super::*;

    const DAEMONS: u32 = 200;

    fn fleet(start: u64, course: Course, end: u64) -> Fleet {
        let (daemons, between_calls, capacity) = (DAEMONS, BETWEEN_CALLS, 2);
        Fleet { daemons, between_calls, start, capacity, course, end, seed: 0 }
    }

    /// Each daemon has logged in this often, one login at a time.
    fn judge(story: &Story, logins: usize) {
        let daemons = usize::try_from(DAEMONS).unwrap();
        assert_eq!(story.count(0, story.end, &[Kind::Login]), logins * daemons);
        assert_eq!(story.logins_together(), 1);
    }

    #[test]
    fn when_all_tokens_are_revoked_each_daemon_logs_in_once_when_it_finds_out() {
        let story = fleet(5, &[(20, Phase::Revoked)], 50).play();
        judge(&story, 2);
        assert_eq!(story.failed(0, 50), 0);
        // It finds out with the next call, or read, or canary, which is two requests.
        let each = 1.0 / BETWEEN_CALLS.as_secs_f64() + 1.0 / 30.0 + 1.0 / 60.0;
        let (peak, most) = (story.peak(20, 50, &[Kind::Login]), at_most(each * f64::from(DAEMONS)));
        println!("logins: peak {peak}/s, at most {most}/s");
        assert!(peak <= most, "{peak} logins in a second");
    }

    #[test]
    fn when_all_daemons_start_within_a_second_each_logs_in_once() {
        let story = fleet(1, &[], 20).play();
        judge(&story, 1);
        assert_eq!(story.failed(0, 20), 0);
    }

    #[test]
    fn when_all_daemons_start_in_an_outage_each_logs_in_once_when_it_ends() {
        let story = fleet(5, &[(0, Phase::Down), (30, Phase::Calm)], 40).play();
        assert_eq!(story.logins_together(), 1);
        assert_eq!(story.count(30, 40, &[Kind::Login]), usize::try_from(DAEMONS).unwrap());
        assert_eq!(story.failed(30, 40), 0);
    }
}

mod overload {
    //! More is asked than the nodes can do.

    use super::*;

    const COURSE: Course = &[
        (10, Phase::Crowded),
        (30, Phase::Calm),
        (40, Phase::Shedding),
        (60, Phase::Calm),
        (70, Phase::Limited),
        (90, Phase::Calm),
    ];

    const DAEMONS: u32 = 40;
    const CAPACITY: u32 = 2;

    #[test]
    fn nodes_that_cannot_keep_up_are_used_and_not_asked_for_much_more() {
        let (between_calls, start, end) = (Duration::from_millis(500), 5, 100);
        let (daemons, capacity, course) = (DAEMONS, CAPACITY, COURSE);
        let fleet = Fleet { daemons, between_calls, start, capacity, course, end, seed: 0 };
        let story = fleet.play();
        // What three nodes can do in 20 s while they are short of strength.
        let possible = usize::try_from(CAPACITY * DAEMONS / model::SCARCE * 3 * 20).unwrap();
        let served = |from, to| story.calls(from, to).count() - story.failed(from, to);
        for (from, to) in [(10, 30), (40, 60), (70, 90)] {
            let (sent, served) = (story.percent_sent(from, to), served(from, to));
            println!("from {from} s to {to} s: {sent} % sent, {served} served of {possible}");
        }
        // Nodes that let calls wait: once the hedges' reserve is spent, 5 % are hedged, and
        // 20 % is what repeats may come to.
        let sent = story.percent_sent(15, 30);
        assert!(sent <= 125, "{sent} % sent to nodes that let calls wait");
        assert!(served(10, 30) * 10 >= possible * 6, "what waits too long is work for nothing");
        // Nodes that refuse: that costs them little, and each may have room where the other
        // has none, so a call asks each once.
        for (from, to) in [(40, 60), (70, 90)] {
            let sent = story.percent_sent(from, to);
            assert!(sent <= 300, "{sent} % sent to nodes that refuse");
            assert!(served(from, to) * 10 >= possible * 9, "nodes had room and were not asked");
        }
        for (from, to) in [(35, 40), (62, 70), (92, 100)] {
            assert_eq!(story.failed(from, to), 0, "all is well again");
        }
    }
}
