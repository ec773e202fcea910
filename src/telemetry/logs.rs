//! Log lines: one event, one line, on stderr, as text or as JSON.
//!
//! A call never waits for a log line. Stderr is a pipe to journald or to the container
//! runtime, and a reader that stalls would stall every caller that logs. So lines go
//! through a bounded queue to one thread that writes them; when the queue is full the
//! line is lost, counted, and the loss is told in a line of its own once there is room.

mod line;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer, reload};

use crate::clock::Deadline;
use crate::config::settings::{LogFormat, LogSettings};

use writer::LineQueue;

/// Changes what is logged and how, while the process runs.
#[derive(Clone)]
pub struct LogControl {
    set_filter: Arc<dyn Fn(EnvFilter) + Send + Sync>,
    json: Arc<AtomicBool>,
    lines: LineQueue,
}

/// A log filter that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the log filter `{filter}` cannot be read: {why}; write a level (error, warn, info, \
     debug, trace) or a list such as `info,vault_kms_proxy::cluster=debug`"
)]
pub struct InvalidFilter {
    filter: String,
    why: String,
}

/// Turns events into lines.
struct LogLayer {
    json: Arc<AtomicBool>,
    lines: LineQueue,
}

/// Whether `filter` can be used, for the check of a configuration.
///
/// # Errors
/// When it cannot be read.
pub fn check_filter(filter: &str) -> Result<(), InvalidFilter> {
    parse_filter(filter).map(|_| ())
}

/// A layer that writes to stderr, and its control.
pub(super) fn stderr<S>(
    settings: &LogSettings,
) -> Result<(impl Layer<S> + Send + Sync + 'static, LogControl), super::TelemetryError>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let filter = parse_filter(&settings.filter)?;
    let lines = LineQueue::start(std::io::stderr())?;
    Ok(layer(filter, settings.format, lines))
}

fn layer<S>(
    filter: EnvFilter,
    format: LogFormat,
    lines: LineQueue,
) -> (impl Layer<S> + Send + Sync + 'static, LogControl)
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let json = Arc::new(AtomicBool::new(format == LogFormat::Json));
    let (filter, handle) = reload::Layer::<EnvFilter, S>::new(filter);
    let control = LogControl {
        // The only error is that the subscriber is gone, and then nobody logs.
        set_filter: Arc::new(move |filter| drop(handle.reload(filter))),
        json: Arc::clone(&json),
        lines: lines.clone(),
    };
    // Spans are the traces' business: while those are off, a span costs one load.
    let events_only = filter_fn(|metadata| metadata.is_event());
    (LogLayer { json, lines }.with_filter(filter.and(events_only)), control)
}

/// Reads a filter. A level that stands alone is ours: other crates stay at `warn`, because
/// their lower levels speak of frames and headers, and OpenTelemetry's own complaints,
/// which [`super::traces`] sums up, stay out. A filter that names a crate gets it.
fn parse_filter(text: &str) -> Result<EnvFilter, InvalidFilter> {
    let ours = text.split(',').map(str::trim).map(|directive| {
        if directive.parse::<LevelFilter>().is_ok() {
            format!("vault_kms_proxy={directive}")
        } else {
            directive.to_owned()
        }
    });
    let all = ["warn".to_owned(), "opentelemetry=off".to_owned()].into_iter().chain(ours);
    let invalid = |why: String| InvalidFilter { filter: text.to_owned(), why };
    if text.trim().is_empty() {
        return Err(invalid("it is empty".to_owned()));
    }
    EnvFilter::builder()
        .parse(all.collect::<Vec<_>>().join(","))
        .map_err(|e| invalid(e.to_string()))
}

// === impl LogControl ===

impl LogControl {
    /// Takes new settings into use; both the filter and the format change at once.
    ///
    /// # Errors
    /// When the filter cannot be read; then nothing changes.
    pub fn apply(&self, settings: &LogSettings) -> Result<(), InvalidFilter> {
        let filter = parse_filter(&settings.filter)?;
        self.json.store(settings.format == LogFormat::Json, Ordering::Relaxed);
        super::refilter(|| (self.set_filter)(filter));
        Ok(())
    }

    /// Waits until the lines that were logged so far are written, or until `deadline`.
    pub async fn flush(&self, deadline: Deadline) {
        self.lines.flush(deadline).await;
    }
}

impl std::fmt::Debug for LogControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogControl").field("json", &self.json).finish_non_exhaustive()
    }
}

// === impl LogLayer ===

impl<S: Subscriber> Layer<S> for LogLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line =
            if self.json.load(Ordering::Relaxed) { line::json(event) } else { line::text(event) };
        self.lines.push(line);
    }
}

#[cfg(test)]
mod tests;
