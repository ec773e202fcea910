//! The keyring over fakes (`fake.rs`): what Encrypt, Decrypt and Status do in each state.

use std::time::Duration;

use super::fake::{Bench, EPOCH, key, soon};
use super::*;
use crate::clock::UnixSeconds;
use crate::config::settings::{BaoKmsProvider, OnOutage, VerifyEncrypt, WriteFormat};
use crate::transit::KeyMetadata;

mod decrypting;
mod replicas;
mod status;
mod watching;

#[tokio::test(start_paused = true)]
async fn what_was_encrypted_decrypts_and_names_its_kek_and_version() {
    let bench = Bench::ready(&["kube"]).await;
    let status = bench.keyring.status().unwrap();
    let answer = bench.encrypt_v2().await.unwrap();
    assert!(answer.ciphertext.starts_with(b"kube:v1:"));
    assert_eq!(status, StatusReport { healthz: "ok".into(), key_id: answer.key_id });
    let annotations = HashMap::from([(KEK_ANNOTATION.to_owned(), b"kube".to_vec())]);
    assert_eq!(answer.annotations, annotations);
    assert_eq!(bench.decrypt(&answer.ciphertext).await.unwrap().expose(), [7; 32]);
    assert!(bench.encrypt(EncryptFor::V1).await.unwrap().annotations.is_empty());
    assert!(bench.script(0, |s| s.encrypts.iter().all(|pin| *pin == Some(1))));
}

#[tokio::test(start_paused = true)]
async fn a_reload_between_status_and_encrypt_does_not_change_the_key_id_under_the_caller() {
    let mut bench = Bench::ready(&["old", "new"]).await;
    let told = bench.keyring.status().unwrap().key_id;
    let turn = |settings: &mut KeyringSettings| settings.keks.reverse();
    bench.fakes.reverse();
    bench.memories.reverse();
    bench.reload(turn);
    bench.settle().await;
    let caller = EncryptFor::V2 { reported: Some(told.clone()) };
    let answer = bench.encrypt(caller).await.unwrap();
    assert_eq!(answer.key_id, told);
    assert_eq!(answer.annotations[KEK_ANNOTATION], b"old");
    assert_eq!(bench.decrypt(&answer.ciphertext).await.unwrap().expose(), [7; 32]);
    // Who was told nothing, and whoever asks again, is on the new one.
    assert!(bench.encrypt_v2().await.unwrap().key_id.as_str().starts_with("new:v1:"));
    assert!(bench.keyring.status().unwrap().key_id.as_str().starts_with("new:v1:"));
}

#[tokio::test(start_paused = true)]
async fn nothing_and_too_much_are_not_encrypted() {
    let bench = Bench::ready(&["kube"]).await;
    let sent = bench.script(0, |s| s.encrypts.len());
    let v2 = EncryptFor::V2 { reported: None };
    for (length, caller, fits) in [
        (0, EncryptFor::V1, false),
        (0, v2.clone(), false),
        (49_115, EncryptFor::V1, true),
        (49_120, EncryptFor::V1, false),
        (734, v2.clone(), true),
        (737, v2, false),
    ] {
        let plaintext = Plaintext::new(vec![1; length]);
        let result = bench.keyring.encrypt(&plaintext, caller.clone(), soon()).await;
        match result {
            Ok(answer) => assert!(fits && answer.ciphertext.len() <= caller.longest_ciphertext()),
            Err(KeyringError::BadPlaintext(_)) => assert!(!fits, "{length}"),
            Err(other) => panic!("{length}: {other}"),
        }
    }
    assert_eq!(bench.script(0, |s| s.encrypts.len()), sent + 2, "refused before Vault is asked");
}

