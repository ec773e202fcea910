//! Answers that are not what a batch was sent for.

use super::*;

use super::super::ceiling::RECOVERY;

fn result(seen: &Seen, item: &Value) -> Value {
    let mut result = one(seen.verb, item, LATEST);
    result["reference"] = item["reference"].clone();
    result
}

fn errors(status: u16, error: &str) -> Reply {
    Reply::Http(status, json!({ "errors": [error] }).to_string())
}

/// Spoils the answer to a batch.
type Spoil = fn(&mut Vec<Value>);

#[tokio::test(start_paused = true)]
async fn an_answer_with_other_references_than_were_sent_is_thrown_away_whole() {
    let spoilt: [(&str, Spoil); 6] = [
        ("missing", |all| drop(all.pop())),
        ("twice", |all| all[1]["reference"] = all[0]["reference"].clone()),
        ("unknown", |all| all[1]["reference"] = json!("0-0-1")),
        ("too many", |all| all.push(all[0].clone())),
        ("no echo", |all| all.iter_mut().for_each(|r| r["reference"] = Value::Null)),
        ("plain numbers", |all| {
            for (n, result) in all.iter_mut().enumerate() {
                result["reference"] = json!(n.to_string());
            }
        }),
    ];
    for (what, spoil) in spoilt {
        let (key, scripted) = key(move |seen| {
            if !is_batch(seen) {
                return serve(seen, LATEST);
            }
            let mut all: Vec<_> = items(seen).iter().map(|item| result(seen, item)).collect();
            // Every item that were handed out would be another one's.
            let mut plaintexts: Vec<_> = all.iter().map(|r| r["plaintext"].clone()).collect();
            plaintexts.rotate_left(1);
            for (result, plaintext) in all.iter_mut().zip(plaintexts) {
                result["plaintext"] = plaintext;
            }
            spoil(&mut all);
            results(all)
        });
        assert_own(&decrypt_all(&key, &ciphertexts(20)).await);
        let mut expected = vec![20];
        expected.extend([0; 20]);
        assert_eq!(sizes(&scripted, Verb::Decrypt), expected, "{what}");
        // For a while there is no second try.
        assert_own(&decrypt_all(&key, &ciphertexts(20)).await);
        assert_eq!(sizes(&scripted, Verb::Decrypt)[21..], [0; 20], "{what}");
        tokio::time::advance(RECOVERY).await;
        assert_own(&decrypt_all(&key, &ciphertexts(20)).await);
        assert_eq!(sizes(&scripted, Verb::Decrypt)[41..42], [20], "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_bad_ciphertext_among_two_hundred_costs_its_neighbours_nothing() {
    let (key, scripted) = key(|seen| serve(seen, LATEST));
    let mut asked = ciphertexts(200);
    asked[100] = wrong(1);
    let answers = decrypt_all(&key, &asked).await;
    for (n, answer) in answers.iter().enumerate() {
        match answer {
            Ok(plaintext) => assert_eq!(*plaintext, seed(n)),
            Err(error) => {
                assert_eq!((n, error.refusal()), (100, Some(&Refusal::WrongKey)), "{error}");
            }
        }
    }
    assert!(answers[100].is_err());
    let mut sizes = sizes(&scripted, Verb::Decrypt);
    sizes.sort_unstable();
    assert_eq!(sizes, [0, 100, 100], "one more request, for the bad one alone");
}

#[tokio::test(start_paused = true)]
async fn a_batch_of_wrong_ciphertexts_is_asked_of_the_active_node_once() {
    let (key, scripted) = key(|seen| serve(seen, LATEST));
    let asked: Vec<_> = (0..190).map(wrong).collect();
    for answer in decrypt_all(&key, &asked).await {
        assert_eq!(answer.unwrap_err().refusal(), Some(&Refusal::WrongKey));
    }
    assert_eq!(sizes(&scripted, Verb::Decrypt), [95, 95, 95, 95]);
    let needs_active: Vec<_> = scripted.seen().iter().map(|seen| seen.needs_active).collect();
    assert_eq!(needs_active[1..], [false, false, true, true]);
}

#[tokio::test(start_paused = true)]
async fn what_a_standby_does_not_know_yet_the_active_node_brings() {
    let (key, scripted) =
        key(|seen| serve(seen, if is_batch(seen) && !seen.needs_active { 1 } else { LATEST }));
    let asked: Vec<_> = (0..30).map(|n| sealed(&seed(n), 1 + n as u32 % 3)).collect();
    assert_own(&decrypt_all(&key, &asked).await);
    assert_eq!(sizes(&scripted, Verb::Decrypt), [30, 20]);
}

#[tokio::test(start_paused = true)]
async fn a_final_error_of_an_item_is_told_at_once() {
    let (key, scripted) = key(|seen| {
        if !is_batch(seen) {
            return serve(seen, LATEST);
        }
        batch(seen, |item| match item["ciphertext"].as_str().unwrap() {
            c if c.starts_with("vault:v2:") => json!({ "error": "invalid ciphertext: no prefix" }),
            _ => one(seen.verb, item, LATEST),
        })
    });
    let asked: Vec<_> = (0..20).map(|n| sealed(&seed(n), 1 + n as u32 % 2)).collect();
    let answers = decrypt_all(&key, &asked).await;
    for (n, answer) in answers.iter().enumerate() {
        match answer {
            Ok(plaintext) => assert_eq!((n % 2, plaintext), (0, &seed(n))),
            Err(error) => assert!(matches!(error.refusal(), Some(Refusal::BadRequest(_)))),
        }
        assert_eq!(answer.is_err(), n % 2 == 1);
    }
    assert_eq!(sizes(&scripted, Verb::Decrypt), [20]);
}

#[tokio::test(start_paused = true)]
async fn an_items_result_that_fails_its_checks_is_asked_for_alone() {
    let (key, scripted) = key(|seen| {
        if !is_batch(seen) {
            return serve(seen, LATEST);
        }
        // A server that knows no pins within a batch.
        batch(seen, |item| {
            let mut unpinned = item.clone();
            unpinned["key_version"] = Value::Null;
            one(seen.verb, &unpinned, LATEST)
        })
    });
    let encrypt = |n: usize| {
        let key = &key;
        async move { key.encrypt(&seed(n), version(2), soon()).await }
    };
    for made in join_all((0..20).map(encrypt)).await {
        assert_eq!(made.unwrap().ciphertext.version(), 2);
    }
    let mut expected = vec![20];
    expected.extend([0; 20]);
    assert_eq!(sizes(&scripted, Verb::Encrypt), expected);
    join_all((0..20).map(encrypt)).await;
    assert_eq!(sizes(&scripted, Verb::Encrypt)[21..], [0; 20], "no batch for a while");
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_too_large_is_cut_and_the_ceiling_remembered() {
    for (status, error) in [(400, "refused JSON input due to high complexity"), (413, "<html>")] {
        let (key, scripted) = key(move |seen| match items(seen).len() {
            n if n > 14 && status == 413 => Reply::Http(413, error.to_owned()),
            n if n > 14 => errors(status, error),
            _ => serve(seen, LATEST),
        });
        assert_own(&decrypt_all(&key, &ciphertexts(47)).await);
        assert_eq!(sizes(&scripted, Verb::Decrypt), [47, 23, 11, 12, 24, 12, 12]);
        assert_own(&decrypt_all(&key, &ciphertexts(47)).await);
        assert_eq!(sizes(&scripted, Verb::Decrypt)[7..], [11, 11, 11, 11, 3], "{status}");
        tokio::time::advance(RECOVERY).await;
        assert_own(&decrypt_all(&key, &ciphertexts(47)).await);
        assert_eq!(sizes(&scripted, Verb::Decrypt)[12..13], [47], "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_takes_no_batch_at_all_is_sent_single_calls() {
    let refusals = [
        errors(400, "refused JSON input due to high complexity"),
        errors(500, "failed to parse batch input: something"),
        errors(400, "missing ciphertext to decrypt"),
        Reply::Http(403, crate::cluster::testing::POLICY_403.to_owned()),
    ];
    for refusal in refusals {
        let what = format!("{refusal:?}");
        let (key, scripted) = key(move |seen| match is_batch(seen) {
            true => refusal.clone(),
            false => serve(seen, LATEST),
        });
        assert_own(&decrypt_all(&key, &ciphertexts(20)).await);
        let before = scripted.count(Verb::Decrypt);
        assert_own(&decrypt_all(&key, &ciphertexts(20)).await);
        assert_eq!(sizes(&scripted, Verb::Decrypt)[before..], [0; 20], "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_policy_denies_is_told_to_all_after_two_requests() {
    let (key, scripted) = key(|_| Reply::Http(403, crate::cluster::testing::POLICY_403.to_owned()));
    for answer in decrypt_all(&key, &ciphertexts(20)).await {
        assert_eq!(answer.unwrap_err().refusal(), Some(&Refusal::PolicyDenied));
    }
    assert_eq!(sizes(&scripted, Verb::Decrypt), [20, 0]);
    // It was not for the batch's form.
    decrypt_all(&key, &ciphertexts(20)).await;
    assert_eq!(sizes(&scripted, Verb::Decrypt)[2..], [20, 0]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_told_to_each_with_the_addresses() {
    let (key, scripted) = key(|_| Reply::Unreachable);
    for answer in decrypt_all(&key, &ciphertexts(20)).await {
        let error = answer.unwrap_err();
        assert!(error.is_outage());
        assert_eq!(
            error.to_string(),
            "key `transit/kube`: cluster bao: no address could answer: https://b0:8200: \
             connection refused"
        );
    }
    assert_eq!(sizes(&scripted, Verb::Decrypt), [20]);
    decrypt_all(&key, &ciphertexts(20)).await;
    assert_eq!(sizes(&scripted, Verb::Decrypt)[1..], [20], "batches go on");
}

#[tokio::test(start_paused = true)]
async fn odd_answers_to_a_batch_let_calls_go_one_by_one_for_longer_and_longer() {
    let (key, scripted) = key(|seen| match is_batch(seen) {
        true => errors(500, "internal error"),
        false => serve(seen, LATEST),
    });
    for span in [10, 20, 40] {
        let before = scripted.count(Verb::Decrypt);
        decrypt_all(&key, &ciphertexts(20)).await;
        assert_eq!(sizes(&scripted, Verb::Decrypt)[before..], [20]);
        tokio::time::advance(Duration::from_secs(span - 1)).await;
        assert_own(&decrypt_all(&key, &ciphertexts(20)).await);
        tokio::time::advance(Duration::from_secs(1)).await;
    }
}
