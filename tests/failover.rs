//! A node dies, freezes, or is cut off while kube-apiserver calls: no call fails, and Vault
//! is not asked much more than before. One cluster serves the whole file.

use std::time::Duration;

use lab::{Callers, Cluster, Daemon, FaultProxy, Seen};

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(30);
/// A call that takes this long has failed: kube-apiserver waits no longer.
const DEADLINE: Duration = Duration::from_secs(3);
const CALLERS: usize = 8;
/// Counts the attempts, by address and outcome.
const ATTEMPTS: &str = "vault_kms_proxy_attempt_duration_seconds_count";

#[tokio::test]
async fn no_call_fails_when_a_node_dies_freezes_or_is_cut_off() -> lab::Result {
    let cluster = Cluster::start().await?;
    cluster.create_keys(&["kube"]).await?;
    let config = cluster.config(&["kube"]).await?;
    println!("{:34} {:>6} {:>7} {:>9} {:>12}", "", "calls", "failed", "slowest", "per call");

    let daemon = Daemon::start(DAEMON, &config).await?;
    daemon.wait_ready(PATIENCE).await?;
    the_node_in_use_is_killed(&cluster, &daemon).await?;
    the_node_in_use_is_killed(&cluster, &daemon).await?;
    the_node_in_use_freezes(&cluster, &daemon).await?;
    assert_eq!(daemon.stop().await?, 0);

    let mut proxies = Vec::new();
    for node in cluster.nodes() {
        proxies.push(FaultProxy::start(node.authority()).await?);
    }
    let addresses: Vec<_> = proxies.iter().map(FaultProxy::https).collect();
    let daemon = Daemon::start(DAEMON, config.addresses(&addresses)).await?;
    daemon.wait_ready(PATIENCE).await?;
    the_way_to_the_node_in_use_swallows_everything(&proxies, &daemon).await?;
    every_address_is_slow(&proxies, &daemon).await
}

async fn the_node_in_use_is_killed(cluster: &Cluster, daemon: &Daemon) -> lab::Result {
    let disturbed = Disturbed::begin(daemon, &cluster.addresses()).await?;
    let node = cluster.node(disturbed.in_use);
    let role = if node.is_leader().await { "active" } else { "standby" };
    node.kill();
    disturbed.end(&format!("kill -9 of {}, {role}, in use", node.name())).await?;
    cluster.heal().await
}

async fn the_node_in_use_freezes(cluster: &Cluster, daemon: &Daemon) -> lab::Result {
    let disturbed = Disturbed::begin(daemon, &cluster.addresses()).await?;
    let node = cluster.node(disturbed.in_use);
    node.stop()?;
    disturbed.end(&format!("SIGSTOP of {}, in use", node.name())).await?;
    cluster.heal().await
}

async fn the_way_to_the_node_in_use_swallows_everything(
    proxies: &[FaultProxy],
    daemon: &Daemon,
) -> lab::Result {
    let addresses: Vec<_> = proxies.iter().map(FaultProxy::https).collect();
    let disturbed = Disturbed::begin(daemon, &addresses).await?;
    let proxy = &proxies[disturbed.in_use];
    proxy.blackhole();
    disturbed.end("blackhole before the node in use").await?;
    proxy.heal().await
}

/// The whole way is slow, as over a bad link: then no address is at fault, none may be left
/// out, and nothing may be cut short.
async fn every_address_is_slow(proxies: &[FaultProxy], daemon: &Daemon) -> lab::Result {
    for proxy in proxies {
        proxy.delay(Duration::from_millis(600));
    }
    let before = Wire::of(daemon).await?;
    let callers = Callers::start(&daemon.kms(), CALLERS, &[]);
    callers.more(60, PATIENCE).await?;
    let seen = callers.finish().await;
    assert!(seen.slowest >= Duration::from_millis(600), "nothing was slow: {seen:?}");
    report("every answer 600 ms later", &seen, Wire::of(daemon).await?.since(&before), 3.0);
    Ok(())
}

