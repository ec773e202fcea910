//! Reloads without a pause, under load: no call may fail, and nothing may grow.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::daemon::{Footprint, RELOADED};
use crate::otlp::Receiver;
use crate::{Callers, Cluster, Config, Daemon, DevNode, FaultProxy, Result, eventually, fail};

const CALLERS: usize = 8;
const KEYS: [&str; 2] = ["kube-2025", "kube-2026"];
const TURNED: [&str; 2] = ["kube-2026", "kube-2025"];
const PATIENCE: Duration = Duration::from_secs(30);

/// What a table of pages, an arena or a pool may still take after the warm-up. A generation
/// that stayed would be about 1 MiB with its TLS configuration and its connections.
const ROOM_KIB: u64 = 16 << 10;

/// Descriptors of connections that are on their way out, or in.
const ROOM_FILES: usize = 24;

/// `count` reloads, one as soon as the one before is in force; each changes something, and
/// the footprint after `warm_up` of them is compared with that at the end.
///
/// # Errors
/// When a call fails, a reload is refused, or something grows.
pub async fn in_a_row(daemon: &Path, count: u32, warm_up: u32) -> Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&KEYS).await?;
    let ways =
        [FaultProxy::start(bao.authority()).await?, FaultProxy::start(bao.authority()).await?];
    let ways: Vec<String> = ways.iter().map(FaultProxy::https).collect();
    let receivers = [Receiver::grpc().await?, Receiver::http().await?];
    let config = bao.config(&KEYS).await?.addresses(&ways);
    let daemon = Daemon::start(daemon, &config).await?;
    daemon.wait_ready(PATIENCE).await?;

    let callers = Callers::start(&daemon.kms(), CALLERS, &[]);
    callers.more(100, PATIENCE).await?;
    let mut warm = daemon.footprint()?;
    let began = Instant::now();
    println!("reloads   calls  failed  VmRSS KiB  files  threads");
    tell(0, &callers, warm);
    for number in 1..=count {
        daemon.reload(changed(&config, &ways, &receivers, number), RELOADED).await?;
        if number == warm_up {
            warm = settled(&daemon).await?;
        }
        if number == warm_up || number % 100 == 0 {
            tell(number, &callers, daemon.footprint()?);
        }
    }
    let took = began.elapsed();
    callers.more(100, PATIENCE).await?;
    let end = settled(&daemon).await?;
    tell(count, &callers, end);
    let seen = callers.finish().await;
    println!(
        "{count} reloads in {took:.1?} under {CALLERS} callers: {} calls, {} failed, the slowest \
         {:.0?}",
        seen.good,
        seen.failures.len(),
        seen.slowest
    );
    let ok = daemon.metric("vault_kms_proxy_reloads_total", "result=\"ok\"").await?;
    if ok != f64::from(count) {
        fail!("{ok} reloads were counted of {count}");
    }
    if !seen.failures.is_empty() {
        fail!("calls failed:\n{}", seen.failures_told());
    }
    has_not_grown(warm, end)?;
    match daemon.stop().await? {
        0 => Ok(()),
        code => fail!("the daemon ended with {code}"),
    }
}

/// A change of every part in turn: order, filter, addresses and with them pool and login,
/// rotation, receiver of traces, format, mode of the socket.
fn changed(config: &Config, ways: &[String], receivers: &[Receiver; 2], number: u32) -> Config {
    // Each part has its own rhythm, so that all their combinations come.
    let is_set = |part: u32| (number + part) / 7 % 2 == 1;
    let toggled = |part: u32| is_set(part) != (number % 7 == part);
    let mut next = config.clone();
    if toggled(0) {
        next = next.keys(&TURNED);
    }
    if toggled(1) {
        next = next.with("log", json!({ "level": "info,vault_kms_proxy::kms=warn" }));
    }
    if toggled(2) {
        next = next.addresses(&ways.iter().rev().collect::<Vec<_>>());
    }
    if toggled(3) {
        next = next.with("rotation", json!({ "refresh": "2s", "activationDelay": "4s" }));
    }
    let receiver = &receivers[usize::from(toggled(4))];
    let protocol = if toggled(4) { "http" } else { "grpc" };
    let traces =
        json!({ "endpoint": receiver.endpoint(), "protocol": protocol, "sampleRatio": 0.01 });
    if toggled(5) {
        next = next.with("traces", traces);
    }
    if toggled(6) {
        next = next.with("socket", json!({ "mode": "0660" }));
    }
    next
}

