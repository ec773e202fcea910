//! Addresses that ask for time.

use super::*;
use crate::cluster::stack::testing::limited;

#[tokio::test(start_paused = true)]
async fn an_address_that_limits_our_rate_is_left_alone_by_all_calls_for_as_long_as_it_asked() {
    let diary = Diary::default();
    let noted = diary.clone();
    let scripted = Scripted::new(3, move |index, _| {
        noted.note(index);
        match index {
            0 => Does::Says(Verdict::Elsewhere(limited())),
            // slow, so that hedges look for somebody
            _ => Does::AnswersAfter(ms(300)),
        }
    });
    let began = Instant::now();
    let (failed, _) = traffic(&scripted, 20, 3).await;
    assert_eq!(failed, 0);
    let asked: Vec<_> = diary.0.lock().unwrap().iter().filter(|(_, i)| *i == 0).copied().collect();
    for pair in asked.windows(2) {
        let apart = pair[1].0 - pair[0].0;
        assert!(apart >= ms(700), "asked again after {apart:?}, {:?} in", pair[0].0 - began);
    }
}

#[tokio::test(start_paused = true)]
async fn where_all_ask_for_more_time_than_there_is_the_call_ends_at_once() {
    let mut scripted = Scripted::new(2, |_, _| Does::Says(Verdict::Elsewhere(limited())));
    let began = Instant::now();
    let error = scripted.stack.call(call_of(Verb::Encrypt, ms(600))).await.unwrap_err();
    assert!(matches!(error.kind, CallErrorKind::Exhausted), "{error}");
    assert_eq!(began.elapsed(), Duration::ZERO);
    let error = scripted.stack.call(call_of(Verb::Encrypt, ms(600))).await.unwrap_err();
    assert!(error.to_string().contains("rate limited"), "{error}");
    assert_eq!(scripted.asked(), [0, 1], "the second call asked nobody");
}

#[tokio::test(start_paused = true)]
async fn what_a_node_says_to_a_login_does_not_keep_it_from_what_it_serves_by_itself() {
    for verb in [Verb::Login, Verb::RenewSelf, Verb::LookupSelf] {
        for says in [limited(), leaderless()] {
            let is_auth = Arc::new(AtomicBool::new(true));
            let asks_auth = Arc::clone(&is_auth);
            let scripted = Scripted::new(2, move |_, _| {
                let says = Does::Says(Verdict::Elsewhere(says.clone()));
                if asks_auth.load(Ordering::Relaxed) { says } else { Does::Answers }
            });
            scripted.stack.call(call_of(verb, ms(200))).await.unwrap_err();
            is_auth.store(false, Ordering::Relaxed);
            let called = Instant::now();
            scripted.stack.call(call_of(Verb::Decrypt, ms(200))).await.unwrap();
            assert_eq!(called.elapsed(), Duration::ZERO, "{verb:?}");
        }
    }
}
