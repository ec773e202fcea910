//! What the daemon tells about itself: logs, traces, metrics.
//!
//! [`install`] sets all three up, once for the process. Nothing here is needed for a call
//! to be answered, and nothing here may hold one up: log lines and spans go through
//! bounded queues to threads of their own, and what does not fit is lost and counted.
//!
//! Without [`install`] every function is a no-op, which is how unit tests run.

pub mod logs;
pub mod metrics;
pub mod traces;

use std::sync::{Mutex, OnceLock, PoisonError};

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;
use tracing_subscriber::layer::SubscriberExt;

use crate::clock::Deadline;
use crate::config::settings::{LogSettings, TraceSettings};

pub use logs::LogControl;
pub use metrics::PrometheusText;
pub use traces::TraceControl;

/// `service.name` in traces and metrics.
pub(crate) const SERVICE: &str = "vault-kms-proxy";

/// The handles to what [`install`] set up.
#[derive(Clone, Debug)]
pub struct Telemetry {
    logs: LogControl,
    traces: TraceControl,
    prometheus: PrometheusText,
}

/// Why telemetry could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The log filter cannot be read.
    #[error(transparent)]
    Filter(#[from] logs::InvalidFilter),
    /// Something else in this process receives `tracing` events already.
    #[error("this process has another tracing subscriber already; install telemetry first")]
    SubscriberTaken,
    /// The thread that writes log lines could not be started.
    #[error("the thread that writes log lines could not be started: {0}")]
    Thread(#[from] std::io::Error),
    /// The metrics could not be set up.
    #[error("metrics could not be set up: {0}")]
    Metrics(String),
}

/// What is set up once and then only adjusted.
static INSTALLED: OnceLock<Telemetry> = OnceLock::new();
/// Only one [`install`] at a time.
static INSTALLING: Mutex<()> = Mutex::new(());
/// Only one change of filters at a time.
static REFILTERING: Mutex<()> = Mutex::new(());

/// Sets up logs, metrics and, if there are settings for them, traces. A second call
/// adjusts what the first one set up.
///
/// A receiver of traces that cannot be used is logged and leaves traces off: it must not
/// keep the daemon from starting. Call it inside the tokio runtime when traces are on, and
/// [`Telemetry::shutdown`] before the process ends, or its last lines may be lost.
///
/// # Errors
/// When the filter cannot be read, or the process has a `tracing` subscriber already.
pub fn install(
    log: &LogSettings,
    traces: Option<&TraceSettings>,
) -> Result<Telemetry, TelemetryError> {
    let _one = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
    let telemetry = match INSTALLED.get() {
        Some(telemetry) => {
            telemetry.logs.apply(log)?;
            telemetry.clone()
        }
        None => {
            let prometheus = metrics::install().map_err(TelemetryError::Metrics)?;
            let (log_layer, logs) = logs::stderr(log)?;
            let (trace_layer, traces) = traces::layer();
            let subscriber = tracing_subscriber::registry().with(trace_layer).with(log_layer);
            tracing::subscriber::set_global_default(subscriber)
                .map_err(|_| TelemetryError::SubscriberTaken)?;
            INSTALLED.get_or_init(|| Telemetry { logs, traces, prometheus }).clone()
        }
    };
    if let Err(error) = telemetry.traces.apply(traces) {
        tracing::warn!(%error, "Traces are off.");
    }
    Ok(telemetry)
}

/// Sends panics to the log, in its format. A message that was put together at run time may
/// quote what it was put together from, so only a literal one is shown beside the place.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let words =
            panic.payload().downcast_ref::<&'static str>().copied().unwrap_or("(not shown)");
        tracing::error!(place, words, "A panic. Please report this bug.");
    }));
}

/// Changes what a filter answers, and has every place in the code that logs or makes spans
/// ask it again. `tracing` remembers the answers; two changes at once could leave it with
/// those from before either.
fn refilter(change: impl FnOnce()) {
    let _one = REFILTERING.lock().unwrap_or_else(PoisonError::into_inner);
    change();
    tracing::callsite::rebuild_interest_cache();
}

/// Who we are, in traces and metrics.
fn resource() -> &'static Resource {
    static RESOURCE: OnceLock<Resource> = OnceLock::new();
    RESOURCE.get_or_init(|| {
        let instance = format!("{:032x}", rand::random::<u128>());
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Resource::builder()
            .with_service_name(SERVICE)
            .with_attributes([
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", instance),
                KeyValue::new("host.name", host),
            ])
            .build()
    })
}

// === impl Telemetry ===

impl Telemetry {
    /// Changes what is logged and how.
    pub const fn logs(&self) -> &LogControl {
        &self.logs
    }

    /// Changes where traces go.
    pub const fn traces(&self) -> &TraceControl {
        &self.traces
    }

    /// The metrics as `/metrics` shows them.
    pub const fn prometheus(&self) -> &PrometheusText {
        &self.prometheus
    }

    /// Hands the last spans to the receiver and the last lines to stderr, or gives up at
    /// `deadline`.
    pub async fn shutdown(self, deadline: Deadline) {
        self.traces.shutdown(deadline).await;
        self.logs.flush(deadline).await;
    }
}
