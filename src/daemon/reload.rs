//! SIGHUP, or another content of the file: a new configuration takes over, or nothing
//! changes.
//!
//! One task builds generations, so two reloads never race. Requests that come while one is
//! being built are answered by one more, which reads the file again.
//!
//! A primary KEK that is new or changed must encrypt before it takes over, so that a typo
//! cannot take encryption away. When the running primary does not encrypt either there is
//! nothing to lose: the way out of an outage may be the very change that cannot answer yet,
//! so it is taken into use with a warning.
//!
//! Everything that can fail is done first, and whatever of it is not wanted in the end is
//! undone by being dropped. What follows cannot fail, so no reload ends half way.

use std::future;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use tokio::sync::Notify;

use super::FIRST_BUILD_RETRY;
use super::Told;
use super::admin_port::AdminPort;
use super::generation::{BuildError, Generation};
use super::generations::Generations;
use super::state::{State, StateKeeper};
use super::watch::FileWatch;
use crate::clock::{Deadline, Jitter, node_time};
use crate::config::change;
use crate::config::diagnostics::{Problem, Problems};
use crate::config::load::{self, Loaded, Sources};
use crate::config::outline::Outline;
use crate::config::settings::Settings;
use crate::config::written::Written;
use crate::listener::moving::SocketControl;
use crate::listener::unix::LOCK_PATIENCE;
use crate::task::{OwnedTask, caught, tell_panic};
use crate::telemetry::Telemetry;
use crate::telemetry::logs::check_filter;
use crate::telemetry::metrics::{self, Metric};

mod refusal;

use refusal::Asked;

/// How long the running primary may take to show that it still encrypts, when a new one
/// does not.
const RUNNING_WITHIN: Duration = Duration::from_secs(5);

/// How much of what has changed is told in one line of the log.
const LONGEST_SUMMARY: usize = 1_000;

/// Builds the first generation and every later one; ends with its owner.
#[derive(Debug)]
pub struct Reloader {
    requested: Arc<Notify>,
    state: Option<StateKeeper>,
    _task: OwnedTask,
}

/// What a reload works with.
#[derive(Debug)]
pub(super) struct Parts {
    /// Where the configuration comes from.
    pub(super) sources: Sources,
    /// What the process started with.
    pub(super) settings: Settings,
    /// What was accepted last by an earlier process, when the start had to heed it.
    pub(super) accepted: Option<Outline>,
    /// Follows the file from what it held before it was read.
    pub(super) watch: Option<FileWatch>,
    /// Where generations are put in force.
    pub(super) generations: Arc<Generations>,
    /// Logs and traces.
    pub(super) telemetry: Telemetry,
    /// The socket of kube-apiserver.
    pub(super) socket: SocketControl,
    /// The port of people and load balancers.
    pub(super) admin: AdminPort,
    /// Who hears what becomes of it.
    pub(super) told: Told,
}

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// Something is wrong with the configuration, or with what it names.
    #[error("{}", one_line(.0))]
    Refused(Problems),
    /// A bug.
    #[error("the attempt panicked; please report this bug")]
    Panicked,
}

/// What has been taken into use.
struct Reloaded {
    generation: u64,
    changes: Vec<String>,
    written: Option<Written>,
}

struct Work {
    parts: Parts,
    watch: Option<FileWatch>,
    /// Whether another content of the file is a reload.
    is_watching: bool,
    jitter: Arc<Jitter>,
    /// What an earlier process knew, and generations of this one.
    remembered: State,
    state: Option<StateKeeper>,
    canaries: Option<OwnedTask>,
    built: u64,
}

// === impl Reloader ===

