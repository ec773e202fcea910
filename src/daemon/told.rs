//! Who hears, beside the log, what becomes of a configuration: systemd, `/readyz`, a metric, and
//! the copy that the next start falls back on.

use std::sync::Arc;

use super::generations::Generations;
use super::kept::{Fallback, Keeper};
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
    pub(super) fn keeps(
        mut self,
        settings: &Settings,
        sources: &Sources,
        written: Option<Written>,
    ) -> Self {
        set(Metric::ConfigFallback, 0.0, &[]);
        self.kept = keeper(settings, sources);
        self.first = written;
        self
    }

    /// The file is not what runs.
    pub(super) fn falls_back(
        mut self,
        settings: &Settings,
        sources: &Sources,
        fallback: &Fallback,
    ) -> Self {
        let Fallback { kept_in, problems } = fallback;
        let why = one_line(problems);
        tracing::error!(
            kept_in = %kept_in.display(),
            "The configuration cannot be used, so the last accepted one runs. Correct the file \
             and reload: {why}"
        );
        set(Metric::ConfigFallback, 1.0, &[]);
        let words = format!("The last accepted configuration runs, for the file is wrong: {why}");
        self.generations.notice(Some(words.clone()));
        self.story.tell(words);
        self.kept = keeper(settings, sources);
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

fn keeper(settings: &Settings, sources: &Sources) -> Option<Keeper> {
    let (folder, file) = (settings.state_dir.clone()?, sources.file.clone()?);
    Some(Keeper::start(folder, file))
}
