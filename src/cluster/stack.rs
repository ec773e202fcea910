//! The transport of a cluster, put together in one place.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use futures_util::future::join_all;
use http::Uri;
use tokio::sync::watch;
use tower::util::BoxCloneSyncService;
use tower::{Layer as _, ServiceBuilder, ServiceExt as _};

use super::address::{Address, AddressStatus};
use super::breaker::{BreakerPolicy, BreakerState};
use super::classify::Judge;
use super::error::{AttemptError, CallError};
use super::hedge::{HedgeLayer, RecentLatency};
use super::http::Http;
use super::index::HandOn;
use super::operation::{AddressIndex, AddressName, Answer, Attempt, Call, Classify, MAX_ADDRESSES};
use super::pool::members::{Members, Site};
use super::pool::{Endpoint, Outlook, Pool};
use super::probe::{ProbePolicy, Watch, probe_all};
use super::resolve::first::{self, First, Unknown};
use super::resolve::follow::{self, Name};
use super::resolve::{Doubt, Kind, Names, Resolver};
use super::retry::RetryLayer;
use super::step::StepLayer;
use super::tls::LoadedTls;
use super::tls::trial::Ask;
use super::trace::Trace;
use crate::clock::{Deadline, Jitter, VaultClock};
use crate::config::settings::{ClusterName, ClusterSettings};
use crate::task::OwnedTask;

mod modelled;
mod trial;

type ToOneAddress = BoxCloneSyncService<Attempt, Answer, AttemptError>;

/// Asks a cluster's addresses until one answers. Clones share everything.
#[derive(Clone)]
pub struct Stack {
    service: BoxCloneSyncService<Call, Answer, CallError>,
    members: Members<ToOneAddress>,
    outlook: Arc<dyn Outlook>,
    names: Arc<[Followed]>,
    watch: Arc<Watch>,
    _probes: Option<Arc<OwnedTask>>,
}

/// A configured name, and the task that keeps its addresses up to date.
#[derive(Debug)]
struct Followed {
    first: watch::Receiver<First>,
    _task: OwnedTask,
}

/// Makes the way to an address when one comes.
struct Maker {
    cluster: ClusterName,
    tls: LoadedTls,
    classify: Arc<dyn Classify>,
    jitter: Arc<Jitter>,
    /// What the addresses of each name need, by its configured URL.
    names: HashMap<AddressName, (Doubt, watch::Receiver<First>)>,
}

/// Settings that make no transport.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// No address.
    #[error("cluster {0} has no address; write `addr: https://…`")]
    NoAddress(ClusterName),
    /// Too many.
    #[error("cluster {0} has {1} addresses; at most {MAX_ADDRESSES} are possible")]
    TooManyAddresses(ClusterName, usize),
    /// An address without a host.
    #[error("cluster {0}: `{1}` is no base URL; write `https://host:port`")]
    NoHost(ClusterName, String),
}

// === impl Stack ===

impl Stack {
    /// The transport to the addresses of `settings`, which are probed from now on, and whose
    /// names are followed. To be called within a tokio runtime.
    ///
    /// # Errors
    /// When there is no address, or too many, or one without scheme and host.
    pub fn try_new(
        settings: &ClusterSettings,
        tls: &LoadedTls,
        classify: Arc<dyn Classify>,
        jitter: Arc<Jitter>,
    ) -> Result<Self, StackError> {
        let names = Names::new(settings.dns_servers.clone());
        Self::resolving(settings, tls, classify, jitter, Arc::new(names))
    }

