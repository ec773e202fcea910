//! The line that `systemctl status` shows: whether calls are served, and how the last reload
//! went.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::Notifier;
use crate::admin::Readiness;
use crate::daemon::generations::Generations;
use crate::task::OwnedTask;

/// How often it is looked whether there is something new to tell.
const LOOK: Duration = Duration::from_secs(1);

/// What is told beside the state of the keys, by whoever knows it.
#[derive(Clone, Debug, Default)]
pub(in crate::daemon) struct Story {
    last: Arc<Mutex<String>>,
}

// === impl Story ===

impl Story {
    /// Puts `words` in the place of what was told before; no words for nothing to tell.
    pub(in crate::daemon) fn tell(&self, words: impl Into<String>) {
        *self.lock() = words.into();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, String> {
        self.last.lock().expect("no code panics while it holds this lock")
    }

    /// The whole line.
    pub(super) fn line(&self, generations: &Generations) -> String {
        // The first check is the primary key's.
        let serving = match generations.checks().into_iter().next() {
            Some(check) if check.ok && check.detail == "ok" => "Vault: ok".to_owned(),
            Some(check) => format!("Vault: {}", check.detail),
            None => "Vault: unknown".to_owned(),
        };
        match self.lock().as_str() {
            "" => serving,
            words => format!("{serving}. {words}"),
        }
    }
}

// === impl Notifier ===

impl Notifier {
    /// Tells the line whenever it has changed; `None` when nobody listens.
    pub(in crate::daemon) fn follow(
        &self,
        story: &Story,
        generations: &Arc<Generations>,
    ) -> Option<OwnedTask> {
        if !self.is_heard() {
            return None;
        }
        let (told, story, generations) = (self.clone(), story.clone(), Arc::clone(generations));
        Some(OwnedTask::spawn_again("status", move || {
            let (told, story, generations) =
                (told.clone(), story.clone(), Arc::clone(&generations));
            async move {
                let mut last = String::new();
                loop {
                    let line = story.line(&generations);
                    if line != last {
                        told.status(&line);
                        last = line;
                    }
                    tokio::time::sleep(LOOK).await;
                }
            }
        }))
    }
}
