//! The addresses of a cluster, which come and go with what its names resolve to.
//!
//! A call reads one [`Roster`] for each decision, a snapshot. An address that stays keeps
//! its number, breaker, latency and connections, and so does one that comes back within
//! [`REMEMBERED`]. Its number goes to no other address before that time is over, so that a
//! call in flight, which counts by numbers, never takes one address for another.

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::Uri;
use opentelemetry::KeyValue;
use tokio::sync::watch;
use tokio::time::Instant;

use super::Endpoint;
use crate::cluster::address::Address;
use crate::cluster::operation::{AddressIndex, AddressName, AddressSet, MAX_ADDRESSES};
use crate::config::settings::ClusterName;
use crate::telemetry::metrics::{self, Metric};

/// How long an address that is gone is remembered: longer than any call may last.
pub const REMEMBERED: Duration = Duration::from_secs(120);

/// The addresses of one moment, in the configuration's order: URL by URL, and within a
/// name by what it resolves to.
pub struct Roster<S>(Vec<Endpoint<S>>);

/// The addresses of a cluster. Clones share them.
pub struct Members<S> {
    shared: Arc<Shared<S>>,
}

struct Shared<S> {
    cluster: ClusterName,
    roster: ArcSwap<Roster<S>>,
    book: Mutex<Book<S>>,
    version: watch::Sender<u64>,
}

/// Tells when addresses have come or gone.
#[derive(Debug)]
pub struct Changes(watch::Receiver<u64>);

/// Where an address is. The same URL at the same IP address is the same address.
#[derive(Clone, Debug)]
pub struct Site {
    /// The configured URL that it comes from.
    pub configured: AddressName,
    /// Scheme, host and port: what is asked for, and whose certificate is expected.
    pub url: Uri,
    /// Where connections go; `None` dials the host of `url`, which is an IP address, or
    /// has not been resolved yet.
    pub peer: Option<SocketAddr>,
}

/// What only a change needs.
struct Book<S> {
    /// What each configured URL stands for now.
    sites: Vec<Vec<Site>>,
    gone: Vec<Gone<S>>,
    /// Sites beyond the most that there can be.
    homeless: usize,
    /// Sites that wait for a number.
    waiting: usize,
}

/// What becomes of one URL.
struct Change {
    /// So many addresses it stands for now.
    of: usize,
    /// So many of them have no number yet.
    without: usize,
    /// So many it stood for, and does no longer.
    leaving: usize,
}

struct Gone<S> {
    endpoint: Endpoint<S>,
    at: Instant,
}

// === impl Roster ===

impl<S> Roster<S> {
    /// The address of that number, if it is among them.
    pub fn get(&self, index: AddressIndex) -> Option<&Endpoint<S>> {
        self.iter().find(|endpoint| endpoint.address.index == index)
    }

    /// The numbers of all of them.
    pub fn indices(&self) -> AddressSet {
        self.iter().fold(AddressSet::default(), |set, e| set.with(e.address.index))
    }
}

impl<S> Deref for Roster<S> {
    type Target = [Endpoint<S>];

    fn deref(&self) -> &[Endpoint<S>] {
        &self.0
    }
}

// === impl Members ===

impl<S> Members<S> {
    /// The addresses of a cluster with so many configured URLs; none yet.
    pub fn new(cluster: ClusterName, urls: usize) -> Self {
        Self::with(cluster, urls, Vec::new())
    }

    /// Addresses that never change.
    pub fn fixed(cluster: ClusterName, endpoints: Vec<Endpoint<S>>) -> Self {
        Self::with(cluster, 0, endpoints)
    }

