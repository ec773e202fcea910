//! Files of TLS that change while the daemon runs: certificates that an agent renews, a
//! bundle that gets next year's authority.
//!
//! They are looked at by path and by content, so that a rename and a volume's links are
//! seen, and no event of a file system is relied upon. What cannot be used, or what no address
//! accepts, is left where it is: what was read last goes on to serve, and the files are tried
//! again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{info, warn};

use super::trial::{Ask, Fate, try_out};
use super::{LoadedTls, TlsSnapshot};
use crate::blocking;
use crate::config::settings::{ClusterName, TlsSettings};
use crate::task::OwnedTask;
use crate::telemetry::metrics::{self, Metric};

/// How often the files are looked at.
const POLL: Duration = Duration::from_secs(5);

/// How long the files may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks in a row after which unusable files are told. A certificate and its key are
/// replaced one after the other, so that one look may find a pair that is none.
const BAD_LOOKS: u32 = 2;

/// Looks in a row that found nobody who could tell, after which that is told. A minute: in an
/// outage there is other news, and until somebody answers there is nothing to be decided.
const SILENT_LOOKS: u32 = 12;

/// The task's state.
struct Watch {
    tls: LoadedTls,
    settings: TlsSettings,
    cluster: ClusterName,
    asked: Arc<dyn Ask>,
    bad_looks: u32,
    silent_looks: u32,
    told: Option<Trouble>,
}

/// Why the files are not used.
#[derive(Debug, PartialEq, Eq)]
struct Trouble {
    result: &'static str,
    /// Those that have changed, when they can be read.
    files: Vec<PathBuf>,
    why: String,
}

