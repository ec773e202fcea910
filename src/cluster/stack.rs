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
    AddressIndex, AddressSet, Answer, Attempt, AttemptReason, Call, Classify, Fate,
};
use super::pool::{Endpoint, Pool};
use super::retry::RetryLayer;
use super::tls::LoadedTls;
use super::trace::TraceLayer;
use crate::clock::Jitter;
use crate::config::settings::{ClusterName, ClusterSettings};

/// As many as an [`AddressSet`] holds.
const MAX_ADDRESSES: usize = 64;

type ToOneAddress = BoxCloneSyncService<Attempt, Answer, AttemptError>;

/// Asks a cluster's addresses until one answers. Clones share everything.
#[derive(Clone)]
pub struct Stack {
    service: BoxCloneSyncService<Call, Answer, CallError>,
    endpoints: Arc<[Endpoint<ToOneAddress>]>,
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
    /// The transport to the addresses of `settings`. Nothing is dialled before a call.
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
        Ok(Self::over(cluster, endpoints, &jitter))
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
            .service(transport);
        Endpoint { address, breaker, service }
    }

    /// The layers that choose among `endpoints`.
    fn over(
        cluster: &ClusterName,
        endpoints: Vec<Endpoint<ToOneAddress>>,
        jitter: &Arc<Jitter>,
    ) -> Self {
        let pool = Pool::new(endpoints.clone());
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
        Self { service, endpoints: endpoints.into() }
    }

    /// Asks until an address answers, at most until the call's deadline.
    ///
    /// # Errors
    /// Names every attempt that failed, and why there was no further one.
    pub async fn call(&self, call: Call) -> Result<Answer, CallError> {
        self.service.clone().oneshot(call).await
    }

    /// Asks one address, whatever its breaker says, and tells the breaker nothing: for
    /// probes and for `check --online`.
    ///
    /// # Errors
    /// As one attempt fails, and when there is no such address.
    pub async fn call_at(&self, index: AddressIndex, call: Call) -> Result<Answer, AttemptError> {
        let endpoint = self.endpoints.get(usize::from(index.0)).ok_or_else(|| AttemptError {
            address: self.endpoints[0].address.name.clone(),
            index,
            fault: super::error::Fault::Unsendable("there is no address of that number"),
        })?;
        let attempt = Attempt {
            call,
            number: 1,
            reason: AttemptReason::First,
            tried: AddressSet::default(),
            is_second_opinion: false,
            fate: Fate::default(),
        };
        endpoint.service.clone().oneshot(attempt).await
    }

    /// What is known of each address, in the configuration's order.
    pub fn addresses(&self) -> Vec<AddressStatus> {
        let status = |endpoint: &Endpoint<ToOneAddress>| AddressStatus {
            name: endpoint.address.name.clone(),
            breaker: endpoint.breaker.phase(),
            last_fault: endpoint.breaker.last_fault(),
            latency: endpoint.address.latency.average(),
        };
        self.endpoints.iter().map(status).collect()
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