impl Reloader {
    /// Starts to build the first generation.
    pub(super) fn start(mut parts: Parts) -> Self {
        let requested = Arc::new(Notify::new());
        let folder = parts.settings.state_dir.clone();
        let remembered = folder.as_deref().map(State::read).unwrap_or_default();
        let state = folder.map(|folder| StateKeeper::start(folder, &remembered));
        let mut work = Work {
            watch: parts.watch.take(),
            is_watching: parts.settings.reload.watch,
            jitter: Arc::new(Jitter::from_entropy()),
            remembered,
            state: state.clone(),
            canaries: None,
            built: 0,
            parts,
        };
        let wake = Arc::clone(&requested);
        // It reads files, and a file system may hang.
        let task = OwnedTask::spawn_apart("reload", async move {
            work.first(&wake).await;
            loop {
                work.asked(&wake).await;
                work.reload().await;
            }
        });
        Self { requested, state, _task: task }
    }

    /// Builds nothing any more; what remains is the state, to be finished when the last call is.
    pub(super) fn stop(self) -> Option<StateKeeper> {
        self.state
    }

    /// Asks for a reload; returns at once.
    pub fn request(&self) {
        self.requested.notify_one();
    }
}

// === impl Work ===

impl Work {
    /// Waits until a reload is asked for: by a signal, or by another content of the file.
    async fn asked(&self, wake: &Notify) {
        let watched = async {
            match self.watch.as_ref().filter(|_| self.is_watching) {
                Some(watch) => watch.changed().await,
                None => future::pending().await,
            }
        };
        tokio::select! {
            () = wake.notified() => {}
            () = watched => tracing::info!("The configuration file holds something else."),
        }
    }

