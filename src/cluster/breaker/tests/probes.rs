//! What probes do to a breaker, and what it does without them.

use std::time::Duration;

use futures_util::FutureExt as _;
use tokio_test::{assert_pending, assert_ready_ok};
use tower_test::mock::Spawn;

use super::*;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn wants_probe(state: &BreakerState) -> bool {
    state.probe_wanted().now_or_never().is_some()
}

#[tokio::test(start_paused = true)]
async fn no_trial_goes_before_a_good_probe() {
    let (state, mut service, mut server) = breaker();
    open(&mut service, &mut server).await;
    tokio::time::advance(ms(1_500)).await;
    assert!(!state.is_trial_due());
    assert_pending!(service.poll_ready());
    state.probe_good();
    assert!(service.is_woken());
    assert!(state.is_trial_due());
    assert_ready_ok!(service.poll_ready());
}

#[tokio::test(start_paused = true)]
async fn a_good_probe_does_not_shorten_the_time() {
    let (state, mut service, mut server) = breaker();
    open(&mut service, &mut server).await;
    state.probe_good();
    tokio::time::advance(ms(999)).await;
    assert_pending!(service.poll_ready());
    tokio::time::advance(ms(2)).await;
    assert!(state.is_trial_due());
}

#[tokio::test(start_paused = true)]
async fn a_good_probe_from_before_it_opened_counts_for_nothing() {
    let (state, mut service, mut server) = breaker();
    state.probe_good();
    open(&mut service, &mut server).await;
    tokio::time::advance(ms(1_500)).await;
    assert!(!state.is_trial_due());
    state.probe_good();
    go(&mut service, &mut server, Err(refused())).await; // the trial
    tokio::time::advance(ms(2_500)).await;
    assert!(!state.is_trial_due(), "the good probe was of the time before");
}

#[tokio::test(start_paused = true)]
async fn a_bad_probe_takes_a_good_one_back() {
    let (state, mut service, mut server) = breaker();
    open(&mut service, &mut server).await;
    state.probe_good();
    state.probe_bad("is sealed".into());
    tokio::time::advance(ms(1_500)).await;
    assert!(!state.is_trial_due());
    assert_eq!(state.last_fault().as_deref(), Some("is sealed"));
}

#[tokio::test(start_paused = true)]
async fn each_bad_probe_when_a_trial_would_be_due_doubles_the_time() {
    let (state, mut service, mut server) = breaker();
    open(&mut service, &mut server).await;
    state.probe_bad("within the time, which changes nothing".into());
    for seconds in [1, 2, 4, 8, 16, 30, 30] {
        tokio::time::advance(ms(seconds * 1_000 - 1)).await;
        assert!(!wants_probe(&state) || seconds == 1, "too soon, at {seconds}");
        tokio::time::advance(ms(2)).await;
        assert!(wants_probe(&state), "at {seconds}");
        state.probe_bad("connection refused".into());
        assert_pending!(service.poll_ready());
    }
    tokio::time::advance(ms(30_001)).await;
    state.probe_good();
    go(&mut service, &mut server, Ok(answer(200))).await;
    assert_eq!(state.phase(), BreakerPhase::Closed);
    open(&mut service, &mut server).await;
    state.probe_good();
    tokio::time::advance(ms(1_001)).await;
    assert!(state.is_trial_due(), "an answer begins the times anew");
}

#[tokio::test(start_paused = true)]
async fn a_prober_that_reports_nothing_does_not_keep_it_open() {
    let (state, mut service, mut server) = breaker();
    open(&mut service, &mut server).await;
    for seconds in [1, 2, 4] {
        tokio::time::advance(ms(seconds * 1_000 + 4_999)).await;
        assert_pending!(service.poll_ready());
        tokio::time::advance(ms(2)).await;
        assert!(service.is_woken());
        assert!(state.is_trial_due());
        go(&mut service, &mut server, Err(refused())).await;
    }
}

