use std::sync::Mutex;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::FutureExt as _;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tower::Layer as _;
use tower::util::BoxCloneSyncService;

use super::*;
use crate::clock::{Jitter, UnixSeconds};
use crate::cluster::breaker::{BreakerLayer, BreakerPolicy};
use crate::cluster::stack::testing::{answer, attempt, name};
use crate::config::settings::ClusterName;

type Transport = BoxCloneSyncService<Attempt, Answer, AttemptError>;

/// What a node answers to a probe.
#[derive(Clone)]
enum Says {
    Health(u16, serde_json::Value),
    Text(u16),
    Refuses,
    Freezes,
}

/// Addresses whose health a test decides, and who was asked when.
struct Bench {
    members: Members<Transport>,
    watch: Arc<Watch>,
    says: Arc<Mutex<Vec<Says>>>,
    looks: mpsc::UnboundedReceiver<(u8, Instant)>,
    began: Instant,
    task: Option<OwnedTask>,
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn health(standby: bool, more: serde_json::Value) -> serde_json::Value {
    let mut body = json!({ "initialized": true, "sealed": false, "standby": standby });
    body.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    body
}

fn active() -> Says {
    Says::Health(200, health(false, json!({})))
}

fn standby() -> Says {
    Says::Health(429, health(true, json!({})))
}

fn sealed() -> Says {
    Says::Health(503, json!({ "initialized": true, "sealed": true, "standby": true }))
}

impl Bench {
    fn start(says: Vec<Says>) -> Self {
        let cluster = ClusterName::try_new("test").unwrap();
        let jitter = Arc::new(Jitter::off());
        let says = Arc::new(Mutex::new(says));
        let (told, looks) = mpsc::unbounded_channel();
        let count = u8::try_from(says.lock().unwrap().len()).unwrap();
        let endpoints = (0..count).map(|index| {
            let (says, told) = (Arc::clone(&says), told.clone());
            let transport = BoxCloneSyncService::new(tower::service_fn(move |probe: Attempt| {
                told.send((index, Instant::now())).unwrap();
                let says = says.lock().unwrap()[usize::from(index)].clone();
                respond(index, says, probe)
            }));
            let url = format!("https://vault-{index}:8200").parse().unwrap();
            let address = Address::new(AddressIndex(index), url);
            let breaker = BreakerState::new(
                cluster.clone(),
                address.name.clone(),
                BreakerPolicy::default(),
                Arc::clone(&jitter),
            );
            Endpoint { address, breaker, service: transport.clone(), transport }
        });
        let members = Members::fixed(cluster.clone(), endpoints.collect());
        let watch = Arc::new(Watch::new(cluster, jitter));
        let task = probe_all(members.clone(), Arc::clone(&watch), ProbePolicy::default());
        Self { members, watch, says, looks, began: Instant::now(), task: Some(task) }
    }

    fn says(&self, index: usize, says: Says) {
        self.says.lock().unwrap()[index] = says;
    }

    fn endpoint(&self, index: u8) -> Endpoint<Transport> {
        self.members.roster().get(AddressIndex(index)).unwrap().clone()
    }

    fn role(&self, index: u8) -> Role {
        self.endpoint(index).address.role.get()
    }

    /// When the address was asked since the last time, in milliseconds from the start.
    fn looks(&mut self) -> Vec<u128> {
        std::iter::from_fn(|| self.looks.try_recv().ok())
            .map(|(_, at)| (at - self.began).as_millis())
            .collect()
    }

    /// Somebody calls, once a second for `seconds`.
    async fn calls(&self, seconds: u64) {
        for _ in 0..seconds {
            self.watch.note_call(Verb::Decrypt);
            sleep(secs(1)).await;
        }
    }

