//! The transport of a cluster, put together in one place.

use std::fmt;
use std::sync::Arc;

use tower::util::BoxCloneSyncService;
use tower::{ServiceBuilder, ServiceExt as _};

use super::address::{Address, AddressStatus};
use super::breaker::{BreakerPolicy, BreakerState};
use super::classify::JudgeLayer;
use super::error::{AttemptError, CallError};
use super::hedge::{HedgeLayer, RecentLatency};
use super::http::Http;
use super::operation::{
    AddressIndex, AddressName, AddressSet, Answer, Attempt, AttemptReason, Call, Classify, Fate,
    MAX_ADDRESSES,
};
use super::pool::members::Members;
use super::pool::{Endpoint, Pool};
use super::probe::{ProbePolicy, Watch, probe_all};
use super::retry::RetryLayer;
use super::tls::LoadedTls;
use super::trace::TraceLayer;
use crate::clock::{Jitter, VaultClock};
use crate::config::settings::{ClusterName, ClusterSettings};
use crate::task::OwnedTask;

type ToOneAddress = BoxCloneSyncService<Attempt, Answer, AttemptError>;

/// Asks a cluster's addresses until one answers. Clones share everything.
#[derive(Clone)]
pub struct Stack {
    service: BoxCloneSyncService<Call, Answer, CallError>,
    members: Members<ToOneAddress>,
    watch: Arc<Watch>,
    _probes: Option<Arc<OwnedTask>>,
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
    /// The transport to the addresses of `settings`, which are probed from now on. To be
    /// called within a tokio runtime.
    ///
    /// # Errors
    /// When there is no address, or too many, or one without scheme and host.
    pub fn try_new(
        settings: &ClusterSettings,
        tls: &LoadedTls,
        classify: Arc<dyn Classify>,
        jitter: Arc<Jitter>,
    ) -> Result<Self, StackError> {
        let count = settings.addresses.len();
        let cluster = &settings.name;
        if count == 0 {
            return Err(StackError::NoAddress(cluster.clone()));
        }
        if count > MAX_ADDRESSES {
            return Err(StackError::TooManyAddresses(cluster.clone(), count));
        }
        let mut endpoints = Vec::with_capacity(count);
        for (index, url) in (0_u8..).zip(&settings.addresses) {
            let address = Address::new(AddressIndex(index), url.clone());
            if url.scheme().is_none() || url.host().is_none_or(str::is_empty) {
                let shown = address.name.as_str().to_owned();
                return Err(StackError::NoHost(cluster.clone(), shown));
            }
            let http = Http::new(address.clone(), tls);
            endpoints.push(Self::endpoint(cluster, address, http, &classify, &jitter));
        }
        let members = Members::fixed(cluster.clone(), endpoints);
        Ok(Self::over(cluster, members, &jitter, Some(ProbePolicy::default())))
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
            .layer(TraceLayer::new(cluster.clone(), address.clone(), breaker.clone()))
            // an answer may mean that the address is unfit, so it becomes a fault here
            .layer(JudgeLayer::new(Arc::clone(classify), address.index))
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
        let pool = Pool::new(members.clone());
        let delay = Arc::new(RecentLatency::default());
        let service = ServiceBuilder::new()
            // the boundary: whoever calls sees no type of a layer
            .layer(BoxCloneSyncService::layer())
            // outermost, so that one call's repeats share its deadline and its bound
            .layer(RetryLayer::new(cluster.clone(), pool.outlook(), Arc::clone(jitter)))
            // over the pool, for it is another address that joins a silent one
            .layer(HedgeLayer::new(cluster.clone(), delay))
            // chooses an address and goes through its breaker
            .service(pool);
        let watch = Arc::new(Watch::new(cluster.clone(), Arc::clone(jitter)));
        let probe = |policy| Arc::new(probe_all(members.clone(), Arc::clone(&watch), policy));
        let _probes = probes.map(probe);
        Self { service, members, watch, _probes }
    }

    /// Asks until an address answers, at most until the call's deadline.
    ///
    /// # Errors
    /// Names every attempt that failed, and why there was no further one.
    pub async fn call(&self, call: Call) -> Result<Answer, CallError> {
        self.watch.note_call(call.operation.verb);
        self.service.clone().oneshot(call).await
    }

    /// Asks one address, whatever its breaker says, and tells the breaker nothing: for
    /// probes and for `check --online`.
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
        let attempt = Attempt {
            call,
            number: 1,
            reason: AttemptReason::First,
            tried: AddressSet::default(),
            is_second_opinion: false,
            needs_active: false,
            fate: Fate::default(),
        };
        endpoint.service.clone().oneshot(attempt).await
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

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stack").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
