use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::cluster::breaker::BreakerPhase;
use crate::cluster::operation::{AddressIndex, AddressSet, Elsewhere, Verb, Verdict};
use crate::cluster::stack::testing::{
    Does, Scripted, call, call_of, gateway, leaderless, name, sealed,
};

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

struct Everyone(AddressSet);

impl Outlook for Everyone {
    fn all(&self) -> AddressSet {
        self.0
    }

    fn has_sound_beside(&self, tried: AddressSet) -> bool {
        self.0.union(tried) != tried
    }

    fn is_out(&self) -> bool {
        false
    }

    fn left_out(&self) -> Vec<AttemptError> {
        Vec::new()
    }
}

/// `calls` at once through a retry layer over three addresses that all refuse, with this
/// budget: how each ended, how many attempts the budget refused, and how long all took.
async fn against_a_dead_cluster(calls: usize, budget: Budget) -> (Vec<CallError>, u32, Duration) {
    let all = (0..3).fold(AddressSet::default(), |set, i| set.with(AddressIndex(i)));
    let refused = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&refused);
    let hedge = tower::service_fn(move |attempt: Attempt| {
        counter.fetch_add(u32::from(attempt.is_over_budget), Ordering::Relaxed);
        async move {
            let index = (0..3).map(AddressIndex).find(|i| !attempt.tried.contains(*i)).unwrap();
            let fault = Fault::Unreachable("connection refused".into());
            let attempts = vec![AttemptError { address: name(index.0), index, fault }];
            Err::<Won, _>(Missed { attempts, tried: attempt.tried.with(index), sent: 1 })
        }
    });
    let cluster = ClusterName::try_new("test").unwrap();
    let jitter = Arc::new(Jitter::off());
    let layer = RetryLayer::with_budget(cluster, Arc::new(Everyone(all)), jitter, budget);
    let began = Instant::now();
    let calls = (0..calls).map(|_| tower::ServiceExt::oneshot(layer.layer(hedge.clone()), call()));
    let ends = futures_util::future::join_all(calls).await;
    let ends = ends.into_iter().map(Result::unwrap_err).collect();
    (ends, refused.load(Ordering::Relaxed), began.elapsed())
}

fn budget(reserve: u32, percent: u32) -> Budget {
    let cluster = ClusterName::try_new("test").unwrap();
    let allowance = Allowance { percent, reserve, refill: Duration::from_secs(60) };
    Budget::new(&cluster, AttemptReason::Retry, allowance)
}

#[tokio::test(start_paused = true)]
async fn the_first_repeat_is_free_and_what_the_budget_refuses_stands_in_line() {
    let (errors, refused, _) = against_a_dead_cluster(10, budget(0, 10)).await;
    let attempts: usize = errors.iter().map(|error| error.attempts.len()).sum();
    let repeats = u32::try_from(attempts - 10).unwrap();
    assert_eq!(repeats - refused, 10 + 1, "ten free ones, and a tenth of ten calls");
}

#[tokio::test(start_paused = true)]
async fn one_call_makes_thirteen_attempts_at_most_and_spreads_them_over_its_deadline() {
    let (errors, _, took) = against_a_dead_cluster(1, budget(10_000, 100)).await;
    let error = &errors[0];
    assert_eq!(error.attempts.len(), 13);
    assert!(matches!(error.kind, CallErrorKind::Exhausted));
    assert!(took > ms(2_000) && took < ms(3_000), "{took:?}");
    assert_eq!(
        error.to_string(),
        "cluster test: no address could answer: \
         https://vault-0:8200: connection refused (5 times); \
         https://vault-1:8200: connection refused (4 times); \
         https://vault-2:8200: connection refused (4 times)"
    );
}

