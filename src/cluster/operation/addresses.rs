//! A cluster's addresses, as calls count and name them.

use std::fmt;
use std::sync::Arc;

/// How many addresses a cluster can have: as many as an [`AddressSet`] holds.
pub const MAX_ADDRESSES: usize = 64;

/// Some of a cluster's addresses, by their index in the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressSet(u64);

/// An address's index in its pool, below [`MAX_ADDRESSES`]: its number for as long as it is
/// there, and of no other address while a call may remember it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressIndex(pub u8);

/// The public name of an address: scheme, host and port, without credentials; and the IP
/// address, when it is one of those that the host resolves to.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct AddressName(Arc<str>);

// === impl AddressSet ===

impl AddressSet {
    /// This set and `index`.
    #[must_use]
    pub const fn with(self, index: AddressIndex) -> Self {
        Self(self.0 | 1 << index.0)
    }

    /// The addresses in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The addresses of this set that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The addresses in either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether `index` is in it.
    pub const fn contains(self, index: AddressIndex) -> bool {
        self.0 & (1 << index.0) != 0
    }

    /// How many are in it.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether every address of `other` is in it.
    pub const fn covers(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// The lowest index that is not in it.
    pub const fn first_missing(self) -> Option<AddressIndex> {
        let index = self.0.trailing_ones();
        if index < u64::BITS { Some(AddressIndex(index as u8)) } else { None }
    }

    /// Whether none is.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

// === impl AddressName ===

impl AddressName {
    /// The name of the address at `url`; user information and path are left out.
    pub fn of(url: &http::Uri) -> Self {
        let scheme = url.scheme_str().unwrap_or("https");
        let host = url.host().unwrap_or_default();
        if scheme.starts_with("srv+") {
            return Self(format!("{scheme}://{host}").into()); // DNS says the ports
        }
        let port = url.port_u16().unwrap_or(if scheme == "http" { 80 } else { 443 });
        Self(format!("{scheme}://{host}:{port}").into())
    }

    /// The same at one of the IP addresses of its host.
    #[must_use]
    pub fn at(&self, ip: std::net::IpAddr) -> Self {
        Self(format!("{self} ({ip})").into())
    }

    /// The name for an index that no address has.
    pub fn nobody(index: AddressIndex) -> Self {
        Self(format!("address {}", index.0).into())
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AddressName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AddressName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
