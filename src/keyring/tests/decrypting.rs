use super::*;

/// A ciphertext as the KEK at `index` writes it in the bare form.
async fn bare_of(bench: &Bench, index: usize) -> Vec<u8> {
    let wrapped = bench.keyring.keks()[index]
        .core()
        .encrypt(&Plaintext::new(vec![7; 32]), &EncryptFor::V1, Verify::Always, soon())
        .await
        .unwrap();
    wrapped.0.ciphertext.to_vault().into_bytes()
}

#[tokio::test(start_paused = true)]
async fn every_kek_decrypts_what_names_it_whatever_stands_before_it() {
    let bench = Bench::ready(&["new", "old"]).await;
    let bare = String::from_utf8(bare_of(&bench, 1).await).unwrap();
    let named = bare.replace("vault:", "old:").into_bytes();
    bench.script(0, |s| s.down = true);
    assert_eq!(bench.decrypt(&named).await.unwrap().expose(), [7; 32]);
    // Before its metadata was ever read, too.
    let started = Bench::start(&["new", "old"], |_| ());
    assert_eq!(started.decrypt(&named).await.unwrap().expose(), [7; 32]);
}

#[tokio::test(start_paused = true)]
async fn a_bare_ciphertext_is_tried_with_each_kek_in_order() {
    let bench = Bench::ready(&["new", "old", "oldest"]).await;
    let bare = bare_of(&bench, 1).await;
    for refusal in [Refusal::KeyNotFound, Refusal::PolicyDenied, Refusal::TooNew] {
        bench.script(0, |s| s.refuse_decrypt = Some(refusal));
        assert_eq!(bench.decrypt(&bare).await.unwrap().expose(), [7; 32]);
    }
    assert_eq!(bench.script(2, |s| s.decrypts), 0, "the right one ends the search");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_notices_no_wrong_ciphertext_is_asked_for_its_own_only() {
    let bench = Bench::start(&["new", "old"], |_| ());
    bench.script(1, |s| s.key = Some(KeyMetadata { key_type: "aes256-cbc".into(), ..key(1, 9) }));
    let _ = bench.keyring.ready(|_| true, soon()).await;
    let bare = b"vault:v1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIj";
    let error = bench.decrypt(bare).await.unwrap_err();
    assert!(matches!(error, KeyringError::Undecided(_)), "{error}");
    assert!(error.to_string().contains("aes256-cbc"), "{error}");
    assert_eq!(bench.script(1, |s| s.decrypts), 0);
    let named = String::from_utf8_lossy(bare).replace("vault:", "old:");
    let _ = bench.decrypt(named.as_bytes()).await;
    assert_eq!(bench.script(1, |s| s.decrypts), 1, "what names it is its own");
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_not_told_as_a_wrong_key() {
    let bench = Bench::ready(&["new", "old", "oldest"]).await;
    let bare = bare_of(&bench, 2).await;
    bench.script(1, |s| s.down = true);
    bench.script(2, |s| s.refuse_decrypt = Some(Refusal::WrongKey));
    let error = bench.decrypt(&bare).await.unwrap_err();
    assert!(matches!(error, KeyringError::Undecided(_)), "{error}");
    for part in ["KEK `new`: ", "KEK `old`: ", "KEK `oldest`: "] {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    // One that may not be asked is no answer either, though the others are.
    bench.script(1, |s| (s.down = false, s.refuse_decrypt = Some(Refusal::PolicyDenied)));
    let error = bench.decrypt(&bare).await.unwrap_err();
    assert!(matches!(error, KeyringError::Undecided(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_kek_that_cannot_be_asked_keeps_no_other_from_decrypting() {
    let bench = Bench::ready(&["new", "old", "oldest"]).await;
    let bare = bare_of(&bench, 2).await;
    bench.script(1, |s| s.down = true);
    assert_eq!(bench.decrypt(&bare).await.unwrap().expose(), [7; 32]);
    // Nor does one that says nothing until the deadline, nor two.
    for silent in [1, 0] {
        bench.script(silent, |s| (s.down = false, s.latency = Duration::from_secs(60)));
        assert_eq!(bench.decrypt(&bare).await.unwrap().expose(), [7; 32]);
    }
    // What is slow is waited for all the same.
    bench.script(2, |s| s.latency = Duration::from_millis(500));
    assert_eq!(bench.decrypt(&bare).await.unwrap().expose(), [7; 32]);
}

#[tokio::test(start_paused = true)]
async fn when_all_say_no_the_answer_names_each() {
    let bench = Bench::ready(&["new", "old"]).await;
    let bare = b"vault:v1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIj";
    let error = bench.decrypt(bare).await.unwrap_err();
    assert!(matches!(error, KeyringError::Unreadable(_)), "{error}");
    for part in ["KEK `new`: ", "KEK `old`: ", "not made by this key"] {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    let single = Bench::ready(&["kube"]).await;
    let error = single.decrypt(bare).await.unwrap_err();
    assert!(matches!(error, KeyringError::Transit { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn legacy_key_is_asked_first_for_bare_ciphertexts() {
    let bench = Bench::start(&["new", "old"], |s| {
        s.legacy_key = Some(KekName::try_new("old").unwrap());
    });
    bench.settle().await;
    let before = bench.script(0, |s| s.decrypts);
    let bare = bare_of(&bench, 1).await;
    bench.script(0, |s| s.down = true);
    assert_eq!(bench.decrypt(&bare).await.unwrap().expose(), [7; 32]);
    assert_eq!(bench.script(0, |s| s.decrypts), before);
}

#[tokio::test(start_paused = true)]
async fn what_was_written_bare_is_read_again_whatever_legacy_key_says() {
    let bench = Bench::start(&["new", "old"], |s| {
        s.write_format = WriteFormat::Vault;
        s.legacy_key = Some(KekName::try_new("old").unwrap());
    });
    bench.settle().await;
    let answer = bench.encrypt(EncryptFor::V1).await.unwrap();
    assert_eq!(bench.decrypt(&answer.ciphertext).await.unwrap().expose(), [7; 32]);
}

#[tokio::test(start_paused = true)]
async fn a_kek_called_vault_is_asked_first_and_not_alone() {
    let bench = Bench::ready(&["kube", "vault"]).await;
    let (others, its) = (bare_of(&bench, 0).await, bare_of(&bench, 1).await);
    let before = bench.script(0, |s| s.decrypts);
    assert_eq!(bench.decrypt(&its).await.unwrap().expose(), [7; 32]);
    assert_eq!(bench.script(0, |s| s.decrypts), before);
    assert_eq!(bench.decrypt(&others).await.unwrap().expose(), [7; 32]);
    bench.script(1, |s| s.down = true);
    assert_eq!(bench.decrypt(&others).await.unwrap().expose(), [7; 32]);
    let error = bench.decrypt(&its).await.unwrap_err();
    assert!(matches!(error, KeyringError::Undecided(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_foreign_ciphertext_that_is_refused_says_nothing_about_the_active_version() {
    let bench = Bench::ready(&["kube"]).await;
    bench.decrypt(b"kube:v1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIj").await.unwrap_err();
    bench.decrypt(b"kube:v9:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIj").await.unwrap_err();
    assert_eq!(bench.keyring.status().unwrap().healthz, "ok");
}

#[tokio::test(start_paused = true)]
async fn wrong_names_of_bao_kms_provider_are_not_told_as_a_wrong_key_alone() {
    let names = BaoKmsProvider {
        provider_name: "a".into(),
        cluster_id: "b".into(),
        instance_id: "c".into(),
    };
    let bench = Bench::start(&["kube"], |s| s.bao_kms_provider = Some(names));
    bench.settle().await;
    let hash = "rXiCr_lOjsbykm0mDHAvUcVxQl_XcVnT61MesgcPnzc";
    let annotations = [
        ("provider", "openbao-transit"),
        ("key-id-hash", "qCXYChOIPSWs7scJIduEDiNOYvEUJtFS1Rsbz1eAWY4"),
        ("transit-key-version", "1"),
        ("transit-mount-hash", hash),
        ("transit-key-hash", hash),
        ("aad-version", "v1"),
    ];
    let entry = |(name, value)| (format!("{name}.kms.openbao.org"), str::as_bytes(value).to_vec());
    let hints = DecryptHints {
        key_id: "obk2.ig7zS9_yvQrdlcvWgJUhA5q_fQYupc5jRX5MzhAMQSk".into(),
        annotations: annotations.into_iter().map(entry).collect(),
    };
    let bare = bare_of(&bench, 0).await;
    let decrypt = || bench.keyring.decrypt(&bare, &hints, soon());
    assert_eq!(decrypt().await.unwrap().expose(), [7; 32]);
    bench.script(0, |s| s.refuse_decrypt = Some(Refusal::WrongKey));
    let error = decrypt().await.unwrap_err();
    assert!(matches!(error, KeyringError::Unreadable(_)), "{error}");
    for part in ["KEK `kube`: ", "not made by this key", "the names under legacy.baoKmsProvider"] {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
    // An outage says nothing of the names.
    bench.script(0, |s| s.down = true);
    let error = decrypt().await.unwrap_err();
    assert!(!error.to_string().contains("baoKmsProvider"), "{error}");
}
