//! The policies together, over scripted addresses and paused time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use ::http::Uri;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::testing::{Does, Scripted, call, name};
use super::*;
use crate::cluster::address::Role;
use crate::cluster::breaker::BreakerPhase;
use crate::cluster::error::Fault;
use crate::cluster::operation::{Operation, Verb, Verdict};
use crate::cluster::resolve::testing::{Fake, Says};
use crate::config::settings::{AuthSettings, TlsSettings};
use crate::task::OwnedTask;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[tokio::test(start_paused = true)]
async fn a_fault_goes_to_the_next_address_at_once() {
    let mut scripted =
        Scripted::new(3, |index, _| if index == 0 { Does::Refuses } else { Does::Answers });
    let began = Instant::now();
    let answer = scripted.stack.call(call()).await.unwrap();
    assert_eq!(answer.address, name(1));
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(scripted.asked(), [0, 1]);
    scripted.stack.call(call()).await.unwrap();
    assert_eq!(scripted.asked(), [1], "the address that answered last is asked first");
}

#[tokio::test(start_paused = true)]
async fn a_silent_address_is_joined_by_the_next_after_the_hedge_delay() {
    let mut scripted =
        Scripted::new(3, |index, _| if index == 0 { Does::Freezes } else { Does::Answers });
    let began = Instant::now();
    let answer = scripted.stack.call(call()).await.unwrap();
    assert_eq!((answer.address, began.elapsed()), (name(1), ms(100)));
    assert_eq!(scripted.asked(), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_anothers_call_is_told_of_the_same_addresses() {
    let scripted = Scripted::new(3, |index, _| match index {
        0 => Does::Says(Verdict::Elsewhere(testing::sealed())),
        1 => Does::Freezes,
        _ => Does::Answers,
    });
    let told = || {
        let overdue = scripted.stack.overdue();
        overdue.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let silent = |index| format!("{}: no answer within the deadline", name(index));
    assert_eq!(told(), [silent(0), silent(1), silent(2)], "nothing is known yet");
    scripted.stack.call(call()).await.unwrap();
    assert_eq!(
        told(),
        [silent(1), format!("{}: left out for now after: sealed (HTTP 503)", name(0))]
    );
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_counts_when_the_others_fail() {
    let scripted = Scripted::new(3, |index, _| match index {
        0 => Does::AnswersAfter(ms(1_500)),
        _ => Does::Refuses,
    });
    let began = Instant::now();
    let answer = scripted.stack.call(call()).await.unwrap();
    assert_eq!((answer.address, began.elapsed()), (name(0), ms(1_500)));
}

#[tokio::test(start_paused = true)]
async fn a_vault_that_is_slow_everywhere_is_still_used() {
    let mut scripted = Scripted::new(3, |_, _| Does::AnswersAfter(ms(600)));
    let began = Instant::now();
    for _ in 0..50 {
        scripted.stack.call(call()).await.unwrap();
        assert!(scripted.asked().len() <= 3);
        for status in scripted.stack.addresses() {
            assert_eq!(status.breaker, BreakerPhase::Closed, "{status:?}");
        }
    }
    assert!(began.elapsed() <= ms(600 * 50));
}

#[tokio::test(start_paused = true)]
async fn one_address_can_be_asked_past_its_breaker() {
    let scripted = Scripted::new(2, |index, _| match index {
        0 => Does::Says(Verdict::Elsewhere(testing::sealed())),
        _ => Does::Answers,
    });
    scripted.stack.call(call()).await.unwrap();
    assert_eq!(scripted.stack.addresses()[0].breaker, BreakerPhase::Open);
    let error = scripted.stack.call_at(AddressIndex(0), call()).await.unwrap_err();
    assert_eq!(error.to_string(), "https://vault-0:8200: sealed (HTTP 503)");
    scripted.stack.call_at(AddressIndex(1), call()).await.unwrap();
    let nowhere = scripted.stack.call_at(AddressIndex(9), call()).await.unwrap_err();
    assert!(matches!(nowhere.fault, Fault::Unsendable(_)));
}

fn address(scripted: &Scripted, index: u8) -> Address {
    scripted.stack.members.roster().get(AddressIndex(index)).unwrap().address.clone()
}

#[tokio::test(start_paused = true)]
async fn calls_leave_an_address_that_became_slow_and_come_back_when_the_others_did() {
    let takes = Arc::new([2, 2, 2].map(AtomicU64::new));
    let script = Arc::clone(&takes);
    let mut scripted = Scripted::new(3, move |index, _| {
        Does::AnswersAfter(ms(script[usize::from(index)].load(Ordering::Relaxed)))
    });
    for index in 0..3 {
        address(&scripted, index).latency.probed(ms(1));
    }
    let mut asked = async |calls: u64| {
        for _ in 0..calls {
            scripted.stack.call(call()).await.unwrap();
            tokio::time::sleep(ms(100)).await;
        }
        scripted.asked()
    };
    let set = |index: usize, ms| takes[index].store(ms, Ordering::Relaxed);
    assert_eq!(asked(50).await, [0; 50]);
    set(0, 40);
    assert_eq!(asked(1).await, [0], "nobody can know yet");
    assert_eq!(asked(50).await, [1; 50], "one slow answer is enough");
    set(0, 2);
    assert_eq!(asked(600).await, [1; 600], "it is as quick again, but no quicker");
    set(1, 40);
    set(2, 40);
    assert_eq!(asked(2).await, [1, 0], "the first of those that are quick, as far as is known");
    assert_eq!(asked(600).await, [0; 600]);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_failed_comes_after_the_others_until_that_is_old() {
    let fails = Arc::new(AtomicU64::new(1));
    let script = Arc::clone(&fails);
    let mut scripted =
        Scripted::new(2, move |index, _| match (index, script.load(Ordering::Relaxed)) {
            (0, 1) => Does::Refuses,
            _ => Does::AnswersAfter(ms(20)),
        });
    for _ in 0..10 {
        scripted.stack.call(call()).await.unwrap();
    }
    assert_eq!(scripted.asked(), [vec![0], vec![1; 10]].concat(), "one fault is enough");
    fails.store(0, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(120)).await;
    address(&scripted, 1).latency.observe(ms(300));
    scripted.stack.call(call()).await.unwrap();
    assert_eq!(scripted.asked(), [0], "it gets its chance again");
}

#[tokio::test(start_paused = true)]
async fn attempts_under_way_make_room_for_others() {
    let mut scripted = Scripted::new(3, |_, _| Does::AnswersAfter(ms(20)));
    for index in 0..3 {
        address(&scripted, index).latency.observe(ms(20));
    }
    let calls = (0..12).map(|_| scripted.stack.call(call()));
    for outcome in futures_util::future::join_all(calls).await {
        outcome.unwrap();
    }
    let asked = scripted.asked();
    let counts = [0, 1, 2].map(|index| asked.iter().filter(|asked| **asked == index).count());
    assert!(counts.iter().all(|count| (2..=6).contains(count)), "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_sealed_node_is_asked_only_where_nothing_else_is_left() {
    let mut scripted = Scripted::new(2, |index, _| match index {
        0 => Does::Answers,
        _ => Does::Refuses,
    });
    address(&scripted, 0).role.set(Role::Sealed);
    scripted.stack.call(call()).await.unwrap();
    let asked = scripted.asked();
    assert!(asked.starts_with(&[1]) && asked.ends_with(&[0]), "{asked:?}");
    assert_eq!(address(&scripted, 0).role.get(), Role::Unknown, "it served");
    address(&scripted, 0).role.set(Role::Sealed);
    address(&scripted, 1).role.set(Role::Sealed);
    scripted.stack.call(call()).await.unwrap();
    let status = scripted.stack.addresses();
    assert_eq!([status[0].role, status[1].role], [Role::Unknown, Role::Sealed]);
}

#[tokio::test(start_paused = true)]
async fn a_sealed_node_does_not_join_a_silent_one() {
    let mut scripted = Scripted::new(3, |index, _| match index {
        0 => Does::AnswersAfter(ms(900)),
        _ => Does::Answers,
    });
    address(&scripted, 1).role.set(Role::Sealed);
    address(&scripted, 2).role.set(Role::Uninitialised);
    scripted.stack.call(call()).await.unwrap();
    assert_eq!(scripted.asked(), [0]);
}

#[tokio::test(start_paused = true)]
async fn what_changes_vault_goes_to_the_node_that_said_last_that_it_is_active() {
    let mut scripted = Scripted::new(3, |_, _| Does::Answers);
    let login = || testing::call_of(Verb::Login, Duration::from_secs(3));
    scripted.stack.call(login()).await.unwrap();
    assert_eq!(scripted.asked(), [0], "none is known");
    for index in [1, 2, 1] {
        address(&scripted, index).role.set(Role::Active);
        scripted.stack.call(login()).await.unwrap();
        assert_eq!(scripted.asked(), [index]);
        tokio::time::sleep(ms(1)).await;
    }
}

struct AllFinal;

impl Classify for AllFinal {
    fn classify(&self, _: &Operation, _: &Answer) -> Verdict {
        Verdict::Final
    }
}

fn settings(addresses: Vec<Uri>) -> ClusterSettings {
    ClusterSettings {
        name: ClusterName::try_new("default").unwrap(),
        addresses,
        dns_servers: Vec::new(),
        namespace: None,
        auth_namespace: None,
        tls: TlsSettings::default(),
        auth: AuthSettings::Token("s.secret".into()),
        allow_plaintext: false,
        token_cache: None,
    }
}

fn real(addresses: Vec<Uri>) -> Result<Stack, StackError> {
    let settings = settings(addresses);
    let tls = LoadedTls::read(&settings.tls).unwrap();
    Stack::try_new(&settings, &tls, Arc::new(AllFinal), Arc::new(Jitter::off()))
}

/// A stack whose names `fake` knows.
fn named(urls: &[&str], fake: &Arc<Fake>) -> Stack {
    let settings = settings(urls.iter().map(|url| url.parse().unwrap()).collect());
    let tls = LoadedTls::read(&settings.tls).unwrap();
    let resolver = Arc::clone(fake) as Arc<dyn Resolver>;
    Stack::resolving(&settings, &tls, Arc::new(AllFinal), Arc::new(Jitter::off()), resolver)
        .unwrap()
}

fn names(stack: &Stack) -> Vec<String> {
    stack.addresses().into_iter().map(|status| status.name.to_string()).collect()
}

async fn sound_server() -> (Uri, OwnedTask) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let task = OwnedTask::spawn("test server", async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            connections.spawn(async move {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    if stream.write_all(b"HTTP/1.1 204 OK\r\n\r\n").await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    (url, task)
}

#[tokio::test]
async fn a_server_that_goes_away_is_replaced_within_the_call() {
    let (first, server) = sound_server().await;
    let (second, _other) = sound_server().await;
    let stack = real(vec![first.clone(), second.clone()]).unwrap();
    let answer = stack.call(call()).await.unwrap();
    assert_eq!(answer.address.as_str(), first.to_string().trim_end_matches('/'));
    drop(server);
    for _ in 0..20 {
        stack.call(call()).await.unwrap();
    }
    assert!(stack.addresses()[1].latency.is_some());
    assert!(!format!("{stack:?}").contains("secret"));
}

#[tokio::test]
async fn a_name_is_dialled_at_its_addresses_under_its_own_name() {
    let (server, _task) = sound_server().await;
    let port = server.port_u16().unwrap();
    let fake = Fake::new();
    let stack = named(&[&format!("http://vault.test:{port}")], &fake);
    assert_eq!(names(&stack), [format!("http://vault.test:{port}")], "not known yet");
    fake.set("vault.test", Says::Addresses(&["127.0.0.1", "127.0.0.9"], None));
    let answer = stack.call(call()).await.unwrap();
    assert_eq!(answer.address.as_str(), format!("http://vault.test:{port} (127.0.0.1)"));
    let both = ["127.0.0.1", "127.0.0.9"].map(|ip| format!("http://vault.test:{port} ({ip})"));
    assert_eq!(names(&stack), both);
    for status in stack.addresses() {
        assert_eq!(status.configured.as_str(), format!("http://vault.test:{port}"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_the_first_answer_of_dns_and_then_says_what_is_missing() {
    let fake = Fake::new();
    fake.set("vault.test", Says::Hangs);
    let stack = named(&["https://vault.test:8200"], &fake);
    let began = Instant::now();
    let error = stack.call(call()).await.unwrap_err().to_string();
    assert_eq!(began.elapsed(), ms(3_000));
    let expected = "https://vault.test:8200: cannot resolve vault.test: no answer yet";
    assert!(error.contains(expected), "{error}");

    fake.set("vault.test", Says::Nothing("there is no such name (NXDOMAIN)"));
    stack.resolved(Deadline::after(ms(20_000))).await;
    tokio::time::sleep(ms(10_000)).await;
    let error = stack.call(call()).await.unwrap_err().to_string();
    let expected = "cannot resolve vault.test: there is no such name (NXDOMAIN)";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn settings_that_make_no_transport_are_refused() {
    let none = real(Vec::new()).unwrap_err();
    assert_eq!(none.to_string(), "cluster default has no address; write `addr: https://…`");
    let many = real(vec![Uri::from_static("https://vault:8200"); 65]).unwrap_err();
    assert!(matches!(many, StackError::TooManyAddresses(_, 65)));
    let path = real(vec![Uri::from_static("/vault")]).unwrap_err();
    assert!(matches!(path, StackError::NoHost(..)), "{path}");
}
