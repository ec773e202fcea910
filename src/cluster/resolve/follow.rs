//! Keeps a name's addresses up to date.
//!
//! Asked again when the answer's time to live is over, within bounds, and sooner when an
//! address fails. What was known stays in use while there is no better answer: an empty
//! answer, or one that there is no such name, is a fault of DNS far more often than it is
//! the end of a Vault.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::Uri;
use opentelemetry::KeyValue;
use tokio::sync::watch;
use tokio::time::Instant;

use super::first::First;
use super::{Doubt, Found, Kind, Resolver, Target, Unresolved};
use crate::clock::{self, Jitter};
use crate::cluster::operation::{AddressName, MAX_ADDRESSES};
use crate::cluster::pool::members::Site;
use crate::config::settings::ClusterName;
use crate::telemetry::metrics::{self, Metric};

/// A name is asked for no sooner after its last answer, whatever its time to live and
/// however many addresses fail.
const SOONEST: Duration = Duration::from_secs(5);

/// And no later.
const LATEST: Duration = Duration::from_secs(60);

/// The time to live where nobody tells it, as `getaddrinfo` does not.
const UNTOLD: Duration = Duration::from_secs(30);

/// The wait after the first failure; it doubles up to [`SOONEST`].
const FIRST_REPEAT: Duration = Duration::from_millis(250);

/// How long one question may take. A C library that has two servers to ask, the first of
/// which is dead, has an answer by then.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes what a name stands for. When it cannot take all of it yet, it answers when to
/// come again.
pub type Take = Arc<dyn Fn(Vec<Site>) -> Option<Instant> + Send + Sync>;

/// A name to follow, and what is needed for it.
#[derive(Clone)]
pub struct Name {
    /// Whose it is.
    pub cluster: ClusterName,
    /// The configured URL.
    pub url: Uri,
    /// Asks for it.
    pub resolver: Arc<dyn Resolver>,
    /// For the waits.
    pub jitter: Arc<Jitter>,
    /// Raised by addresses that fail.
    pub doubt: Doubt,
    /// Where the first outcome is told.
    pub first: Arc<watch::Sender<First>>,
    /// Where its addresses go.
    pub take: Take,
}

/// What one round of questions brought.
struct Resolved {
    sites: Vec<Site>,
    ttl: Option<Duration>,
    /// Targets without an answer; what was known of them before is among the sites.
    missing: Option<Unresolved>,
}

/// What is remembered from round to round.
struct Follower {
    name: Name,
    configured: AddressName,
    /// The last good answer for each host and port.
    known: BTreeMap<(String, u16), Vec<IpAddr>>,
    shown: String,
    failures: u32,
    /// What the name stands for by the last good answer, while not all of it is taken.
    not_taken: Option<NotTaken>,
}

struct NotTaken {
    sites: Vec<Site>,
    again_at: Instant,
}

/// Follows `name` until it is dropped.
pub async fn follow(name: Name) {
    let configured = AddressName::of(&name.url);
    let (known, shown) = (BTreeMap::new(), String::new());
    let not_taken = None;
    let mut follower = Follower { name, configured, known, shown, failures: 0, not_taken };
    loop {
        let pause = follower.round().await;
        follower.wait(pause).await;
    }
}

// === impl Follower ===

impl Follower {
    /// Asks once; answers when to ask again.
    async fn round(&mut self) -> Duration {
        self.name.doubt.settle();
        match self.resolve().await {
            Ok(Resolved { sites, ttl, missing }) => {
                self.tell_change(&sites);
                self.take(sites);
                self.name.first.send_replace(First::Known);
                match missing {
                    None => {
                        self.succeeded();
                        ttl.unwrap_or(UNTOLD).clamp(SOONEST, LATEST)
                    }
                    Some(why) => self.failed(&why),
                }
            }
            Err(why) => {
                self.name.first.send_if_modified(|first| {
                    let is_first = !matches!(first, First::Known);
                    if is_first {
                        *first = First::Failed(why.clone());
                    }
                    is_first
                });
                self.failed(&why)
            }
        }
    }

    fn take(&mut self, sites: Vec<Site>) {
        let again_at = (self.name.take)(sites.clone());
        self.not_taken = again_at.map(|again_at| NotTaken { sites, again_at });
    }

    /// Passes `pause`; less of it, but at least [`SOONEST`], when an address fails. What was
    /// not taken is offered again meanwhile, for which DNS need not answer.
    async fn wait(&mut self, pause: Duration) {
        let soonest = Instant::now() + SOONEST.min(pause);
        let due = Instant::now() + self.name.jitter.around(pause);
        loop {
            let again_at = self.not_taken.as_ref().map(|not_taken| not_taken.again_at);
            tokio::select! {
                biased;
                () = self.name.doubt.raised() => return tokio::time::sleep_until(soonest).await,
                () = tokio::time::sleep_until(due) => return,
                () = tokio::time::sleep_until(again_at.unwrap_or(due)), if again_at.is_some() => {
                    if let Some(NotTaken { sites, .. }) = self.not_taken.take() {
                        self.take(sites);
                    }
                }
            }
        }
    }

