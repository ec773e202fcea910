//! Reloads without a pause, under load: no call fails, and nothing grows.

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");

/// `VAULT_KMS_PROXY_LAB_RELOADS` plays more of them; the first half is the warm-up.
#[tokio::test]
async fn one_reload_after_the_other_fails_no_call_and_nothing_grows() -> lab::Result {
    let count = std::env::var("VAULT_KMS_PROXY_LAB_RELOADS");
    let count: u32 = count.ok().and_then(|count| count.parse().ok()).unwrap_or(120);
    lab::reloads::in_a_row(DAEMON.as_ref(), count, (count / 2).min(200)).await
}

#[tokio::test]
async fn reloads_while_the_leader_is_killed_fail_no_call() -> lab::Result {
    lab::reloads::while_the_leader_is_killed(DAEMON.as_ref()).await
}
