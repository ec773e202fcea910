//! Traces: from kube-apiserver's call to each attempt, over OTLP.
//!
//! The layer that turns `tracing` spans into OpenTelemetry's is there from the start;
//! whether it does anything, and where it sends, is decided by [`TraceControl::apply`], at
//! start and at every reload: traces can be switched on, off and elsewhere while calls
//! run. While they are off a span is not even made.
//!
//! Only this crate's spans are traced. Finished ones wait in a bounded queue for a thread
//! that sends them.

mod exporter;
mod spans;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use opentelemetry::Context as OtelContext;
use opentelemetry::trace::{SpanBuilder, Tracer, TracerProvider};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata, Subscriber};
use tracing_opentelemetry::OpenTelemetryLayer;
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, Filter};
use tracing_subscriber::registry::LookupSpan;

use crate::clock::Deadline;
use crate::config::settings::TraceSettings;

pub use spans::{accept_parent, inject, record_grpc_status, server_span};

/// How long the spans of a receiver that is left may take to reach it.
const FAREWELL: Duration = Duration::from_secs(5);

/// Changes where traces go, while the process runs.
#[derive(Clone, Debug)]
pub struct TraceControl {
    switch: Arc<Switch>,
    running: Arc<Mutex<Option<Running>>>,
}

/// Why traces cannot be sent as the settings say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("traces cannot be sent to {endpoint}: {why}")]
pub struct TraceError {
    /// The receiver, without credentials.
    pub endpoint: String,
    /// What is wrong and what to do.
    pub why: String,
}

#[derive(Debug)]
struct Running {
    settings: TraceSettings,
    provider: SdkTracerProvider,
}

/// A tracer that can be exchanged while spans are open. It is also the filter that keeps
/// spans from being made while there is nobody to send them to.
#[derive(Debug)]
struct Switch {
    on: AtomicBool,
    tracer: ArcSwap<SdkTracer>,
}

/// The layer, switched off, and its control.
pub(super) fn layer<S>() -> (impl Layer<S> + Send + Sync + 'static, TraceControl)
where
    S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
{
    // It does nothing for a call that brings no traceparent.
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let nothing = SdkTracerProvider::builder().with_sampler(Sampler::AlwaysOff).build();
    let switch = Arc::new(Switch {
        on: AtomicBool::new(false),
        tracer: ArcSwap::from_pointee(nothing.tracer(super::SERVICE)),
    });
    let layer = OpenTelemetryLayer::new(SwitchTracer(Arc::clone(&switch)))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(SwitchFilter(Arc::clone(&switch)));
    (layer, TraceControl { switch, running: Arc::default() })
}

struct SwitchTracer(Arc<Switch>);
struct SwitchFilter(Arc<Switch>);

// === impl TraceControl ===

impl TraceControl {
    /// Sends traces as `settings` say from now on; `None` switches them off. What the
    /// receiver so far has not got yet is still sent to it, in the background.
    ///
    /// Must be called inside the tokio runtime.
    ///
    /// # Errors
    /// When the settings cannot be used; then traces go on as before. A receiver that does
    /// not answer is no error: it may come later.
    pub fn apply(&self, settings: Option<&TraceSettings>) -> Result<(), TraceError> {
        let mut running = self.running();
        if running.as_ref().map(|r| &r.settings) == settings {
            return Ok(());
        }
        let next = match settings {
            Some(settings) => {
                Some(Running { settings: settings.clone(), provider: exporter::start(settings)? })
            }
            None => None,
        };
        if let Some(next) = &next {
            self.switch.tracer.store(Arc::new(next.provider.tracer(super::SERVICE)));
        }
        self.switch.turn(next.is_some());
        if let Some(last) = std::mem::replace(&mut *running, next) {
            // Its own thread, because it waits; it ends with FAREWELL.
            let farewell = move || drop(last.provider.shutdown_with_timeout(FAREWELL));
            drop(std::thread::Builder::new().name("traces-farewell".to_owned()).spawn(farewell));
        }
        Ok(())
    }

    /// Switches traces off and sends what is left, or gives up at `deadline`.
    pub async fn shutdown(&self, deadline: Deadline) {
        let last = self.running().take();
        let Some(last) = last else { return };
        self.switch.turn(false);
        // It blocks until the thread that sends has ended, which over gRPC needs this runtime.
        let farewell = tokio::task::spawn_blocking(move || {
            last.provider.shutdown_with_timeout(deadline.remaining())
        });
        match tokio::time::timeout_at(deadline.instant(), farewell).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "The last spans were not sent."),
            Ok(Err(error)) => tracing::warn!(%error, "The last spans were not sent."),
            Err(_) => tracing::warn!("The last spans were not sent in time."),
        }
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Switch ===

impl Switch {
    fn turn(&self, on: bool) {
        super::refilter(|| self.on.store(on, Ordering::Release));
    }

    /// Our own spans, and what is logged inside them at info or above.
    fn takes(&self, metadata: &Metadata<'_>) -> bool {
        let finest = if metadata.is_span() { Level::DEBUG } else { Level::INFO };
        self.on.load(Ordering::Acquire)
            && metadata.level() <= &finest
            && metadata.target().starts_with("vault_kms_proxy")
    }
}

// === impl SwitchTracer ===

impl Tracer for SwitchTracer {
    type Span = Span;

    fn build_with_context(&self, builder: SpanBuilder, parent: &OtelContext) -> Span {
        self.0.tracer.load().build_with_context(builder, parent)
    }
}

// === impl SwitchFilter ===

impl<S> Filter<S> for SwitchFilter {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.0.takes(metadata)
    }

    /// Remembered for each place in the code; [`Switch::turn`] has it asked again.
    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.0.takes(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let on = self.0.on.load(Ordering::Acquire);
        Some(if on { LevelFilter::DEBUG } else { LevelFilter::OFF })
    }
}

#[cfg(test)]
mod tests;
