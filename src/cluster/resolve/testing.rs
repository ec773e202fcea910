//! A resolver that says what a test tells it to, and remembers when it was asked.

use std::collections::HashMap;
use std::sync::Mutex;

use tokio::time::Instant;

use super::*;

/// What it says of a name.
#[derive(Clone, Debug)]
pub(crate) enum Says {
    Addresses(&'static [&'static str], Option<u64>),
    Targets(&'static [(u16, u16, &'static str, u16)], Option<u64>),
    Nothing(&'static str),
    Hangs,
}

/// Answers by script.
pub(crate) struct Fake {
    script: Mutex<HashMap<&'static str, Says>>,
    asked: Mutex<Vec<Duration>>,
    began: Instant,
}

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { script: Mutex::default(), asked: Mutex::default(), began: Instant::now() })
    }

    pub(crate) fn set(&self, name: &'static str, says: Says) {
        self.script.lock().unwrap().insert(name, says);
    }

    /// When it was asked since the last time, in milliseconds since it was made.
    pub(crate) fn asked(&self) -> Vec<u128> {
        let asked = std::mem::take(&mut *self.asked.lock().unwrap());
        asked.into_iter().map(|at| at.as_millis()).collect()
    }

    async fn says(&self, name: &str) -> Result<Says, Unresolved> {
        self.asked.lock().unwrap().push(self.began.elapsed());
        let says = self.script.lock().unwrap().get(name).cloned();
        match says {
            None => Err(Unresolved::because("there is no such name")),
            Some(Says::Nothing(why)) => Err(Unresolved::because(why)),
            Some(Says::Hangs) => std::future::pending().await,
            Some(says) => Ok(says),
        }
    }
}

impl Resolver for Fake {
    fn addresses<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Found<IpAddr>, Unresolved>> {
        async move {
            let Says::Addresses(list, ttl) = self.says(host).await? else {
                return Err(Unresolved::because("it has no address"));
            };
            let records = list.iter().map(|ip| ip.parse().unwrap()).collect();
            Ok(Found { records, ttl: ttl.map(Duration::from_secs) })
        }
        .boxed()
    }

    fn targets<'a>(&'a self, service: &'a str) -> BoxFuture<'a, Result<Found<Target>, Unresolved>> {
        async move {
            let Says::Targets(list, ttl) = self.says(service).await? else {
                return Err(Unresolved::because("it has no target"));
            };
            let target = |(priority, weight, host, port): &(u16, u16, &str, u16)| Target {
                priority: *priority,
                weight: *weight,
                host: (*host).to_owned(),
                port: *port,
            };
            let records = list.iter().map(target).collect();
            Ok(Found { records, ttl: ttl.map(Duration::from_secs) })
        }
        .boxed()
    }
}
