//! The generation in force: the only mutable root of configuration.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use super::generation::Generation;
use crate::admin::{Check, LastReload, Readiness, Running};
use crate::clock::node_time;
use crate::config::load::{Flags, Sources};
use crate::config::outline::Outline;
use crate::keyring::Keyring;
use crate::kms::{CurrentKeyring, NotServing};

/// Holds the generation in force; readers load it once per call.
#[derive(Debug)]
pub struct Generations {
    current: ArcSwapOption<Generation>,
    sources: (Option<String>, Flags),
    started_with: Outline,
    told: Mutex<Told>,
    tried: watch::Sender<bool>,
}

#[derive(Debug)]
struct Told {
    why_none: String,
    last_reload: Option<LastReload>,
    notice: Option<String>,
}

// === impl Generations ===

impl Generations {
    /// None yet, of a process that started with these settings, from these sources.
    pub fn new(started_with: Outline, sources: &Sources) -> Self {
        let file = sources.file.as_ref().map(|path| path.display().to_string());
        let sources = (file, sources.flags.clone());
        let why_none = "its configuration is being built".to_owned();
        let told = Mutex::new(Told { why_none, last_reload: None, notice: None });
        let tried = watch::Sender::new(false);
        Self { current: ArcSwapOption::empty(), sources, started_with, told, tried }
    }

    /// The generation in force; `None` until the first is built.
    pub fn current(&self) -> Option<Arc<Generation>> {
        self.current.load_full()
    }

    /// Puts `next` in force. Calls in flight end on the one that they began with.
    pub fn swap(&self, next: Arc<Generation>) {
        self.current.store(Some(next));
        self.tried.send_replace(true);
    }

    /// Waits until the first one is in force, or is known not to be: then calls are told why.
    pub async fn tried(&self) {
        // It cannot fail: the sender is here.
        let _ = self.tried.subscribe().wait_for(|tried| *tried).await;
    }

    /// What the process started with.
    pub const fn started_with(&self) -> &Outline {
        &self.started_with
    }

    /// Says why there is still no generation.
    pub fn explain_absence(&self, why: String) {
        self.told().why_none = why;
        self.tried.send_replace(true);
    }

    /// What an operator should know about the configuration that runs; none takes it back.
    pub fn notice(&self, words: Option<String>) {
        self.told().notice = words;
    }

    /// Says how a reload has ended: with what refused it, if anything did.
    pub fn reloaded(&self, refused: Option<String>) {
        self.told().last_reload = Some(LastReload { time: node_time().0, refused });
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How what runs compares with what is on disk. It never makes the daemon unready: what
    /// runs is what was accepted.
    fn check(&self, number: u64) -> Check {
        let refused = self.told().last_reload.as_ref().and_then(|last| last.refused.clone());
        let detail = match refused {
            None => format!("generation {number}"),
            Some(why) => format!("generation {number}; the last reload was refused: {why}"),
        };
        Check { name: "configuration".into(), ok: true, detail }
    }
}

#[cfg(test)]
impl Default for Generations {
    fn default() -> Self {
        Self::new(Outline::default(), &Sources::default())
    }
}

impl CurrentKeyring for Generations {
    fn current(&self) -> Result<Arc<Keyring>, NotServing> {
        match &*self.current.load() {
            Some(generation) => Ok(Arc::clone(generation.keyring())),
            None => Err(NotServing(self.told().why_none.clone())),
        }
    }
}

impl Readiness for Generations {
    fn checks(&self) -> Vec<Check> {
        let mut checks = match self.current() {
            Some(generation) => {
                let mut checks = generation.checks();
                checks.push(self.check(generation.number()));
                checks
            }
            None => {
                let detail = self.told().why_none.clone();
                vec![Check { name: "generation".into(), ok: false, detail }]
            }
        };
        // It works: nobody's load balancer is to be emptied for it.
        let notice = self.told().notice.clone();
        checks.extend(notice.map(|detail| Check {
            name: "configuration file".into(),
            ok: true,
            detail,
        }));
        checks
    }

    fn running(&self) -> Running {
        let generation = self.current();
        // One guard at a time: two in one expression would wait for each other.
        let fallback = self.told().notice.clone();
        let last_reload = self.told().last_reload.clone();
        Running {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            file: self.sources.0.clone(),
            flags: self.sources.1.clone(),
            generation: generation.as_ref().map(|g| g.number()),
            configuration: generation.map(|g| g.outline().clone()),
            started_with: self.started_with.clone(),
            fallback,
            last_reload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn callers_wait_for_the_first_generation_or_for_the_reason_that_there_is_none() {
        let generations = Generations::default();
        let patience = std::time::Duration::from_secs(60);
        assert!(tokio::time::timeout(patience, generations.tried()).await.is_err());
        generations.explain_absence("ca.pem: no such file".into());
        assert!(tokio::time::timeout(patience, generations.tried()).await.is_ok());
    }

    #[test]
    fn before_the_first_generation_every_call_is_told_why() {
        let generations = Generations::default();
        generations.explain_absence("ca.pem: no such file".into());
        let why = CurrentKeyring::current(&generations).unwrap_err();
        assert_eq!(why.to_string(), "vault-kms-proxy is starting: ca.pem: no such file");
        let checks = generations.checks();
        assert!(!checks[0].ok);
        assert_eq!(checks[0].detail, "ca.pem: no such file");
    }

    #[test]
    fn what_refused_the_last_reload_is_told_until_one_succeeds() {
        let generations = Generations::default();
        assert_eq!(generations.check(3).detail, "generation 3");
        generations.reloaded(Some("x.yaml:1:1: no".into()));
        let check = generations.check(3);
        assert!(check.ok);
        assert_eq!(check.detail, "generation 3; the last reload was refused: x.yaml:1:1: no");
        assert_eq!(generations.running().last_reload.unwrap().refused.unwrap(), "x.yaml:1:1: no");
        generations.reloaded(None);
        assert_eq!(generations.check(4).detail, "generation 4");
    }
}
