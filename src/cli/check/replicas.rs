//! `check --online` of a KEK in several clusters: whether the later ones hold the first's key.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Report;
use crate::clock::Deadline;
use crate::cluster::Cluster;
use crate::config::settings::{ClusterName, KekSettings};
use crate::secret::Plaintext;
use crate::transit::http_key::HttpTransitKey;
use crate::transit::{KeyMetadata, Refusal, TransitKey, VaultCiphertext};

/// What the first cluster encrypts for the others to decrypt; no secret.
const TEST_VALUE: &[u8] = b"vault-kms-proxy check of replica";

/// The clusters that were reached.
pub(super) type Reached = BTreeMap<ClusterName, Arc<Cluster>>;

/// Compares what the clusters of `kek` hold. What is wrong with a single one of them was
/// told before.
pub(super) async fn check(
    report: &mut Report,
    kek: &KekSettings,
    reached: &Reached,
    timeout: Duration,
) {
    let key = |n: usize| {
        let cluster = reached.get(&kek.clusters[n])?;
        Some(HttpTransitKey::new(Arc::clone(cluster), &kek.in_cluster(n)))
    };
    let first = &kek.clusters[0];
    let Some(original) = key(0) else {
        return report.warn(format!(
            "cluster {first} cannot be asked, so nobody knows whether the others hold its key"
        ));
    };
    let Ok(metadata) = original.read(Deadline::after(timeout)).await else {
        return report.warn(format!("cluster {first}'s key cannot be read and compared"));
    };
    let canary = match metadata.version(metadata.latest_version) {
        Some(latest) => {
            let value = Plaintext::new(TEST_VALUE.to_vec());
            original.encrypt(&value, Some(latest), Deadline::after(timeout)).await
        }
        None => return report.fail(format!("cluster {first}'s key has no latest version")),
    };
    let Ok(canary) = canary else {
        return report.warn(format!("cluster {first} does not encrypt, so nothing is compared"));
    };
    for (n, cluster) in kek.clusters.iter().enumerate().skip(1) {
        match key(n) {
            Some(replica) => {
                let names = Names { kek, first, cluster };
                names.compare(report, &replica, &metadata, &canary.ciphertext, timeout).await;
            }
            None => report.warn(format!(
                "cluster {cluster} cannot be asked; while {first} is away nothing would serve"
            )),
        }
    }
}

/// Who is compared with whom.
struct Names<'a> {
    kek: &'a KekSettings,
    first: &'a ClusterName,
    cluster: &'a ClusterName,
}

// === impl Names ===

impl Names<'_> {
    async fn compare(
        &self,
        report: &mut Report,
        replica: &HttpTransitKey,
        original: &KeyMetadata,
        canary: &VaultCiphertext,
        timeout: Duration,
    ) {
        let Self { kek, first, cluster } = self;
        let there = match replica.read(Deadline::after(timeout)).await {
            Ok(there) => there,
            Err(error) => {
                return report.fail(format!("cluster {cluster} does not show its key: {error}"));
            }
        };
        let differing = original.versions.iter().find(|(number, created)| {
            there.versions.get(number).is_some_and(|there| there != *created)
        });
        if let Some((number, _)) = differing {
            return report.fail(format!(
                "cluster {cluster} holds an impostor: its v{number} was made at another time \
                 than {first}'s, so it is another key of the same name. {}",
                self.remedy()
            ));
        }
        let missing: Vec<String> = original
            .versions
            .keys()
            .filter(|number| !there.versions.contains_key(number))
            .map(|number| format!("v{number}"))
            .collect();
        if !missing.is_empty() {
            report.warn(format!(
                "cluster {cluster} lacks {}: what {first} encrypted with it cannot be read \
                 there. {}",
                missing.join(", "),
                self.remedy()
            ));
        }
        let version = canary.version();
        if !there.versions.contains_key(&version) {
            return; // told
        }
        match replica.decrypt(canary, Deadline::after(timeout)).await {
            Ok(back) if back.expose() == TEST_VALUE && there.may_encrypt(version) => {
                report.good(format!(
                    "cluster {cluster} holds a replica of {first}'s key: same creation times, and \
                     it decrypts what {first} encrypts with v{version}; it may encrypt while \
                     {first} is away"
                ));
            }
            Ok(back) if back.expose() == TEST_VALUE => report.warn(format!(
                "cluster {cluster} holds a replica of {first}'s key, but may not encrypt with \
                 v{version} (min_encryption_version {}): it only decrypts",
                there.min_encryption_version
            )),
            Ok(_) => report.fail(format!(
                "cluster {cluster} decrypts what {first} encrypted to something else"
            )),
            Err(error) if error.refusal() == Some(&Refusal::WrongKey) => report.fail(format!(
                "cluster {cluster} holds an impostor: it cannot decrypt what {first} encrypts with \
                 v{version}, though its `{}` has the same creation times. {}",
                kek.transit_key,
                self.remedy()
            )),
            Err(error) => report.fail(format!(
                "cluster {cluster} does not decrypt what {first} encrypted: {error}"
            )),
        }
    }

    fn remedy(&self) -> String {
        let key = &self.kek.transit_key;
        format!(
            "Take a backup of `{key}` in {} and restore it in {} (with force, if one is there)",
            self.first, self.cluster
        )
    }
}
