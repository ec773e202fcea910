use std::sync::Arc;
use std::time::Duration;

use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower_test::mock::{self, Handle, Mock, Spawn};

use super::*;
use crate::clock::Jitter;
use crate::cluster::error::Fault;
use crate::cluster::operation::AddressIndex;
use crate::cluster::stack::testing::{answer, attempt, name, sealed};
use crate::config::settings::ClusterName;

type Guarded = Spawn<Breaker<Inner>>;

/// tower-test's mock fails with a boxed error; ours fail with an attempt's.
#[derive(Clone)]
struct Inner(Mock<Attempt, Result<Answer, AttemptError>>);

impl Service<Attempt> for Inner {
    type Response = Answer;
    type Error = AttemptError;
    type Future = BoxFuture<'static, Result<Answer, AttemptError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), AttemptError>> {
        self.0.poll_ready(cx).map(|ready| {
            ready.unwrap();
            Ok(())
        })
    }

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        let answering = self.0.call(attempt);
        async move { answering.await.expect("the mock answers") }.boxed()
    }
}

type Server = Handle<Attempt, Result<Answer, AttemptError>>;

fn breaker() -> (BreakerState, Guarded, Server) {
    let cluster = ClusterName::try_new("test").unwrap();
    let state =
        BreakerState::new(cluster, name(0), BreakerPolicy::default(), Arc::new(Jitter::off()));
    let (inner, server) = mock::pair();
    let service = BreakerLayer::new(state.clone()).layer(Inner(inner));
    (state, Spawn::new(service), server)
}

fn fault(fault: Fault) -> AttemptError {
    AttemptError { address: name(0), index: AddressIndex(0), fault }
}

fn refused() -> AttemptError {
    fault(Fault::Unreachable("connection refused".into()))
}

/// One attempt from readiness to its end.
async fn go(service: &mut Guarded, server: &mut Server, result: Result<Answer, AttemptError>) {
    assert_ready_ok!(service.poll_ready());
    let mut answering = task::spawn(service.call(attempt()));
    assert_pending!(answering.poll());
    let (_, send) = server.next_request().await.unwrap();
    send.send_response(result);
    let _ = answering.await;
}

async fn open(service: &mut Guarded, server: &mut Server) {
    let ejecting = Fault::Elsewhere { status: 503, verdict: sealed() };
    go(service, server, Err(fault(ejecting))).await;
}

#[tokio::test(start_paused = true)]
async fn it_opens_after_five_faults_in_a_row() {
    let (state, mut service, mut server) = breaker();
    for _ in 0..4 {
        go(&mut service, &mut server, Err(refused())).await;
    }
    go(&mut service, &mut server, Ok(answer(200))).await;
    for _ in 0..4 {
        go(&mut service, &mut server, Err(refused())).await;
        assert_eq!(state.phase(), BreakerPhase::Closed);
    }
    go(&mut service, &mut server, Err(refused())).await;
    assert_eq!(state.phase(), BreakerPhase::Open);
    assert_eq!(state.last_fault().as_deref(), Some("connection refused"));
    assert_pending!(service.poll_ready());
}

#[tokio::test(start_paused = true)]
async fn it_opens_when_every_second_attempt_fails() {
    let (state, mut service, mut server) = breaker();
    for attempt in 1..=20 {
        assert_eq!(state.phase(), BreakerPhase::Closed, "before attempt {attempt}");
        let result = if attempt % 2 == 0 { Err(refused()) } else { Ok(answer(200)) };
        go(&mut service, &mut server, result).await;
        tokio::time::advance(Duration::from_millis(500)).await;
    }
    assert_eq!(state.phase(), BreakerPhase::Open);
    assert_eq!(state.report().reason, Some(OpenReason::FailureRatio));
}

#[tokio::test(start_paused = true)]
async fn a_few_attempts_make_no_ratio_and_old_ones_are_forgotten() {
    let (state, mut service, mut server) = breaker();
    for attempt in 0..200 {
        let result = if attempt % 2 == 0 { Err(refused()) } else { Ok(answer(200)) };
        go(&mut service, &mut server, result).await;
        tokio::time::advance(Duration::from_secs(2)).await; // 15 in the window
    }
    assert_eq!(state.phase(), BreakerPhase::Closed);
}

