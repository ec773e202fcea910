//! One address of a cluster: its name, where it stands in the list, and what is known of it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Uri;

use super::breaker::BreakerPhase;
use super::operation::{AddressIndex, AddressName};

/// One base URL of a cluster.
#[derive(Clone, Debug)]
pub struct Address {
    /// Its place in the configuration.
    pub index: AddressIndex,
    /// Its public name.
    pub name: AddressName,
    /// Scheme and authority.
    pub url: Uri,
    /// How long its answers take.
    pub latency: Latency,
}

/// How long an address takes to answer: a moving average that forgets within about eight
/// answers. The seam for a picker by latency.
#[derive(Clone, Default)]
pub struct Latency(Arc<AtomicU64>);

/// What an operator may want to know of an address.
#[derive(Clone, Debug)]
pub struct AddressStatus {
    /// Its public name.
    pub name: AddressName,
    /// What its breaker lets through.
    pub breaker: BreakerPhase,
    /// The last fault that counted, in words; gone when it answers again.
    pub last_fault: Option<String>,
    /// How long its answers take; `None` before the first.
    pub latency: Option<Duration>,
}

// === impl Address ===

impl Address {
    /// The address at `url`, the `index`th of its cluster.
    pub fn new(index: AddressIndex, url: Uri) -> Self {
        Self { index, name: AddressName::of(&url), url, latency: Latency::default() }
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

// === impl Latency ===

impl Latency {
    /// Takes one answer's time into the average.
    pub fn observe(&self, took: Duration) {
        let new = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        // A lost race loses one sample, which an average can bear.
        let old = self.0.load(Ordering::Relaxed);
        let next = if old == 0 { new } else { old - old / 8 + new / 8 };
        self.0.store(next.max(1), Ordering::Relaxed);
    }

    /// The average; `None` before the first answer.
    pub fn average(&self) -> Option<Duration> {
        let micros = self.0.load(Ordering::Relaxed);
        (micros > 0).then(|| Duration::from_micros(micros))
    }
}

impl fmt::Debug for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Latency({:?})", self.average())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_follows_its_samples() {
        let latency = Latency::default();
        assert_eq!(latency.average(), None);
        latency.observe(Duration::from_millis(10));
        assert_eq!(latency.average(), Some(Duration::from_millis(10)));
        for _ in 0..64 {
            latency.observe(Duration::from_millis(100));
        }
        let average = latency.average().unwrap();
        assert!(average > Duration::from_millis(90) && average <= Duration::from_millis(100));
    }

    #[test]
    fn the_port_is_the_schemes_when_the_url_names_none() {
        let port = |url: &'static str| Address::new(AddressIndex(0), Uri::from_static(url)).port();
        assert_eq!(port("https://vault"), 443);
        assert_eq!(port("http://127.0.0.1"), 80);
        assert_eq!(port("https://vault:8200"), 8200);
    }
}
