//! What kube-apiserver calls, answered from a real OpenBao.

use std::time::Duration;

use lab::{Daemon, DevNode};
use tonic::Code;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(15);

#[tokio::test]
async fn every_method_of_both_apis_is_answered() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube-2026", "kube-secret-enc-key"]).await?;
    let config = bao.config(&["kube-2026", "kube-secret-enc-key"]).await?;
    let daemon = Daemon::start(DAEMON, config).await?;
    let kms = daemon.kms();

    assert_eq!(kms.v1().version().await?.version, "v1beta1");
    let status = kms.v2().wait_ok(PATIENCE).await?;
    assert_eq!(status.version, "v2");
    assert!(status.key_id.starts_with("kube-2026:v1:"), "{}", status.key_id);

    let dek = [7; 32];
    let cipher = kms.v1().encrypt(&dek).await?;
    assert!(cipher.starts_with(b"kube-2026:v1:"));
    assert_eq!(kms.v1().decrypt(&cipher).await?, dek);

    let made = kms.v2().encrypt(&dek, "uid").await?;
    assert_eq!(made.key_id, status.key_id);
    assert_eq!(made.annotations["kek.vault-kms-proxy.io"], b"kube-2026");
    assert_eq!(kms.v2().decrypt(&made, "uid").await?, dek);

    // What the Oracle plugin wrote: Transit's ciphertext under the key's own name.
    let transit = bao.admin().encrypt("kube-secret-enc-key", &dek).await?;
    let oracle = transit.replacen("vault:", "kube-secret-enc-key:", 1);
    assert_eq!(kms.v1().decrypt(oracle.as_bytes()).await?, dek);
    // What plugins that name no key wrote.
    assert_eq!(kms.v1().decrypt(transit.as_bytes()).await?, dek);

    let unknown = kms.v1().decrypt(b"nobody:v1:AAECAwQF").await.unwrap_err();
    assert_eq!(unknown.code(), Code::FailedPrecondition);
    assert!(unknown.message().contains("`nobody`, which is not configured"), "{unknown}");

    assert_eq!(daemon.stop().await?, 0);
    Ok(())
}
