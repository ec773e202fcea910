use std::sync::Mutex;

use super::super::testing::{Fake, Says};
use super::*;
use crate::task::OwnedTask;

const HOST: &str = "vault.test";
const SERVICE: &str = "_vault._tcp.test";

struct Followed {
    fake: Arc<Fake>,
    doubt: Doubt,
    first: watch::Receiver<First>,
    taken: Arc<Mutex<Vec<String>>>,
    /// When something was there to take.
    offered: Arc<Mutex<Vec<Instant>>>,
    _task: OwnedTask,
}

impl Followed {
    fn start(fake: &Arc<Fake>, url: &str) -> Self {
        Self::start_full(fake, url, None)
    }

    /// Whoever takes the addresses cannot take all of them until then.
    fn start_full(fake: &Arc<Fake>, url: &str, full_until: Option<Instant>) -> Self {
        let (doubt, taken) = (Doubt::default(), Arc::new(Mutex::new(Vec::new())));
        let offered = Arc::new(Mutex::new(Vec::new()));
        let (sender, first) = watch::channel(First::default());
        let (takes, offers) = (Arc::clone(&taken), Arc::clone(&offered));
        let name = Name {
            cluster: ClusterName::try_new("test").unwrap(),
            url: url.parse().unwrap(),
            resolver: Arc::clone(fake) as Arc<dyn Resolver>,
            jitter: Arc::new(Jitter::off()),
            doubt: doubt.clone(),
            first: Arc::new(sender),
            take: Arc::new(move |sites| {
                let show = |site: Site| format!("{}@{}", site.url, site.peer.unwrap());
                *takes.lock().unwrap() = sites.into_iter().map(show).collect();
                offers.lock().unwrap().push(Instant::now());
                full_until.filter(|until| *until > Instant::now())
            }),
        };
        let task = OwnedTask::spawn("test", follow(name));
        Self { fake: Arc::clone(fake), doubt, first, taken, offered, _task: task }
    }

    fn taken(&self) -> Vec<String> {
        self.taken.lock().unwrap().clone()
    }
}