fn report(what: &str, seen: &Seen, wire: Wire, bound: f64) {
    let per_call = wire.requests / wire.calls;
    let (good, failed, slowest) = (seen.good, seen.failures.len(), seen.slowest);
    println!("{what:34} {good:>6} {failed:>7} {slowest:>9.0?} {per_call:>12.2}");
    assert!(seen.failures.is_empty(), "{what}: {}", seen.failures.join("\n"));
    assert!(slowest < DEADLINE, "{what}: the slowest call took {slowest:?}");
    assert!(per_call < bound, "{what}: {per_call:.2} requests to Vault for each call to it");
}

/// Calls go on, and something is about to happen to the address that they are sent to.
struct Disturbed<'a> {
    daemon: &'a Daemon,
    callers: Callers,
    before: Wire,
    in_use: usize,
    address: String,
    /// Attempts that had failed there before.
    faults: f64,
}

/// What went over the wire, by the daemon's own metrics.
struct Wire {
    requests: f64,
    calls: f64,
}

// === impl Disturbed ===

impl<'a> Disturbed<'a> {
    async fn begin(daemon: &'a Daemon, addresses: &[String]) -> lab::Result<Self> {
        let before = Wire::of(daemon).await?;
        let callers = Callers::start(&daemon.kms(), CALLERS, &[]);
        callers.more(200, PATIENCE).await?;
        let in_use = busiest(daemon, &callers, addresses).await?;
        let address = addresses[in_use].clone();
        let faults = faults_at(daemon, &address).await?;
        Ok(Self { daemon, callers, before, in_use, address, faults })
    }

    async fn end(self, what: &str) -> lab::Result {
        self.callers.more(400, PATIENCE).await?;
        let seen = self.callers.finish().await;
        report(what, &seen, Wire::of(self.daemon).await?.since(&self.before), 1.5);
        // Else nothing was disturbed, and the rest proves nothing. It need not have been left
        // out: where fewer calls were under way than open a breaker, the others never asked it.
        let faults =
            lab::eventually("an attempt fails at the disturbed address", PATIENCE, async || {
                let more = faults_at(self.daemon, &self.address).await? - self.faults;
                Ok((more > 0.0).then_some(more))
            });
        println!("  {} attempts failed at {}", faults.await?, self.address);
        Ok(())
    }
}

// === impl Wire ===

impl Wire {
    async fn of(daemon: &Daemon) -> lab::Result<Self> {
        let requests = daemon.metric("vault_kms_proxy_call_attempts_sum", "").await?;
        let calls = daemon.metric("vault_kms_proxy_call_attempts_count", "").await?;
        Ok(Self { requests, calls })
    }

    fn since(&self, before: &Self) -> Self {
        Self { requests: self.requests - before.requests, calls: self.calls - before.calls }
    }
}

/// Which of `addresses` the daemon asks now.
async fn busiest(daemon: &Daemon, callers: &Callers, addresses: &[String]) -> lab::Result<usize> {
    let before = attempts_at(daemon, addresses).await?;
    callers.more(40, PATIENCE).await?;
    let after = attempts_at(daemon, addresses).await?;
    let (busiest, more) = std::iter::zip(&after, &before)
        .map(|(after, before)| after - before)
        .enumerate()
        .max_by(|(_, a), (_, b)| a.total_cmp(b))
        .expect("a cluster has an address");
    assert!(more > 0.0, "no address is asked: {before:?}, {after:?}");
    Ok(busiest)
}

async fn attempts_at(daemon: &Daemon, addresses: &[String]) -> lab::Result<Vec<f64>> {
    let mut counts = Vec::new();
    for address in addresses {
        counts.push(daemon.metric(ATTEMPTS, &label_of(address)).await?);
    }
    Ok(counts)
}

/// How many attempts at `address` brought no answer.
async fn faults_at(daemon: &Daemon, address: &str) -> lab::Result<f64> {
    let all = daemon.metric(ATTEMPTS, &label_of(address)).await?;
    let mut answers = 0.0;
    for reason in ["first", "retry", "hedge"] {
        let labels = format!("outcome=\"answer\",reason=\"{reason}\",server_address=\"{address}\"");
        answers += daemon.metric(ATTEMPTS, &labels).await?;
    }
    Ok(all - answers)
}

/// What a metric's line holds when it is about `address`.
fn label_of(address: &str) -> String {
    let port = address.rsplit(':').next().unwrap_or_default();
    format!(":{port}\"")
}
