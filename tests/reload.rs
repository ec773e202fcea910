//! SIGHUP: what is new takes effect without a failed call.

use std::time::Duration;

use lab::{Callers, Config, Daemon, DevNode, FaultProxy, RELOADED, eventually};
use serde_json::json;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(20);

/// Two keys, both orders.
const OLD_FIRST: [&str; 2] = ["kube-2025", "kube-2026"];
const NEW_FIRST: [&str; 2] = ["kube-2026", "kube-2025"];

async fn vault() -> lab::Result<(DevNode, Config)> {
    let bao = DevNode::start().await?;
    bao.create_keys(&OLD_FIRST).await?;
    let config = bao.config(&OLD_FIRST).await?;
    Ok((bao, config))
}

async fn start(config: &Config) -> lab::Result<Daemon> {
    let daemon = Daemon::start(DAEMON, config).await?;
    daemon.wait_ready(PATIENCE).await?;
    Ok(daemon)
}

#[tokio::test]
async fn keys_change_places_in_the_middle_of_calls_and_no_call_fails() -> lab::Result {
    let (_bao, config) = vault().await?;
    let daemon = start(&config).await?;
    let mut old = Vec::new();
    for number in 0..8_u8 {
        let plain = vec![number; 32];
        old.push((daemon.kms().v1().encrypt(&plain).await?, plain));
    }

    let callers = Callers::start(&daemon.kms(), 8, &old);
    callers.more(100, PATIENCE).await?;
    for round in 0..6 {
        let order = if round % 2 == 0 { NEW_FIRST } else { OLD_FIRST };
        daemon.reload(config.clone().keys(&order), RELOADED).await?;
        let cipher = daemon.kms().v1().encrypt(&[7; 32]).await?;
        assert!(cipher.starts_with(format!("{}:v1:", order[0]).as_bytes()), "{round}");
        callers.more(100, PATIENCE).await?;
    }
    let seen = callers.finish().await;
    let (good, failed, slowest) = (seen.good, seen.failures.len(), seen.slowest);
    println!(
        "6 reloads in the middle of calls: {good} good, {failed} failed, slowest {slowest:.0?}"
    );
    println!("new ciphertexts by key: {:?}", seen.made_by);
    assert!(seen.failures.is_empty(), "{}", seen.failures_told());
    let makers: Vec<_> = seen.made_by.keys().map(String::as_str).collect();
    assert_eq!(makers, ["kube-2025:v1", "kube-2026:v1"]);
    assert_eq!(daemon.metric("vault_kms_proxy_reloads_total", "result=\"ok\"").await?, 6.0);
    assert_eq!(daemon.metric("vault_kms_proxy_reloads_total", "result=\"failed\"").await?, 0.0);
    assert_eq!(daemon.stop().await?, 0);
    Ok(())
}

#[tokio::test]
async fn addresses_tokens_authorities_and_the_log_level_take_effect() -> lab::Result {
    let (bao, config) = vault().await?;
    let (here, there) =
        tokio::try_join!(FaultProxy::start(bao.authority()), FaultProxy::start(bao.authority()))?;
    bao.admin().write_policy("kms", &lab::policy_for(&OLD_FIRST)).await?;
    let new_token = || bao.admin().create_token(json!({ "policies": ["kms"], "period": "1h" }));
    let (first, second) = (new_token().await?, new_token().await?);
    let config = config.token(&first).addresses(&[here.https()]);
    let daemon = start(&config).await?;
    let v1 = daemon.kms().v1();
    let cipher = v1.encrypt(&[7; 32]).await?;

    let config = config.addresses(&[there.https()]);
    daemon.reload(&config, RELOADED).await?;
    here.refuse().await?;
    assert_eq!(v1.decrypt(&cipher).await?, [7; 32], "through the new address");
    assert!(there.connections() > 0);

    let config = config.token(&second);
    daemon.reload(&config, RELOADED).await?;
    bao.admin().revoke_token(&first).await?;
    assert_eq!(v1.decrypt(&cipher).await?, [7; 32], "with the new token");

    // The same path, other bytes: the server's certificate is about to change.
    let ca = daemon.folder().join("ca.pem");
    std::fs::copy(config.get("vaultCACert").and_then(|v| v.as_str()).unwrap_or_default(), &ca)?;
    let config = config.with("vaultCACert", ca.display().to_string());
    daemon.reload(&config, RELOADED).await?;
    let next = lab::Authority::new("next year's")?;
    let both = format!("{}{}", std::fs::read_to_string(&ca)?, next.pem());
    std::fs::write(&ca, both)?;
    daemon.sighup()?;
    eventually("the reload is counted", PATIENCE, || async {
        let good = daemon.metric("vault_kms_proxy_reloads_total", "result=\"ok\"").await?;
        Ok((good == 4.0).then_some(()))
    })
    .await?;
    next.server()?.write(bao.folder(), "server")?;
    bao.hang_up()?;
    let config = config.addresses(&[bao.address()]);
    daemon.reload(&config, RELOADED).await?;
    assert_eq!(v1.decrypt(&cipher).await?, [7; 32], "with the new authority");

    assert!(!daemon.log().contains(" DEBUG "), "{}", daemon.log());
    let mark = daemon.log_mark();
    daemon.reload(config.clone().with("log", json!({ "level": "debug" })), RELOADED).await?;
    daemon.kms().fresh().v1().version().await?;
    let line = daemon.wait_for_log_after(mark, " DEBUG ", PATIENCE).await?;
    println!("{line}");
    for token in [&first, &second] {
        assert!(!daemon.log().contains(token.as_str()), "a token is in the log");
    }

    let json = config.with("log", json!({ "level": "info", "format": "json" }));
    let line = daemon.reload(json, RELOADED).await?;
    assert!(line.starts_with('{'), "{line}");
    Ok(())
}

#[tokio::test]
async fn a_call_in_flight_ends_on_the_configuration_that_it_began_with() -> lab::Result {
    let (bao, config) = vault().await?;
    let proxy = FaultProxy::start(bao.authority()).await?;
    let daemon = start(&config.clone().addresses(&[proxy.https()])).await?;

    proxy.delay(Duration::from_millis(2_500));
    let slow = daemon.kms().timeout(PATIENCE);
    let slow = tokio::spawn(async move { slow.v1().encrypt(&[7; 32]).await });
    eventually("the call is in flight", PATIENCE, || async {
        let calls = daemon.metric("vault_kms_proxy_calls_in_flight", "").await?;
        Ok((calls == 1.0).then_some(()))
    })
    .await?;

    daemon.reload(config.keys(&NEW_FIRST), RELOADED).await?;
    let quick = daemon.kms().v1().encrypt(&[7; 32]).await?;
    assert!(quick.starts_with(b"kube-2026:v1:"));
    assert!(!slow.is_finished(), "the reload waited for the call, or the call was too quick");
    let slow = slow.await??;
    assert!(slow.starts_with(b"kube-2025:v1:"), "{}", String::from_utf8_lossy(&slow));
    assert_eq!(daemon.kms().v1().decrypt(&slow).await?, [7; 32]);
    Ok(())
}