    fn with(cluster: ClusterName, urls: usize, endpoints: Vec<Endpoint<S>>) -> Self {
        let book =
            Book { sites: vec![Vec::new(); urls], gone: Vec::new(), homeless: 0, waiting: 0 };
        let shared = Shared {
            cluster,
            roster: ArcSwap::from_pointee(Roster(endpoints)),
            book: Mutex::new(book),
            version: watch::Sender::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The addresses of this moment.
    pub fn roster(&self) -> Arc<Roster<S>> {
        self.shared.roster.load_full()
    }

    /// Tells of changes from now on.
    pub fn changes(&self) -> Changes {
        Changes(self.shared.version.subscribe())
    }
}

impl<S: Clone> Members<S> {
    /// From now on the configured URL number `url` stands for `sites`, in this order. Those
    /// that are new are made by `make`.
    ///
    /// A cluster has 64 addresses at most. Where its names have more, each name keeps its
    /// first ones, and the others have no place. Where only numbers are wanting, because too
    /// many addresses came and went of late, addresses that the URL stood for until now go on
    /// in the place of the new ones, or half of them where no number would come free
    /// otherwise; then the answer is when to set them again.
    pub fn set(
        &self,
        url: usize,
        sites: Vec<Site>,
        make: impl Fn(Address) -> Endpoint<S>,
    ) -> Option<Instant> {
        let mut book = self.shared.book.lock().expect("making an endpoint does not panic");
        if let Some(place) = book.sites.get_mut(url) {
            *place = sites;
        }
        book.gone.retain(|gone| gone.at.elapsed() < REMEMBERED);

        let old = self.roster();
        let gone = book.gone.iter().map(|gone| gone.endpoint.address.index);
        let mut taken = gone.fold(old.indices(), AddressSet::with);
        let (wanted, homeless) = chosen(&book.sites);
        let is_wanted = |e: &Endpoint<S>| wanted.iter().any(|site| e.address.is_at(site));
        let mut endpoints: Vec<Endpoint<S>> = Vec::with_capacity(wanted.len());
        let (mut waiting, mut retired) = (0, 0);
        for of_one_url in wanted.chunk_by(|a, b| a.configured == b.configured) {
            let mut without = 0;
            for site in of_one_url {
                let stays = old.iter().find(|endpoint| endpoint.address.is_at(site));
                let known = stays.cloned().or_else(|| book.bring_back(site));
                if let Some(endpoint) = known {
                    endpoints.push(endpoint);
                } else if let Some(index) = taken.first_missing() {
                    taken = taken.with(index);
                    endpoints.push(make(Address::at(index, site.clone())));
                } else {
                    without += 1;
                }
            }
            let configured = &of_one_url[0].configured;
            let leaving = old.iter().filter(|e| e.address.configured == *configured);
            let leaving: Vec<_> = leaving.filter(|e| !is_wanted(e)).collect();
            let change = Change { of: of_one_url.len(), without, leaving: leaving.len() };
            let staying = change.staying(book.gone.len() + retired);
            retired += leaving.len() - staying;
            endpoints.extend(leaving.into_iter().take(staying).cloned());
            waiting += without;
        }
        let new = Roster(endpoints);
        let staying = new.indices();
        for endpoint in old.iter().filter(|e| !staying.contains(e.address.index)) {
            self.tell_gone(&endpoint.address);
            book.gone.push(Gone { endpoint: endpoint.clone(), at: Instant::now() });
        }
        self.tell_homeless(&mut book, homeless);
        self.tell_waiting(&mut book, waiting);
        let free_at = book.gone.iter().map(|gone| gone.at + REMEMBERED).min();
        self.shared.roster.store(Arc::new(new));
        drop(book);
        self.shared.version.send_modify(|version| *version += 1);
        free_at.filter(|_| waiting > 0)
    }

    /// An address that is gone must not look broken for ever.
    fn tell_gone(&self, address: &Address) {
        let labels = [
            KeyValue::new("cluster", self.shared.cluster.as_str().to_owned()),
            KeyValue::new("server.address", address.name.as_str().to_owned()),
        ];
        metrics::set(Metric::BreakerState, 0.0, &labels);
    }

    fn tell_homeless(&self, book: &mut Book<S>, homeless: usize) {
        if homeless > 0 && homeless != book.homeless {
            tracing::warn!(
                cluster = %self.shared.cluster,
                left_out = homeless,
                "The names of a cluster have more addresses than the {MAX_ADDRESSES} that it can use; the last ones of each are left out.",
            );
        }
        book.homeless = homeless;
    }

    fn tell_waiting(&self, book: &mut Book<S>, waiting: usize) {
        if waiting > 0 && book.waiting == 0 {
            tracing::warn!(
                cluster = %self.shared.cluster,
                waiting,
                "The addresses of a cluster's names change faster than they can be taken into use; some earlier ones are used for two minutes more.",
            );
        }
        book.waiting = waiting;
    }
}

impl<S> Clone for Members<S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<S> fmt::Debug for Members<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roster = self.roster();
        f.debug_list().entries(roster.iter().map(|endpoint| &endpoint.address.name)).finish()
    }
}

/// The sites that get a place, in order, each once, and how many do not: of each URL's the
/// first, then of each the second, and so on.
fn chosen(sites: &[Vec<Site>]) -> (Vec<Site>, usize) {
    let mut seen = HashSet::new();
    let mut ranked = Vec::new();
    for (url, sites) in sites.iter().enumerate() {
        let new = sites.iter().filter(|site| seen.insert((&site.url, site.peer)));
        ranked.extend(new.enumerate().map(|(rank, site)| (rank, url, site)));
    }
    ranked.sort_by_key(|(rank, url, _)| (*rank, *url));
    let homeless = ranked.len().saturating_sub(MAX_ADDRESSES);
    ranked.truncate(MAX_ADDRESSES);
    ranked.sort_by_key(|(rank, url, _)| (*url, *rank));
    (ranked.into_iter().map(|(_, _, site)| site.clone()).collect(), homeless)
}

// === impl Change ===

impl Change {
    /// How many of those that leave go on in the place of those that have no number, when
    /// `free_soon` numbers come free anyway. All, if that is enough for half of the URL's
    /// addresses; otherwise no more than make up half of them, and never all of a roster
    /// that is full, or no address would ever take the place of another.
    fn staying(&self, free_soon: usize) -> usize {
        let at_most = self.without.min(self.leaving);
        let half = self.of.div_ceil(2);
        let placed = self.of - self.without;
        let free_soon = free_soon + (self.leaving - at_most);
        let wanting = self.without.min(half).saturating_sub(free_soon);
        let staying = at_most.saturating_sub(wanting).max(half.saturating_sub(placed)).min(at_most);
        if free_soon == 0 && staying == self.leaving { staying.saturating_sub(1) } else { staying }
    }
}

// === impl Changes ===

impl Changes {
    /// Waits for the next change; several at once are one. For ever, when there can be no
    /// more.
    pub async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// What has changed until now is known.
    pub fn forget(&mut self) {
        self.0.mark_unchanged();
    }
}

// === impl Book ===

impl<S> Book<S> {
    fn bring_back(&mut self, site: &Site) -> Option<Endpoint<S>> {
        let place = self.gone.iter().position(|gone| gone.endpoint.address.is_at(site))?;
        Some(self.gone.swap_remove(place).endpoint)
    }
}

#[cfg(test)]
mod tests;