    /// An attempt through the breaker that finds nobody there.
    async fn attempt_fails(&self) {
        let endpoint = self.endpoint(0);
        let failing = tower::service_fn(|_: Attempt| async {
            Err::<Answer, _>(error(0, Fault::Unreachable("connection refused".into())))
        });
        let mut service = BreakerLayer::new(endpoint.breaker).layer(failing);
        if let Some(Ok(ready)) = service.ready().now_or_never() {
            ready.call(attempt()).await.unwrap_err();
        }
    }
}

fn error(index: u8, fault: Fault) -> AttemptError {
    AttemptError { address: name(index), index: AddressIndex(index), fault }
}

async fn respond(index: u8, says: Says, probe: Attempt) -> Result<Answer, AttemptError> {
    let operation = &probe.call.operation;
    assert_eq!((operation.path.as_str(), &operation.namespace), ("/v1/sys/health", &None));
    assert!(probe.call.token.is_none() && operation.method == Method::GET);
    match says {
        Says::Health(status, body) => {
            let mut answer = answer(status);
            *answer.body = body.to_string().into_bytes();
            Ok(answer)
        }
        Says::Text(status) => Ok(answer(status)),
        Says::Refuses => Err(error(index, Fault::Unreachable("connection refused".into()))),
        Says::Freezes => {
            sleep_until(probe.call.deadline.instant()).await;
            Err(error(index, Fault::Deadline))
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_healthy_address_is_asked_now_and_then_and_seldom_while_nobody_calls() {
    let mut bench = Bench::start(vec![active()]);
    sleep(secs(91)).await;
    assert_eq!(bench.looks(), [0, 30_000, 60_000, 90_000]);
    bench.calls(15).await; // from 91 s on
    assert_eq!(bench.looks(), [95_000, 100_000, 105_000]);
    sleep(secs(60)).await; // busy until 115 s
    assert_eq!(bench.looks(), [110_000, 140_000]);
}

#[tokio::test(start_paused = true)]
async fn the_first_call_after_a_long_time_brings_a_probe() {
    // for a login, too: calls wait for what it brings
    for verb in [Verb::Encrypt, Verb::Login] {
        let mut bench = Bench::start(vec![active()]);
        sleep(secs(20)).await;
        assert_eq!(bench.looks(), [0]);
        bench.watch.note_call(verb);
        sleep(secs(1)).await;
        assert_eq!(bench.looks(), [20_000]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_daemon_asks_for_itself_keeps_nobody_awake() {
    let mut bench = Bench::start(vec![active()]);
    for _ in 0..29 {
        sleep(secs(1)).await;
        for verb in [Verb::ReadKey, Verb::RenewSelf, Verb::LookupSelf] {
            bench.watch.note_call(verb);
        }
    }
    assert_eq!(bench.looks(), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_attempt_or_a_doubt_brings_a_probe_at_once() {
    let mut bench = Bench::start(vec![active()]);
    sleep(secs(2)).await;
    bench.attempt_fails().await;
    sleep(Duration::from_millis(1)).await;
    assert_eq!(bench.looks(), [0, 2_000]);
    sleep(secs(40)).await;
    bench.looks();
    let now = bench.began.elapsed().as_millis();
    bench.endpoint(0).address.role.doubt();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(bench.looks(), [now]);
}

#[tokio::test(start_paused = true)]
async fn attempts_that_fail_at_a_healthy_address_make_no_storm_of_probes() {
    let mut bench = Bench::start(vec![active()]);
    for _ in 0..6_000 {
        bench.endpoint(0).address.role.doubt();
        sleep(Duration::from_millis(10)).await;
    }
    let looks = bench.looks();
    let apart: Vec<_> = looks.windows(2).map(|pair| (pair[1] - pair[0]) / 100).collect();
    assert_eq!(apart[..5], [5, 5, 10, 20, 40], "{looks:?}");
    assert!(apart[5..].iter().all(|apart| *apart == 50) && looks.len() < 20, "{looks:?}");
}

#[tokio::test(start_paused = true)]
async fn however_often_it_was_asked_a_breaker_that_opens_brings_a_probe_at_once() {
    let mut bench = Bench::start(vec![active()]);
    for _ in 0..6_000 {
        bench.endpoint(0).address.role.doubt();
        sleep(Duration::from_millis(10)).await;
    }
    // Until then the next probe, wanted already, was five seconds after the last one.
    let last = *bench.looks().last().unwrap();
    let now = last + 600;
    sleep_until(bench.began + Duration::from_millis(u64::try_from(now).unwrap())).await;
    let now = bench.began.elapsed().as_millis();
    for _ in 0..5 {
        bench.attempt_fails().await;
    }
    assert_eq!(bench.endpoint(0).breaker.phase(), BreakerPhase::Open);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(bench.looks(), [now]);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_is_down_is_asked_more_often_while_somebody_needs_it() {
    let mut bench = Bench::start(vec![Says::Refuses]);
    sleep(secs(21)).await;
    let looks = bench.looks();
    assert!(looks.len() >= 5 && looks.windows(2).all(|p| p[1] - p[0] <= 5_000), "{looks:?}");
    bench.calls(30).await;
    let looks = bench.looks();
    assert!((29..=61).contains(&looks.len()), "{looks:?}");
    assert!(looks.windows(2).all(|p| (500..=1_000).contains(&(p[1] - p[0]))), "{looks:?}");
    bench.says(0, active());
    sleep(secs(2)).await;
    assert_eq!(bench.role(0), Role::Active);
}

#[tokio::test(start_paused = true)]
async fn a_frozen_address_holds_up_neither_the_others_nor_its_own_return() {
    let mut bench = Bench::start(vec![Says::Freezes, standby()]);
    for _ in 0..5 {
        bench.attempt_fails().await;
    }
    sleep(Duration::from_millis(1)).await;
    assert_eq!((bench.role(0), bench.role(1)), (Role::Unknown, Role::Standby));
    bench.calls(30).await;
    bench.looks();
    bench.says(0, active());
    bench.calls(3).await;
    assert_eq!(bench.role(0), Role::Active);
}

#[tokio::test(start_paused = true)]
async fn roles_follow_what_the_nodes_say() {
    let bench = Bench::start(vec![active(), standby(), sealed()]);
    let roles = || [0, 1, 2].map(|index| bench.role(index));
    bench.calls(1).await;
    assert_eq!(roles(), [Role::Active, Role::Standby, Role::Sealed]);
    bench.says(0, Says::Refuses);
    bench.says(1, active());
    bench.says(2, Says::Text(404));
    bench.calls(6).await;
    assert_eq!(roles(), [Role::Unknown, Role::Active, Role::Unknown]);
    bench.says(0, Says::Text(502));
    bench.says(2, standby());
    bench.calls(6).await;
    assert_eq!(roles(), [Role::Unknown, Role::Active, Role::Standby]);
}

#[tokio::test(start_paused = true)]
async fn vaults_clock_is_the_active_nodes() {
    let at = |time: i64, says: Says| match says {
        Says::Health(status, mut body) => {
            body["server_time_utc"] = time.into();
            Says::Health(status, body)
        }
        says => says,
    };
    let bench = Bench::start(vec![at(1_000, standby()), at(1_600, active())]);
    assert_eq!(bench.watch.clock().now(), None);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(bench.watch.clock().now(), Some(UnixSeconds(1_600)));
    bench.says(0, at(1_006, active()));
    bench.says(1, at(1_606, standby()));
    bench.calls(6).await;
    assert_eq!(bench.watch.clock().now(), Some(UnixSeconds(1_007)));
}

#[tokio::test(start_paused = true)]
async fn the_probes_end_with_their_owner() {
    let mut bench = Bench::start(vec![active(), standby()]);
    sleep(secs(1)).await;
    assert_eq!(bench.looks().len(), 2);
    bench.task = None;
    sleep(secs(120)).await;
    assert_eq!(bench.looks().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_known_of_a_nodes_index_ends_with_another_version_cluster_or_start() {
    let says = |more: serde_json::Value| Says::Health(200, health(false, more));
    let this = || says(json!({ "cluster_id": "a", "version": "2.7.2" }));
    for (then, is_known) in [
        (this(), true),
        (Says::Freezes, true),
        (says(json!({ "cluster_id": "b", "version": "2.7.2" })), false),
        (says(json!({ "cluster_id": "a", "version": "2.6.0" })), false),
        (Says::Refuses, false),
        (sealed(), false),
    ] {
        let bench = Bench::start(vec![this()]);
        bench.calls(1).await;
        let hands_on = bench.endpoint(0).address.hands_on;
        let told = STANDARD.encode(r#"{"cluster":"a","value":"40"}"#);
        hands_on.learn(&told.parse().unwrap());
        bench.says(0, then);
        bench.calls(6).await;
        assert_eq!(hands_on.is_certain(), is_known);
    }
}