    async fn resolve(&mut self) -> Result<Resolved, Unresolved> {
        let url = &self.name.url;
        let host = url.host().unwrap_or_default().to_owned();
        if Kind::of(url) == Kind::Service {
            return self.resolve_service(&host).await;
        }
        let found = in_time(self.name.resolver.addresses(&host)).await?;
        let port =
            url.port_u16().unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 });
        let sites = self.sites(url, port, sorted(found.records));
        Ok(Resolved { sites, ttl: found.ttl, missing: None })
    }

    async fn resolve_service(&mut self, service: &str) -> Result<Resolved, Unresolved> {
        let resolver = Arc::clone(&self.name.resolver);
        let Found { records, mut ttl } = in_time(resolver.targets(service)).await?;
        let targets = in_order(records);
        let asked = targets.iter().map(|target| in_time(resolver.addresses(&target.host)));
        let answers = join_all(asked).await;

        let (mut sites, mut missing) = (Vec::new(), None);
        let mut known = BTreeMap::new();
        for (target, answer) in targets.into_iter().zip(answers) {
            let Target { host, port, .. } = target;
            let addresses = match answer {
                Ok(found) => {
                    ttl = ttl.into_iter().chain(found.ttl).min();
                    sorted(found.records)
                }
                Err(why) => {
                    missing.get_or_insert_with(|| Unresolved::because(format!("{host}: {why}")));
                    self.known.get(&(host.clone(), port)).cloned().unwrap_or_default()
                }
            };
            match format!("https://{host}:{port}").parse() {
                Ok(url) => sites.extend(self.sites(&url, port, addresses.clone())),
                Err(_) => missing = Some(Unresolved::because(format!("{host} is no host name"))),
            }
            known.insert((host, port), addresses);
        }
        if sites.is_empty() {
            return Err(missing.unwrap_or_else(|| Unresolved::because("no target has an address")));
        }
        self.known = known;
        Ok(Resolved { sites, ttl, missing })
    }

    fn sites(&self, url: &Uri, port: u16, addresses: Vec<IpAddr>) -> Vec<Site> {
        let site = |ip| Site {
            configured: self.configured.clone(),
            url: url.clone(),
            peer: Some(SocketAddr::new(ip, port)),
        };
        addresses.into_iter().map(site).collect()
    }

    fn tell_change(&mut self, sites: &[Site]) {
        let shown: Vec<_> = sites.iter().filter_map(|s| s.peer.map(|p| p.to_string())).collect();
        let shown = shown.join(", ");
        if shown != self.shown {
            let (cluster, name) = (&self.name.cluster, &self.configured);
            tracing::info!(%cluster, %name, addresses = shown, "A name stands for these addresses now.");
            self.shown = shown;
        }
    }

    fn succeeded(&mut self) {
        let (cluster, name) = (&self.name.cluster, &self.configured);
        if self.failures > 0 {
            tracing::info!(%cluster, %name, "A name resolves again.");
        }
        self.failures = 0;
        let now = clock::node_time().0;
        metrics::set(Metric::NameResolved, now as f64, &self.labels());
    }

    fn failed(&mut self, why: &Unresolved) -> Duration {
        let (cluster, name) = (&self.name.cluster, &self.configured);
        if self.failures > 0 {
            tracing::debug!(%cluster, %name, %why, "A name still does not resolve.");
        } else if self.shown.is_empty() {
            tracing::warn!(%cluster, %name, %why, "A name does not resolve; it has no address yet.");
        } else {
            tracing::warn!(%cluster, %name, %why, "A name does not resolve; its last addresses are used.");
        }
        metrics::add(Metric::NameFailures, 1, &self.labels());
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.failures = self.failures.saturating_add(1);
        FIRST_REPEAT.saturating_mul(factor).min(SOONEST)
    }

    fn labels(&self) -> [KeyValue; 2] {
        [
            KeyValue::new("cluster", self.name.cluster.as_str().to_owned()),
            KeyValue::new("name", self.configured.as_str().to_owned()),
        ]
    }
}

async fn in_time<T>(
    asking: impl Future<Output = Result<Found<T>, Unresolved>>,
) -> Result<Found<T>, Unresolved> {
    let no_answer = || Unresolved::because(format!("no answer within {} s", PATIENCE.as_secs()));
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| Err(no_answer()))
}

/// DNS servers turn the order about with each answer; this one stays.
fn sorted(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.sort();
    addresses.dedup();
    addresses
}

/// By priority, and by weight within it. Nothing is drawn by lot, as RFC 2782 would have
/// it: whom to ask is the pool's decision, and this is but the order where nothing else
/// tells two addresses apart.
fn in_order(mut targets: Vec<Target>) -> Vec<Target> {
    targets.sort_by(|a, b| {
        let key = |t: &Target| (t.priority, std::cmp::Reverse(t.weight));
        key(a).cmp(&key(b)).then_with(|| (&a.host, a.port).cmp(&(&b.host, b.port)))
    });
    targets.dedup_by(|a, b| a.host == b.host && a.port == b.port);
    targets.truncate(MAX_ADDRESSES);
    targets
}

#[cfg(test)]
mod tests;
