//! SIGHUP: a new configuration takes over, or nothing changes.
//!
//! One task builds generations, so two reloads never race. Requests that come while one is
//! being built are answered by one more, which reads the file again.
//!
//! A primary KEK that is new or changed must encrypt before it takes over, so that a typo
//! cannot take encryption away. When the running primary does not encrypt either there is
//! nothing to lose: the way out of an outage may be the very change that cannot answer yet,
//! so it is taken into use with a warning.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use tokio::sync::Notify;

use super::FIRST_BUILD_RETRY;
use super::Told;
use super::generation::{BuildError, Generation, NotReady};
use super::generations::Generations;
use super::state::{State, StateKeeper};
use crate::clock::{Deadline, Jitter};
use crate::config::diagnostics::{Problem, Problems};
use crate::config::load::{self, Loaded, Sources};
use crate::config::settings::Settings;
use crate::task::{OwnedTask, caught, tell_panic};
use crate::telemetry::Telemetry;
use crate::telemetry::logs::{InvalidFilter, check_filter};
use crate::telemetry::metrics::{self, Metric};
use crate::telemetry::traces::TraceError;

/// How long the running primary may take to show that it still encrypts, when a new one
/// does not.
const RUNNING_WITHIN: Duration = Duration::from_secs(5);

/// Builds the first generation and every later one; ends with its owner.
#[derive(Debug)]
pub struct Reloader {
    requested: Arc<Notify>,
    _task: OwnedTask,
}

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The configuration is not one.
    #[error("{}", one_line(.0))]
    Problems(Problems),
    /// It changes what only a restart can change.
    #[error("{0} cannot change while the daemon runs; restart it, or change that back")]
    NeedsRestart(String),
    /// A part of it cannot be built.
    #[error("{0}")]
    Build(#[from] BuildError),
    /// A part of it does not answer.
    #[error("{0}")]
    NotReady(#[from] NotReady),
    /// Its log filter cannot be read.
    #[error("log.level: {0}")]
    Log(#[from] InvalidFilter),
    /// Its receiver of traces cannot be used.
    #[error("traces: {0}")]
    Traces(#[from] TraceError),
    /// A bug.
    #[error("the attempt panicked; please report this bug")]
    Panicked,
}

struct Work {
    sources: Sources,
    started_with: Settings,
    generations: Arc<Generations>,
    telemetry: Telemetry,
    jitter: Arc<Jitter>,
    /// What an earlier process knew, and generations of this one.
    remembered: State,
    state: Option<StateKeeper>,
    canaries: Option<OwnedTask>,
    told: Told,
    built: u64,
}

// === impl Reloader ===

impl Reloader {
    /// Starts to build the first generation from `settings`.
    pub(super) fn start(
        sources: Sources,
        settings: Settings,
        generations: Arc<Generations>,
        telemetry: &Telemetry,
        told: Told,
    ) -> Self {
        let requested = Arc::new(Notify::new());
        let jitter = Arc::new(Jitter::from_entropy());
        let telemetry = telemetry.clone();
        let folder = settings.state_dir.clone();
        let remembered = folder.as_deref().map(State::read).unwrap_or_default();
        let state = folder.map(|folder| StateKeeper::start(folder, &remembered));
        let started_with = settings;
        let mut work = Work {
            sources,
            started_with,
            generations,
            telemetry,
            jitter,
            remembered,
            state,
            canaries: None,
            told,
            built: 0,
        };
        let wake = Arc::clone(&requested);
        let task = OwnedTask::spawn("reload", async move {
            work.first(&wake).await;
            loop {
                wake.notified().await;
                work.reload().await;
            }
        });
        Self { requested, _task: task }
    }

    /// Asks for a reload; returns at once.
    pub fn request(&self) {
        self.requested.notify_one();
    }
}

// === impl Work ===

impl Work {
    /// Builds the first generation. What can fail here is a file that cannot be read: it
    /// is tried again until it can, or until a reload brings a better configuration.
    async fn first(&mut self, wake: &Notify) {
        let mut told = None;
        loop {
            match self.build(1, &self.started_with) {
                Ok(generation) => {
                    self.put_in_force(generation);
                    tracing::info!(generation = 1, "The configuration is in force.");
                    return;
                }
                Err(error) => {
                    let why = error.to_string();
                    if told.as_ref() != Some(&why) {
                        tracing::error!("The configuration cannot be put in force yet: {why}.");
                    }
                    self.generations.explain_absence(why.clone());
                    told = Some(why);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(FIRST_BUILD_RETRY) => {}
                () = wake.notified() => {
                    self.reload().await;
                    if self.generations.current().is_some() {
                        return;
                    }
                }
            }
        }
    }

    async fn reload(&mut self) {
        self.told.notifier.reloading();
        let result = caught(self.try_reload()).await.unwrap_or_else(|()| {
            tell_panic("reload", "the running configuration stays");
            Err(ReloadError::Panicked)
        });
        let result = match result {
            Ok(()) => {
                self.told.story.tell("");
                "ok"
            }
            Err(error) => {
                tracing::error!("Reload failed; the running configuration stays: {error}");
                self.told.story.tell(format!("The last reload failed: {error}"));
                "failed"
            }
        };
        self.told.notifier.ready();
        metrics::add(Metric::Reloads, 1, &[KeyValue::new("result", result)]);
    }

    async fn try_reload(&mut self) -> Result<(), ReloadError> {
        let Loaded { settings, warnings } =
            load::load(&self.sources).map_err(ReloadError::Problems)?;
        for warning in &warnings {
            tracing::warn!("{}", warning.one_line());
        }
        let fixed = changed_but_fixed(&self.started_with, &settings);
        if !fixed.is_empty() {
            return Err(ReloadError::NeedsRestart(fixed.join(", ")));
        }
        let number = self.built + 1;
        let next = self.build(number, &settings)?;
        if let Some(running) = self.generations.current() {
            let deadline = Deadline::after(settings.reload_timeout);
            if let Err(why) = next.ready(deadline).await {
                if running.encrypts(Deadline::after(RUNNING_WITHIN)).await {
                    return Err(why.into());
                }
                tracing::warn!(
                    "The new configuration does not answer, but the running one cannot encrypt \
                     either, so the new one takes over: {why}."
                );
            }
        }
        if let Some(running) = self.generations.current() {
            warn_of_dropped(&running, &settings);
        }
        // From here on only the traces can fail, and they change nothing then.
        check_filter(&settings.log.filter)?;
        self.telemetry.traces().apply(settings.traces.as_ref())?;
        self.telemetry.logs().apply(&settings.log)?;
        self.put_in_force(next);
        tracing::info!(generation = number, "Reloaded; the new configuration is in force.");
        Ok(())
    }

    fn build(&self, number: u64, settings: &Settings) -> Result<Generation, BuildError> {
        let running = self.generations.current();
        Generation::build(number, settings, running.as_deref(), &self.remembered, &self.jitter)
    }

    fn put_in_force(&mut self, next: Generation) {
        self.built = next.number();
        if let Some(running) = self.generations.current() {
            // What it learnt of a KEK that `next` does not have is for whoever puts it back.
            self.remembered.take_in(&running.memories());
        }
        if let Some(state) = &self.state {
            state.follow(next.memories());
            self.canaries = Some(state.keep_canaries(next.canaries()));
        }
        self.generations.swap(Arc::new(next));
    }
}

/// A typo in a name, or a key that was taken out too early, shows itself here first.
fn warn_of_dropped(running: &Generation, wanted: &Settings) {
    for kek in running.keyring().keks() {
        let name = kek.name();
        if wanted.keyring.keks.iter().all(|kept| kept.name != *name) {
            tracing::warn!(
                kek = %name,
                "The new configuration does not have this KEK: what it encrypted can no longer be \
                 read. Put it back at the end of keyNames if anything in etcd still names it."
            );
        }
    }
}

/// The errors among `problems`, for one line of the log.
fn one_line(problems: &Problems) -> String {
    let errors = problems.iter().filter(|problem| problem.is_error());
    errors.map(Problem::one_line).collect::<Vec<_>>().join(" ")
}

/// The settings that differ although only a start reads them.
fn changed_but_fixed(running: &Settings, wanted: &Settings) -> Vec<&'static str> {
    let fixed = [
        ("socket", running.socket != wanted.socket),
        ("admin.listen", running.admin != wanted.admin),
        ("calls", running.kms != wanted.kms),
        ("statusVersion", running.keyring.status.version != wanted.keyring.status.version),
        ("shutdownGrace", running.shutdown_grace != wanted.shutdown_grace),
        ("stateDir", running.state_dir != wanted.state_dir),
    ];
    fixed.into_iter().filter_map(|(name, changed)| changed.then_some(name)).collect()
}