    /// Builds the first generation. What can fail here is a file that cannot be read: it
    /// is tried again until it can, or until a reload brings a better configuration.
    async fn first(&mut self, wake: &Notify) {
        let mut told = None;
        loop {
            match self.build(1, &self.parts.settings) {
                Ok(generation) => {
                    self.put_in_force(generation);
                    self.parts.told.started();
                    tracing::info!(generation = 1, "The configuration is in force.");
                    return;
                }
                Err(error) => {
                    let why = error.to_string();
                    if told.as_ref() != Some(&why) {
                        tracing::error!("The configuration cannot be put in force yet: {why}.");
                    }
                    self.parts.generations.explain_absence(why.clone());
                    told = Some(why);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(FIRST_BUILD_RETRY) => {}
                () = self.asked(wake) => {
                    self.reload().await;
                    if self.parts.generations.current().is_some() {
                        return;
                    }
                }
            }
        }
    }

    async fn reload(&mut self) {
        self.parts.told.reloading();
        let result = caught(self.try_reload()).await.unwrap_or_else(|()| {
            tell_panic("reload", "the running configuration stays");
            Err(ReloadError::Panicked)
        });
        match result {
            Ok(Reloaded { generation, changes, written }) => {
                self.ended(None);
                let changes = summary(&changes);
                tracing::info!(generation, changes, "Reloaded; the new configuration is in force.");
                self.parts.told.accepted(written);
            }
            Err(error) => {
                self.ended(Some(error.to_string()));
                tracing::error!("Reload failed; the running configuration stays: {error}");
                self.parts.told.refused(&error);
            }
        }
    }

    /// Tells how a reload has ended to whoever asks later; the log comes after it.
    #[allow(clippy::cast_precision_loss)] // seconds since 1970 are exact in an f64
    fn ended(&self, refused: Option<String>) {
        let result = if refused.is_none() { "ok" } else { "failed" };
        metrics::add(Metric::Reloads, 1, &[KeyValue::new("result", result)]);
        metrics::set(Metric::LastReloadOk, f64::from(u8::from(refused.is_none())), &[]);
        if refused.is_none() {
            metrics::set(Metric::LastReload, node_time().0 as f64, &[]);
        }
        self.parts.generations.reloaded(refused);
    }

    async fn try_reload(&mut self) -> Result<Reloaded, ReloadError> {
        if let Some(watch) = &mut self.watch {
            watch.note().await;
        }
        let Loaded { settings, warnings, written, places } =
            load::load(&self.parts.sources).map_err(ReloadError::Refused)?;
        for warning in &warnings {
            tracing::warn!("{}", warning.one_line());
        }
        let asked = Asked { settings: &settings, places: &places };
        let (generations, telemetry) = (&self.parts.generations, &self.parts.telemetry);
        let accepted = self.parts.accepted.as_ref();
        let running = generations.current();
        let wanted = Outline::of(&settings);
        let before = running.as_ref().map(|running| running.outline());
        let heeded = before.or(accepted);
        unless_any(asked.forbidden(generations.started_with(), heeded, &wanted))?;

        let number = self.built + 1;
        let next = self.build(number, &settings).map_err(|e| refuse(asked.not_built(&e)))?;
        if let Some(running) = &running {
            let deadline = Deadline::after(settings.reload.timeout);
            if let Err(missing) = next.ready(deadline, settings.reload.strict).await {
                if running.encrypts(Deadline::after(RUNNING_WITHIN)).await {
                    let problems = missing.iter().map(|e| asked.not_ready(e)).collect();
                    return Err(ReloadError::Refused(Problems::new(problems)));
                }
                for why in missing {
                    tracing::warn!(
                        "The new configuration does not answer, but the running one cannot \
                         encrypt either, so the new one takes over: {why}."
                    );
                }
            }
        }
        if let Some(running) = &running {
            let others = next.other_keys(running, &settings.reload.retired).await;
            unless_any(others.iter().map(|e| asked.not_ready(e)).collect())?;
        }
        check_filter(&settings.log.filter).map_err(|e| refuse(asked.no_log(&e)))?;
        let port = self.parts.admin.prepare(settings.admin).await;
        let port = port.map_err(|e| refuse(asked.no_port(&e)))?;
        let patience = settings.reload.timeout.min(LOCK_PATIENCE);
        let moved = self.parts.socket.prepare(&settings.socket, patience).await;
        let moved = moved.map_err(|e| refuse(asked.no_socket(&e)))?;
        let traces = telemetry.traces().apply(settings.traces.as_ref());
        traces.map_err(|e| refuse(asked.no_traces(&e)))?;

        // Nothing fails from here on: the filter has been looked at.
        telemetry.logs().apply(&settings.log).map_err(|e| refuse(asked.no_log(&e)))?;
        if let Some(port) = port {
            self.parts.admin.commit(port);
        }
        self.parts.socket.commit(moved).await;
        self.is_watching = settings.reload.watch;
        let changes = before.map(|before| change::differences(before, &wanted));
        self.put_in_force(next);
        Ok(Reloaded { generation: number, changes: changes.unwrap_or_default(), written })
    }

    fn build(&self, number: u64, settings: &Settings) -> Result<Generation, BuildError> {
        let running = self.parts.generations.current();
        Generation::build(number, settings, running.as_deref(), &self.remembered, &self.jitter)
    }

    fn put_in_force(&mut self, next: Generation) {
        self.built = next.number();
        if let Some(running) = self.parts.generations.current() {
            // What it learnt of a KEK that `next` does not have is for whoever puts it back.
            self.remembered.take_in(&running.memories());
        }
        if let Some(state) = &self.state {
            state.follow(next.memories());
            self.canaries = Some(state.keep_canaries(next.canaries()));
        }
        self.parts.generations.swap(Arc::new(next));
    }
}

fn refuse(problem: Problem) -> ReloadError {
    ReloadError::Refused(Problems::new(vec![problem]))
}

fn unless_any(problems: Vec<Problem>) -> Result<(), ReloadError> {
    if problems.is_empty() { Ok(()) } else { Err(ReloadError::Refused(Problems::new(problems))) }
}

/// The errors among `problems`, for one line of the log.
pub(super) fn one_line(problems: &Problems) -> String {
    let errors = problems.iter().filter(|problem| problem.is_error());
    errors.map(Problem::one_line).collect::<Vec<_>>().join(" ")
}

/// What has changed, for one line of the log.
fn summary(changes: &[String]) -> String {
    if changes.is_empty() {
        return "none".to_owned();
    }
    let mut all = changes.join("; ");
    if let Some((end, _)) = all.char_indices().nth(LONGEST_SUMMARY) {
        all.truncate(end);
        all.push('…');
    }
    all
}
