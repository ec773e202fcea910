//! Files of TLS that change while the daemon runs: certificates that an agent renews, a
//! bundle that gets next year's authority.
//!
//! They are looked at by path and by content, so that a rename and a volume's links are
//! seen, and no event of a file system is relied upon. What cannot be used is left where it
//! is: the pair that was read last goes on to serve.

use std::time::Duration;

use opentelemetry::KeyValue;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{info, warn};

use super::LoadedTls;
use crate::config::settings::{ClusterName, TlsSettings};
use crate::task::OwnedTask;
use crate::telemetry::metrics::{self, Metric};

/// How often the files are looked at.
const POLL: Duration = Duration::from_secs(5);

/// Looks in a row after which unusable files are told. A certificate and its key are
/// replaced one after the other, so that one look may find a pair that is none.
const BAD_LOOKS: u32 = 2;

/// The task's state.
struct Watch {
    tls: LoadedTls,
    settings: TlsSettings,
    cluster: ClusterName,
    bad_looks: u32,
    told: Option<String>,
}

impl LoadedTls {
    /// Keeps this and its clones up to date with the files of `settings`, until the task is
    /// dropped; `None` when there are no files.
    pub fn watch(&self, settings: &TlsSettings, cluster: &ClusterName) -> Option<OwnedTask> {
        if settings.ca_file.is_none() && settings.client.is_none() {
            return None;
        }
        let (tls, settings, cluster) = (self.clone(), settings.clone(), cluster.clone());
        Some(OwnedTask::spawn_again("tls files", move || {
            let watch = Watch {
                tls: tls.clone(),
                settings: settings.clone(),
                cluster: cluster.clone(),
                bad_looks: 0,
                told: None,
            };
            watch.run()
        }))
    }
}

// === impl Watch ===

impl Watch {
    async fn run(mut self) {
        let mut poll = interval_at(Instant::now() + POLL, POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            poll.tick().await;
            self.look().await;
        }
    }

    async fn look(&mut self) {
        let (tls, settings) = (self.tls.clone(), self.settings.clone());
        // A file system that hangs holds this task and one thread, nothing else.
        let outcome = tokio::task::spawn_blocking(move || tls.read_again(&settings)).await;
        let trouble = match outcome {
            Ok(Ok(is_news)) => {
                if is_news {
                    self.count("ok");
                    info!(
                        cluster = %self.cluster,
                        "The files of certificates have changed; new connections use them."
                    );
                }
                self.bad_looks = 0;
                self.told = None;
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic.to_string(),
        };
        self.bad_looks += 1;
        if self.bad_looks < BAD_LOOKS || self.told.as_ref() == Some(&trouble) {
            return;
        }
        self.count("failed");
        warn!(
            cluster = %self.cluster, error = %trouble,
            "The files of certificates cannot be used; those read before stay in use."
        );
        self.told = Some(trouble);
    }

    fn count(&self, result: &'static str) {
        let cluster = KeyValue::new("cluster", self.cluster.as_str().to_owned());
        metrics::add(Metric::TlsReloads, 1, &[cluster, KeyValue::new("result", result)]);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::cluster::tls::testing::{Authority, Valid};
    use crate::config::settings::ClientIdentity;

    #[tokio::test(start_paused = true)]
    async fn changed_files_are_taken_and_broken_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let authority = Authority::new("ca");
        let combined = |name: &str| {
            let identity = authority.issue(name, Valid::Now);
            format!("{}{}", identity.cert.pem(), identity.key.serialize_pem())
        };
        let (first, second) = (combined("first"), combined("second"));
        // Certificate and key in one file.
        let (cert_file, key_file) = (at("client.pem"), at("client.pem"));
        fs::write(&cert_file, &first).unwrap();
        let settings = TlsSettings {
            ca_file: Some(authority.write(folder.path(), "ca.pem")),
            client: Some(ClientIdentity { cert_file: cert_file.clone(), key_file }),
            server_name: None,
        };
        let tls = LoadedTls::read(&settings).unwrap();
        let cluster = ClusterName::try_new("bao").unwrap();
        let _watch = tls.watch(&settings, &cluster).unwrap();
        let fresh = || LoadedTls::read(&settings).unwrap();
        let pass = || tokio::time::sleep(3 * POLL);
        let before = tls.snapshot();
        pass().await;
        assert!(std::sync::Arc::ptr_eq(&before, &tls.snapshot()), "nothing has changed");

        fs::write(at("next"), &second).unwrap();
        fs::rename(at("next"), &cert_file).unwrap();
        pass().await;
        assert!(tls == fresh(), "the pair by rename");

        let held = tls.snapshot();
        let certificate_alone = &first[..first.find("-----BEGIN PRIVATE").unwrap()];
        let foreign_key = &second[second.find("-----BEGIN PRIVATE").unwrap()..];
        for broken in [certificate_alone, "", &format!("{certificate_alone}{foreign_key}")] {
            fs::write(&cert_file, broken).unwrap();
            pass().await;
            assert!(std::sync::Arc::ptr_eq(&held, &tls.snapshot()), "a broken pair was taken");
        }
        fs::write(&cert_file, &first).unwrap();
        pass().await;
        assert!(tls == fresh(), "the whole pair after the broken ones");

        let both = format!("{}{}", authority.pem(), Authority::new("next year's").pem());
        fs::write(at("ca.pem"), both).unwrap();
        pass().await;
        assert!(tls == fresh(), "the authorities");
        assert!(
            LoadedTls::read(&TlsSettings::default())
                .unwrap()
                .watch(&TlsSettings::default(), &cluster)
                .is_none()
        );
    }
}