impl LoadedTls {
    /// Keeps this and its clones up to date with the files of `settings`, until the task is
    /// dropped; `None` when there are no files. What changes is tried by `asked` first.
    pub fn watch(
        &self,
        settings: &TlsSettings,
        cluster: &ClusterName,
        asked: Arc<dyn Ask>,
    ) -> Option<OwnedTask> {
        if settings.ca_file.is_none() && settings.client.is_none() {
            return None;
        }
        let (tls, settings, cluster) = (self.clone(), settings.clone(), cluster.clone());
        Some(OwnedTask::spawn_again("tls files", move || {
            let watch = Watch {
                tls: tls.clone(),
                settings: settings.clone(),
                cluster: cluster.clone(),
                asked: Arc::clone(&asked),
                bad_looks: 0,
                silent_looks: 0,
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
        let next = match self.read().await {
            Ok(next) => next.map(Arc::new),
            Err(why) => return self.tell(Trouble { result: "failed", files: Vec::new(), why }),
        };
        let Some(next) = next else { return self.is_well() };
        let held = self.tls.snapshot();
        let files = next.files_changed_since(&held, &self.settings);
        match try_out(&*self.asked, held, Arc::clone(&next)).await {
            Fate::Take => {
                self.tls.adopt(next);
                self.count("ok");
                info!(
                    cluster = %self.cluster, ?files,
                    "The files of certificates have changed; new connections use them."
                );
                self.is_well();
            }
            Fate::Leave(why) => self.tell(Trouble { result: "refused", files, why }),
            Fate::Wait => self.wait(&files),
        }
    }

    /// Nobody could tell. It is said once for as long as that lasts.
    fn wait(&mut self, files: &[PathBuf]) {
        self.silent_looks = self.silent_looks.saturating_add(1);
        if self.silent_looks != SILENT_LOOKS {
            return;
        }
        self.count("waiting");
        warn!(
            cluster = %self.cluster, ?files,
            "The files of certificates have changed and no address answers, neither over them nor \
             over those read before, which stay in use; the new ones are tried until one does."
        );
    }

    async fn read(&self) -> Result<Option<TlsSnapshot>, String> {
        let (tls, settings) = (self.tls.clone(), self.settings.clone());
        let client = self.settings.client.as_ref().map(|identity| identity.cert_file.as_path());
        let path = self.settings.ca_file.as_deref().or(client).unwrap_or(Path::new("/"));
        match blocking::at(path, PATIENCE, move || tls.changed(&settings)).await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(silence) => Err(format!("{}: {silence}", path.display())),
        }
    }

    fn is_well(&mut self) {
        self.bad_looks = 0;
        self.silent_looks = 0;
        self.told = None;
    }

    fn tell(&mut self, trouble: Trouble) {
        self.silent_looks = 0;
        self.bad_looks += 1;
        if self.bad_looks < BAD_LOOKS || self.told.as_ref() == Some(&trouble) {
            return;
        }
        let Trouble { result, files, why } = &trouble;
        self.count(result);
        if files.is_empty() {
            warn!(
                cluster = %self.cluster, error = %why,
                "The files of certificates cannot be used; those read before stay in use."
            );
        } else {
            warn!(
                cluster = %self.cluster, ?files, error = %why,
                "The files of certificates have changed and no address accepts them; those read \
                 before still work and stay in use, and the new ones are tried again."
            );
        }
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
    use crate::cluster::tls::trial::Word;
    use crate::config::settings::ClientIdentity;

    /// Addresses that accept everything but one snapshot's files.
    #[derive(Default)]
    struct Addresses {
        refuse: std::sync::Mutex<Option<LoadedTls>>,
    }

    impl Ask for Addresses {
        fn ask(&self, tls: Arc<TlsSnapshot>) -> futures_util::future::BoxFuture<'_, Word> {
            let is_refused = self.refuse.lock().unwrap().as_ref() == Some(&LoadedTls::fixed(tls));
            let refused = || Word::Refused("not signed by the CA".into());
            let word = if is_refused { refused() } else { Word::Accepted };
            Box::pin(std::future::ready(word))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_sound_bundle_that_no_address_accepts_is_left_until_one_does() {
        let folder = tempfile::tempdir().unwrap();
        let ca_file = Authority::new("ours").write(folder.path(), "ca.pem");
        let settings = TlsSettings { ca_file: Some(ca_file), ..TlsSettings::default() };
        let tls = LoadedTls::read(&settings).unwrap();
        let (addresses, held) = (Arc::new(Addresses::default()), tls.snapshot());
        let cluster = ClusterName::try_new("bao").unwrap();
        let _watch = tls.watch(&settings, &cluster, addresses.clone()).unwrap();

        Authority::new("somebody else's").write(folder.path(), "ca.pem");
        let theirs = LoadedTls::read(&settings).unwrap();
        *addresses.refuse.lock().unwrap() = Some(theirs.clone());
        tokio::time::sleep(5 * POLL).await;
        assert!(Arc::ptr_eq(&held, &tls.snapshot()), "the cluster was cut off");
        *addresses.refuse.lock().unwrap() = None;
        tokio::time::sleep(2 * POLL).await;
        assert!(tls == theirs, "the file is looked at once only");
        assert_eq!(
            theirs.snapshot().files_changed_since(&held, &settings),
            [folder.path().join("ca.pem")]
        );
    }

    /// Nobody answers.
    struct Silence;

    impl Ask for Silence {
        fn ask(&self, _: Arc<TlsSnapshot>) -> futures_util::future::BoxFuture<'_, Word> {
            Box::pin(std::future::ready(Word::Silent))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn that_nobody_answers_who_could_tell_is_told_once() {
        let text = metrics::install().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let ca_file = Authority::new("ours").write(folder.path(), "ca.pem");
        let settings = TlsSettings { ca_file: Some(ca_file), ..TlsSettings::default() };
        let tls = LoadedTls::read(&settings).unwrap();
        let cluster = ClusterName::try_new("told-once").unwrap();
        let _watch = tls.watch(&settings, &cluster, Arc::new(Silence)).unwrap();
        let waiting = || {
            let is_it = |line: &&str| line.contains("told-once") && line.contains("waiting");
            text.render().unwrap().lines().find(is_it).map(str::to_owned)
        };
        Authority::new("next year's").write(folder.path(), "ca.pem");
        tokio::time::sleep(5 * POLL).await;
        assert_eq!(waiting(), None, "too soon");
        tokio::time::sleep(SILENT_LOOKS * 4 * POLL).await;
        let line = waiting().expect("nothing was told");
        assert!(line.contains("tls_reloads_total{") && line.ends_with(" 1"), "{line}");
    }

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
        let _watch = tls.watch(&settings, &cluster, Arc::new(Addresses::default())).unwrap();
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
                .watch(&TlsSettings::default(), &cluster, Arc::new(Addresses::default()))
                .is_none()
        );
    }
}
