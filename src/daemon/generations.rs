//! The generation in force: the only mutable root of configuration.

use std::sync::{Arc, Mutex};

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use super::generation::Generation;
use crate::admin::{Check, Readiness};
use crate::keyring::Keyring;
use crate::kms::{CurrentKeyring, NotServing};

/// Holds the generation in force; readers load it once per call.
#[derive(Debug)]
pub struct Generations {
    current: ArcSwapOption<Generation>,
    why_none: Mutex<String>,
    tried: watch::Sender<bool>,
}

// === impl Generations ===

impl Default for Generations {
    fn default() -> Self {
        let why_none = Mutex::new("its configuration is being built".into());
        Self { current: ArcSwapOption::empty(), why_none, tried: watch::Sender::new(false) }
    }
}

impl Generations {
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

    /// Says why there is still no generation.
    pub fn explain_absence(&self, why: String) {
        *self.why_none.lock().expect("no code panics while it holds this lock") = why;
        self.tried.send_replace(true);
    }

    fn absence(&self) -> String {
        self.why_none.lock().expect("no code panics while it holds this lock").clone()
    }
}

impl CurrentKeyring for Generations {
    fn current(&self) -> Result<Arc<Keyring>, NotServing> {
        match &*self.current.load() {
            Some(generation) => Ok(Arc::clone(generation.keyring())),
            None => Err(NotServing(self.absence())),
        }
    }
}

impl Readiness for Generations {
    fn checks(&self) -> Vec<Check> {
        match self.current() {
            Some(generation) => generation.checks(),
            None => vec![Check { name: "generation".into(), ok: false, detail: self.absence() }],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
