//! Canaries of keys in several clusters, as a section of the file in `stateDir`.
//!
//! With them, a replica can show after a restart that it has the first cluster's key while
//! that cluster is away. A canary is a ciphertext of words that are no secret. What is read
//! here is believed only for the first cluster that made it, and proves nothing by itself:
//! the replica has to decrypt it, to those words, in this life.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::any;
use crate::clock::UnixSeconds;
use crate::config::settings::KekName;
use crate::transit::replicas::{Canaries, CanaryMemory};
use crate::transit::{KeyVersion, VaultCiphertext};

/// The section's name.
pub(super) const SECTION: &str = "canaries";

/// What is kept of one KEK.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    /// Which cluster made them, and with which key.
    origin: String,
    canaries: Vec<Canary>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Canary {
    version: u32,
    created: i64,
    ciphertext: String,
}

/// The canaries in `section` of the KEK `name` that `origin` made. What cannot be read is
/// left out: others will be made.
pub(super) fn read(section: Option<&Value>, name: &KekName, origin: &str) -> Canaries {
    let entry = section.and_then(|section| section.get(name.as_str()));
    let entry = entry.and_then(|entry| Entry::deserialize(entry).ok());
    let canaries = entry.filter(|entry| entry.origin == origin).map(|entry| entry.canaries);
    let read = |canary: Canary| {
        let version = KeyVersion { number: canary.version, created: UnixSeconds(canary.created) };
        let ciphertext = VaultCiphertext::parse(&canary.ciphertext)?;
        (ciphertext.version() == version.number).then_some((version, ciphertext))
    };
    canaries.into_iter().flatten().filter_map(read).collect()
}

/// Puts the section together, and again at every change, and hands it to `put`.
pub(super) async fn follow(kept: Vec<(KekName, Arc<CanaryMemory>)>, put: impl Fn(Value)) {
    let mut followed: Vec<_> = kept.iter().map(|(_, memory)| memory.follow()).collect();
    if followed.is_empty() {
        return future::pending().await;
    }
    loop {
        let entries = kept.iter().zip(&mut followed).map(|((name, memory), canaries)| {
            let entry = Entry::of(memory.origin(), &canaries.borrow_and_update());
            (name.as_str(), entry)
        });
        let section: BTreeMap<&str, Entry> = entries.collect();
        if let Ok(section) = serde_json::to_value(&section) {
            put(section);
        }
        any(followed.iter_mut().map(|canaries| Box::pin(canaries.changed())).collect()).await;
    }
}

// === impl Entry ===

impl Entry {
    fn of(origin: &str, canaries: &Canaries) -> Self {
        let canary = |(version, ciphertext): (&KeyVersion, &VaultCiphertext)| Canary {
            version: version.number,
            created: version.created.0,
            ciphertext: ciphertext.to_vault(),
        };
        Self { origin: origin.to_owned(), canaries: canaries.iter().map(canary).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_kept_is_read_for_the_same_origin_only() {
        let name = KekName::try_new("kube").unwrap();
        let version = KeyVersion { number: 3, created: UnixSeconds(1_767_225_600) };
        let canary = VaultCiphertext::parse("vault:v3:AAEC").unwrap();
        let canaries = Canaries::from([(version, canary)]);
        let memory = Arc::new(CanaryMemory::new("here".into(), canaries.clone()));
        let (put, mut section) = tokio::sync::watch::channel(Value::Null);
        let kept = vec![(name.clone(), memory)];
        let following = follow(kept, move |value| drop(put.send_replace(value)));
        tokio::select! {
            () = following => unreachable!("it follows for ever"),
            changed = section.changed() => changed.unwrap(),
        }
        let section = section.borrow().clone();
        assert_eq!(read(Some(&section), &name, "here"), canaries);
        let other = KekName::try_new("other").unwrap();
        for (section, name, origin) in [
            (Some(&section), &name, "elsewhere"),
            (Some(&section), &other, "here"),
            (Some(&Value::Null), &name, "here"),
            (None, &name, "here"),
        ] {
            assert!(read(section, name, origin).is_empty());
        }
    }
}
