//! Names in DNS: followed while they move, and no call fails while DNS does.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use lab::{
    Callers, Config, Daemon, DevNode, Dns, DnsMood, FaultProxy, SrvTarget, eventually, free_port,
};
use serde_json::json;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(30);

/// A daemon's configuration with these addresses, whose names only `dns` knows.
async fn config(bao: &DevNode, dns: &Dns, addresses: &[&str]) -> lab::Result<Config> {
    bao.create_keys(&["kube"]).await?;
    let config = bao.config(&["kube"]).await?.addresses(addresses);
    let config = config.with("dns", json!({ "servers": [dns.address().to_string()] }));
    // The name in the node's certificate.
    Ok(config.with("tlsServerName", "localhost"))
}

/// Waits until `name` was asked for so many times more.
async fn asked_again(dns: &Dns, name: &str, times: usize) -> lab::Result {
    let goal = dns.asked(name)? + times;
    eventually(&format!("{name} is asked for again"), PATIENCE, || async {
        Ok((dns.asked(name)? >= goal).then_some(()))
    })
    .await
}

/// Waits until the daemon has come to `proxy`.
async fn reached(proxy: &FaultProxy) -> lab::Result {
    eventually("the daemon has come to the address", PATIENCE, || async {
        Ok((proxy.open_connections() > 0).then_some(()))
    })
    .await
}