#[tokio::test(start_paused = true)]
async fn probes_do_not_decide_a_trial_under_way() {
    let (state, mut service, mut server) = breaker();
    let mut other = Spawn::new(service.get_ref().clone());
    open(&mut service, &mut server).await;
    state.probe_good();
    tokio::time::advance(ms(1_001)).await;
    assert_ready_ok!(service.poll_ready());
    for _ in 0..10 {
        state.probe_bad("is sealed".into());
        state.probe_good();
    }
    assert_eq!(state.phase(), BreakerPhase::HalfOpen);
    assert_pending!(other.poll_ready());
    go(&mut service, &mut server, Ok(answer(200))).await;
    assert_eq!(state.phase(), BreakerPhase::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_closed_breaker_counts_bad_probes() {
    let (state, mut service, mut server) = breaker();
    for _ in 0..4 {
        state.probe_bad("no answer".into());
    }
    go(&mut service, &mut server, Ok(answer(200))).await; // an answer to a call does
    for _ in 0..4 {
        state.probe_bad("no answer".into());
    }
    assert_eq!(state.phase(), BreakerPhase::Closed);
    state.probe_bad("no answer".into());
    assert_eq!(state.phase(), BreakerPhase::Open);
    assert!(!wants_probe(&state), "it was just probed");
}

#[tokio::test(start_paused = true)]
async fn a_probe_is_wanted_after_a_fault_after_opening_and_when_the_time_is_up() {
    let (state, mut service, mut server) = breaker();
    assert!(!wants_probe(&state));
    go(&mut service, &mut server, Ok(answer(200))).await;
    assert!(!wants_probe(&state));
    go(&mut service, &mut server, Err(refused())).await;
    assert!(wants_probe(&state), "a fault");
    assert!(!wants_probe(&state), "once");

    open(&mut service, &mut server).await;
    assert!(wants_probe(&state), "it opened");
    assert!(!wants_probe(&state));
    let waiting = tokio::spawn({
        let state = state.clone();
        async move { state.probe_wanted().await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    tokio::time::advance(ms(1_001)).await;
    waiting.await.unwrap();
    assert!(!wants_probe(&state), "told once, whatever the prober makes of it");
}

#[tokio::test(start_paused = true)]
async fn a_wish_that_nobody_waited_for_is_kept_and_one_that_was_dropped_too() {
    let (state, mut service, mut server) = breaker();
    let (mut gone, mut there) =
        (task::spawn(state.probe_wanted()), task::spawn(state.probe_wanted()));
    assert_pending!(gone.poll());
    go(&mut service, &mut server, Err(refused())).await;
    drop(gone);
    assert!(there.poll().is_ready());
}

#[tokio::test(start_paused = true)]
async fn after_a_good_probe_the_end_of_the_time_asks_for_no_other() {
    let (state, mut service, mut server) = breaker();
    open(&mut service, &mut server).await;
    assert!(wants_probe(&state));
    state.probe_good();
    tokio::time::advance(ms(1_001)).await;
    assert!(!wants_probe(&state));
}

#[tokio::test(start_paused = true)]
async fn times_differ_between_processes_but_stay_within_a_tenth() {
    let cluster = ClusterName::try_new("test").unwrap();
    let mut spans = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let jitter = Arc::new(Jitter::seeded(seed));
        let policy = BreakerPolicy::default();
        let state = BreakerState::new(cluster.clone(), name(0), policy, jitter);
        for _ in 0..5 {
            state.probe_bad("no answer".into());
        }
        let opened = Instant::now();
        state.probe_wanted().await;
        let span = opened.elapsed();
        assert!(span >= ms(900) && span <= ms(1_101), "{span:?}");
        spans.insert(span.as_millis());
    }
    assert!(spans.len() > 10, "{spans:?}");
}

#[tokio::test(start_paused = true)]
async fn bad_probes_with_good_ones_between_are_no_row() {
    let (state, mut service, mut server) = breaker();
    for _ in 0..100 {
        state.probe_bad("no answer".into());
        assert!(state.last_fault().is_some());
        state.probe_good();
        assert_eq!((state.phase(), state.last_fault()), (BreakerPhase::Closed, None));
        tokio::time::advance(Duration::from_secs(60)).await;
    }
    for _ in 0..4 {
        go(&mut service, &mut server, Err(refused())).await;
        state.probe_good();
        tokio::time::advance(Duration::from_secs(60)).await;
    }
    state.probe_bad("no answer".into());
    assert_eq!(
        state.phase(),
        BreakerPhase::Open,
        "attempts that fail are one, whatever probes say"
    );
}
