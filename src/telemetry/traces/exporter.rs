//! The way of a finished span: into a bounded queue, from there in batches to the receiver.
//!
//! The SDK's batch processor has the queue and the thread. Around it stand a gate that
//! counts what it would drop in silence, and an exporter that tells once that the receiver
//! is away and once that it is back, however many batches fail in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::Uri;
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{
    Protocol, SpanExporter as OtlpExporter, WithExportConfig, WithHttpConfig, WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, Span, SpanData,
    SpanExporter, SpanProcessor,
};
use tonic::transport::ClientTlsConfig;

use super::TraceError;
use crate::config::settings::{OtlpProtocol, TraceSettings};
use crate::telemetry::metrics::{Metric, add};

/// Finished spans that may wait, about 2 MiB of them; a receiver that is away costs no more.
const WAITING_SPANS: usize = 2_048;
/// Spans in one request.
const BATCH: usize = 512;
/// How long a span waits for others.
const BATCH_DELAY: Duration = Duration::from_secs(2);
/// One export, repeats included.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Drops and counts spans while too many wait.
#[derive(Debug)]
struct Gate {
    inner: BatchSpanProcessor,
    waiting: Arc<AtomicUsize>,
}

/// Tells how exports go.
#[derive(Debug)]
struct Reporter<E> {
    inner: E,
    waiting: Arc<AtomicUsize>,
    endpoint: Uri,
    failing: AtomicBool,
}

/// Starts the thread that sends spans; it connects when there are any.
pub(super) fn start(settings: &TraceSettings) -> Result<SdkTracerProvider, TraceError> {
    let inner = otlp(settings)?;
    let waiting = Arc::new(AtomicUsize::new(0));
    let reporter = Reporter {
        inner,
        waiting: Arc::clone(&waiting),
        endpoint: settings.endpoint.clone(),
        failing: AtomicBool::new(false),
    };
    let config = BatchConfigBuilder::default()
        .with_max_queue_size(WAITING_SPANS)
        .with_max_export_batch_size(BATCH)
        .with_scheduled_delay(BATCH_DELAY)
        .build();
    let inner = BatchSpanProcessor::builder(reporter).with_batch_config(config).build();
    let by_ratio = Sampler::TraceIdRatioBased(settings.sample_ratio);
    Ok(SdkTracerProvider::builder()
        .with_span_processor(Gate { inner, waiting })
        .with_sampler(Sampler::ParentBased(Box::new(by_ratio)))
        .with_resource(crate::telemetry::resource().clone())
        .build())
}

/// The exporter that speaks OTLP.
fn otlp(settings: &TraceSettings) -> Result<OtlpExporter, TraceError> {
    let TraceSettings { endpoint, protocol, .. } = settings;
    if endpoint.authority().is_some_and(|a| a.as_str().contains('@')) {
        return Err(TraceError {
            endpoint: format!("the receiver at {}", endpoint.host().unwrap_or_default()),
            why: "the endpoint holds credentials, which would show in logs; \
                  put them into OTEL_EXPORTER_OTLP_HEADERS"
                .to_owned(),
        });
    }
    let failed = |why: String| TraceError { endpoint: endpoint.to_string(), why };
    let secure = match endpoint.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(failed("the endpoint must begin with http:// or https://".to_owned())),
    };
    // Both clients take the process's provider; it is the same one wherever it is installed.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match protocol {
        OtlpProtocol::Grpc => {
            if tokio::runtime::Handle::try_current().is_err() {
                return Err(failed("gRPC needs the async runtime".to_owned()));
            }
            let builder = OtlpExporter::builder()
                .with_tonic()
                .with_endpoint(endpoint.to_string())
                .with_timeout(EXPORT_TIMEOUT);
            let builder = if secure {
                builder.with_tls_config(ClientTlsConfig::new().with_native_roots())
            } else {
                builder
            };
            builder.build().map_err(|e| failed(with_causes(&e)))
        }
        OtlpProtocol::Http => OtlpExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint.to_string())
            .with_timeout(EXPORT_TIMEOUT)
            .with_http_client(http_client(secure).map_err(failed)?)
            .build()
            .map_err(|e| failed(with_causes(&e))),
    }
}

/// A blocking client, for the batch processor's own thread. It must not be made on a
/// thread of the async runtime either.
fn http_client(secure: bool) -> Result<reqwest::blocking::Client, String> {
    let build = move || {
        let builder = reqwest::blocking::Client::builder()
            .timeout(EXPORT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never());
        // Without TLS, a machine without CA certificates is no obstacle.
        let builder = if secure { builder } else { builder.tls_certs_only([]) };
        builder.build().map_err(|e| with_causes(&e))
    };
    let thread = std::thread::Builder::new().name("traces-http".to_owned()).spawn(build);
    match thread.map(std::thread::JoinHandle::join) {
        Ok(Ok(client)) => client,
        Ok(Err(_)) => Err("the HTTP client could not be made".to_owned()),
        Err(error) => Err(format!("no thread for the HTTP client: {error}")),
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

fn lost(spans: usize, reason: &'static str) {
    let spans = i64::try_from(spans).unwrap_or(i64::MAX);
    add(Metric::SpansLost, spans, &[KeyValue::new("reason", reason)]);
}

// === impl Gate ===

impl SpanProcessor for Gate {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        if self.waiting.fetch_add(1, Ordering::AcqRel) < WAITING_SPANS {
            self.inner.on_end(span);
        } else {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            lost(1, "queue_full");
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

// === impl Reporter ===

impl<E: SpanExporter> SpanExporter for Reporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.inner.export(batch).await;
        self.waiting.fetch_sub(spans, Ordering::AcqRel);
        let endpoint = &self.endpoint;
        match &result {
            Ok(()) => {
                add(Metric::SpansExported, i64::try_from(spans).unwrap_or(i64::MAX), &[]);
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!(%endpoint, "Traces are exported again.");
                }
            }
            Err(error) => {
                lost(spans, "export_failed");
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        %endpoint, %error,
                        "Traces cannot be exported; spans are lost until the receiver answers."
                    );
                }
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_cannot_be_used_is_refused_and_its_password_stays_unsaid() {
        let refuse = |endpoint: &str, protocol| {
            let endpoint = endpoint.parse().unwrap();
            let settings = TraceSettings { endpoint, protocol, sample_ratio: 1.0 };
            otlp(&settings).unwrap_err().to_string()
        };
        let said = refuse("https://me:hunter2@otel:4317", OtlpProtocol::Grpc);
        assert!(said.contains("OTEL_EXPORTER_OTLP_HEADERS") && !said.contains("hunter2"), "{said}");
        let said = refuse("otel:4317", OtlpProtocol::Http);
        assert!(said.contains("http:// or https://"), "{said}");
        let said = refuse("http://otel:4317", OtlpProtocol::Grpc);
        assert!(said.contains("runtime"), "{said}");
    }
}