#[tokio::test]
async fn no_call_fails_while_dns_does_and_a_name_that_moves_is_followed() -> lab::Result {
    const NAME: &str = "vault.lab";
    let (bao, dns) = tokio::try_join!(DevNode::start(), Dns::start())?;
    let port = free_port()?;
    let ip = |last| IpAddr::from([127, 0, 0, last]);
    let at = |last| FaultProxy::start_at(SocketAddr::new(ip(last), port), bao.address());
    let (old, new) = tokio::try_join!(at(2), at(3))?;
    dns.set(NAME, &[ip(2)])?;
    let config = config(&bao, &dns, &[&format!("https://{NAME}:{port}")]).await?;
    let daemon = Daemon::start(DAEMON, config).await?;
    daemon.wait_ready(PATIENCE).await?;

    let callers = Callers::start(&daemon.kms(), 4, &[]);
    for mood in [DnsMood::Fails, DnsMood::KnowsNothing, DnsMood::Empty, DnsMood::Hangs] {
        dns.mood(mood);
        asked_again(&dns, NAME, 2).await?;
        callers.more(20, PATIENCE).await?;
    }
    daemon.wait_for_log("A name does not resolve; its last addresses are used.", PATIENCE).await?;
    let labels = format!("cluster=\"default\",name=\"https://{NAME}:{port}\"");
    assert!(daemon.metric("vault_kms_proxy_name_failures_total", &labels).await? > 0.0);

    dns.set(NAME, &[ip(3)])?;
    dns.mood(DnsMood::Answers);
    daemon.wait_for_log("A name resolves again.", PATIENCE).await?;
    reached(&new).await?;
    callers.more(20, PATIENCE).await?;
    // A call that was on its way to the old address may still be there.
    eventually("the old address is left", PATIENCE, || async {
        let before = old.connections();
        callers.more(20, PATIENCE).await?;
        Ok((old.connections() == before).then_some(()))
    })
    .await?;
    old.refuse().await?;
    callers.more(50, PATIENCE).await?;

    // And once more, this time because the address fails before its time to live is over.
    dns.set_ttl(Duration::from_secs(3600));
    asked_again(&dns, NAME, 1).await?;
    old.heal().await?;
    dns.set(NAME, &[ip(2), ip(3)])?;
    let seen = callers.finish().await;
    assert!(seen.failures.is_empty(), "{}", seen.failures_told());
    new.refuse().await?;
    eventually("calls are answered at the other address", PATIENCE, || async {
        daemon.kms().v1().encrypt(&[7; 32]).await?;
        Ok(Some(()))
    })
    .await?;
    assert_eq!(daemon.stop().await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_service_is_its_targets_and_until_dns_answers_calls_say_what_is_missing() -> lab::Result {
    const SERVICE: &str = "_vault._tcp.lab";
    let (bao, dns) = tokio::try_join!(DevNode::start(), Dns::start())?;
    let proxy = || FaultProxy::start(bao.address());
    let (first, second, third) = tokio::try_join!(proxy(), proxy(), proxy())?;
    let port = |proxy: &FaultProxy| -> u16 {
        proxy.https().rsplit(':').next().and_then(|port| port.parse().ok()).unwrap()
    };
    let target = |priority, proxy: &FaultProxy, host: &str| SrvTarget {
        priority,
        weight: 1,
        port: port(proxy),
        host: host.to_owned(),
    };
    for host in ["a.lab", "b.lab", "c.lab"] {
        dns.set(host, &["127.0.0.1".parse()?])?;
    }
    let config = config(&bao, &dns, &[&format!("srv+https://{SERVICE}")]).await?;
    let daemon = Daemon::start(DAEMON, config).await?;

    asked_again(&dns, SERVICE, 2).await?;
    eventually("a call says why there is no address", PATIENCE, || async {
        let error = daemon.kms().v1().encrypt(&[7; 32]).await.err();
        let expected = format!("cannot resolve {SERVICE}: there is no such name");
        Ok(error.filter(|error| error.message().contains(&expected)))
    })
    .await?;

    dns.set_srv(SERVICE, &[target(2, &second, "b.lab"), target(1, &first, "a.lab")])?;
    daemon.wait_ready(PATIENCE).await?;
    tokio::try_join!(reached(&first), reached(&second))?;
    let callers = Callers::start(&daemon.kms(), 4, &[]);
    callers.more(20, PATIENCE).await?;
    first.refuse().await?;
    callers.more(20, PATIENCE).await?;

    dns.set_srv(SERVICE, &[target(1, &third, "c.lab")])?;
    reached(&third).await?;
    callers.more(20, PATIENCE).await?;
    let seen = callers.finish().await;
    assert!(seen.failures.is_empty(), "{}", seen.failures_told());
    assert_eq!(daemon.stop().await?, 0);
    Ok(())
}

#[tokio::test]
async fn ipv6_addresses_are_reached_as_numbers_and_behind_names() -> lab::Result {
    const NAME: &str = "six.lab";
    if let Err(error) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
        println!("SKIPPED: this machine has no IPv6 loopback ({error})");
        return Ok(());
    }
    let (bao, dns) = tokio::try_join!(DevNode::start(), Dns::start())?;
    let at = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    let proxy = FaultProxy::start_at(at, bao.address()).await?;
    let port = proxy.address().port();
    dns.set(NAME, &[Ipv6Addr::LOCALHOST.into()])?;

    let number = format!("https://[::1]:{port}");
    let name = format!("https://{NAME}:{port}");
    let named = config(&bao, &dns, &[&name]).await?;
    // The certificate has the number, so that nothing but that is expected of it.
    let numbered = named.clone().without("tlsServerName").addresses(&[&number]);
    for (config, label) in [(numbered, number.clone()), (named, format!("{name} (::1)"))] {
        let before = proxy.connections();
        let daemon = Daemon::start(DAEMON, config).await?;
        daemon.wait_ready(PATIENCE).await?;
        let made = daemon.kms().v2().encrypt(&[7; 32], "uid").await?;
        assert_eq!(daemon.kms().v2().decrypt(&made, "uid").await?, [7; 32]);
        assert!(proxy.connections() > before, "{label} went another way");

        // Errors and metrics name it in full.
        proxy.refuse().await?;
        let error = daemon.kms().v1().encrypt(&[7; 32]).await.unwrap_err();
        assert!(error.message().contains(&format!("{label}: ")), "{}", error.message());
        let labels = format!("server_address=\"{label}\"");
        let attempts = "vault_kms_proxy_attempt_duration_seconds_count";
        assert!(daemon.metric(attempts, &labels).await? > 0.0, "no metric of {label}");
        for result in ["good", "bad"] {
            let labels = format!("result=\"{result}\",{labels}");
            eventually(&format!("a {result} probe of {label} is counted"), PATIENCE, || async {
                let counted = daemon.metric("vault_kms_proxy_probes_total", &labels).await?;
                Ok((counted > 0.0).then_some(()))
            })
            .await?;
        }
        proxy.heal().await?;
        eventually("it answers again", PATIENCE, || async {
            Ok(daemon.kms().v1().encrypt(&[7; 32]).await.ok())
        })
        .await?;
        assert_eq!(daemon.stop().await?, 0);
    }
    Ok(())
}