#[tokio::test(start_paused = true)]
async fn v2_proves_each_answer_and_v1_the_first_of_each_version_and_address() {
    let bench = Bench::ready(&["kube"]).await;
    let decrypts = || bench.script(0, |s| s.decrypts);
    let before = decrypts();
    bench.encrypt_v2().await.unwrap();
    bench.encrypt_v2().await.unwrap();
    assert_eq!(decrypts(), before + 2);
    for (address, proofs) in [("https://a", 3), ("https://a", 3), ("https://b", 4)] {
        bench.script(0, |s| s.address = address);
        bench.encrypt(EncryptFor::V1).await.unwrap();
        assert_eq!(decrypts(), before + proofs, "{address}");
    }
    let always = Bench::start(&["kube"], |s| s.verify_encrypt = VerifyEncrypt::Always);
    always.settle().await;
    let before = always.script(0, |s| s.decrypts);
    always.encrypt(EncryptFor::V1).await.unwrap();
    always.encrypt(EncryptFor::V1).await.unwrap();
    assert_eq!(always.script(0, |s| s.decrypts), before + 2);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_decrypt_to_its_plaintext_is_thrown_away() {
    let bench = Bench::ready(&["kube"]).await;
    bench.script(0, |s| s.corrupt = true);
    for caller in [EncryptFor::V1, EncryptFor::V2 { reported: None }] {
        let error = bench.encrypt(caller).await.unwrap_err();
        assert!(matches!(error, KeyringError::ProofFailed { .. }), "{error}");
    }
    assert!(matches!(bench.keyring.status(), Err(KeyringError::Lost { .. })));
    bench.script(0, |s| s.corrupt = false);
    bench.encrypt(EncryptFor::V1).await.unwrap();
    assert_eq!(bench.keyring.status().unwrap().healthz, "ok");
    // One that nobody could be asked about is not handed out either.
    bench.script(0, |s| s.refuse_decrypt = Some(Refusal::WrongKey));
    let error = bench.encrypt_v2().await.unwrap_err();
    assert!(matches!(error, KeyringError::ProofFailed { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn v2_encrypts_with_the_version_that_status_told_while_it_may() {
    let bench = Bench::ready(&["kube"]).await;
    let told = bench.keyring.status().unwrap().key_id;
    bench.fakes[0].rotate();
    bench.wait(100).await;
    let now = bench.keyring.status().unwrap().key_id;
    assert_ne!(told, now);
    let with = |reported: &KeyId| EncryptFor::V2 { reported: Some(reported.clone()) };
    let answer = bench.encrypt(with(&told)).await.unwrap();
    assert_eq!(answer.key_id, told);
    assert!(answer.ciphertext.starts_with(b"kube:v1:"));
    for foreign in ["kube:v1:0000000000000000", "kube:v9:0", "other:v1:0", "1", ""] {
        let answer = bench.encrypt(with(&KeyId::from(foreign.to_owned()))).await.unwrap();
        assert_eq!(answer.key_id, now, "{foreign}");
    }
    // Vault no longer allows it, and we have not read that yet: read, pin anew, repeat.
    bench.script(0, |s| s.key.as_mut().unwrap().min_encryption_version = 2);
    let answer = bench.encrypt(with(&told)).await.unwrap();
    assert_eq!(answer.key_id, now);
    assert!(answer.ciphertext.starts_with(b"kube:v2:"));
}

#[tokio::test(start_paused = true)]
async fn a_pin_that_vault_refuses_is_read_and_repeated_once() {
    let bench = Bench::ready(&["kube"]).await;
    bench.script(0, |s| (s.encrypts.clear(), s.reads = 0));
    bench.script(0, |s| s.refuse_encrypt = Some(Refusal::AboveLatest));
    let error = bench.encrypt_v2().await.unwrap_err();
    assert!(matches!(error, KeyringError::Transit { .. }), "{error}");
    assert_eq!(bench.script(0, |s| (s.encrypts.len(), s.reads)), (2, 1));
    // It says nothing for good: metadata may be a moment old.
    assert_eq!(bench.keyring.status().unwrap().healthz, "ok");
}

#[tokio::test(start_paused = true)]
async fn callers_whose_pin_is_refused_share_a_read() {
    let bench = Bench::ready(&["kube"]).await;
    bench.fakes[0].rotate();
    bench.script(0, |s| s.key.as_mut().unwrap().min_encryption_version = 2);
    bench.script(0, |s| (s.reads = 0, s.latency = Duration::from_millis(50)));
    let calls = future::join_all((0..100).map(|_| bench.encrypt_v2())).await;
    assert!(calls.iter().all(|c| c.as_ref().unwrap().ciphertext.starts_with(b"kube:v2:")));
    // Those who came while the first read was in flight share a second one.
    assert!(bench.script(0, |s| (1..=2).contains(&s.reads)));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_encrypted_with_a_key_that_was_never_read() {
    let bench = Bench::start(&["kube"], |_| ());
    bench.script(0, |s| s.down = true);
    for caller in [EncryptFor::V1, EncryptFor::V2 { reported: None }] {
        let error = bench.encrypt(caller).await.unwrap_err();
        assert!(matches!(error, KeyringError::NotReady { .. }), "{error}");
    }
    bench.settle().await;
    let error = bench.keyring.status().unwrap_err().to_string();
    assert!(error.contains("no address could answer"), "{error}");
    // A key that does not exist is not made by encrypting with it.
    bench.script(0, |s| (s.down = false, s.key = None, s.capabilities = vec!["create", "update"]));
    bench.wait(60).await;
    let error = bench.encrypt(EncryptFor::V1).await.unwrap_err();
    assert!(matches!(error, KeyringError::NotReady { .. }), "{error}");
    assert!(error.to_string().contains("vault write -f"), "{error}");
    assert!(bench.script(0, |s| s.encrypts.is_empty()));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_may_not_read_the_key_serves_v1_unless_it_could_make_one() {
    for (capabilities, serves) in [
        (vec!["update"], true),
        (vec!["create", "update"], false),
        (vec!["root"], false),
        (vec!["deny"], false),
    ] {
        let bench = Bench::start(&["kube"], |_| ());
        bench.script(0, |s| s.refuse_read = Some(Refusal::PolicyDenied));
        bench.script(0, |s| s.capabilities = capabilities.clone());
        bench.settle().await;
        let answer = bench.encrypt(EncryptFor::V1).await;
        assert_eq!(answer.is_ok(), serves, "{capabilities:?}");
        if let Ok(answer) = answer {
            assert!(answer.ciphertext.starts_with(b"kube:v1:"));
            assert_eq!(answer.key_id.as_str(), "kube:v1:unread");
            assert!(bench.script(0, |s| s.encrypts.iter().all(Option::is_none)));
            assert!(bench.primary().proof_age.is_some());
        }
        assert!(matches!(bench.encrypt_v2().await, Err(KeyringError::NotReady { .. })));
        assert!(matches!(bench.keyring.status(), Err(KeyringError::NotReady { .. })));
    }
}

#[tokio::test(start_paused = true)]
async fn the_bare_form_is_written_when_asked_for() {
    let bench = Bench::start(&["kube"], |s| s.write_format = WriteFormat::Vault);
    bench.settle().await;
    let answer = bench.encrypt_v2().await.unwrap();
    assert!(answer.ciphertext.starts_with(b"vault:v1:"));
    assert!(answer.key_id.as_str().starts_with("kube:v1:"));
}