/// A reload every 100 ms while the leader of three nodes is killed, from 1 s before it until
/// another one leads and 3 s more.
///
/// # Errors
/// When a call fails, a reload is refused, or something grows.
pub async fn while_the_leader_is_killed(daemon: &Path) -> Result {
    let cluster = Cluster::start().await?;
    cluster.create_keys(&KEYS).await?;
    let config = cluster.config(&KEYS).await?;
    let daemon = Daemon::start(daemon, &config).await?;
    daemon.wait_ready(PATIENCE).await?;
    let callers = Callers::start(&daemon.kms(), CALLERS, &[]);
    callers.more(100, PATIENCE).await?;

    let mut addresses = cluster.addresses();
    let mut sent = 0_u32;
    let mut reload = async || {
        sent += 1;
        let order = if sent.is_multiple_of(2) { KEYS } else { TURNED };
        let mut next = config.clone().keys(&order);
        if sent.is_multiple_of(5) {
            addresses.rotate_left(1);
        }
        next = next.addresses(&addresses);
        daemon.write_config(next)?;
        daemon.sighup()?;
        Ok::<_, crate::Error>(sent)
    };
    let mut every = interval(Duration::from_millis(100));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut for_a = async |time: Duration| {
        let until = Instant::now() + time;
        let mut sent = 0;
        while Instant::now() < until {
            every.tick().await;
            sent = reload().await?;
        }
        Ok::<_, crate::Error>(sent)
    };
    for_a(Duration::from_secs(1)).await?;
    let warm = daemon.footprint()?;
    let leader = cluster.leader().await?;
    leader.kill();
    let killed = Instant::now();
    while cluster.leader_index().await.is_none() {
        for_a(Duration::from_millis(100)).await?;
    }
    let led = killed.elapsed();
    let sent = for_a(Duration::from_secs(3)).await?;
    callers.more(100, PATIENCE).await?;

    // What was sent last is in force in the end.
    eventually("the last reload has ended", PATIENCE, || async {
        let before = reloads(&daemon).await?;
        sleep(Duration::from_millis(300)).await;
        Ok((before == reloads(&daemon).await?).then_some(()))
    })
    .await?;
    let seen = callers.finish().await;
    let end = settled(&daemon).await?;
    let (ok, failed) = reloads(&daemon).await?;
    println!(
        "SIGHUP every 100 ms while the leader was killed ({sent} sent, another node leads after \
         {led:.1?}): {ok} reloads, {failed} refused; {} calls, {} failed, the slowest {:.0?}; \
         VmRSS {} -> {} KiB, threads {} -> {}",
        seen.good,
        seen.failures.len(),
        seen.slowest,
        warm.resident_kib,
        end.resident_kib,
        warm.threads,
        end.threads
    );
    if !seen.failures.is_empty() {
        fail!("calls failed:\n{}", seen.failures_told());
    }
    if failed > 0.0 {
        fail!("{failed} reloads were refused:\n{}", daemon.log());
    }
    if ok < 10.0 {
        fail!("{ok} reloads prove little");
    }
    has_not_grown(warm, end)
}

async fn reloads(daemon: &Daemon) -> Result<(f64, f64)> {
    let text = daemon.metrics().await?;
    // The sum of nothing is -0.
    let count = |result: &str| {
        crate::daemon::sum_metric(&text, "vault_kms_proxy_reloads_total", result).abs()
    };
    Ok((count("result=\"ok\""), count("result=\"failed\"")))
}

/// Its footprint once what is on its way out has gone: the connections of old generations
/// end with the calls that they carry, receivers of traces with their last spans.
async fn settled(daemon: &Daemon) -> Result<Footprint> {
    let mut least = daemon.footprint()?;
    for _ in 0..20 {
        sleep(Duration::from_millis(100)).await;
        let now = daemon.footprint()?;
        least.resident_kib = least.resident_kib.min(now.resident_kib);
        least.threads = least.threads.min(now.threads);
        least.files = least.files.zip(now.files).map(|(a, b)| a.min(b));
    }
    Ok(least)
}

fn tell(number: u32, callers: &Callers, now: Footprint) {
    let seen = callers.so_far();
    let files = now.files.map_or("-".to_owned(), |files| files.to_string());
    println!(
        "{number:7} {:7} {:7} {:10} {files:>6} {:8}",
        seen.good,
        seen.failures.len(),
        now.resident_kib,
        now.threads
    );
}

fn has_not_grown(warm: Footprint, end: Footprint) -> Result {
    if end.resident_kib > warm.resident_kib + ROOM_KIB {
        fail!("memory has grown from {} to {} KiB", warm.resident_kib, end.resident_kib);
    }
    // A thread or two of the pool for blocking work come and go.
    if end.threads > warm.threads + 4 {
        fail!("threads have grown from {} to {}", warm.threads, end.threads);
    }
    if let Some((before, after)) = warm.files.zip(end.files)
        && after > before + ROOM_FILES
    {
        fail!("open files have grown from {before} to {after}");
    }
    Ok(())
}
