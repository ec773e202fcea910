//! A secret id that would not log in any more shows while the token in use still works, and
//! looking for that costs nothing.

use std::path::Path;
use std::time::Duration;

use lab::{Daemon, DevNode, eventually, policy_for};
use serde_json::json;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(60);
const LOGIN: &str = "auth/approle/login";
const REVOKE: &str = "auth/token/revoke-self";
const DEK: [u8; 32] = [7; 32];

/// Writes a file as those who own such files do: beside it, then by rename.
fn replace(path: &Path, text: &str) -> lab::Result {
    use std::os::unix::fs::PermissionsExt;
    let next = path.with_extension("next");
    std::fs::write(&next, text)?;
    std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o600))?;
    Ok(std::fs::rename(next, path)?)
}

/// Waits until `/readyz` answers 200 with these words.
async fn readyz_says(daemon: &Daemon, words: &str) -> lab::Result {
    eventually(&format!("/readyz says {words:?}"), PATIENCE, || async {
        let (status, body) = daemon.admin_get("/readyz").await?;
        Ok((status == 200 && body.contains(words)).then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_changed_secret_id_is_tried_and_its_uses_are_not_used_up() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube"]).await?;
    let admin = bao.admin();
    let lookup = "path \"auth/approle/role/+/secret-id/lookup\" { capabilities = [\"update\"] }";
    let policy = format!("{}\n{lookup}\n", policy_for(&["kube"]));
    admin.write_policy("kms", &policy).await?;
    let options = json!({ "token_policies": ["kms"], "token_ttl": "1h" });
    let role = admin.create_approle("kms", options).await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("secret-id");
    replace(&file, &role.secret_id)?;
    let config = bao.config(&["kube"]).await?;
    let config = config.with("roleID", role.role_id.as_str());
    let config = config.with("secretIDFile", file.display().to_string());
    let daemon = Daemon::start(DAEMON, config).await?;
    daemon.wait_ready(PATIENCE).await?;
    let cipher = daemon.kms().v1().encrypt(&DEK).await?;
    assert_eq!(bao.count_requests(LOGIN), 1);
    // The node has revoked a token of its own.
    let revoked = bao.count_requests(REVOKE);

    // One that Vault does not know: told now, and not when the token ends.
    replace(&file, "11111111-2222-3333-4444-555555555555")?;
    let said = daemon.wait_for_log("A rehearsed login failed", PATIENCE).await?;
    println!("{said}");
    assert!(said.contains("invalid role or secret ID"), "{said}");
    assert_eq!(daemon.kms().v1().decrypt(&cipher).await?, DEK);
    daemon.wait_ready(PATIENCE).await?;
    let said = "[+] cluster default: has a token, but the next login fails: AppRole login refused";
    readyz_says(&daemon, said).await?;

    // One for three logins: none of them is spent.
    let limited = json!({ "num_uses": 3 });
    let answer = admin.write("auth/approle/role/kms/secret-id", limited).await?;
    let logins = bao.count_requests(LOGIN);
    replace(&file, answer["data"]["secret_id"].as_str().unwrap())?;
    daemon.wait_for_log("the secret id's uses are limited", PATIENCE).await?;
    assert_eq!(bao.count_requests(LOGIN), logins);

    // A good one: it logs in, and the token is given back.
    replace(&file, &admin.new_secret_id("kms").await?)?;
    daemon.wait_for_log("A rehearsed login works again.", PATIENCE).await?;
    assert_eq!(bao.count_requests(LOGIN), logins + 1);
    readyz_says(&daemon, "[+] cluster default: has a token\n").await?;
    assert_eq!(bao.count_requests(REVOKE), revoked + 1);
    let good = "vault_kms_proxy_logins_rehearsed_total";
    assert!(daemon.metric(good, "result=\"ok\"").await? >= 1.0);
    assert_eq!(daemon.kms().v1().decrypt(&cipher).await?, DEK);
    Ok(())
}