async fn pass(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

#[tokio::test(start_paused = true)]
async fn a_name_is_asked_for_again_when_its_answer_is_old() {
    for (ttl, expected) in [
        (Some(0), [0, 5_000, 10_000]),
        (Some(20), [0, 20_000, 40_000]),
        (Some(86_400), [0, 60_000, 120_000]),
        (None, [0, 30_000, 60_000]),
    ] {
        let fake = Fake::new();
        fake.set(HOST, Says::Addresses(&["10.0.0.2", "fd00::1", "10.0.0.1"], ttl));
        let followed = Followed::start(&fake, "https://vault.test:8200");
        pass(120_001).await;
        assert_eq!(fake.asked()[..3], expected, "{ttl:?}");
        let taken = followed.taken();
        let url = "https://vault.test:8200/";
        let peers = ["10.0.0.1:8200", "10.0.0.2:8200", "[fd00::1]:8200"];
        assert_eq!(taken, peers.map(|peer| format!("{url}@{peer}")));
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_that_fails_brings_the_next_question_forward_within_a_bound() {
    let fake = Fake::new();
    fake.set(HOST, Says::Addresses(&["10.0.0.1"], Some(60)));
    let followed = Followed::start(&fake, "https://vault.test");
    pass(1_000).await;
    for _ in 0..100 {
        followed.doubt.raise();
    }
    pass(5_000).await;
    for _ in 0..100 {
        followed.doubt.raise();
    }
    pass(24_000).await;
    assert_eq!(fake.asked(), [0, 5_000, 10_000], "not for each fault, and not before 5 s");
    followed.doubt.raise();
    pass(1).await;
    assert_eq!(fake.asked(), [30_000], "the last answer is older than that, so at once");
}

#[tokio::test(start_paused = true)]
async fn what_was_known_is_used_until_there_is_a_better_answer() {
    let fake = Fake::new();
    fake.set(HOST, Says::Addresses(&["10.0.0.1"], Some(5)));
    let followed = Followed::start(&fake, "https://vault.test");
    pass(1).await;
    let known = followed.taken();
    assert_eq!(known, ["https://vault.test/@10.0.0.1:443"]);
    fake.asked();
    for says in [Says::Nothing("NXDOMAIN"), Says::Nothing("SERVFAIL"), Says::Hangs] {
        fake.set(HOST, says);
        pass(60_000).await;
        assert_eq!(followed.taken(), known);
        assert!(matches!(*followed.first.borrow(), First::Known));
    }
    let asked = fake.asked();
    let expected = [5_000, 5_250, 5_750, 6_750, 8_750, 12_750, 17_750, 22_750];
    assert_eq!(asked[..8], expected, "soon at first, then every five seconds");

    fake.set(HOST, Says::Addresses(&["10.0.0.2"], Some(5)));
    pass(PATIENCE.as_millis() as u64 + 5_000).await;
    assert_eq!(followed.taken(), ["https://vault.test/@10.0.0.2:443"]);
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_taken_is_offered_again_when_it_can_though_dns_is_away() {
    let began = Instant::now();
    let fake = Fake::new();
    fake.set(HOST, Says::Addresses(&["10.0.0.1"], Some(60)));
    let full_until = began + Duration::from_millis(61_200);
    let followed = Followed::start_full(&fake, "https://vault.test", Some(full_until));
    pass(1).await;
    fake.set(HOST, Says::Hangs);
    pass(300_000).await;
    let offered = followed.offered.lock().unwrap().clone();
    assert_eq!(offered, [began, began + Duration::from_secs(70)], "once the question is given up");
    let known = followed.taken();
    assert_eq!(known, ["https://vault.test/@10.0.0.1:443"]);
}

#[tokio::test(start_paused = true)]
async fn the_first_outcome_is_told_whatever_it_is() {
    let fake = Fake::new();
    fake.set(HOST, Says::Hangs);
    let followed = Followed::start(&fake, "https://vault.test");
    pass(PATIENCE.as_millis() as u64 - 1).await;
    assert!(matches!(*followed.first.borrow(), First::Asked));
    pass(2).await;
    let failed = followed.first.borrow().clone();
    assert!(matches!(&failed, First::Failed(why) if why.to_string() == "no answer within 10 s"));
    fake.set(HOST, Says::Nothing("there is no such name"));
    pass(300).await;
    let failed = followed.first.borrow().clone();
    assert!(matches!(&failed, First::Failed(why) if why.to_string() == "there is no such name"));
    assert!(followed.taken().is_empty());
    fake.set(HOST, Says::Addresses(&["10.0.0.1"], None));
    pass(5_000).await;
    assert!(matches!(*followed.first.borrow(), First::Known));
    assert_eq!(followed.fake.asked(), [0, 10_250, 10_750]);
}

#[tokio::test(start_paused = true)]
async fn a_service_becomes_its_targets_in_order() {
    let fake = Fake::new();
    let targets: &[_] = &[
        (20, 1, "last.test", 8200),
        (10, 1, "second.test", 8201),
        (10, 9, "first.test", 8200),
        (10, 1, "also-second.test", 8200),
    ];
    fake.set(SERVICE, Says::Targets(targets, Some(60)));
    for host in ["last.test", "second.test", "first.test", "also-second.test"] {
        fake.set(host, Says::Addresses(&["10.0.0.1"], Some(7)));
    }
    let followed = Followed::start(&fake, "srv+https://_vault._tcp.test");
    pass(1).await;
    let expected = [
        "https://first.test:8200/@10.0.0.1:8200",
        "https://also-second.test:8200/@10.0.0.1:8200",
        "https://second.test:8201/@10.0.0.1:8201",
        "https://last.test:8200/@10.0.0.1:8200",
    ];
    assert_eq!(followed.taken(), expected);
    fake.asked();
    pass(7_000).await;
    assert_eq!(fake.asked(), [7_000; 5], "the shortest time to live of all answers counts");
}

#[tokio::test(start_paused = true)]
async fn a_target_without_an_answer_keeps_its_last_addresses() {
    let fake = Fake::new();
    fake.set(SERVICE, Says::Targets(&[(1, 1, "a.test", 8200), (1, 1, "b.test", 8200)], Some(5)));
    fake.set("a.test", Says::Addresses(&["10.0.0.1"], None));
    fake.set("b.test", Says::Nothing("SERVFAIL"));
    let followed = Followed::start(&fake, "srv+https://_vault._tcp.test");
    pass(1).await;
    let (a, b) = ("https://a.test:8200/@10.0.0.1:8200", "https://b.test:8200/@10.0.0.2:8200");
    assert_eq!(followed.taken(), [a], "what is known serves");
    fake.set("b.test", Says::Addresses(&["10.0.0.2"], None));
    pass(5_000).await;
    assert_eq!(followed.taken(), [a, b]);
    fake.set("a.test", Says::Nothing("SERVFAIL"));
    fake.set("b.test", Says::Hangs);
    pass(60_000).await;
    assert_eq!(followed.taken(), [a, b]);
    fake.set(SERVICE, Says::Targets(&[(1, 1, "a.test", 8200)], Some(5)));
    pass(60_000).await;
    assert_eq!(followed.taken(), [a], "what DNS no longer names goes");
    fake.set(SERVICE, Says::Targets(&[(1, 1, "not a host!", 8200)], Some(5)));
    pass(60_000).await;
    assert_eq!(followed.taken(), [a], "an answer that is no use is a failure");
}
