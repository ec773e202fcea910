//! The first ciphertexts that an address makes in a batch are decrypted before they are used.

use super::*;
use crate::transit::TransitCause;

async fn encrypt_all(key: &HttpTransitKey, count: usize) -> Vec<Result<String, TransitError>> {
    let encrypt = |n| async move {
        let made = key.encrypt(&seed(n), version(2), soon()).await;
        made.map(|made| made.ciphertext.to_vault())
    };
    join_all((0..count).map(encrypt)).await
}

#[tokio::test(start_paused = true)]
async fn an_address_is_proven_once() {
    let (key, scripted) = key(|seen| serve(seen, LATEST));
    for _ in 0..3 {
        assert!(encrypt_all(&key, 20).await.iter().all(Result::is_ok));
    }
    assert_eq!(sizes(&scripted, Verb::Encrypt), [20; 3]);
    assert_eq!(sizes(&scripted, Verb::Decrypt), [20]);
}

#[tokio::test(start_paused = true)]
async fn ciphertexts_of_another_item_are_thrown_away() {
    let (key, scripted) = key(|seen| {
        if !is_batch(seen) || seen.verb != Verb::Encrypt {
            return serve(seen, LATEST);
        }
        // The references are right, and what stands beside them is another item's.
        let mut plaintexts: Vec<_> =
            items(seen).iter().map(|item| item["plaintext"].clone()).collect();
        plaintexts.rotate_left(1);
        let all = items(seen).into_iter().zip(plaintexts).map(|(mut item, plaintext)| {
            item["plaintext"] = plaintext;
            let mut result = one(seen.verb, &item, LATEST);
            result["reference"] = item["reference"].clone();
            result
        });
        results(all.collect())
    });
    let made = encrypt_all(&key, 20).await;
    for (n, made) in made.iter().enumerate() {
        match made {
            Ok(made) => assert_eq!(open(made, LATEST).unwrap(), seed(n).expose(), "{n}"),
            Err(error) => {
                assert!(matches!(error.cause, TransitCause::Unacceptable { .. }), "{error}");
            }
        }
    }
    assert_eq!(made.iter().filter(|made| made.is_err()).count(), 20);
    assert!(encrypt_all(&key, 20).await.iter().all(Result::is_ok), "they go one by one now");
    assert_eq!(sizes(&scripted, Verb::Encrypt)[1..], [0; 20]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_proven_is_encrypted_alone() {
    let (key, scripted) = key(|seen| match seen.verb {
        Verb::Decrypt => Reply::Unreachable,
        _ => serve(seen, LATEST),
    });
    let made = encrypt_all(&key, 20).await;
    for (n, made) in made.iter().enumerate() {
        assert_eq!(open(made.as_ref().unwrap(), LATEST).unwrap(), seed(n).expose(), "{n}");
    }
    let mut expected = vec![20];
    expected.extend([0; 20]);
    assert_eq!(sizes(&scripted, Verb::Encrypt), expected);
    tokio::time::advance(Duration::from_secs(9)).await;
    encrypt_all(&key, 20).await;
    assert_eq!(sizes(&scripted, Verb::Encrypt)[21..], [0; 20]);
    tokio::time::advance(Duration::from_secs(1)).await;
    encrypt_all(&key, 20).await;
    assert_eq!(sizes(&scripted, Verb::Encrypt)[41..42], [20], "soon it is tried again");
}
