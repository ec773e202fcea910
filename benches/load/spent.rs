//! What calls cost: processor time of everybody who takes part, and requests to OpenBao.

use lab::{Cluster, Context, Daemon, Result};

/// Who takes part beside this process.
pub(crate) struct Meter<'a> {
    pub(crate) daemon: &'a Daemon,
    pub(crate) cluster: &'a Cluster,
}

/// Sums since the processes began, or between two moments.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    /// Processor time of this process, whose tasks are the callers, in s.
    pub(crate) callers: f64,
    /// Of the daemon, in s.
    pub(crate) daemon: f64,
    /// Of all nodes, in s.
    pub(crate) nodes: f64,
    /// Requests that the daemon sent for calls.
    pub(crate) requests: f64,
    /// The calls in them; identical ones that went as one count once.
    pub(crate) carried: f64,
}

// === impl Meter ===

impl Meter<'_> {
    /// The sums up to now.
    pub(crate) async fn read(&self) -> Result<Spent> {
        let nodes = self.cluster.nodes().iter().filter_map(lab::Node::pid);
        let nodes = nodes.map(processor_time).sum::<Result<f64>>()?;
        let metrics = self.daemon.metrics().await?;
        let sum = |name| lab::sum_metric(&metrics, name, "");
        Ok(Spent {
            callers: processor_time(std::process::id())?,
            daemon: processor_time(self.daemon.pid())?,
            nodes,
            requests: sum("vault_kms_proxy_batch_size_count"),
            carried: sum("vault_kms_proxy_batch_size_sum"),
        })
    }
}

// === impl Spent ===

impl Spent {
    /// Adds what was spent from `begin` to `end`.
    pub(crate) fn add(&mut self, begin: Self, end: Self) {
        self.callers += end.callers - begin.callers;
        self.daemon += end.daemon - begin.daemon;
        self.nodes += end.nodes - begin.nodes;
        self.requests += end.requests - begin.requests;
        self.carried += end.carried - begin.carried;
    }

    /// How full the machine's cores were, of 1.
    pub(crate) fn load(&self, seconds: f64) -> f64 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (self.callers + self.daemon + self.nodes) / seconds / cores as f64
    }
}

/// User and system time of a process and its threads, ended ones included, in s. The kernel
/// counts it in hundredths.
fn processor_time(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context(pid)?;
    // The name in parentheses may hold blanks.
    let (_, fields) = stat.rsplit_once(')').context("no name in its stat")?;
    let ticks = |index: usize| -> Result<f64> {
        Ok(fields.split_whitespace().nth(index).context("its stat is short")?.parse()?)
    };
    // utime and stime are fields 14 and 15 of proc_pid_stat(5), which counts from 1; the state
    // is the 3rd.
    Ok((ticks(11)? + ticks(12)?) / rustix::param::clock_ticks_per_second() as f64)
}