    fn resolving(
        settings: &ClusterSettings,
        tls: &LoadedTls,
        classify: Arc<dyn Classify>,
        jitter: Arc<Jitter>,
        resolver: Arc<dyn Resolver>,
    ) -> Result<Self, StackError> {
        let (cluster, urls) = (&settings.name, &settings.addresses);
        check(cluster, urls)?;
        let mut names = HashMap::new();
        let mut to_follow = Vec::new();
        for (place, url) in urls.iter().enumerate().filter(|(_, u)| Kind::of(u) != Kind::Address) {
            let (doubt, first) = (Doubt::default(), watch::Sender::new(First::default()));
            names.insert(AddressName::of(url), (doubt.clone(), first.subscribe()));
            to_follow.push((place, url.clone(), doubt, Arc::new(first)));
        }
        let members = Members::new(cluster.clone(), urls.len());
        let (cluster, tls, classify) = (cluster.clone(), tls.clone(), Arc::clone(&classify));
        let maker = Maker { cluster, tls, classify, jitter: Arc::clone(&jitter), names };
        let maker = Arc::new(maker);
        for (place, url) in urls.iter().enumerate() {
            let site = Site { configured: AddressName::of(url), url: url.clone(), peer: None };
            members.set(place, vec![site], |address| maker.endpoint(address));
        }
        let follow =
            |(place, url, doubt, first): (usize, Uri, Doubt, Arc<watch::Sender<First>>)| {
                let (pool, maker) = (members.clone(), Arc::clone(&maker));
                let name = Name {
                    cluster: settings.name.clone(),
                    url,
                    resolver: Arc::clone(&resolver),
                    jitter: Arc::clone(&jitter),
                    doubt,
                    first: Arc::clone(&first),
                    take: Arc::new(move |sites| pool.set(place, sites, |a| maker.endpoint(a))),
                };
                let task = OwnedTask::spawn_again("resolve", move || follow::follow(name.clone()));
                Followed { first: first.subscribe(), _task: task }
            };
        let followed = to_follow.into_iter().map(follow).collect();
        let policy = Some(ProbePolicy::default());
        let stack = Self::over(&settings.name, members.clone(), &jitter, policy);
        Ok(Self { names: followed, ..stack })
    }

    /// The way to one address, from the pool down to `transport`.
    fn endpoint<T>(
        cluster: &ClusterName,
        address: Address,
        transport: T,
        classify: &Arc<dyn Classify>,
        jitter: &Arc<Jitter>,
    ) -> Endpoint<ToOneAddress>
    where
        T: tower::Service<Attempt, Response = Answer, Error = AttemptError>
            + Clone
            + Send
            + Sync
            + 'static,
        T::Future: Send + 'static,
    {
        let breaker = BreakerState::new(
            cluster.clone(),
            address.name.clone(),
            BreakerPolicy::default(),
            Arc::clone(jitter),
        );
        let service = ServiceBuilder::new()
            // one type for addresses of every kind; the breaker above it is the pool's
            .layer(ToOneAddress::layer())
            // tells what the answer meant, so it stands over the judge
            .layer(StepLayer(Trace::new(cluster.clone(), address.clone(), breaker.clone())))
            // what a judge takes for stale may be the active node's word
            .layer(StepLayer(HandOn::new(&address)))
            // an answer may mean that the address is unfit, so it becomes a fault here
            .layer(StepLayer(Judge::new(Arc::clone(classify), address.index)))
            .service(transport.clone());
        Endpoint { address, breaker, service, transport: ToOneAddress::new(transport) }
    }

    /// The layers that choose among `members`, and their probers, if there is a policy for
    /// these.
    fn over(
        cluster: &ClusterName,
        members: Members<ToOneAddress>,
        jitter: &Arc<Jitter>,
        probes: Option<ProbePolicy>,
    ) -> Self {
        let pool = Pool::new(cluster.clone(), members.clone(), Arc::clone(jitter));
        let outlook = pool.outlook();
        let delay = Arc::new(RecentLatency::default());
        let service = ServiceBuilder::new()
            // the boundary: whoever calls sees no type of a layer
            .layer(BoxCloneSyncService::layer())
            // outermost, so that one call's repeats share its deadline and its bound
            .layer(RetryLayer::new(cluster.clone(), Arc::clone(&outlook), Arc::clone(jitter)))
            // over the pool, for it is another address that joins a silent one
            .layer(HedgeLayer::new(cluster.clone(), delay))
            // chooses an address and goes through its breaker
            .service(pool);
        let watch = Arc::new(Watch::new(cluster.clone(), Arc::clone(jitter)));
        let probe = |policy| Arc::new(probe_all(members.clone(), Arc::clone(&watch), policy));
        let _probes = probes.map(probe);
        Self { service, members, outlook, names: Arc::new([]), watch, _probes }
    }

