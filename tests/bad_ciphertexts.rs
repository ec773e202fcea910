//! Ciphertexts and plaintexts that cannot be right: each gets a code and a message that
//! says what to do, without a byte of the input, and the daemon goes on.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use lab::{Daemon, DevNode, Kms};
use serde_json::json;
use std::time::Duration;
use tonic::{Code, Status};

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(15);
const DEK: [u8; 32] = [7; 32];

/// A daemon with two KEKs, and what Transit made with each.
struct Lab {
    bao: DevNode,
    daemon: Daemon,
    kms: Kms,
}

#[tokio::test]
async fn every_bad_ciphertext_gets_a_code_and_a_message_and_the_daemon_goes_on() -> lab::Result {
    let lab = Lab::start(json!({})).await?;
    let good = String::from_utf8(lab.kms.v1().encrypt(&DEK).await?)?;
    let payload = good.rsplit(':').next().unwrap_or_default();
    let cut = &good[..good.len() - 3];
    let mut altered = BASE64_STANDARD.decode(payload)?;
    altered[20] ^= 1;
    let altered = format!("kube-2026:v1:{}", BASE64_STANDARD.encode(&altered));
    let long = "A".repeat(70 * 1024);
    let secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA==";
    let mut aws = b"1\x01\x02\x02\x00x".to_vec();
    aws.extend([0xfe; 64]);

    // What is sent, the code, and what the message must say.
    type Row<'a> = (&'a str, Vec<u8>, Code, &'a [&'a str]);
    let rows: Vec<Row<'_>> = vec![
        ("empty", Vec::new(), Code::InvalidArgument, &["0 bytes", "is empty"]),
        (
            "70 KiB",
            format!("kube-2026:v1:{long}").into_bytes(),
            Code::InvalidArgument,
            &["the ciphertext has 71693 bytes", "more than 65535"],
        ),
        (
            "truncated base64",
            cut.into(),
            Code::InvalidArgument,
            &["are no base64: it was cut or changed after it was written"],
        ),
        (
            "cut at a whole group, so that it is base64",
            good[..good.len() - 8].into(),
            Code::InvalidArgument,
            &[
                "KEK `kube-2026`",
                "was not made by this key, or it was damaged",
                "https://127.0.0.1:",
            ],
        ),
        (
            "one bit changed",
            altered.into_bytes(),
            Code::InvalidArgument,
            &["KEK `kube-2026`: key `transit/kube-2026`", "or it was damaged"],
        ),
        ("binary", [0xff, 0, 0xfe, 9].repeat(20), Code::InvalidArgument, &["80 bytes", "binary"]),
        (
            "no version",
            format!("kube-2026:{secret}").into_bytes(),
            Code::InvalidArgument,
            &["begins with 9 printable bytes and a colon"],
        ),
        (
            "kube-apiserver's own prefix",
            format!("k8s:enc:kms:v1:vault:{secret}").into_bytes(),
            Code::InvalidArgument,
            &["begins with 3 printable bytes and a colon"],
        ),
        ("aws", aws, Code::InvalidArgument, &["aws-encryption-provider", "only AWS KMS"]),
        (
            "azure",
            format!("azure{secret}").into_bytes(),
            Code::InvalidArgument,
            &["printable bytes and no colon"],
        ),
        (
            "a KEK that is not configured",
            format!("kube-1999:v3:{secret}").into_bytes(),
            Code::FailedPrecondition,
            &[
                "KEK `kube-1999`, which is not configured",
                "add it to the end of keyNames",
                "kube-2026, kube-2025",
            ],
        ),
        (
            "a KEK's name with odd characters",
            format!("../../sys/seal?x=\n\u{1b}[31m:v1:{secret}").into_bytes(),
            Code::InvalidArgument,
            &["begins with"],
        ),
        (
            "version 0",
            format!("kube-2026:v0:{secret}").into_bytes(),
            Code::InvalidArgument,
            &["a key version that Transit never gives"],
        ),
        (
            "a version beyond all numbers",
            format!("kube-2026:v99999999999999999999:{secret}").into_bytes(),
            Code::InvalidArgument,
            &["a key version that Transit never gives"],
        ),
        (
            "a version that is too new",
            good.replacen(":v1:", ":v7:", 1).into_bytes(),
            Code::FailedPrecondition,
            &["the key has no such version", "https://127.0.0.1:"],
        ),
    ];
    for (what, sent, code, words) in rows {
        let refused = lab.kms.v1().decrypt(&sent).await.unwrap_err();
        judge(what, &sent, &refused, code, words);
        if sent.len() <= 1024 {
            let v2 = lab.decrypt_v2(&sent).await.unwrap_err();
            judge(what, &sent, &v2, code, words);
        }
        assert_eq!(lab.kms.v1().decrypt(good.as_bytes()).await?, DEK, "after {what}");
    }

    // Rotated twice, then the first version retired.
    for _ in 0..2 {
        lab.bao.admin().rotate("kube-2026").await?;
    }
    lab.bao.admin().set_min_decryption_version("kube-2026", 2).await?;
    let retired = lab.kms.v1().decrypt(good.as_bytes()).await.unwrap_err();
    judge(
        "retired",
        good.as_bytes(),
        &retired,
        Code::FailedPrecondition,
        &[
            "KEK `kube-2026`",
            "below min_decryption_version",
            "vault write transit/keys/kube-2026/config min_decryption_version=",
        ],
    );
    lab.bao.admin().set_min_decryption_version("kube-2026", 1).await?;
    assert_eq!(lab.kms.v1().decrypt(good.as_bytes()).await?, DEK, "retired no more");

    lab.refuses_bad_plaintexts().await?;
    let said = lab.daemon.log();
    assert!(!said.contains(payload) && !said.contains(secret), "a ciphertext in the log:\n{said}");
    assert_eq!(lab.daemon.stop().await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_ciphertext_that_names_no_key_is_read_by_the_legacy_key_first_and_by_whoever_can()
-> lab::Result {
    let foreign = "vault:v1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    let lab = Lab::start(json!({})).await?;
    let bare = lab.bao.admin().encrypt("kube-2025", &DEK).await?;
    assert_eq!(lab.kms.v1().decrypt(bare.as_bytes()).await?, DEK, "by the second of two");
    let refused = lab.kms.v1().decrypt(foreign.as_bytes()).await.unwrap_err();
    judge(
        "foreign",
        foreign.as_bytes(),
        &refused,
        Code::InvalidArgument,
        &["no configured KEK can decrypt it", "KEK `kube-2026`", "KEK `kube-2025`"],
    );

    let lab = Lab::start(json!({ "key": "kube-2025" })).await?;
    let bare = lab.bao.admin().encrypt("kube-2025", &DEK).await?;
    assert_eq!(lab.kms.v1().decrypt(bare.as_bytes()).await?, DEK, "by the legacy key");
    // The legacy key is only asked first: others may have written it, with `write.format`.
    let other = lab.bao.admin().encrypt("kube-2026", &DEK).await?;
    assert_eq!(lab.kms.v1().decrypt(other.as_bytes()).await?, DEK, "by the other one");
    let refused = lab.kms.v1().decrypt(foreign.as_bytes()).await.unwrap_err();
    let words = &["no configured KEK can decrypt it: KEK `kube-2025`", "; KEK `kube-2026`"];
    judge("foreign", foreign.as_bytes(), &refused, Code::InvalidArgument, words);
    assert_eq!(lab.daemon.stop().await?, 0);
    Ok(())
}

/// The code, the words, and nothing of the input.
#[track_caller]
fn judge(what: &str, sent: &[u8], refused: &Status, code: Code, words: &[&str]) {
    let message = refused.message();
    println!("{what}: {:?}: {message}", refused.code());
    assert_eq!(refused.code(), code, "{what}: {message}");
    for words in words {
        assert!(message.contains(words), "{what}: no {words:?} in: {message}");
    }
    // The name and the version before the payload may be told; nothing after them.
    let payload = sent.rsplit(|byte| *byte == b':').next().unwrap_or_default();
    let leaked = payload
        .windows(8)
        .any(|part| std::str::from_utf8(part).is_ok_and(|part| message.contains(part)));
    assert!(!leaked, "{what}: bytes of the input in: {message}");
    assert!(message.chars().all(|c| !c.is_control()), "{what}: control characters in {message:?}");
}

// === impl Lab ===

impl Lab {
    async fn start(legacy: serde_json::Value) -> lab::Result<Self> {
        let bao = DevNode::start().await?;
        let keys = ["kube-2026", "kube-2025"];
        bao.create_keys(&keys).await?;
        let mut config = bao.config(&keys).await?;
        if legacy != json!({}) {
            config = config.with("legacy", legacy);
        }
        let daemon = Daemon::start(DAEMON, config).await?;
        daemon.wait_ready(PATIENCE).await?;
        let kms = daemon.kms();
        Ok(Self { bao, daemon, kms })
    }

    async fn decrypt_v2(&self, ciphertext: &[u8]) -> Result<Vec<u8>, Status> {
        let request = lab::proto::v2::DecryptRequest {
            ciphertext: ciphertext.to_vec(),
            uid: "uid".into(),
            key_id: "kube-2026:v1:0123456789abcdef".into(),
            annotations: Default::default(),
        };
        self.kms.v2().decrypt_request(request).await
    }

    async fn refuses_bad_plaintexts(&self) -> lab::Result {
        let (v1, v2) = (self.kms.v1(), self.kms.v2());
        let nothing: &[&str] = &["there is nothing to encrypt"];
        judge("nothing", b"", &v1.encrypt(b"").await.unwrap_err(), Code::InvalidArgument, nothing);
        judge(
            "nothing",
            b"",
            &v2.encrypt(b"", "u").await.unwrap_err(),
            Code::InvalidArgument,
            nothing,
        );
        // Fits into a message, not into what kube-apiserver stores.
        let large = v1.encrypt(&vec![7; 60_000]).await.unwrap_err();
        judge(
            "60,000 bytes",
            b"",
            &large,
            Code::InvalidArgument,
            &["60000 bytes of plaintext", "at most 65535"],
        );
        let large = v2.encrypt(&[7; 1_000], "u").await.unwrap_err();
        judge(
            "1,000 bytes",
            b"",
            &large,
            Code::InvalidArgument,
            &["1000 bytes of plaintext", "at most 1024"],
        );
        // Does not even fit into a message.
        let huge = v1.encrypt(&vec![7; 1 << 20]).await.unwrap_err();
        judge("1 MiB", b"", &huge, Code::OutOfRange, &["1048", "262144"]);
        assert_eq!(v1.decrypt(&v1.encrypt(&DEK).await?).await?, DEK);
        Ok(())
    }
}
