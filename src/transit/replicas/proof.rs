//! What is proven of one replica: with which versions of the key it may encrypt.

use std::collections::{BTreeMap, BTreeSet};

use crate::transit::KeyVersion;

/// What is proven of one replica. Nothing, at first.
#[derive(Debug, Default)]
pub(super) struct Proof {
    versions: BTreeMap<KeyVersion, Finding>,
    /// Those whose proof was ended: the canary there is proves them no longer.
    revoked: BTreeSet<KeyVersion>,
    /// Why it cannot be looked at, when it cannot.
    trouble: Option<String>,
    /// It was looked at since the start, with whatever result.
    looked_at: bool,
}

/// What was found about one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// Same creation time, and what the first cluster made was decrypted and compared.
    Proven,
    /// It holds another key under this name.
    Impostor(String),
    /// Not proven (yet).
    Lacking(String),
}

// === impl Proof ===

impl Proof {
    /// Whether it may encrypt with `version`.
    pub(super) fn covers(&self, version: KeyVersion) -> bool {
        self.versions.get(&version) == Some(&Finding::Proven)
    }

    /// Whether it was looked at since the start.
    pub(super) const fn is_looked_at(&self) -> bool {
        self.looked_at
    }

    /// Why it may not encrypt with `version`; `None` when it may.
    pub(super) fn why_not(&self, version: KeyVersion) -> Option<String> {
        let number = version.number;
        match (self.versions.get(&version), &self.trouble) {
            (Some(Finding::Proven), _) => None,
            (Some(Finding::Impostor(why) | Finding::Lacking(why)), _) => Some(why.clone()),
            (None, Some(trouble)) => Some(format!("its v{number} is not proven: {trouble}")),
            (None, None) => Some(format!("its v{number} is not proven yet")),
        }
    }

    /// Puts what was found in the place of what was known of these versions, and forgets
    /// the others.
    pub(super) fn replace(&mut self, found: Vec<(KeyVersion, Option<Finding>)>) {
        let mut before = std::mem::take(&mut self.versions);
        for (version, finding) in found {
            // what could not be asked stays as it was, and so does what was revoked meanwhile
            let is_outdated = finding == Some(Finding::Proven) && self.revoked.contains(&version);
            let finding = finding.filter(|_| !is_outdated);
            if let Some(finding) = finding.or_else(|| before.remove(&version)) {
                self.versions.insert(version, finding);
            }
        }
        let versions = &self.versions;
        self.revoked.retain(|version| versions.contains_key(version));
        self.trouble = None;
        self.looked_at = true;
    }

    /// It could not be looked at. What was proven stays: silence contradicts nothing.
    pub(super) fn miss(&mut self, why: String) {
        self.trouble = Some(why);
        self.looked_at = true;
    }

    /// It refused to be looked at, or said something that contradicts every proof.
    pub(super) fn refuse(&mut self, why: &str) {
        for finding in self.versions.values_mut() {
            *finding = Finding::Lacking(why.to_owned());
        }
        self.miss(why.to_owned());
    }

    /// Something contradicts the proof of `version`; whether there was one.
    pub(super) fn revoke(&mut self, version: KeyVersion, why: String) -> bool {
        let was_proven = self.covers(version);
        self.versions.insert(version, Finding::Impostor(why));
        if was_proven {
            self.revoked.insert(version);
        }
        was_proven
    }

    /// Whether only a new canary can prove `version`.
    pub(super) fn is_revoked(&self, version: KeyVersion) -> bool {
        self.revoked.contains(&version)
    }

    /// There is a new canary of `version`.
    pub(super) fn renew(&mut self, version: KeyVersion) {
        self.revoked.remove(&version);
    }

    /// The version `number` that is proven, if it is.
    pub(super) fn proven_version(&self, number: u32) -> Option<KeyVersion> {
        let of_number = |(version, finding): (&KeyVersion, &Finding)| {
            let is_it = version.number == number && matches!(finding, Finding::Proven);
            is_it.then_some(*version)
        };
        self.versions.iter().find_map(of_number)
    }

    /// The newest version that was looked at, and what was found.
    pub(super) fn newest(&self) -> Option<(KeyVersion, &Finding)> {
        self.versions.iter().next_back().map(|(version, finding)| (*version, finding))
    }
}
