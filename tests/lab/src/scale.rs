//! `lab scale`: what many daemons ask of one cluster while all is well, beside what was to be
//! expected (docs/scale.md).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lab::{Admin, Cluster, Context, Daemon, Result, fail};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::binary;

const KEY: &str = "kube";
const PATIENCE: Duration = Duration::from_secs(60);

/// So short that renewals come within the minute.
const TOKEN_TTL: f64 = 60.0;

// What docs/scale.md derives from the daemon's constants, in seconds.
const CANARY: f64 = 30.0;
const REFRESH: f64 = 30.0;
const PROBE: f64 = 5.0;
const PROBES_AFTER_A_CALL: f64 = 2.5;

/// Between two decrypts of one daemon in the second half.
const BETWEEN_CALLS: f64 = 5.0;

/// What was counted, all daemons together.
#[derive(Clone, Copy, Default)]
struct Counted {
    decrypts: f64,
    encrypts: f64,
    reads: f64,
    logins: f64,
    renewals: f64,
    probes: f64,
}

/// The fleet and its cluster.
struct Fleet {
    // Before the cluster, so that they end first.
    daemons: Vec<Arc<Daemon>>,
    cluster: Cluster,
}

/// Starts so many daemons, lets them idle for `seconds` and decrypt now and then for as long.
pub(crate) async fn run(daemons: usize, seconds: u64, daemon: Option<PathBuf>) -> Result {
    let daemon = binary::find(daemon).await?;
    let fleet = Fleet::start(&daemon, daemons).await?;
    let span = Duration::from_secs(seconds);
    let started = fleet.count().await?;
    println!("\nAt the start, {daemons} daemons:");
    line("logins", daemons as f64, started.logins);
    connections(&fleet)?;

    // Health checks and canaries of the start fall into one moment; their jitter spreads them.
    let (before, begun) = (fleet.count().await?, Instant::now());
    sleep(span).await;
    let idle = fleet.count().await?.since(before);
    println!("\nIdle, {seconds} s:");
    tell(&idle, daemons as f64, begun.elapsed().as_secs_f64(), 0.0);
    connections(&fleet)?;

    let stored = fleet.stored().await?;
    let (before, begun) = (fleet.count().await?, Instant::now());
    let calls = fleet.call(&stored, span).await?;
    let busy = fleet.count().await?.since(before);
    println!("\nA decrypt in {BETWEEN_CALLS} s each, {seconds} s, {calls} calls:");
    tell(&busy, daemons as f64, begun.elapsed().as_secs_f64(), calls as f64);
    connections(&fleet)?;
    Ok(())
}

/// Expected and counted, a line for each kind.
fn tell(counted: &Counted, daemons: f64, seconds: f64, calls: f64) {
    let addresses = 3.0;
    let each = daemons * seconds;
    let canaries = each / CANARY;
    let rate = calls / each + 1.0 / CANARY;
    let probes = each * addresses * (PROBES_AFTER_A_CALL * rate).min(1.0 / PROBE);
    line("decrypts", calls + canaries, counted.decrypts);
    line("encrypts", canaries, counted.encrypts);
    line("metadata reads", each / REFRESH, counted.reads);
    line("logins", 0.0, counted.logins);
    line("renewals", each * 1.5 / TOKEN_TTL, counted.renewals);
    line("health checks", probes, counted.probes);
}

fn line(what: &str, expected: f64, counted: f64) {
    println!("  {what:16} expected {expected:>6.0}   counted {counted:>6.0}");
}

fn connections(fleet: &Fleet) -> Result {
    let least = fleet.daemons.len() * fleet.cluster.nodes().len();
    line("connections", least as f64, established(&fleet.cluster)? as f64);
    Ok(())
}

// === impl Fleet ===

impl Fleet {
    async fn start(binary: &Path, count: usize) -> Result<Self> {
        println!("Starting three nodes and {count} daemons of {} ...", binary.display());
        let cluster = Cluster::start().await?;
        cluster.create_keys(&[KEY]).await?;
        // The lab's own pace is for tests; what is shipped reads a key every 30 s.
        let config = cluster.config(&[KEY]).await?.without("rotation");
        shorten_tokens(cluster.admin()).await?;
        let mut starting = JoinSet::new();
        for _ in 0..count {
            let builder = Daemon::builder(binary).config(&config);
            starting.spawn(async move {
                let daemon = builder.start().await?;
                daemon.wait_ready(PATIENCE).await?;
                Ok::<_, lab::Error>(Arc::new(daemon))
            });
        }
        let mut daemons = Vec::new();
        while let Some(daemon) = starting.join_next().await {
            daemons.push(daemon??);
        }
        Ok(Self { daemons, cluster })
    }

