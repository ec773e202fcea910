//! Where a row is played: the nodes, the way to them, and the daemon.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::{Ground, KEY, Row, Spans, Victim, Way};
use crate::{
    Admin, Callers, Cluster, Config, Context, Daemon, DevNode, Dns, FaultProxy, Node, Result,
};

/// How long the daemon may take to be ready, and to notice things that it must notice.
const PATIENCE: Duration = Duration::from_secs(30);

/// Counts the attempts, by address and outcome.
const ATTEMPTS: &str = "vault_kms_proxy_attempt_duration_seconds_count";

/// What [`Stage::give_name`] calls the machine.
const NAME: &str = "vault.lab";

/// How often the daemon is started anew until it uses the node that the fault is for.
const TRIES: usize = 5;

/// A node that gets this share of the attempts is in use.
const USED: f64 = 0.2;

/// What a row acts on.
#[derive(Debug)]
pub struct Stage {
    ground: Arc<Ground>,
    spans: Spans,
    proxies: Vec<FaultProxy>,
    dns: Option<Dns>,
    pub(super) config: Config,
    /// A cluster of its own, with a key of the same name.
    pub(super) second: Option<DevNode>,
    daemon: Option<Daemon>,
    victim: Option<usize>,
}

/// What the daemon has sent, by its own metrics.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wire {
    requests: f64,
    calls: f64,
    /// Attempts that brought no answer from the victim.
    failed: f64,
    /// Attempts that joined a silent one.
    hedges: f64,
}

// === impl Stage ===

impl Stage {
    /// Whole nodes, and a daemon that uses the row's victim.
    pub(super) async fn set(row: &Row, ground: &Arc<Ground>, spans: Spans) -> Result<Self> {
        ground.cluster.heal().await?;
        ground.cluster.serve_on_standbys(row.standbys_serve).await?;
        let config = ground.cluster.config(&[KEY]).await?;
        let mut stage = Self {
            ground: Arc::clone(ground),
            spans,
            proxies: Vec::new(),
            dns: None,
            config,
            second: None,
            daemon: None,
            victim: None,
        };
        if row.way == Way::Proxied {
            for node in ground.cluster.nodes() {
                stage.proxies.push(FaultProxy::start(node.authority()).await?);
            }
        }
        (row.prepare)(&mut stage).await?;
        for _ in 0..TRIES {
            if stage.start_daemon(row).await? {
                break;
            }
        }
        Ok(stage)
    }

    /// Whether the daemon uses the node that the fault is for.
    async fn start_daemon(&mut self, row: &Row) -> Result<bool> {
        let wanted = self.wanted(row.victim).await?;
        let mut addresses = self.addresses();
        addresses.rotate_left(wanted.unwrap_or_default());
        let mut config = self.config.clone();
        if self.second.is_none() {
            config = config.addresses(&addresses);
        }
        let daemon = Daemon::start(&self.ground.binary, config).await?;
        daemon.wait_ready(PATIENCE).await?;
        self.daemon = Some(daemon);
        if row.victim == Victim::Nobody {
            return Ok(true);
        }
        let shares = self.shares().await?;
        let busiest = (0..shares.len()).max_by(|a, b| shares[*a].total_cmp(&shares[*b]));
        let victim = wanted.or(busiest).context("there is no node")?;
        self.victim = Some(victim);
        Ok(shares[victim] >= USED)
    }

    async fn wanted(&self, victim: Victim) -> Result<Option<usize>> {
        let cluster = self.cluster();
        let node = match victim {
            Victim::Nobody | Victim::InUse => return Ok(None),
            Victim::Leader => cluster.leader().await?,
            Victim::Standby => cluster.standby().await?,
        };
        Ok(cluster.nodes().iter().position(|other| other.name() == node.name()))
    }

    /// What share of its attempts the daemon sends to each address under the row's load.
    async fn shares(&self) -> Result<Vec<f64>> {
        let callers = Callers::start(&self.daemon()?.kms(), super::CALLERS, &[]);
        callers.more(40, PATIENCE).await?;
        let before = self.attempts().await?;
        callers.more(80, PATIENCE).await?;
        let after = self.attempts().await?;
        callers.finish().await;
        let more = std::iter::zip(&after, &before).map(|(after, before)| after - before);
        let more: Vec<f64> = more.collect();
        let all = more.iter().sum::<f64>().max(1.0);
        Ok(more.iter().map(|attempts| attempts / all).collect())
    }

    async fn attempts(&self) -> Result<Vec<f64>> {
        let mut counts = Vec::new();
        for address in self.addresses() {
            counts.push(self.daemon()?.metric(ATTEMPTS, &label_of(&address)).await?);
        }
        Ok(counts)
    }

    /// The addresses that the daemon knows, in the order of the nodes.
    pub(super) fn addresses(&self) -> Vec<String> {
        let mut addresses: Vec<_> = self.proxies.iter().map(FaultProxy::https).collect();
        if addresses.is_empty() {
            addresses = self.cluster().addresses();
        }
        if self.dns.is_some() {
            let named = addresses.iter().map(|address| address.replace("127.0.0.1", NAME));
            addresses = named.collect();
        }
        addresses
    }