#[tokio::test(start_paused = true)]
async fn late_in_an_outage_each_address_is_named_too() {
    let scripted = Scripted::new(3, |_, _| Does::Refuses);
    for _ in 0..5 {
        let calls = (0..8).map(|_| scripted.stack.call(call()));
        for result in futures_util::future::join_all(calls).await {
            let told = result.unwrap_err().to_string();
            for address in 0..3 {
                assert!(told.contains(name(address).as_str()), "{address}: {told}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_of_all_is_waited_for() {
    let back_at = Instant::now() + ms(2_000);
    let scripted =
        Scripted::new(
            3,
            move |_, _| {
                if Instant::now() < back_at { Does::Refuses } else { Does::Answers }
            },
        );
    let calls = (0..40).map(|_| scripted.stack.call(call()));
    for result in futures_util::future::join_all(calls).await {
        result.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_daemons_single_call_sits_out_an_election() {
    let over_at = Instant::now() + ms(2_000);
    for dead_leader in [false, true] {
        let scripted = Scripted::new(3, move |index, _| match index {
            0 if dead_leader => Does::Refuses,
            _ if Instant::now() < over_at => Does::Says(Verdict::Elsewhere(leaderless())),
            _ => Does::Answers,
        });
        scripted.stack.call(call()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_daemons_calls_all_survive_an_outage_that_uses_up_the_budget() {
    let back_at = Instant::now() + ms(2_000);
    let mut scripted = Scripted::new(3, move |_, _| {
        if Instant::now() < back_at {
            Does::Says(Verdict::Elsewhere(leaderless()))
        } else {
            Does::Answers
        }
    });
    let calls = (0..400).map(|_| scripted.stack.call(call()));
    for result in futures_util::future::join_all(calls).await {
        result.unwrap();
    }
    // One, the free one, the one that an answer sets free; and the budget's and scouts.
    let asked = scripted.asked().len();
    assert!(asked <= 400 * 3 + 250, "{asked}");
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_not_multiplied() {
    let mut scripted = Scripted::new(3, |_, _| Does::Refuses);
    let calls = (0..200).map(|_| scripted.stack.call(call()));
    for result in futures_util::future::join_all(calls).await {
        let error = result.unwrap_err();
        assert!(error.attempts.len() <= 13, "{error}");
    }
    // Each call's first attempt, the breakers' five, trials once a second: with 200 calls
    // at one moment nearly all fail before a breaker can know. Repeats stay few.
    let asked = scripted.asked().len();
    assert!(asked <= 200 + 30, "{asked}");
}

#[tokio::test(start_paused = true)]
async fn the_deadline_ends_a_call_and_its_error_lists_who_was_asked() {
    let scripted = Scripted::new(2, |_, _| Does::Freezes);
    let began = Instant::now();
    let error = scripted.stack.call(call()).await.unwrap_err();
    assert_eq!(began.elapsed(), ms(3_000));
    assert!(matches!(error.kind, CallErrorKind::Deadline));
    assert_eq!(
        error.to_string(),
        "cluster test: no answer in time: https://vault-0:8200: no answer within the deadline; \
         https://vault-1:8200: no answer within the deadline"
    );
}

#[tokio::test(start_paused = true)]
async fn a_sealed_sole_address_is_asked_once_a_second_and_named_at_the_deadline() {
    let mut scripted = Scripted::new(1, |_, _| Does::Says(Verdict::Elsewhere(sealed())));
    for _ in 0..10 {
        let error = scripted.stack.call(call()).await.unwrap_err();
        assert!(matches!(error.kind, CallErrorKind::Exhausted), "it is known: {error}");
        assert!(error.to_string().contains("sealed"), "{error}");
        let asked = scripted.asked().len();
        assert!((1..=4).contains(&asked), "{asked}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_yields_to_a_better_one() {
    let mut scripted = Scripted::new(3, |index, _| match index {
        0 => Does::Says(Verdict::Stale("")),
        _ => Does::AnswersAfter(ms(50)),
    });
    assert_eq!(scripted.stack.call(call()).await.unwrap().address, name(1));
    assert_eq!(scripted.asked(), [0, 1]);
    assert_eq!(scripted.stack.addresses()[0].breaker, BreakerPhase::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_is_not_final_while_one_address_could_not_be_asked() {
    let mut scripted = Scripted::new(3, |index, _| match index {
        0 => Does::Refuses,
        _ => Does::Says(Verdict::Stale("")),
    });
    for _ in 0..8 {
        let began = Instant::now();
        let error = scripted.stack.call(call()).await.unwrap_err();
        assert!(matches!(error.kind, CallErrorKind::Undecided), "{error}");
        assert!(began.elapsed() < ms(200), "it burned {:?}", began.elapsed());
        assert!(scripted.asked().len() <= 6);
        let text = error.to_string();
        for part in ["the active node has not confirmed it", "vault-1:8200: version is too new"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(text.contains("connection refused"), "it does not say who is away: {text}");
    }
    assert_eq!(scripted.stack.addresses()[0].breaker, BreakerPhase::Open);
}

#[tokio::test(start_paused = true)]
async fn a_frozen_address_does_not_hold_up_what_the_others_say() {
    let scripted = Scripted::new(3, |index, _| match index {
        2 => Does::Freezes,
        _ => Does::Says(Verdict::Stale("")),
    });
    for number in 0..8 {
        let began = Instant::now();
        let error = scripted.stack.call(call()).await.unwrap_err();
        assert!(began.elapsed() < ms(2_500), "call {number}: {:?}", began.elapsed());
        assert!(matches!(error.kind, CallErrorKind::Undecided), "call {number}: {error}");
    }
    assert_ne!(scripted.stack.addresses()[2].breaker, BreakerPhase::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_stale_answer_yields_to_a_standby_that_has_caught_up() {
    let caught_up_at = Instant::now() + ms(130);
    let scripted = Scripted::new(3, move |index, _| match index {
        0 => Does::Refuses,
        _ if Instant::now() < caught_up_at => Does::Says(Verdict::Stale("")),
        _ => Does::Answers,
    });
    scripted.stack.call(call()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_token_is_refused_when_a_second_address_says_so_too() {
    let mut scripted = Scripted::new(3, |_, _| Does::Says(Verdict::TokenRefused));
    let error = scripted.stack.call(call()).await.unwrap_err();
    assert!(matches!(error.kind, CallErrorKind::TokenRefused));
    assert_eq!(scripted.asked(), [0, 1]);

    let mut scripted = Scripted::new(1, |_, _| Does::Says(Verdict::TokenRefused));
    let error = scripted.stack.call(call()).await.unwrap_err();
    assert!(matches!(error.kind, CallErrorKind::TokenRefused));
    assert_eq!(scripted.asked(), [0]);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_one_standby_does_not_know_yet_is_good_at_the_others() {
    // asked first; or asked beside one that is slow
    for slow in [ms(0), ms(300)] {
        let stale = u8::from(!slow.is_zero());
        let scripted = Scripted::new(2, move |index, _| match index {
            _ if index == stale => Does::Says(Verdict::TokenRefused),
            _ => Does::AnswersAfter(slow),
        });
        scripted.stack.call(call()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_token_is_known_for_dead_beside_a_frozen_address() {
    let scripted = Scripted::new(2, |index, _| match index {
        0 => Does::Freezes,
        _ => Does::Says(Verdict::TokenRefused),
    });
    let began = Instant::now();
    let error = scripted.stack.call(call()).await.unwrap_err();
    assert!(matches!(error.kind, CallErrorKind::TokenRefused), "{error}");
    assert!(began.elapsed() < ms(1_500), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_login_finds_its_way_past_a_frozen_address_at_its_second_try() {
    let scripted =
        Scripted::new(2, |index, _| if index == 0 { Does::Freezes } else { Does::Answers });
    let login = || call_of(Verb::Login, ms(10_000));
    scripted.stack.call(login()).await.unwrap_err();
    scripted.stack.call(login()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_login_is_repeated_only_when_no_server_can_have_seen_it() {
    let login = || call_of(Verb::Login, ms(3_000));
    let mut scripted =
        Scripted::new(2, |index, _| if index == 0 { Does::Refuses } else { Does::Answers });
    scripted.stack.call(login()).await.unwrap();
    assert_eq!(scripted.asked(), [0, 1]);

    let mut scripted =
        Scripted::new(2, |index, _| if index == 0 { Does::Breaks } else { Does::Answers });
    scripted.stack.call(login()).await.unwrap_err();
    assert_eq!(scripted.asked(), [0]);

    for (verdict, asked) in [(gateway(), &[0][..]), (leaderless(), &[0, 1])] {
        let maybe_served = verdict.maybe_served;
        let mut scripted = Scripted::new(2, move |index, _| match index {
            0 => Does::Says(Verdict::Elsewhere(verdict.clone())),
            _ => Does::Answers,
        });
        assert_eq!(scripted.stack.call(login()).await.is_err(), maybe_served);
        assert_eq!(scripted.asked(), asked);
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_that_asks_for_time_gets_it() {
    let limited = Elsewhere {
        reason: "rate limited",
        at_fault: false,
        eject: false,
        maybe_served: false,
        again_after: Some(ms(700)),
    };
    let scripted = Scripted::new(1, move |_, number| {
        if number == 1 { Does::Says(Verdict::Elsewhere(limited.clone())) } else { Does::Answers }
    });
    let began = Instant::now();
    scripted.stack.call(call()).await.unwrap();
    assert_eq!(began.elapsed(), ms(700));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_call_gives_its_trial_back() {
    let mut scripted = Scripted::new(1, |_, number| match number {
        1 => Does::Says(Verdict::Elsewhere(sealed())),
        _ => Does::Freezes,
    });
    let cancelled = tokio::time::timeout(ms(2_000), scripted.stack.call(call())).await;
    assert!(cancelled.is_err());
    assert_eq!(scripted.asked(), [0, 0]);
    assert_eq!(scripted.stack.addresses()[0].breaker, BreakerPhase::Open);
    let again = tokio::time::timeout(ms(10), scripted.stack.call(call())).await;
    assert!(again.is_err());
    assert_eq!(scripted.asked(), [0], "the trial was free at once");
}

mod stale;
