use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::breaker::BreakerPhase;
use crate::cluster::operation::{Verb, Verdict};
use crate::cluster::stack::testing::{Does, Scripted, call, call_of, name, sealed};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[tokio::test(start_paused = true)]
async fn at_most_three_are_in_flight_for_a_call() {
    let mut scripted = Scripted::new(5, |_, _| Does::Freezes);
    scripted.stack.call(call()).await.unwrap_err();
    assert_eq!(scripted.asked(), [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_place_in_flight_that_a_fault_frees_is_taken_at_once() {
    let mut scripted = Scripted::new(3, |index, _| match index {
        0 => Does::Freezes,
        1 => Does::Refuses,
        _ => Does::Answers,
    });
    let began = Instant::now();
    scripted.stack.call(call()).await.unwrap();
    assert_eq!((scripted.asked(), began.elapsed()), (vec![0, 1, 2], ms(100)));
}

#[tokio::test(start_paused = true)]
async fn others_are_asked_again_beside_one_that_is_frozen() {
    let mut scripted = Scripted::new(3, |index, number| match (index, number) {
        (0, _) => Does::Freezes,
        (_, ..4) => Does::Refuses,
        _ => Does::Answers,
    });
    let began = Instant::now();
    scripted.stack.call(call()).await.unwrap();
    assert!(began.elapsed() < ms(500), "{:?}", began.elapsed());
    assert_eq!(scripted.asked()[..3], [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_just_failed_is_not_asked_again_at_once_beside_a_slow_one() {
    let mut scripted = Scripted::new(2, |index, _| match index {
        0 => Does::AnswersAfter(ms(300)),
        _ => Does::Refuses,
    });
    scripted.stack.call(call()).await.unwrap();
    assert_eq!(scripted.asked(), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn an_address_that_stays_silent_while_others_answer_is_left_out() {
    let mut scripted =
        Scripted::new(2, |index, _| if index == 0 { Does::Freezes } else { Does::Answers });
    let calls = (0..5).map(|_| scripted.stack.call(call()));
    for result in futures_util::future::join_all(calls).await {
        result.unwrap();
    }
    let status = &scripted.stack.addresses()[0];
    assert_eq!(status.breaker, BreakerPhase::Open);
    assert_eq!(status.last_fault.as_deref(), Some("silent for 100 ms while another answered"));
    scripted.asked();
    scripted.stack.call(call()).await.unwrap();
    assert_eq!(scripted.asked(), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_trial_rides_on_a_call_that_does_not_wait_for_it() {
    let mut scripted = Scripted::new(2, |index, _| match index {
        0 => Does::Says(Verdict::Elsewhere(sealed())),
        _ => Does::AnswersAfter(ms(5)),
    });
    scripted.stack.call(call()).await.unwrap();
    assert_eq!(scripted.asked(), [0, 1]);
    scripted.probe_good(0);
    tokio::time::advance(ms(1_001)).await;
    let began = Instant::now();
    let answer = scripted.stack.call(call()).await.unwrap();
    assert_eq!((answer.address, began.elapsed()), (name(1), ms(5)));
    assert_eq!(scripted.asked(), [0, 1], "the trial and its companion");
    scripted.stack.call(call()).await.unwrap();
    assert_eq!(scripted.asked(), [1], "the trial failed: twice the time");
}

#[tokio::test(start_paused = true)]
async fn a_frozen_trial_costs_no_time_and_is_judged_in_the_background() {
    let scripted = Scripted::new(2, |index, number| match (index, number) {
        (0, _) => Does::Freezes,
        _ => Does::AnswersAfter(ms(5)),
    });
    let calls = (0..5).map(|_| scripted.stack.call(call()));
    futures_util::future::join_all(calls).await;
    assert_eq!(scripted.stack.addresses()[0].breaker, BreakerPhase::Open);
    scripted.probe_good(0);
    tokio::time::advance(ms(1_001)).await;
    let began = Instant::now();
    scripted.stack.call(call()).await.unwrap();
    assert_eq!(began.elapsed(), ms(5));
    assert_eq!(scripted.stack.addresses()[0].breaker, BreakerPhase::HalfOpen);
    tokio::time::sleep(ms(3_001)).await;
    assert_eq!(scripted.stack.addresses()[0].breaker, BreakerPhase::Open);
}

#[tokio::test(start_paused = true)]
async fn a_login_goes_to_one_address_at_a_time() {
    let mut scripted =
        Scripted::new(2, |index, _| if index == 0 { Does::Freezes } else { Does::Answers });
    let login = call_of(Verb::Login, ms(3_000));
    scripted.stack.call(login).await.unwrap_err();
    assert_eq!(scripted.asked(), [0]);
}

#[tokio::test(start_paused = true)]
async fn losers_end_with_their_stack() {
    let (held, mut seen) = tokio::sync::mpsc::channel::<()>(1);
    let scripted = Scripted::new(2, move |index, _| match index {
        0 => Does::Holds(held.clone()),
        _ => Does::Answers,
    });
    scripted.stack.call(call()).await.unwrap();
    drop(scripted);
    assert_eq!(seen.recv().await, None, "the loser was dropped, before its deadline");
}

#[tokio::test(start_paused = true)]
async fn a_frozen_node_costs_many_calls_of_an_idle_daemon_a_moment_each() {
    let mut scripted =
        Scripted::new(2, |index, _| if index == 0 { Does::Freezes } else { Does::Answers });
    let calls = (0..64).map(|_| async {
        let began = Instant::now();
        scripted.stack.call(call()).await.map(|_| began.elapsed())
    });
    let took: Vec<_> = futures_util::future::join_all(calls).await;
    let longest = took.into_iter().map(Result::unwrap).max().unwrap();
    assert!(longest < ms(300), "{longest:?}");
    assert_eq!(scripted.asked().len(), 128);
}

#[tokio::test(start_paused = true)]
async fn a_vault_that_is_slow_everywhere_is_asked_hardly_more_often() {
    let mut scripted = Scripted::new(3, |_, _| Does::AnswersAfter(ms(600)));
    for _ in 0..100 {
        scripted.stack.call(call()).await.unwrap();
    }
    let asked = scripted.asked().len();
    assert!((105..=110).contains(&asked), "{asked}: 5 %, a reserve of 3 and one a minute");
}
