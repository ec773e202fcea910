//! Whatever comes together, in whatever order, with whatever errors.

use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// What is done with one request.
#[derive(Clone, Copy, Debug)]
enum Mood {
    Serves,
    Shuffles,
    ForgetsOne,
    Doubles,
    SwapsReferencesAway,
    TooComplex,
    RefusesBatches,
    IsAway,
    KnowsLess,
    HasAServerError,
}

/// One caller: when it comes, which seed it asks for, and whether its ciphertext is wrong.
#[derive(Clone, Copy, Debug)]
struct Caller {
    after_micros: u64,
    number: usize,
    is_wrong: bool,
    patience_millis: u64,
}

fn mood() -> impl Strategy<Value = Mood> {
    prop_oneof![
        4 => Just(Mood::Serves),
        2 => Just(Mood::Shuffles),
        1 => Just(Mood::ForgetsOne),
        1 => Just(Mood::Doubles),
        1 => Just(Mood::SwapsReferencesAway),
        1 => Just(Mood::TooComplex),
        1 => Just(Mood::RefusesBatches),
        1 => Just(Mood::IsAway),
        2 => Just(Mood::KnowsLess),
        1 => Just(Mood::HasAServerError),
    ]
}

fn caller() -> impl Strategy<Value = Caller> {
    (0_u64..4_000, 0_usize..40, prop::bool::weighted(0.1), 0_u64..50).prop_map(
        |(after_micros, number, is_wrong, patience_millis)| Caller {
            after_micros,
            number,
            is_wrong,
            patience_millis,
        },
    )
}

fn answer(mood: Mood, seen: &Seen) -> Reply {
    let latest = if matches!(mood, Mood::KnowsLess) && !seen.needs_active { 1 } else { LATEST };
    if matches!(mood, Mood::IsAway) {
        return Reply::Unreachable;
    }
    if !is_batch(seen) {
        return serve(seen, LATEST);
    }
    let mut all: Vec<_> = items(seen)
        .iter()
        .map(|item| {
            let mut result = one(seen.verb, item, latest);
            result["reference"] = item["reference"].clone();
            result
        })
        .collect();
    let last = all.len() - 1;
    match mood {
        Mood::Shuffles => all.reverse(),
        Mood::ForgetsOne => drop(all.pop()),
        Mood::Doubles => all[0] = all[last].clone(),
        Mood::SwapsReferencesAway => all[0]["reference"] = json!("1-1-0"),
        Mood::TooComplex if last > 3 => {
            return Reply::Http(400, r#"{"errors":["due to high complexity"]}"#.to_owned());
        }
        Mood::RefusesBatches => {
            return Reply::Http(500, r#"{"errors":["failed to parse batch input"]}"#.to_owned());
        }
        Mood::HasAServerError => {
            return Reply::Http(500, r#"{"errors":["internal error"]}"#.to_owned());
        }
        _ => {}
    }
    results(all)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn everybody_gets_an_answer_of_ones_own_or_an_error(
        moods in vec(mood(), 1..12),
        callers in vec(caller(), 1..120),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let turn = AtomicUsize::new(0);
            let (key, _) = key(move |seen| {
                let turn = turn.fetch_add(1, Ordering::Relaxed);
                answer(moods[turn % moods.len()], seen)
            });
            let key = &key;
            let one = |caller: Caller| async move {
                tokio::time::sleep(Duration::from_micros(caller.after_micros)).await;
                let deadline = Deadline::after(Duration::from_millis(caller.patience_millis));
                let plaintext = seed(caller.number);
                let pin = 1 + caller.number as u32 % LATEST;
                let encrypted = key.encrypt(&plaintext, version(pin), deadline);
                let ciphertext = match caller.is_wrong {
                    true => wrong(caller.number),
                    false => sealed(&plaintext, pin),
                };
                let decrypted = key.decrypt(&ciphertext, deadline);
                let (encrypted, decrypted) = tokio::join!(encrypted, decrypted);
                if let Ok(made) = encrypted {
                    assert_eq!(made.ciphertext.version(), pin);
                    let made = made.ciphertext.to_vault();
                    assert_eq!(open(&made, LATEST).unwrap(), plaintext.expose());
                }
                match decrypted {
                    Ok(opened) => {
                        assert!(!caller.is_wrong);
                        assert_eq!(opened, plaintext);
                    }
                    // That it is damaged is told of nothing that is not.
                    Err(error) => {
                        let is_refused = error.refusal() == Some(&Refusal::WrongKey);
                        assert!(!is_refused || caller.is_wrong, "{error}");
                    }
                }
            };
            join_all(callers.iter().copied().map(one)).await;
        });
    }
}
