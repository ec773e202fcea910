//! `lab census`: what a count of many objects costs.

use std::path::PathBuf;
use std::time::Duration;

use lab::apiserver::sample;
use lab::{Context, Etcd, Result, fail};

use crate::binary;

/// Fills a real etcd with so many values, of four kinds in turn, and lets the daemon's binary
/// count them: `rate` objects a second, 0 without a limit.
pub(crate) async fn run(objects: usize, rate: u32, daemon: Option<PathBuf>) -> Result {
    let daemon = binary::find(daemon).await?;
    println!("Storing {objects} objects in etcd ...");
    let etcd = Etcd::start().await?;
    let all: Vec<usize> = (0..objects).collect();
    for some in all.chunks(1_000) {
        let values: Vec<_> = some.iter().map(|n| sample::object(*n)).collect();
        etcd.client().put_all(&values).await?;
    }

    let mut command = tokio::process::Command::new(daemon);
    command.arg("census").args(etcd.options()).arg(format!("--rate={rate}"));
    command.env_remove("VAULT_KMS_PROXY_CONFIG").kill_on_drop(true);
    let start = tokio::time::Instant::now();
    let mut child = command.spawn().context("cannot start census")?;
    let pid = child.id().context("census has no pid")?;
    let mut peak = 0;
    let status = loop {
        peak = peak.max(high_water(pid));
        match tokio::time::timeout(Duration::from_millis(20), child.wait()).await {
            Ok(ended) => break ended?,
            Err(_) => continue,
        }
    };
    println!(
        "\n{objects} objects in {:.1} s, {} MiB at most",
        start.elapsed().as_secs_f64(),
        peak >> 10
    );
    if !status.success() {
        fail!("census ended with {status}");
    }
    Ok(())
}

/// The most memory that a process has had so far, in KiB.
fn high_water(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
