//! The whole stack over transports that somebody else makes: a model of Vault, in the
//! simulation of a fleet and in the benches.

use super::*;

impl Stack {
    /// The whole stack of a daemon, probers included, over transports that `node` makes.
    pub(crate) fn modelled<T>(
        settings: &ClusterSettings,
        jitter: &Arc<Jitter>,
        node: impl Fn(&Address) -> T,
    ) -> Self
    where
        T: tower::Service<Attempt, Response = Answer, Error = AttemptError>
            + Clone
            + Send
            + Sync
            + 'static,
        T::Future: Send + 'static,
    {
        let judge: Arc<dyn Classify> = Arc::new(crate::transit::TransitVerdicts);
        let cluster = &settings.name;
        let endpoints = (0_u8..)
            .zip(&settings.addresses)
            .map(|(index, url)| {
                let address = Address::new(AddressIndex(index), url.clone());
                let transport = node(&address);
                Self::endpoint(cluster, address, transport, &judge, jitter)
            })
            .collect();
        let members = Members::fixed(cluster.clone(), endpoints);
        Self::over(cluster, members, jitter, Some(ProbePolicy::default()))
    }
}
