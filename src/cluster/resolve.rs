//! What the names of a configuration stand for, found out off the path of a call.
//!
//! Each configured URL with a name in it has a task of its own ([`follow`]) that asks again
//! and again and hands what it learns to the pool. A call never waits for DNS, but for the
//! first answer after the start, when there is no address at all ([`first`]).
//!
//! | URL | addresses |
//! |---|---|
//! | `https://10.0.0.1:8200`, `https://localhost:8200` | that one, for ever |
//! | `https://vault.example:8200` | one for each IPv4 and IPv6 address of the name |
//! | `srv+https://_vault._tcp.example` | those of each target of the service, by priority |

pub mod first;
pub mod follow;
mod hickory;
mod system;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::Uri;
use tokio::sync::Notify;

use crate::config::settings::SERVICE_SCHEME;

/// Asks for names.
pub trait Resolver: Send + Sync + 'static {
    /// The addresses of `host`, at least one.
    fn addresses<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Found<IpAddr>, Unresolved>>;

    /// The targets of `service`, at least one.
    fn targets<'a>(&'a self, service: &'a str) -> BoxFuture<'a, Result<Found<Target>, Unresolved>>;
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<T> {
    /// The answer's records; never empty.
    pub records: Vec<T>,
    /// How long they may be used; `None` when the source does not say.
    pub ttl: Option<Duration>,
}

/// One target of a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Lower ones come first.
    pub priority: u16,
    /// Among those of one priority, higher ones come first.
    pub weight: u16,
    /// A name.
    pub host: String,
    /// Where it listens.
    pub port: u16,
}

/// Why a name stands for nothing now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unresolved(pub Arc<str>);

/// What a URL needs before it can be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing. `localhost` is here because it is this machine whatever DNS says; of its two
    /// IP addresses the one that listens is dialled.
    Address,
    /// The addresses of its host.
    Host,
    /// The targets of the service that its host names, and their addresses.
    Service,
}

/// Asks this machine: hosts by `getaddrinfo`, so that whatever `getent hosts` finds
/// (`/etc/hosts`, `nsswitch.conf`, a local cache) is found, and services at the servers
/// of `/etc/resolv.conf`. Or, when `dns.servers` names some, `/etc/hosts` and those.
#[derive(Clone, Debug)]
pub struct Names {
    servers: Vec<SocketAddr>,
}

/// Tells that an address does not do what it should, so that its name may have moved.
#[derive(Clone, Debug, Default)]
pub struct Doubt(Arc<Notify>);

// === impl Unresolved ===

impl Unresolved {
    /// With the reason, in a few words.
    pub fn because(why: impl fmt::Display) -> Self {
        Self(why.to_string().into())
    }
}

// === impl Kind ===

impl Kind {
    /// What `url` needs.
    pub fn of(url: &Uri) -> Self {
        let host = url.host().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if url.scheme_str() == Some(SERVICE_SCHEME) {
            Self::Service
        } else if bare.parse::<IpAddr>().is_ok() || host.eq_ignore_ascii_case("localhost") {
            Self::Address
        } else {
            Self::Host
        }
    }
}

// === impl Names ===

impl Names {
    /// Asks `servers`, or this machine when there is none.
    pub const fn new(servers: Vec<SocketAddr>) -> Self {
        Self { servers }
    }
}

impl Resolver for Names {
    fn addresses<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Found<IpAddr>, Unresolved>> {
        if self.servers.is_empty() {
            system::addresses(host).boxed()
        } else {
            hickory::addresses(&self.servers, host).boxed()
        }
    }

    fn targets<'a>(&'a self, service: &'a str) -> BoxFuture<'a, Result<Found<Target>, Unresolved>> {
        hickory::targets(&self.servers, service).boxed()
    }
}

// === impl Doubt ===

impl Doubt {
    /// An address has failed.
    pub fn raise(&self) {
        self.0.notify_one();
    }

    /// What was raised until now is being looked into.
    pub fn settle(&self) {
        let _ = self.0.notified().now_or_never();
    }

    /// Waits until an address fails, if none has since [`Self::settle`].
    pub async fn raised(&self) {
        self.0.notified().await;
    }
}

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_no_dns_is_not_asked_for() {
        let kind = |url: &'static str| Kind::of(&Uri::from_static(url));
        for url in
            ["https://10.0.0.1:8200", "https://[::1]:8200", "http://localhost", "https://LOCALHOST"]
        {
            assert_eq!(kind(url), Kind::Address, "{url}");
        }
        assert_eq!(kind("https://vault.example:8200"), Kind::Host);
        assert_eq!(kind("srv+https://_vault._tcp.example"), Kind::Service);
    }
}
