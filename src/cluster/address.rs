//! One address of a cluster: its name, where it stands in the list, and what is known of it.

use std::net::SocketAddr;
use std::time::Duration;

use http::Uri;

use super::breaker::{BreakerPhase, BreakerReport};
use super::index::HandsOn;
use super::operation::{AddressIndex, AddressName};
use super::pool::members::Site;
pub use latency::{Latency, UnderWay};
pub use role::{Role, RoleCell};

mod latency;
mod role;

/// One address of a cluster: a base URL, and the one IP address that it is dialled at.
#[derive(Clone, Debug)]
pub struct Address {
    /// Its number in the pool.
    pub index: AddressIndex,
    /// Its public name.
    pub name: AddressName,
    /// The configured URL that it comes from; the same for all addresses of one host.
    pub configured: AddressName,
    /// Scheme and authority: what is asked for, and whose certificate is expected.
    pub url: Uri,
    /// Where connections go; `None` dials the URL's own host.
    pub peer: Option<SocketAddr>,
    /// How long its answers take.
    pub latency: Latency,
    /// What its node is within its Vault cluster.
    pub role: RoleCell,
    /// Whether its node hands on what it is asked to.
    pub hands_on: HandsOn,
}

/// What an operator may want to know of an address.
#[derive(Clone, Debug)]
pub struct AddressStatus {
    /// Its number in the pool.
    pub index: AddressIndex,
    /// Its public name.
    pub name: AddressName,
    /// What its node is within its Vault cluster.
    pub role: Role,
    /// The configured URL that it comes from.
    pub configured: AddressName,
    /// What its breaker lets through.
    pub breaker: BreakerPhase,
    /// The last fault that counted, in words; gone when it answers again.
    pub last_fault: Option<String>,
    /// Since when, how often and why its breaker left it out.
    pub report: BreakerReport,
    /// How long its answers take; `None` before the first.
    pub latency: Option<Duration>,
}

// === impl Address ===

impl Address {
    /// The address at `url`, whose host is dialled as it is.
    pub fn new(index: AddressIndex, url: Uri) -> Self {
        let configured = AddressName::of(&url);
        Self::at(index, Site { configured, url, peer: None })
    }

    /// The address at `site`.
    pub fn at(index: AddressIndex, site: Site) -> Self {
        let Site { configured, url, peer } = site;
        let url_name = AddressName::of(&url);
        let name = peer.map_or_else(|| url_name.clone(), |peer| url_name.at(peer.ip()));
        let (latency, role) = (Latency::default(), RoleCell::default());
        Self { index, name, configured, url, peer, latency, role, hands_on: HandsOn::default() }
    }

    /// Whether it is the address at `site`.
    pub fn is_at(&self, site: &Site) -> bool {
        self.url == site.url && self.peer == site.peer
    }

    /// Its host, for spans.
    pub fn host(&self) -> &str {
        self.url.host().unwrap_or_default()
    }

    /// Its port, for spans.
    pub fn port(&self) -> u16 {
        let default = if self.url.scheme_str() == Some("http") { 80 } else { 443 };
        self.url.port_u16().unwrap_or(default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_the_schemes_when_the_url_names_none() {
        let port = |url: &'static str| Address::new(AddressIndex(0), Uri::from_static(url)).port();
        assert_eq!(port("https://vault"), 443);
        assert_eq!(port("http://127.0.0.1"), 80);
        assert_eq!(port("https://vault:8200"), 8200);
    }
}
