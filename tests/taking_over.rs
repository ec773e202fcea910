//! What the other plugins stored is read as it stands, from a real OpenBao, and what nobody
//! can read is refused by name; `inspect` says the same of the values in etcd.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::collections::HashMap;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use lab::apiserver::{Store, v1, v2};
use lab::proto::v2::DecryptRequest;
use lab::{Daemon, DevNode};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tonic::Code;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(15);
const DEK: [u8; 32] = [7; 32];
const KEY_ID: &str = "obk2.ig7zS9_yvQrdlcvWgJUhA5q_fQYupc5jRX5MzhAMQSk";

type Annotations = HashMap<String, Vec<u8>>;

fn hash(text: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(text))
}

/// The annotations of bao-kms-provider, and the associated data that belong to them.
fn of_bao_kms_provider() -> (Annotations, String) {
    let (mount, key) = (hash("transit-prod-primary"), hash("01HXEXAMPLEKEYLINEAGEID"));
    let annotations = [
        ("provider", "openbao-transit"),
        ("key-id-hash", &hash(KEY_ID)),
        ("transit-key-version", "1"),
        ("transit-mount-hash", &mount),
        ("transit-key-hash", &key),
        ("plugin-version", "0.1.0"),
        ("aad-version", "v1"),
    ];
    let annotation =
        |(name, value): (&str, &str)| (format!("{name}.kms.openbao.org"), value.into());
    let data = format!(
        "{{\"aad_version\":\"v1\",\"purpose\":\"kubernetes-etcd-kms-v2\",\
         \"provider\":\"openbao-transit\",\"provider_name\":\"openbao-kms-workload-a\",\
         \"cluster_id_hash\":\"{}\",\"openbao_instance_hash\":\"{}\",\
         \"transit_mount_hash\":\"{mount}\",\"transit_key_hash\":\"{key}\",\
         \"key_id_hash\":\"{}\",\"key_version\":\"1\"}}",
        hash("workload-a"),
        hash("bao-prod-a"),
        hash(KEY_ID)
    );
    (annotations.into_iter().map(annotation).collect(), BASE64_STANDARD.encode(data))
}

#[tokio::test]
async fn each_plugins_ciphertext_is_decrypted_and_what_cannot_be_is_refused_by_name() -> lab::Result
{
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube-2026", "kube"]).await?;
    let config = bao.config(&["kube-2026", "kube"]).await?.with(
        "legacy",
        json!({
            "key": "kube",
            "baoKmsProvider": {
                "providerName": "openbao-kms-workload-a",
                "clusterId": "workload-a",
                "instanceId": "bao-prod-a",
            },
        }),
    );
    let daemon = Daemon::start(DAEMON, config).await?;
    daemon.wait_ready(PATIENCE).await?;
    let kms = daemon.kms();

    let bare = bao.admin().encrypt("kube", &DEK).await?;
    let payload = bare.strip_prefix("vault:").unwrap();
    let (annotated, associated_data) = of_bao_kms_provider();
    let plaintext = BASE64_STANDARD.encode(DEK);
    let body = json!({ "plaintext": plaintext, "associated_data": associated_data });
    let answer = bao.admin().write("transit/encrypt/kube", body).await?;
    let bound = answer["data"]["ciphertext"].as_str().unwrap().to_owned();
    let none = Annotations::new();
    let kleidi = Annotations::from([("version.encryption.remote.io".into(), b"1".to_vec())]);
    let trousseau = format!("vault:-:{}\n", BASE64_STANDARD.encode(&bare));
    let among_others = [b"awskms:-:\xff\x00\n", trousseau.as_bytes()].concat();

    let readable: [(&str, Vec<u8>, &str, &Annotations); 8] = [
        ("Oracle", format!("kube:{payload}").into(), "", &none),
        ("Falco", bare.clone().into(), "1710744203", &none),
        ("Trousseau 1", bare.clone().into(), "", &none),
        ("Kleidi", bare.clone().into(), "kleidi-kms-plugin_1_1714553158", &kleidi),
        ("vault-kms-provider", bare.clone().into(), "1", &none),
        ("Trousseau 2", trousseau.into(), "", &none),
        ("Trousseau 2, several providers", among_others, "", &none),
        ("bao-kms-provider", bound.clone().into(), KEY_ID, &annotated),
    ];
    for (plugin, ciphertext, key_id, annotations) in readable {
        let message = DecryptRequest {
            ciphertext: ciphertext.clone(),
            uid: "uid".into(),
            key_id: key_id.into(),
            annotations: annotations.clone(),
        };
        let plain = kms.v2().decrypt_request(message).await;
        assert_eq!(plain.unwrap_or_else(|e| panic!("{plugin}: {e}")), DEK, "{plugin}");
        if annotations.is_empty() {
            assert_eq!(kms.v1().decrypt(&ciphertext).await?, DEK, "{plugin} with KMS v1");
        }
    }

    // Without its associated data Transit does not decrypt it: they went there.
    let refused = kms.v1().decrypt(bound.as_bytes()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    for (ciphertext, said) in [
        (&b"1\x01\x02\x02\x00x\xfe\xfe"[..], "aws-encryption-provider; only AWS KMS"),
        (b"vault:-:\n", "the data key is lost"),
        (b"awskms:-:AAEC\n", "only its provider awskms can decrypt it"),
        (b"rot13:abcdef", "begins with 5 printable bytes and a colon"),
    ] {
        let refused = kms.v1().decrypt(ciphertext).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(said), "{said}: {refused}");
    }

    inspect_what_an_apiserver_stored(&daemon).await?;
    assert_eq!(daemon.stop().await?, 0);
    Ok(())
}