#[tokio::test(start_paused = true)]
async fn what_failed_before_it_opened_does_not_open_it_again() {
    let (state, mut service, mut server) = breaker();
    for _ in 0..9 {
        go(&mut service, &mut server, Err(refused())).await;
        go(&mut service, &mut server, Ok(answer(200))).await;
    }
    open(&mut service, &mut server).await;
    state.probe_good();
    tokio::time::advance(Duration::from_millis(1_001)).await;
    go(&mut service, &mut server, Ok(answer(200))).await;
    for _ in 0..4 {
        go(&mut service, &mut server, Err(refused())).await;
        assert_eq!(state.phase(), BreakerPhase::Closed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_report_tells_why_since_when_and_how_often() {
    let (state, mut service, mut server) = breaker();
    tokio::time::advance(Duration::from_secs(7)).await;
    let expected = BreakerReport {
        phase: BreakerPhase::Closed,
        lasted: Duration::from_secs(7),
        opened: 0,
        reason: None,
        last_fault: None,
    };
    assert_eq!(state.report(), expected);
    open(&mut service, &mut server).await;
    assert_eq!(state.report().reason, Some(OpenReason::Unfit));
    state.probe_good();
    tokio::time::advance(Duration::from_secs(2)).await;
    go(&mut service, &mut server, Err(refused())).await;
    let expected = BreakerReport {
        phase: BreakerPhase::Open,
        lasted: Duration::ZERO,
        opened: 2,
        reason: Some(OpenReason::TrialFailed),
        last_fault: Some("connection refused".into()),
    };
    assert_eq!(state.report(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_sealed_node_is_left_out_at_once() {
    let (state, mut service, mut server) = breaker();
    open(&mut service, &mut server).await;
    assert_eq!(state.phase(), BreakerPhase::Open);
    assert_eq!(state.last_fault().as_deref(), Some("sealed (HTTP 503)"));
}

#[tokio::test(start_paused = true)]
async fn what_is_no_fault_of_the_address_does_not_count() {
    let (state, mut service, mut server) = breaker();
    for _ in 0..20 {
        go(&mut service, &mut server, Err(fault(Fault::TokenRefused))).await;
        go(&mut service, &mut server, Err(fault(Fault::Unsendable("too large")))).await;
        let stale = Fault::Stale {
            reason: "too new",
            word: crate::cluster::error::Word::Anyones,
            answer: Box::new(answer(400)),
        };
        go(&mut service, &mut server, Err(fault(stale))).await;
    }
    assert_eq!(state.phase(), BreakerPhase::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_left_no_time_says_nothing_about_the_address() {
    let (state, mut service, mut server) = breaker();
    for _ in 0..20 {
        go(&mut service, &mut server, Err(fault(Fault::Deadline))).await;
    }
    assert_eq!(state.phase(), BreakerPhase::Closed);
}

#[tokio::test(start_paused = true)]
async fn silence_up_to_a_fair_deadline_counts() {
    let (state, mut service, mut server) = breaker();
    for _ in 0..5 {
        assert_ready_ok!(service.poll_ready());
        let mut answering = task::spawn(service.call(attempt()));
        assert_pending!(answering.poll());
        let (_, send) = server.next_request().await.unwrap();
        tokio::time::advance(Duration::from_secs(3)).await;
        send.send_response(Err(fault(Fault::Deadline)));
        let _ = answering.await;
    }
    assert_eq!(state.phase(), BreakerPhase::Open);
}

#[tokio::test(start_paused = true)]
async fn half_open_lets_one_trial_through_and_its_success_closes() {
    let (state, mut service, mut server) = breaker();
    let mut other = Spawn::new(service.get_ref().clone());
    open(&mut service, &mut server).await;
    assert_pending!(service.poll_ready());
    assert_pending!(other.poll_ready());
    state.probe_good();
    tokio::time::advance(Duration::from_millis(1_001)).await;
    assert!(service.is_woken());
    assert!(state.is_trial_due());
    assert_ready_ok!(service.poll_ready());
    assert!(service.get_ref().witness().unwrap().is_trial());
    assert_eq!(state.phase(), BreakerPhase::HalfOpen);
    assert_pending!(other.poll_ready());

    go(&mut service, &mut server, Ok(answer(200))).await;
    assert_eq!(state.phase(), BreakerPhase::Closed);
    assert_eq!(state.last_fault(), None);
    assert!(other.is_woken());
    assert_ready_ok!(other.poll_ready());
}

#[tokio::test(start_paused = true)]
async fn each_failed_trial_doubles_the_time_up_to_half_a_minute() {
    let (state, mut service, mut server) = breaker();
    open(&mut service, &mut server).await;
    for seconds in [1, 2, 4, 8, 16, 30, 30] {
        state.probe_good();
        tokio::time::advance(Duration::from_millis(seconds * 1_000 - 1)).await;
        assert!(!state.is_trial_due(), "{seconds}");
        tokio::time::advance(Duration::from_millis(2)).await;
        assert!(state.is_trial_due(), "{seconds}");
        assert_ready!(service.poll_ready()).unwrap();
        go(&mut service, &mut server, Err(refused())).await;
        assert_eq!(state.phase(), BreakerPhase::Open);
    }
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_is_given_up_goes_back() {
    let (state, mut service, mut server) = breaker();
    let mut other = Spawn::new(service.get_ref().clone());
    open(&mut service, &mut server).await;
    state.probe_good();
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_ready_ok!(service.poll_ready());
    assert_pending!(other.poll_ready());
    let answering = task::spawn(service.call(attempt()));
    drop(answering); // the caller went away
    assert!(other.is_woken());
    assert_ready_ok!(other.poll_ready());
    drop(other); // ready, and never called
    assert_eq!(state.phase(), BreakerPhase::Open);
    assert!(state.is_trial_due());
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_goes_away_says_nothing() {
    let (state, mut service, _server) = breaker();
    for _ in 0..20 {
        assert_ready_ok!(service.poll_ready());
        let mut answering = task::spawn(service.call(attempt()));
        assert_pending!(answering.poll());
        drop(answering);
    }
    assert_eq!(state.phase(), BreakerPhase::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_loser_that_says_that_it_serves_nobody_is_believed() {
    let (state, mut service, mut server) = breaker();
    assert_ready_ok!(service.poll_ready());
    let lost = attempt();
    let fate = lost.fate.clone();
    let mut answering = task::spawn(service.call(lost));
    assert_pending!(answering.poll());
    let (_, send) = server.next_request().await.unwrap();
    fate.give_up();
    send.send_response(Err(fault(Fault::Elsewhere { status: 503, verdict: sealed() })));
    let _ = answering.await;
    assert_eq!(state.phase(), BreakerPhase::Open);
}

#[tokio::test(start_paused = true)]
async fn a_losers_outcome_says_nothing_but_its_silence_does() {
    let (state, mut service, mut server) = breaker();
    for n in 1..=10 {
        assert_ready_ok!(service.poll_ready());
        let witness = service.get_ref().witness().unwrap();
        let lost = attempt();
        let fate = lost.fate.clone();
        let mut answering = task::spawn(service.call(lost));
        assert_pending!(answering.poll());
        let (_, send) = server.next_request().await.unwrap();
        fate.give_up();
        if n > 5 {
            witness.silent(Duration::from_millis(100));
        }
        send.send_response(Err(refused()));
        let _ = answering.await;
        let expected = if n < 10 { BreakerPhase::Closed } else { BreakerPhase::Open };
        assert_eq!(state.phase(), expected, "after {n}");
    }
    assert_eq!(state.last_fault().as_deref(), Some("silent for 100 ms while another answered"));
}

#[tokio::test(start_paused = true)]
async fn outcomes_from_before_it_opened_do_not_lengthen_its_time() {
    let (state, mut service, mut server) = breaker();
    let mut late = Vec::new();
    for _ in 0..10 {
        assert_ready_ok!(service.poll_ready());
        let mut answering = task::spawn(service.call(attempt()));
        assert_pending!(answering.poll());
        late.push((answering, server.next_request().await.unwrap().1));
    }
    for (answering, send) in late {
        send.send_response(Err(refused()));
        let _ = answering.await;
    }
    state.probe_good();
    tokio::time::advance(Duration::from_millis(1_001)).await;
    assert!(state.is_trial_due());
}

#[tokio::test(start_paused = true)]
async fn a_scout_goes_past_an_open_breaker_and_only_its_success_counts() {
    let (state, mut service, mut server) = breaker();
    open(&mut service, &mut server).await;
    let inner = service.get_ref().inner.clone();
    let mut scout = Spawn::new(Breaker::scouting(&state, inner));
    go(&mut scout, &mut server, Err(refused())).await;
    assert_eq!(state.phase(), BreakerPhase::Open);
    assert_eq!(state.last_fault().as_deref(), Some("connection refused"));
    tokio::time::advance(Duration::from_millis(1_001)).await;
    state.probe_good();
    assert!(state.is_trial_due(), "its failure lengthened the time");

    let inner = service.get_ref().inner.clone();
    let mut scout = Spawn::new(Breaker::scouting(&state, inner));
    go(&mut scout, &mut server, Ok(answer(200))).await;
    assert_eq!(state.phase(), BreakerPhase::Closed);
}

mod probes;
