//! The file in `stateDir`: its form, and how it is read and replaced.
//!
//! It is JSON, in sections. `keks` is ours; a section that this version does not know is
//! carried along, so that parts of the daemon can have their own. A change that an older
//! version would misread gets a higher `format`, which that version refuses by its number.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Memories;
use crate::clock::UnixSeconds;
use crate::config::settings::KekSettings;
use crate::keyring::key_id_of;
use crate::keyring::memory::Snapshot;
use crate::keyring::rotation::Activation;

/// Its name.
pub(in crate::daemon) const FILE: &str = "state.json";
/// What is written before it takes the file's place.
#[cfg(test)]
pub(super) const NEXT: &str = ".state.json.new";
/// A thousand KEKs take half of it.
const MAX_BYTES: u64 = 1 << 20;
/// The newest form that this version reads, and the one that it writes.
const FORMAT: u32 = 1;

/// The file's content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::daemon) struct State {
    pub(super) format: u32,
    /// One for each KEK.
    pub(super) keks: Vec<Entry>,
    /// What belongs to other parts of the daemon, by its name.
    #[serde(flatten)]
    pub(super) sections: BTreeMap<String, Value>,
}

/// What is kept of one KEK. It is believed only for the very same key: whatever tells it
/// from another is here, and the key_id holds it together, so that a changed byte shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    name: String,
    cluster: String,
    namespace: Option<String>,
    mount: String,
    transit_key: String,
    epoch: Option<String>,
    activated: Option<Version>,
    active: Option<Version>,
    newest: Option<Version>,
    /// When the active version was proven last, in seconds since 1970.
    proven: Option<i64>,
    /// Why the active version is lost.
    lost: Option<String>,
}

/// A version of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    version: u32,
    created: i64,
    key_id: String,
}

/// Puts `text` in the place of the file `name` in `folder`, for our eyes only and so that
/// after a crash at any moment either of them is there whole.
pub(in crate::daemon) fn replace(folder: &Path, name: &str, text: &[u8]) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let next = folder.join(format!(".{name}.new"));
    match std::fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&next, folder.join(name))?;
    File::open(folder)?.sync_all()
}

// === impl State ===

impl Default for State {
    fn default() -> Self {
        Self { format: FORMAT, keks: Vec::new(), sections: BTreeMap::new() }
    }
}

