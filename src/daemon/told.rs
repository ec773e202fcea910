//! Who hears, beside the log, what becomes of a configuration: systemd, `/readyz`, a metric, and
//! the copy that the next start falls back on.

use std::sync::Arc;

use super::generations::Generations;
use super::kept::{Cause, Fallback, Keeper};
use super::notify::{Notifier, Story};
use super::reload::one_line;
use crate::config::load::Sources;
use crate::config::settings::Settings;
use crate::config::written::Written;
use crate::task::OwnedTask;
use crate::telemetry::metrics::{Metric, set};

/// Tells them.
#[derive(Debug)]
pub(super) struct Told {
    notifier: Notifier,
    story: Story,
    generations: Arc<Generations>,
    kept: Option<Keeper>,
    /// What the daemon started with, until it is in force.
    first: Option<Written>,
}

// === impl Told ===

impl Told {
    pub(super) fn new(notifier: Notifier, generations: Arc<Generations>) -> Self {
        Self { notifier, story: Story::default(), generations, kept: None, first: None }
    }

    /// Tells systemd of the state of the keys, as long as the task lives.
    pub(super) fn follow(&self) -> Option<OwnedTask> {
        self.notifier.follow(&self.story, &self.generations)
    }

    /// The file is what runs; what is accepted from it is kept.
    fn keeps(mut self, written: Option<Written>) -> Self {
        set(Metric::ConfigFallback, 0.0, &[]);
        self.first = written;
        self
    }

    /// What is chosen runs; what is accepted from the file is kept.
    pub(super) fn runs(
        mut self,
        settings: &Settings,
        sources: &Sources,
        written: Option<Written>,
        fallback: Option<&Fallback>,
    ) -> Self {
        self.kept = settings.state_dir.clone().and_then(|folder| Keeper::start(folder, sources));
        match fallback {
            Some(fallback) => self.falls_back(fallback),
            None => self.keeps(written),
        }
    }

    /// The file is not what runs.
    fn falls_back(self, fallback: &Fallback) -> Self {
        let kept_in = fallback.kept_in.display();
        let (wrong, why) = match &fallback.cause {
            Cause::Broken(problems) => {
                let why = one_line(problems);
                tracing::error!(
                    %kept_in,
                    "The configuration cannot be used, so the last accepted one runs. Correct the \
                     file and reload: {why}"
                );
                ("is wrong", why)
            }
            Cause::Refused(problems) => {
                let why = one_line(problems);
                tracing::error!(
                    %kept_in,
                    "The configuration is one that a reload refuses, so the last accepted one \
                     runs. Correct the file and reload; or, if it is meant so on a machine whose \
                     objects need none of the keys before, remove {kept_in} and restart: {why}"
                );
                ("asks for what a reload refuses", why)
            }
        };
        set(Metric::ConfigFallback, 1.0, &[]);
        let words = format!("The last accepted configuration runs, for the file {wrong}: {why}");
        self.generations.notice(Some(words.clone()));
        self.story.tell(words);
        self
    }

    /// The first generation is in force.
    pub(super) fn started(&mut self) {
        if let (Some(kept), Some(first)) = (&self.kept, self.first.take()) {
            kept.keep(first);
        }
    }

    /// A reload begins.
    pub(super) fn reloading(&self) {
        self.notifier.reloading();
    }

    /// A reload has put `written` in force.
    pub(super) fn accepted(&self, written: Option<Written>) {
        set(Metric::ConfigFallback, 0.0, &[]);
        self.generations.notice(None);
        self.story.tell("");
        if let (Some(kept), Some(written)) = (&self.kept, written) {
            kept.keep(written);
        }
        self.notifier.ready();
    }

    /// A reload changed nothing.
    pub(super) fn refused(&self, why: &dyn std::error::Error) {
        self.story.tell(format!("The last reload failed: {why}"));
        self.notifier.ready();
    }
}
