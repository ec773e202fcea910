use tower::{Layer as _, ServiceExt as _};

use super::*;
use crate::cluster::operation::{AddressSet, Elsewhere};
use crate::cluster::stack::testing::{answer, attempt, name};
use crate::cluster::step::StepLayer;

const CLUSTER: &str = "f431928e-8a16-3868-19f0-95048a03b379";

/// As OpenBao 2.7.2 sends it.
fn told(value: &str) -> String {
    STANDARD.encode(format!(r#"{{"cluster":"{CLUSTER}","value":"{value}"}}"#))
}

fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap()
}

/// One attempt at an address that answers so: what was sent, and what came of it.
async fn ask(
    step: &HandOn,
    is_asked: bool,
    result: Result<Answer, Fault>,
) -> (Option<HeaderValue>, Result<Answer, Fault>) {
    let (sent, seen) = std::sync::mpsc::channel();
    let result = Mutex::new(Some(result));
    let inner = tower::service_fn(move |attempt: Attempt| {
        sent.send(attempt.index).unwrap();
        let result = result.lock().unwrap().take().unwrap();
        async move {
            let (address, index) = (name(0), AddressIndex(0));
            result.map_err(|fault| AttemptError { address, index, fault })
        }
    });
    let mut attempt = attempt();
    if is_asked {
        attempt.hand_on = AddressSet::default().with(AddressIndex(0));
    }
    let result = StepLayer(step.clone()).layer(inner).oneshot(attempt).await;
    (seen.recv().unwrap(), result.map_err(|error| error.fault))
}

fn step() -> HandOn {
    HandOn::new(&Address::new(AddressIndex(0), "https://vault-0:8200".parse().unwrap()))
}

fn answering(index: &str) -> Answer {
    let mut good = answer(200);
    good.headers.insert(X_VAULT_INDEX, header(index));
    good
}

fn stale() -> Fault {
    Fault::Stale { reason: "too new", word: Word::Anyones, answer: Box::new(answer(400)) }
}

fn is_by_active(result: &Result<Answer, Fault>) -> bool {
    matches!(result, Err(Fault::Stale { word: Word::Actives, .. }))
}

#[tokio::test]
async fn what_is_sent_lies_beyond_what_any_node_has_reached() {
    let step = step();
    let _ = ask(&step, false, Ok(answering(&told("40")))).await;
    let (sent, result) = ask(&step, true, Err(stale())).await;
    assert_eq!(sent.unwrap(), header(&told("9223372036854775807")));
    assert!(is_by_active(&result), "{result:?}");
}

#[tokio::test]
async fn nothing_is_sent_to_whoever_is_not_to_hand_on() {
    let step = step();
    let _ = ask(&step, false, Ok(answering(&told("40")))).await;
    let (sent, result) = ask(&step, false, Err(stale())).await;
    assert_eq!(sent, None);
    assert!(!is_by_active(&result), "{result:?}");
}

#[tokio::test]
async fn an_address_that_has_told_no_index_that_we_can_read_is_sent_none() {
    let vaults = STANDARD.encode("v1:f431928e:40:0:8a163868");
    let unknown_field = STANDARD.encode(r#"{"cluster":"c","value":"40","epoch":1}"#);
    let no_number = STANDARD.encode(r#"{"cluster":"c","value":"0/16B3748"}"#);
    let long = STANDARD.encode(format!(r#"{{"cluster":"{}","value":"1"}}"#, "c".repeat(4_096)));
    for text in ["", "%%", "c:40", &vaults, &unknown_field, &no_number, &long] {
        let step = step();
        let _ = ask(&step, false, Ok(answering(text))).await;
        let (sent, result) = ask(&step, true, Err(stale())).await;
        assert_eq!(sent, None, "{text}");
        assert!(!is_by_active(&result), "{text}: {result:?}");
        assert!(!step.hands_on.is_certain());
    }
}

#[tokio::test]
async fn an_index_follows_its_address_to_another_cluster() {
    let step = step();
    let _ =
        ask(&step, false, Ok(answering(&STANDARD.encode(r#"{"cluster":"c","value":"7"}"#)))).await;
    let _ = ask(&step, false, Ok(answering(&told("3")))).await;
    let (sent, _) = ask(&step, true, Err(stale())).await;
    assert_eq!(Index::read(&sent.unwrap()).unwrap().cluster, CLUSTER);
}

#[tokio::test]
async fn an_address_that_refuses_an_index_is_not_sent_another() {
    let step = step();
    let _ = ask(&step, false, Ok(answering(&told("40")))).await;
    let verdict = Elsewhere {
        reason: "no index",
        at_fault: false,
        eject: false,
        maybe_served: false,
        again_after: None,
    };
    let refused = || Err(Fault::Elsewhere { status: 400, verdict: verdict.clone() });
    let _ = ask(&step, false, refused()).await;
    assert!(step.hands_on.is_certain(), "nothing was sent, so it was not about that");
    let _ = ask(&step, true, refused()).await;
    let _ = ask(&step, false, Ok(answering(&told("41")))).await;
    let (sent, result) = ask(&step, true, Err(stale())).await;
    assert_eq!(sent, None);
    assert!(!is_by_active(&result), "{result:?}");
    assert!(!step.hands_on.is_certain());
}

#[tokio::test]
async fn without_an_index_it_counts_what_the_node_was_when_it_was_asked() {
    for (was, is, expected) in [
        (Role::Active, Role::Standby, Word::Claimants),
        (Role::Standby, Role::Active, Word::Anyones),
        (Role::Unknown, Role::Active, Word::Anyones),
    ] {
        let step = step();
        step.role.set(was);
        let role = step.role.clone();
        let inner = tower::service_fn(move |_: Attempt| {
            role.set(is);
            let (address, index) = (name(0), AddressIndex(0));
            async move { Err::<Answer, _>(AttemptError { address, index, fault: stale() }) }
        });
        let error = StepLayer(step).layer(inner).oneshot(attempt()).await.unwrap_err();
        let Fault::Stale { word, .. } = error.fault else { panic!("{error}") };
        assert_eq!(word, expected, "{was}, {is}");
    }
}

/// An address that has told an index.
async fn known() -> HandOn {
    let step = step();
    let _ = ask(&step, false, Ok(answering(&told("40")))).await;
    assert!(step.hands_on.is_certain());
    step
}

#[tokio::test(start_paused = true)]
async fn a_node_that_tells_no_index_any_more_is_not_believed_to_look_at_one() {
    let step = known().await;
    let _ = ask(&step, false, Ok(answer(400))).await;
    assert!(step.hands_on.is_certain(), "no bad answer tells one");
    let _ = ask(&step, false, Ok(answer(200))).await;
    let (sent, result) = ask(&step, true, Err(stale())).await;
    assert_eq!(sent, None);
    assert!(!is_by_active(&result), "{result:?}");

    // A good answer where only the active node's will do: it may be a standby's own.
    let step = known().await;
    let good = |index: Option<&str>| {
        let answer = Box::new(index.map_or_else(|| answer(200), answering));
        Err(Fault::Stale { reason: "asked for", word: Word::Anyones, answer })
    };
    let (_, result) = ask(&step, true, good(Some(&told("41")))).await;
    assert!(is_by_active(&result), "{result:?}");
    let (sent, result) = ask(&step, true, good(None)).await;
    assert!(sent.is_some() && !is_by_active(&result), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn after_a_fault_there_may_be_another_node_at_the_address() {
    for fault in [Fault::Unreachable("refused".into()), Fault::Connection("reset".into())] {
        let step = known().await;
        let _ = ask(&step, false, Err(fault)).await;
        assert!(!step.hands_on.is_certain());
        let _ = ask(&step, false, Ok(answering(&told("41")))).await;
        assert!(step.hands_on.is_certain());
    }
    // One that did not want to be asked so may want it after an upgrade.
    let step = known().await;
    step.hands_on.refuse();
    step.hands_on.forget();
    let _ = ask(&step, false, Ok(answering(&told("41")))).await;
    assert!(step.hands_on.is_certain());
}

#[tokio::test(start_paused = true)]
async fn what_no_answer_bears_out_any_more_ends_by_itself() {
    let step = known().await;
    let almost = BELIEVED.saturating_sub(Duration::from_secs(1));
    tokio::time::advance(almost).await;
    let _ = ask(&step, false, Ok(answering(&told("41")))).await;
    tokio::time::advance(almost).await;
    assert!(step.hands_on.is_certain());
    tokio::time::advance(Duration::from_secs(1)).await;
    let (sent, result) = ask(&step, true, Err(stale())).await;
    assert_eq!(sent, None);
    assert!(!is_by_active(&result), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn an_index_of_another_cluster_than_there_is_by_now_makes_nothing_final() {
    let step = known().await;
    let hands_on = step.hands_on.clone();
    let inner = tower::service_fn(move |_: Attempt| {
        hands_on.learn(&header(&STANDARD.encode(r#"{"cluster":"new","value":"7"}"#)));
        let (address, index) = (name(0), AddressIndex(0));
        async move { Err::<Answer, _>(AttemptError { address, index, fault: stale() }) }
    });
    let mut attempt = attempt();
    attempt.hand_on = AddressSet::default().with(AddressIndex(0));
    let error = StepLayer(step).layer(inner).oneshot(attempt).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Stale { word: Word::Anyones, .. }), "{error}");
}