async fn inspect_what_an_apiserver_stored(daemon: &Daemon) -> lab::Result {
    let mut etcd = Store::new();
    v1::Server::new(daemon.kms().v1(), "old").write(&mut etcd, "/registry/a", b"hunter2").await?;
    v2::Server::new(daemon.kms().v2(), "new").write(&mut etcd, "/registry/b", b"hunter2").await?;
    let socket = daemon.socket().display().to_string();
    for (key, api, writer) in [
        ("/registry/a", "KMS v1", "vault-kms-proxy or the Oracle plugin"),
        ("/registry/b", "KMS v2", "vault-kms-proxy\n"),
    ] {
        let printed = [key.as_bytes(), b"\n", &etcd[key], b"\n"].concat();
        let said = inspect(&["--verify", "--socket", &socket], &printed)?;
        let text = String::from_utf8_lossy(&said.stdout);
        println!("{text}");
        assert_eq!(said.status.code(), Some(0), "{text}{said:?}");
        for part in [key, api, writer, "kube-2026, version 1", "yes, to a data key of 32 bytes"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
        let json = inspect(&["--hex", "--output", "json"], hex::encode(&etcd[key]).as_bytes())?;
        let json: serde_json::Value = serde_json::from_slice(&json.stdout)?;
        assert_eq!((&json["kek"], &json["kekVersion"]), (&json!("kube-2026"), &json!(1)), "{json}");
    }
    // Nobody to ask, a damaged value, a command line that makes no sense.
    let away = inspect(&["--verify", "--socket", "@nobody-listens-here"], &etcd["/registry/b"])?;
    assert_eq!(away.status.code(), Some(1), "{away:?}");
    let cut = inspect(&[], &etcd["/registry/b"][..40])?;
    assert_eq!(cut.status.code(), Some(1), "{cut:?}");
    let wrong = inspect(&["--socket", &socket], b"")?;
    assert_eq!(wrong.status.code(), Some(64), "{wrong:?}");
    Ok(())
}

fn inspect(arguments: &[&str], input: &[u8]) -> lab::Result<Output> {
    let mut command = Command::new(DAEMON);
    command.arg("inspect").args(arguments).env_clear();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    // One that refuses its command line reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input);
    Ok(child.wait_with_output()?)
}