    /// Asks until an address answers, at most until the call's deadline.
    ///
    /// # Errors
    /// Names every attempt that failed, and why there was no further one.
    pub async fn call(&self, call: Call) -> Result<Answer, CallError> {
        self.watch.note_call(call.operation.verb);
        self.service.clone().oneshot(call).await
    }

    /// What each address has to do with a call that gets no answer in time, and was not sent
    /// itself.
    pub fn overdue(&self) -> Vec<AttemptError> {
        self.outlook.overdue()
    }

    /// Waits until every name has been asked for once, or until `deadline`: for whoever
    /// wants to see all addresses.
    pub async fn resolved(&self, deadline: Deadline) {
        let settled = self.names.iter().map(|name| first::settled(name.first.clone()));
        let _ = tokio::time::timeout_at(deadline.instant(), join_all(settled)).await;
    }

    /// Asks one address, whatever its breaker says, and tells the breaker nothing: for
    /// `check --online`.
    ///
    /// # Errors
    /// As one attempt fails, and when there is no such address.
    pub async fn call_at(&self, index: AddressIndex, call: Call) -> Result<Answer, AttemptError> {
        let roster = self.members.roster();
        let endpoint = roster.get(index).ok_or_else(|| AttemptError {
            address: AddressName::nobody(index),
            index,
            fault: super::error::Fault::Unsendable("there is no address of that number"),
        })?;
        endpoint.service.clone().oneshot(Attempt::first(call)).await
    }

    /// What tries another TLS configuration at the addresses of this.
    pub fn trial(&self) -> Arc<dyn Ask> {
        Arc::new(trial::Trial(self.members.clone()))
    }

    /// Vault's wall clock, as its nodes tell it.
    pub fn clock(&self) -> Arc<VaultClock> {
        Arc::clone(self.watch.clock())
    }

    /// What is known of each address of this moment, in the configuration's order.
    pub fn addresses(&self) -> Vec<AddressStatus> {
        let status = |endpoint: &Endpoint<ToOneAddress>| AddressStatus {
            index: endpoint.address.index,
            name: endpoint.address.name.clone(),
            configured: endpoint.address.configured.clone(),
            role: endpoint.address.role.get(),
            breaker: endpoint.breaker.phase(),
            last_fault: endpoint.breaker.last_fault(),
            report: endpoint.breaker.report(),
            latency: endpoint.address.latency.average(),
        };
        self.members.roster().iter().map(status).collect()
    }
}

/// What the configuration has refused already, for whoever comes without one.
fn check(cluster: &ClusterName, urls: &[Uri]) -> Result<(), StackError> {
    if urls.is_empty() {
        return Err(StackError::NoAddress(cluster.clone()));
    }
    if urls.len() > MAX_ADDRESSES {
        return Err(StackError::TooManyAddresses(cluster.clone(), urls.len()));
    }
    let is_base = |url: &Uri| url.scheme().is_some() && !url.host().is_none_or(str::is_empty);
    match urls.iter().find(|url| !is_base(url)) {
        Some(url) => Err(StackError::NoHost(cluster.clone(), AddressName::of(url).to_string())),
        None => Ok(()),
    }
}

// === impl Maker ===

impl Maker {
    fn endpoint(&self, address: Address) -> Endpoint<ToOneAddress> {
        let Self { cluster, tls, classify, jitter, names } = self;
        match (names.get(&address.configured), address.peer) {
            (Some((_, first)), None) => {
                let unknown = Unknown::new(address.clone(), first.clone());
                Stack::endpoint(cluster, address, unknown, classify, jitter)
            }
            (Some((doubt, _)), Some(_)) => {
                let http = StepLayer(doubt.clone()).layer(Http::new(address.clone(), tls));
                Stack::endpoint(cluster, address, http, classify, jitter)
            }
            (None, _) => {
                let http = Http::new(address.clone(), tls);
                Stack::endpoint(cluster, address, http, classify, jitter)
            }
        }
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stack").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
