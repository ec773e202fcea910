//! A client of etcd's v3 API that can only read: ranges of keys, at one revision of the
//! store, from whichever member answers.
//!
//! It knows the service `KV` and of it `Range` alone, so that nothing here can change what
//! kube-apiserver has stored. etcd's user names and passwords are not spoken: kube-apiserver
//! comes with a client certificate, and so do we.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::Uri;

use crate::config::settings::TlsSettings;

mod client;
mod failure;

pub use client::Etcd;
pub use failure::EtcdError;

/// How etcd is reached.
#[derive(Clone, Debug)]
pub struct EtcdSettings {
    /// Base URLs of its members, `http` or `https`, in the order in which they are tried.
    pub endpoints: Vec<Uri>,
    /// How `https` members are verified, and the certificate that we show.
    pub tls: TlsSettings,
    /// How long one member may take for one answer, a connection included.
    pub timeout: Duration,
}

/// A revision of the store: every change of any key makes a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision(pub i64);

/// What to read.
#[derive(Clone, Copy, Debug)]
pub struct Range<'a> {
    /// Keys that begin with this; an empty one means all.
    pub prefix: &'a [u8],
    /// Of those, the ones from here on; `None` begins with the first.
    pub from: Option<&'a [u8]>,
    /// How many at most.
    pub limit: u32,
    /// As they were then; `None` reads the newest.
    pub revision: Option<Revision>,
}

/// What was read.
#[derive(Clone, Debug)]
pub struct Page {
    /// Keys and their values, in the order of the keys.
    pub entries: Vec<Entry>,
    /// Whether the limit left some out.
    pub more: bool,
    /// How many keys there are from the first one on, whatever the limit.
    pub count: u64,
    /// For a read of the newest, the revision that it was made at: reads of further pages at
    /// this revision see the same store.
    pub revision: Revision,
}

/// A key and its value. The value may be a secret in plain text, so `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// What is stored under it.
    pub value: Bytes,
    /// The store's revision of its last change.
    pub changed: Revision,
}

// === impl Revision ===

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

// === impl Entry ===

impl Entry {
    /// The key as people write it; what is no UTF-8 is replaced.
    pub fn name(&self) -> String {
        String::from_utf8_lossy(&self.key).into_owned()
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key)
            .field("value", &format_args!("{} bytes", self.value.len()))
            .field("changed", &self.changed)
            .finish()
    }
}

/// The first key after all those that begin with `prefix`; etcd's sign for "to the end" when
/// there is none.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_ends_before_the_first_key_that_does_not_begin_so() {
        assert_eq!(end_of(b"/registry/"), b"/registry0");
        assert_eq!(end_of(b"a\xff\xff"), b"b");
        assert_eq!(end_of(b"\xff"), [0]);
        assert_eq!(end_of(b""), [0]);
    }

    #[test]
    fn an_entry_never_shows_its_value() {
        let entry = Entry {
            key: Bytes::from_static(b"/registry/secrets/a/b"),
            value: Bytes::from_static(b"k8s\0hunter2"),
            changed: Revision(7),
        };
        let shown = format!("{entry:?}");
        assert!(!shown.contains("hunter2") && shown.contains("11 bytes"), "{shown}");
    }
}
