//! Outages and their ends, over scripted addresses and paused time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use tokio::time::Instant;

use super::{Parking, Seen, View};
use crate::clock::Jitter;
use crate::cluster::CallErrorKind;
use crate::cluster::operation::{Attempt, Verb, Verdict};
use crate::cluster::stack::testing::{Does, Scripted, attempt, call, call_of, leaderless, name};
use crate::config::settings::ClusterName;

mod line;
mod rests;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// When each request came, and to whom.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<(Instant, u8)>>>);

impl Diary {
    fn note(&self, index: u8) {
        self.0.lock().unwrap().push((Instant::now(), index));
    }

    /// Requests from `from` on and before `to`.
    fn between(&self, from: Instant, to: Instant) -> usize {
        self.0.lock().unwrap().iter().filter(|(at, _)| (from..to).contains(at)).count()
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

/// Addresses that do `before` until `back_at` and answer after 5 ms from then on.
fn away_until(
    back_at: Instant,
    addresses: u8,
    before: impl Fn(u8) -> Does + Send + Sync + 'static,
) -> (Scripted, Diary) {
    let diary = Diary::default();
    let noted = diary.clone();
    let scripted = Scripted::new(addresses, move |index, _| {
        noted.note(index);
        if Instant::now() < back_at { before(index) } else { Does::AnswersAfter(ms(5)) }
    });
    (scripted, diary)
}

/// `per_second` calls for `seconds`, evenly; how many failed, and how many there were.
async fn traffic(scripted: &Scripted, per_second: u64, seconds: u64) -> (usize, usize) {
    let began = Instant::now();
    let calls = (0..per_second * seconds).map(|n| {
        let stack = scripted.stack.clone();
        async move {
            tokio::time::sleep_until(began + ms(n * 1_000 / per_second)).await;
            stack.call(call()).await
        }
    });
    let results = join_all(calls).await;
    (results.iter().filter(|result| result.is_err()).count(), results.len())
}

#[tokio::test(start_paused = true)]
async fn an_outage_costs_each_address_about_one_request_a_second_however_many_call() {
    let began = Instant::now();
    let (scripted, diary) = away_until(began + ms(3_600_000), 3, |_| Does::Refuses);
    let (failed, calls) = traffic(&scripted, 50, 20).await;
    assert_eq!((failed, calls), (1_000, 1_000));
    let asked = diary.between(began + ms(2_000), began + ms(20_000));
    assert!(asked >= 45, "{asked}: the end of the outage would be noticed late");
    assert!(asked <= 60, "{asked} in 18 s");
}

#[tokio::test(start_paused = true)]
async fn in_a_slow_trickle_of_calls_hardly_one_is_sent_twice() {
    let began = Instant::now();
    let (scripted, diary) = away_until(began + ms(3_600_000), 3, |_| Does::Refuses);
    let (_, calls) = traffic(&scripted, 4, 60).await;
    let sent = diary.len();
    assert!(sent * 10 <= calls * 12, "{sent} requests for {calls} calls");
}

#[tokio::test(start_paused = true)]
async fn a_lone_call_is_not_sent_twice_to_addresses_that_probes_say_are_of_no_use() {
    let back_at = Instant::now() + ms(3_900);
    let (scripted, diary) = away_until(back_at, 3, |_| Does::Refuses);
    scripted.stack.call(call_of(Verb::Decrypt, ms(2_000))).await.unwrap_err();
    (0..3).for_each(|index| scripted.probe_bad(index));
    let before = diary.len();
    let renewal = scripted.stack.call(call_of(Verb::RenewSelf, ms(2_000)));
    assert!(tokio::time::timeout(ms(1), renewal).await.unwrap().is_err(), "it comes again");
    let calling = tokio::spawn({
        let stack = scripted.stack.clone();
        async move { stack.call(call_of(Verb::Decrypt, ms(3_000))).await }
    });
    tokio::time::sleep(ms(2_000)).await;
    assert_eq!(diary.len() - before, 1, "sent once, and then it waited");
    scripted.probe_good(1);
    assert!(calling.await.unwrap().is_ok(), "a good probe is what it waited for");
    assert_eq!(diary.len() - before, 2);
}

#[tokio::test(start_paused = true)]
async fn when_an_outage_ends_calls_leave_in_growing_steps() {
    let began = Instant::now();
    let back_at = began + ms(2_000);
    let (scripted, diary) = away_until(back_at, 1, |_| Does::Refuses);
    scripted.stack.call(call_of(Verb::Decrypt, ms(100))).await.unwrap_err();
    let ended = join_all((0..500).map(|_| async {
        scripted.stack.call(call()).await.unwrap();
        Instant::now()
    }));
    let ended = ended.await;
    let scout_at = diary.0.lock().unwrap().iter().map(|(at, _)| *at).find(|at| *at >= back_at);
    let scout_at = scout_at.unwrap();
    let since = |at: Instant| at - scout_at;
    assert!(since(*ended.iter().min().unwrap()) <= ms(6), "the scout is answered");
    assert!(since(*ended.iter().max().unwrap()) <= ms(200), "all within a few round trips");
    // one scout, and from one round trip to the next not more than twice as many, and one
    let rounds: Vec<_> =
        (0..20).map(|n| diary.between(scout_at + ms(n * 5), scout_at + ms(n * 5 + 5))).collect();
    assert_eq!(rounds[0], 1, "{rounds:?}");
    assert!(rounds.windows(2).all(|pair| pair[1] <= pair[0].max(1) * 2 + 3), "{rounds:?}");
    assert_eq!(rounds.iter().sum::<usize>(), 500, "{rounds:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_fails_again_at_once_gets_only_the_first_step() {
    let diary = Diary::default();
    let noted = diary.clone();
    let began = Instant::now();
    let scripted = Scripted::new(1, move |index, _| {
        noted.note(index);
        // answers once, every two seconds
        let is_the_first = noted.between(Instant::now() - ms(1_900), Instant::now()) == 0;
        if is_the_first && began.elapsed() > ms(1_000) { Does::Answers } else { Does::Refuses }
    });
    let (_, calls) = traffic(&scripted, 100, 20).await;
    assert_eq!(calls, 2_000);
    assert!(diary.len() <= 20 * 6, "{}", diary.len());
}

#[tokio::test(start_paused = true)]
async fn one_node_that_comes_back_is_found_although_the_others_are_frozen() {
    let began = Instant::now();
    let diary = Diary::default();
    let noted = diary.clone();
    let scripted = Scripted::new(3, move |index, _| {
        noted.note(index);
        match index {
            2 if began.elapsed() >= ms(12_000) => Does::AnswersAfter(ms(5)),
            2 => Does::Refuses,
            _ => Does::Freezes,
        }
    });
    let (_, calls) = traffic(&scripted, 4, 11).await;
    assert_eq!(calls, 44);
    tokio::time::sleep_until(began + ms(12_000)).await;
    let called = Instant::now();
    scripted.stack.call(call()).await.unwrap();
    assert!(called.elapsed() <= ms(1_500), "{:?}", called.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_never_sent_names_each_address_and_its_fault() {
    let began = Instant::now();
    let (scripted, _) = away_until(began + ms(3_600_000), 2, |index| match index {
        0 => Does::Refuses,
        _ => Does::Says(Verdict::Elsewhere(leaderless())),
    });
    traffic(&scripted, 4, 3).await;
    let calls = (0..40).map(|_| scripted.stack.call(call()));
    for result in join_all(calls).await {
        let error = result.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("vault-0:8200") && text.contains("connection refused"), "{text}");
        assert!(text.contains("vault-1:8200") && text.contains("no active node"), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_election_of_two_seconds_fails_none_of_many_or_few_calls() {
    for (addresses, per_second) in [(1, 1), (3, 1), (5, 1), (7, 1), (3, 40), (1, 200)] {
        let over_at = Instant::now() + ms(2_000);
        let (scripted, diary) =
            away_until(over_at, addresses, |_| Does::Says(Verdict::Elsewhere(leaderless())));
        let (failed, calls) = traffic(&scripted, per_second, 3).await;
        assert_eq!(failed, 0, "{addresses} addresses, {per_second} calls a second");
        let asked = diary.len();
        assert!(asked <= calls + 25, "{asked} requests for {calls} calls");
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_is_wrong_is_not_asked_about_again_and_again() {
    let mut sole = Scripted::new(1, |_, _| Does::Distrusts);
    sole.stack.call(call()).await.unwrap_err();
    let asked = sole.asked().len();
    assert!((2..=4).contains(&asked), "{asked}: one a second");

    let back_at = Instant::now() + ms(1_500);
    let (mut scripted, _) =
        away_until(back_at, 3, |index| if index == 0 { Does::Distrusts } else { Does::Refuses });
    scripted.stack.call(call()).await.unwrap();
    let asked = scripted.asked().iter().filter(|index| **index == 0).count();
    assert!(asked <= 2, "{asked}");
}

#[tokio::test(start_paused = true)]
async fn repeats_beyond_the_budget_leave_the_line_as_answers_come() {
    // Two of three addresses die under 1,000 calls in flight.
    let diary = Diary::default();
    let noted = diary.clone();
    let mut scripted = Scripted::new(3, move |index, _| {
        noted.note(index);
        if index < 2 { Does::Refuses } else { Does::AnswersAfter(ms(5)) }
    });
    let began = Instant::now();
    for result in join_all((0..1_000).map(|_| scripted.stack.call(call()))).await {
        assert_eq!(result.unwrap().address, name(2));
    }
    assert!(began.elapsed() <= ms(500), "{:?}", began.elapsed());
    assert!(scripted.asked().len() <= 3_000);
}

#[tokio::test(start_paused = true)]
async fn the_first_call_after_ten_idle_minutes_survives_dead_addresses() {
    let began = Instant::now();
    let dead = move || began.elapsed() >= ms(600_000);
    let mut scripted = Scripted::new(3, move |index, _| match index {
        0 if dead() => Does::Freezes,
        1 if dead() => Does::Breaks, // a pooled connection that went stale
        _ => Does::AnswersAfter(ms(5)),
    });
    traffic(&scripted, 300, 10).await;
    scripted.asked();
    tokio::time::sleep_until(began + ms(660_000)).await;
    let called = Instant::now();
    scripted.stack.call(call()).await.unwrap();
    assert!(called.elapsed() <= ms(500), "{:?}", called.elapsed());
    assert_eq!(scripted.asked(), [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_scout_that_is_cancelled_makes_way_for_the_next() {
    let began = Instant::now();
    let (scripted, _) = away_until(began + ms(1_000), 1, |_| Does::Freezes);
    for _ in 0..20 {
        let cancelled = tokio::time::timeout(ms(40), scripted.stack.call(call())).await;
        assert!(cancelled.is_err());
    }
    tokio::time::sleep_until(began + ms(1_000)).await;
    scripted.stack.call(call()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_line_is_empty_when_the_calls_are_gone() {
    let began = Instant::now();
    let (scripted, _) = away_until(began + ms(60_000), 2, |_| Does::Refuses);
    let calls = join_all((0..100).map(|_| scripted.stack.call(call_of(Verb::Decrypt, ms(500)))));
    assert!(tokio::time::timeout(ms(300), calls).await.is_err(), "they wait");
    // dropped at 300 ms
    tokio::time::sleep_until(began + ms(61_000)).await;
    let (failed, _) = traffic(&scripted, 10, 1).await;
    assert_eq!(failed, 0);
}

#[tokio::test(start_paused = true)]
async fn calls_that_come_after_an_outage_are_not_kept_back_by_those_that_it_cost() {
    for (addresses, takes, grace) in [(1, 20, 1_200), (3, 20, 1_200), (1, 150, 2_500)] {
        let began = Instant::now();
        let back_at = began + ms(10_000);
        let scripted = Scripted::new(addresses, move |_, _| {
            if Instant::now() < back_at { Does::Refuses } else { Does::AnswersAfter(ms(takes)) }
        });
        let calls = (0..1_600).map(|n| {
            let (stack, at) = (scripted.stack.clone(), began + ms(n * 10));
            async move {
                tokio::time::sleep_until(at).await;
                (at, stack.call(call_of(Verb::Decrypt, ms(2_950))).await.is_ok())
            }
        });
        let ended = join_all(calls).await;
        let after = ended.iter().filter(|(at, _)| *at >= back_at + ms(grace));
        let failed = after.filter(|(_, is_ok)| !is_ok).count();
        assert_eq!(failed, 0, "{addresses} addresses that take {takes} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_is_asked_again_at_once_when_its_scout_was_cancelled() {
    let began = Instant::now();
    let scripted = Scripted::new(1, move |_, _| match began.elapsed() {
        at if at < ms(1) => Does::Refuses,
        at if at < ms(300) => Does::Freezes,
        _ => Does::Answers,
    });
    scripted.stack.call(call_of(Verb::Decrypt, ms(30))).await.unwrap_err();
    assert!(tokio::time::timeout(ms(250), scripted.stack.call(call())).await.is_err());
    tokio::time::sleep_until(began + ms(310)).await;
    let called = Instant::now();
    scripted.stack.call(call()).await.unwrap();
    assert!(called.elapsed() <= ms(60), "{:?}", called.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_scout_that_never_takes_off_keeps_nobody_on_the_ground() {
    let (scripted, _) = away_until(Instant::now() + ms(1), 1, |_| Does::Refuses);
    scripted.stack.call(call_of(Verb::Decrypt, ms(100))).await.unwrap_err();
    let mut called = Box::pin(scripted.stack.call(call()));
    assert!(futures_util::poll!(&mut called).is_pending());
    tokio::time::sleep(ms(300)).await;
    drop(called); // it was told to go and did not see it
    let called = Instant::now();
    scripted.stack.call(call()).await.unwrap();
    assert!(called.elapsed() <= ms(60), "{:?}", called.elapsed());
}