impl State {
    /// Reads what an earlier process left in `folder`. What cannot be read is told and left
    /// out; that there is nothing yet is no news.
    pub(in crate::daemon) fn read(folder: &Path) -> Self {
        let path = folder.join(FILE);
        match Self::try_read(&path) {
            Ok(state) => state,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                tracing::warn!(
                    file = %path.display(), %error,
                    "The state of an earlier run cannot be used; this one begins without it. \
                     The file is written anew."
                );
                Self::default()
            }
        }
    }

    pub(super) fn try_read(path: &Path) -> io::Result<Self> {
        #[derive(Deserialize)]
        struct Form {
            format: u32,
        }
        let mut text = Vec::new();
        File::open(path)?.take(MAX_BYTES).read_to_end(&mut text)?;
        // Of a newer form nothing but its number may be relied on.
        let Form { format } = serde_json::from_slice(&text)?;
        if format != FORMAT {
            let why = format!("its format is {format}, and this version reads {FORMAT}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(serde_json::from_slice(&text)?)
    }

    /// Puts itself in the place of what `folder` holds, so that after a crash at any moment
    /// either of them is there whole.
    pub(in crate::daemon) fn write(&self, folder: &Path) -> io::Result<()> {
        replace(folder, FILE, &serde_json::to_vec_pretty(self)?)
    }

    /// Whether what `folder` holds, or held as far as can be told, says that Vault has
    /// answered for a key of one of these `names`.
    pub(in crate::daemon) fn has_seen_any_of<'a>(
        folder: &Path,
        names: impl Iterator<Item = &'a str>,
    ) -> bool {
        match Self::try_read(&folder.join(FILE)) {
            Ok(state) => {
                let names: Vec<&str> = names.collect();
                let mut seen = state.keks.iter().filter(|entry| entry.has_answered());
                seen.any(|entry| names.contains(&entry.name.as_str()))
            }
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// One that knows this of `kek`.
    #[cfg(test)]
    pub(in crate::daemon) fn knowing(kek: &KekSettings, snapshot: Snapshot) -> Self {
        Self { keks: Entry::of(kek, snapshot).into_iter().collect(), ..Self::default() }
    }

    /// What is known of `kek`; `None`, and a word, when it is about another key.
    pub(in crate::daemon) fn of(&self, kek: &KekSettings) -> Option<Snapshot> {
        let mut named = self.keks.iter().filter(|entry| entry.name == kek.name.as_str());
        let is_there = |entry: &&Entry| entry.cluster == first_cluster(kek);
        let known = named.clone().filter(is_there).find_map(|entry| entry.read(kek));
        let elsewhere = || named.clone().find_map(|entry| entry.read(kek)).map(Snapshot::elsewhere);
        if let Some(snapshot) = known.or_else(elsewhere) {
            return Some(snapshot);
        }
        let other = named.next()?;
        tracing::warn!(
            kek = %kek.name, cluster = other.cluster, mount = other.mount,
            namespace = other.namespace, transit_key = other.transit_key, epoch = other.epoch,
            "The state of an earlier run is about another key of this name, or it was changed; \
             it is not used."
        );
        None
    }

    /// Puts what is known of these KEKs now in the place of what was.
    pub(in crate::daemon) fn take_in(&mut self, memories: &Memories) {
        let now = memories.iter().filter_map(|(kek, memory)| Entry::of(kek, memory.snapshot()));
        for entry in now {
            self.keks.retain(|known| !known.is_of_the_same_key(&entry));
            self.keks.push(entry);
        }
    }

    /// A section of another part of the daemon.
    pub(in crate::daemon) fn section(&self, name: &str) -> Option<&Value> {
        self.sections.get(name)
    }

    /// Whether another version of some key encrypts in `other`.
    pub(super) fn has_other_versions(&self, other: &Self) -> bool {
        let of = |state: &Self| -> Vec<_> {
            let entries = state.keks.iter();
            entries.map(|e| (e.name.clone(), e.active.clone(), e.activated.clone())).collect()
        };
        of(self) != of(other)
    }

    /// Whether `other` differs in nothing but how recent the proofs are.
    pub(super) fn is_but_for_proofs(&self, other: &Self) -> bool {
        let undated = |state: &Self| {
            let mut undated = state.clone();
            for entry in &mut undated.keks {
                entry.proven = entry.proven.map(|_| 0);
            }
            undated
        };
        undated(self) == undated(other)
    }
}

// === impl Entry ===

impl Entry {
    /// `None` when there is nothing to keep.
    pub(super) fn of(kek: &KekSettings, snapshot: Snapshot) -> Option<Self> {
        if snapshot == Snapshot::default() {
            return None;
        }
        let version = |a: Activation| Version {
            version: a.version,
            created: a.created.0,
            key_id: key_id_of(kek, a.version, a.created).as_str().to_owned(),
        };
        Some(Self {
            name: kek.name.as_str().to_owned(),
            cluster: first_cluster(kek).to_owned(),
            namespace: kek.namespace.clone(),
            mount: kek.mount.clone(),
            transit_key: kek.transit_key.clone(),
            epoch: kek.epoch.clone(),
            activated: snapshot.activated.map(version),
            active: snapshot.active.map(version),
            newest: snapshot.newest.map(version),
            proven: snapshot.proven.map(|time| time.0),
            lost: snapshot.lost,
        })
    }

    /// What is known of `kek`, in whichever cluster; `None` when this is about another key.
    fn read(&self, kek: &KekSettings) -> Option<Snapshot> {
        let is_of = self.namespace == kek.namespace
            && self.mount == kek.mount
            && self.transit_key == kek.transit_key
            && self.epoch == kek.epoch;
        let is_whole = |version: &Option<Version>| {
            version.as_ref().is_none_or(|v| {
                key_id_of(kek, v.version, UnixSeconds(v.created)).as_str() == v.key_id
            })
        };
        let versions = [&self.activated, &self.active, &self.newest];
        let is_believed = is_of && versions.into_iter().all(is_whole);
        let activation =
            |v: &Version| Activation { version: v.version, created: UnixSeconds(v.created) };
        is_believed.then(|| Snapshot {
            activated: self.activated.as_ref().map(activation),
            active: self.active.as_ref().map(activation),
            newest: self.newest.as_ref().map(activation),
            proven: self.proven.map(UnixSeconds),
            lost: self.lost.clone(),
        })
    }

    /// Whether there was a key of this name: a version was seen or proven.
    fn has_answered(&self) -> bool {
        let Self { activated, active, newest, proven, .. } = self;
        [activated, active, newest].into_iter().any(Option::is_some) || proven.is_some()
    }

    fn is_of_the_same_key(&self, other: &Self) -> bool {
        let key = |entry: &Self| {
            let Self { name, cluster, namespace, mount, transit_key, epoch, .. } = entry.clone();
            (name, cluster, namespace, mount, transit_key, epoch)
        };
        key(self) == key(other)
    }
}

/// Replicas in further clusters hold the same key.
fn first_cluster(kek: &KekSettings) -> &str {
    kek.clusters.first().map_or("", |cluster| cluster.as_str())
}
