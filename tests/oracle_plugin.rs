//! The Oracle plugin's users change the binary and nothing else: its configuration file, its
//! flags, its ciphertexts and its Vault policies go on working.

use std::time::Duration;

use lab::apiserver::{Store, v1};
use lab::{Daemon, DevNode};
use serde_json::json;
use tonic::Code;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(15);
const KEY: &str = "kube-secret-enc-key";
const SECRET: &str = "/registry/secrets/default/db-password";

/// What a policy for that plugin held: no `read` on the key, because it never asked.
const OLD_POLICY: &str = r#"
path "transit/encrypt/kube-secret-enc-key" { capabilities = ["update"] }
path "transit/decrypt/kube-secret-enc-key" { capabilities = ["update"] }
"#;

/// The plugin's own file: flat keys, a plain address, a token in it, and a key that nobody
/// reads for `http://`.
fn oracle_file(address: &str, token: &str) -> String {
    format!(
        "keyNames:\n  - {KEY}\ntransitPath: /transit\nca-cert: /etc/kubernetes/vault-cert\n\
         addr: {address}\ntoken: {token}\n"
    )
}

async fn start(address: &str, token: &str) -> lab::Result<Daemon> {
    Daemon::builder(DAEMON)
        .config(oracle_file(address, token))
        .config_name("vault-plugin.yaml")
        .args(["-socketFile", "{socket}", "-vaultConfig", "{config}"])
        .start()
        .await
}

async fn token(bao: &DevNode, policy: &str) -> lab::Result<String> {
    bao.admin().write_policy("kube-kms", policy).await?;
    bao.admin().create_token(json!({ "policies": ["kube-kms"], "period": "1h" })).await
}

#[tokio::test]
async fn its_file_its_flags_and_its_secrets_go_on_working_through_two_rotations() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&[KEY]).await?;
    let token = token(&bao, &lab::policy_for(&[KEY])).await?;
    // Linux takes a connection to 0.0.0.0 as one to itself, and nobody takes the address
    // for loopback: so plain HTTP over the network is tested without a network.
    let address = bao.http().replace("127.0.0.1", "0.0.0.0");
    let daemon = start(&address, &token).await?;
    daemon.wait_ready(PATIENCE).await?;

    let mut etcd = Store::new();
    let mut apiserver = v1::Server::new(daemon.kms().v1(), "vault");
    apiserver.write(&mut etcd, SECRET, b"hunter2").await?;
    let stored = String::from_utf8_lossy(&etcd[SECRET]).into_owned();
    assert!(stored.starts_with("k8s:enc:kms:v1:vault:"), "{stored}");
    assert!(stored.contains("kube-secret-enc-key:v1:"), "{stored}");
    println!("etcd holds {:?}…", &stored[..60]);

    for version in [2, 3] {
        bao.admin().rotate(KEY).await?;
        apiserver.restart();
        assert_eq!(apiserver.read(&etcd, SECRET).await?.value, b"hunter2");
        println!("read after the rotation to v{version} and a restart of the apiserver");

        // What the plugin wrote with that version: Transit's ciphertext, its prefix replaced.
        let transit = bao.admin().encrypt(KEY, b"a data key of 32 bytes, or so....").await?;
        let oracle = transit.replacen("vault:", &format!("{KEY}:"), 1);
        assert!(oracle.starts_with(&format!("{KEY}:v{version}:")), "{oracle}");
        let plain = daemon.kms().v1().decrypt(oracle.as_bytes()).await?;
        assert_eq!(plain, b"a data key of 32 bytes, or so....");
        println!("decrypted by name: {}…", &oracle[..40]);
    }

    let log = daemon.log();
    let warned = |words: &str| {
        let line = log.lines().find(|line| line.contains(words) && line.contains("WARN"));
        let line = line.unwrap_or_else(|| panic!("no warning says {words:?}:\n{log}"));
        println!("{line}");
    };
    warned("addr: `http://0.0.0.0");
    warned("token: a secret stands in the configuration");
    warned("ca-cert");
    assert!(!log.contains(&token), "the token is in the log:\n{log}");
    assert_eq!(daemon.stop().await?, 0);

    // The next process knows nothing but the file.
    let daemon = start(&address, &token).await?;
    daemon.wait_ready(PATIENCE).await?;
    let mut apiserver = v1::Server::new(daemon.kms().v1(), "vault");
    assert_eq!(apiserver.read(&etcd, SECRET).await?.value, b"hunter2");
    Ok(())
}

#[tokio::test]
async fn a_policy_without_read_encrypts_for_v1_and_says_why_not_for_v2() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&[KEY]).await?;
    let token = token(&bao, OLD_POLICY).await?;
    let daemon = start(bao.http(), &token).await?;
    daemon.wait_for_log("The token may not read the key", PATIENCE).await?;

    let mut etcd = Store::new();
    let mut apiserver = v1::Server::new(daemon.kms().v1(), "vault");
    let kms = daemon.kms();
    lab::eventually("KMS v1 encrypts", PATIENCE, || async {
        Ok(Some(kms.v1().encrypt(b"ping").await?))
    })
    .await?;
    apiserver.health().await?;
    apiserver.write(&mut etcd, SECRET, b"hunter2").await?;
    bao.admin().rotate(KEY).await?;
    apiserver.restart();
    assert_eq!(apiserver.read(&etcd, SECRET).await?.value, b"hunter2");
    // Unpinned: Vault chooses, and that is the newest at once.
    let cipher = daemon.kms().v1().encrypt(b"ping").await?;
    assert!(cipher.starts_with(b"kube-secret-enc-key:v2:"));

    for refused in [
        daemon.kms().v2().status().await.map(drop).unwrap_err(),
        daemon.kms().v2().encrypt(&[7; 32], "uid").await.map(drop).unwrap_err(),
    ] {
        println!("v2: {refused}");
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        let why = refused.message();
        for part in [KEY, "metadata could not be read", "policy does not allow it", bao.http()] {
            assert!(why.contains(part), "{part}: {why}");
        }
    }

    // A policy that could create the key: a typo in its name would make a new one.
    bao.admin()
        .write_policy("kube-kms", &OLD_POLICY.replace("\"update\"", "\"create\", \"update\""))
        .await?;
    let daemon = start(bao.http(), &token).await?;
    daemon.wait_for_log("metadata could not be read", PATIENCE).await?;
    let refused = daemon.kms().v1().encrypt(b"ping").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    Ok(())
}