    /// From now on the nodes have a name, and the daemon a DNS server that knows it.
    pub(super) async fn give_name(&mut self) -> Result {
        let dns = Dns::start().await?;
        dns.set(NAME, &[Ipv4Addr::LOCALHOST.into()])?;
        let servers = json!({ "servers": [dns.address().to_string()] });
        let config = std::mem::take(&mut self.config);
        self.config = config.with("dns", servers).with("tlsServerName", "localhost");
        self.dns = Some(dns);
        Ok(())
    }

    /// The DNS server that knows their name.
    pub fn dns(&self) -> Result<&Dns> {
        self.dns.as_ref().context("the nodes have no name")
    }

    /// Those, and that of the second cluster.
    pub(super) fn all_addresses(&self) -> Vec<String> {
        let second = self.second.iter().map(|node| node.address().to_owned());
        self.addresses().into_iter().chain(second).collect()
    }

    /// The second cluster.
    pub fn second(&self) -> Result<&DevNode> {
        self.second.as_ref().context("the row has no second cluster")
    }

    /// The API of each node alone, on the way that the daemon takes.
    pub(super) fn admins(&self) -> Vec<Admin> {
        let addresses = self.addresses();
        addresses.iter().map(|address| self.cluster().admin().at(address)).collect()
    }

    /// The nodes.
    pub fn cluster(&self) -> &Cluster {
        &self.ground.cluster
    }

    /// The daemon.
    pub fn daemon(&self) -> Result<&Daemon> {
        self.daemon.as_ref().context("the daemon has not been started")
    }

    /// How long the row goes on.
    pub fn spans(&self) -> Spans {
        self.spans
    }

    /// The node that the fault is for.
    pub fn victim(&self) -> Result<&Node> {
        Ok(self.cluster().node(self.victim.context("the row names no victim")?))
    }

    /// The proxy before that node.
    pub fn proxy(&self) -> Result<&FaultProxy> {
        let victim = self.victim.context("the row names no victim")?;
        self.proxies.get(victim).context("the daemon reaches the nodes directly")
    }

    /// The proxies, in the order of the nodes.
    pub fn proxies(&self) -> &[FaultProxy] {
        &self.proxies
    }

    /// Makes everything pass again, and brings back every node.
    pub async fn heal(&self) -> Result {
        for proxy in &self.proxies {
            proxy.heal().await?;
        }
        self.cluster().heal().await
    }

    // --- what the daemon trusts

    fn ca_file(&self) -> Result<PathBuf> {
        Ok(self.daemon()?.folder().join("trusted.pem"))
    }

    /// The authorities that [`Stage::trust`] gave it last.
    pub fn trusted(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.ca_file()?)?)
    }

    /// Makes the daemon trust these authorities: another file, and SIGHUP.
    pub async fn trust(&self, authorities: &str) -> Result {
        let daemon = self.daemon()?;
        let file = self.ca_file()?;
        crate::tls::replace_file(&file, authorities)?;
        let mark = daemon.log_mark();
        let config = self.config.clone().addresses(&self.addresses());
        daemon.write_config(config.with("vaultCACert", file.display().to_string()))?;
        daemon.sighup()?;
        daemon.wait_for_log_after(mark, "Reloaded; the new", PATIENCE).await.map(drop)
    }

    // --- what it has sent

    pub(super) async fn wire(&self) -> Result<Wire> {
        let daemon = self.daemon()?;
        let metrics = daemon.metrics().await?;
        let sum = |name: &str, labels: &str| crate::daemon::sum_metric(&metrics, name, labels);
        let mut failed = 0.0;
        if let Some(victim) = self.victim {
            let address = &self.addresses()[victim];
            failed += sum(ATTEMPTS, &label_of(address));
            for reason in ["first", "retry", "hedge"] {
                let labels =
                    format!("outcome=\"answer\",reason=\"{reason}\",server_address=\"{address}\"");
                failed -= sum(ATTEMPTS, &labels);
            }
        }
        Ok(Wire {
            requests: sum("vault_kms_proxy_call_attempts_sum", ""),
            calls: sum("vault_kms_proxy_call_attempts_count", ""),
            failed,
            hedges: sum("vault_kms_proxy_hedges_total", ""),
        })
    }
}

/// What a metric's line holds when it is about `address`.
fn label_of(address: &str) -> String {
    let port = address.rsplit(':').next().unwrap_or_default();
    format!(":{port}\"")
}

// === impl Wire ===

impl Wire {
    /// Requests to Vault for each call, since `before`.
    pub(super) fn per_call(&self, before: &Self) -> f64 {
        (self.requests - before.requests) / (self.calls - before.calls).max(1.0)
    }

    /// Whether any attempt has met the fault since `before`: else the row proves nothing.
    pub(super) fn has_met(&self, row: &Row, before: &Self) -> bool {
        self.failed > before.failed || row.hangs && self.hedges > before.hedges
    }
}