    /// A ciphertext of the daemons' form, made without them.
    async fn stored(&self) -> Result<Arc<str>> {
        let made = self.cluster.admin().encrypt(KEY, &[7; 32]).await?;
        Ok(made.replacen("vault:", &format!("{KEY}:"), 1).into())
    }

    /// Lets each daemon decrypt once in a while, at a moment of its own; answers how often.
    async fn call(&self, stored: &Arc<str>, span: Duration) -> Result<usize> {
        let end = Instant::now() + span;
        let every = Duration::from_secs_f64(BETWEEN_CALLS);
        let mut callers = JoinSet::new();
        for (number, daemon) in (0_u32..).zip(&self.daemons) {
            let (kms, stored) = (daemon.kms(), Arc::clone(stored));
            let fleet = u32::try_from(self.daemons.len())?;
            callers.spawn(async move {
                let mut next = Instant::now() + every * number / fleet;
                let mut calls = 0;
                while next < end {
                    sleep_until(next).await;
                    if kms.v1().decrypt(stored.as_bytes()).await? != [7; 32] {
                        fail!("another plaintext than was encrypted");
                    }
                    calls += 1;
                    next += every;
                }
                Ok(calls)
            });
        }
        let mut calls = 0;
        while let Some(ended) = callers.join_next().await {
            calls += ended??;
        }
        Ok(calls)
    }

    async fn count(&self) -> Result<Counted> {
        let mut paths: BTreeMap<String, f64> = BTreeMap::new();
        for node in self.cluster.nodes() {
            for request in node.audited() {
                *paths.entry(request.path).or_default() += 1.0;
            }
        }
        let of = |path: &str| paths.get(path).copied().unwrap_or_default();
        let mut probes = 0.0;
        for daemon in &self.daemons {
            probes += daemon.metric("vault_kms_proxy_probes_total", "").await?;
        }
        Ok(Counted {
            decrypts: of(&format!("transit/decrypt/{KEY}")),
            encrypts: of(&format!("transit/encrypt/{KEY}")),
            reads: of(&format!("transit/keys/{KEY}")),
            logins: of("auth/approle/login"),
            renewals: of("auth/token/renew-self"),
            probes,
        })
    }
}

// === impl Counted ===

impl Counted {
    fn since(self, before: Self) -> Self {
        Self {
            decrypts: self.decrypts - before.decrypts,
            encrypts: self.encrypts - before.encrypts,
            reads: self.reads - before.reads,
            logins: self.logins - before.logins,
            renewals: self.renewals - before.renewals,
            probes: self.probes - before.probes,
        }
    }
}

/// Gives the one role's tokens [`TOKEN_TTL`].
async fn shorten_tokens(admin: &Admin) -> Result {
    let roles = admin.call("LIST", "auth/approle/role", Value::Null).await?;
    let roles = roles["data"]["keys"].as_array().context("there is no role")?;
    for role in roles.iter().filter_map(Value::as_str) {
        let ttl = json!({ "token_ttl": format!("{TOKEN_TTL}s") });
        admin.write(&format!("auth/approle/role/{role}/token-ttl"), ttl).await?;
    }
    Ok(())
}

/// Connections to the nodes that are open now, as the kernel lists them at the nodes' end.
fn established(cluster: &Cluster) -> Result<usize> {
    const ESTABLISHED: &str = "01";
    let mut ports = Vec::new();
    for node in cluster.nodes() {
        let port = node.authority().rsplit(':').next().context("an address without a port")?;
        ports.push(format!("{:04X}", port.parse::<u16>()?));
    }
    // OpenBao listens for IPv4, of which Go may make either kind of socket.
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let text = tables.map(|table| std::fs::read_to_string(table).unwrap_or_default()).concat();
    let is_one = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().and_then(|local| local.rsplit(':').next());
        let state = fields.nth(1);
        local.is_some_and(|port| ports.iter().any(|known| known == port))
            && state == Some(ESTABLISHED)
    };
    Ok(text.lines().filter(is_one).count())
}
