//! Every metric, in one table, and the three ways to move one.
//!
//! Names follow OpenTelemetry's rules. The instruments come from OpenTelemetry's meter
//! API, so that one call serves every exporter; `/metrics` is the first of them, through
//! `opentelemetry-prometheus`, which turns `a.b.c` with unit `s` into `a_b_c_seconds` and
//! a counter's name into one that ends in `_total`.
//!
//! Until [`install`] has run, moving a metric does nothing. After it, a call costs one
//! look-up by label values in the SDK; an instrument keeps at most 2,000 combinations of
//! them (the SDK's limit) and counts the rest under `otel_metric_overflow`.

use std::sync::OnceLock;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter, MeterProvider, UpDownCounter};
use opentelemetry_sdk::metrics::SdkMeterProvider;

/// What a metric is called and how it behaves.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// The name, in OpenTelemetry's form.
    pub name: &'static str,
    /// The unit, in UCUM; `{things}` for a plain number of things.
    pub unit: &'static str,
    /// What is measured.
    pub description: &'static str,
    /// How it moves.
    pub kind: Kind,
    /// The labels that its values carry.
    pub labels: &'static [&'static str],
}

/// How a metric moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only up, with [`add`].
    Counter,
    /// Up and down, with [`add`].
    UpDownCounter,
    /// Values in buckets with these upper bounds, with [`record`].
    Histogram(&'static [f64]),
    /// The latest value, with [`set`].
    Gauge,
}

/// 0.1 ms to 5 s: from an answer out of memory to past the longest deadline of a call.
const SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
];

/// A call that takes more attempts than this is a storm, whatever their exact number.
const ATTEMPTS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 6.0, 8.0];

/// Up to the most that one request carries.
const SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 190.0];

/// Makes the enum and its table from the same rows, so that neither can lack one.
macro_rules! metrics {
    ($(
        $(#[doc = $doc:literal])+
        $variant:ident = $kind:expr, $name:literal, $unit:literal, [$($label:literal),*];
    )+) => {
        /// Every metric of the daemon.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Metric {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Metric {
            /// All of them, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its row of the table.
            pub const fn describe(self) -> Description {
                match self {
                    $(Self::$variant => Description {
                        name: $name,
                        unit: $unit,
                        description: concat!($($doc),+).trim_ascii(),
                        kind: $kind,
                        labels: &[$($label),*],
                    },)+
                }
            }
        }
    };
}

metrics! {
    /// How long kube-apiserver's calls took.
    CallDuration = Kind::Histogram(SECONDS), "rpc.server.call.duration", "s",
        ["rpc.method", "api", "rpc.grpc.status_code"];
    /// Calls of kube-apiserver in flight.
    CallsInFlight = Kind::UpDownCounter, "vault_kms_proxy.calls.in_flight", "{call}", ["api"];
    /// How long single requests to Vault took.
    AttemptDuration = Kind::Histogram(SECONDS), "vault_kms_proxy.attempt.duration", "s",
        ["cluster", "server.address", "verb", "reason", "outcome"];
    /// Requests to Vault that one call took.
    AttemptsPerCall = Kind::Histogram(ATTEMPTS), "vault_kms_proxy.call.attempts", "{attempt}",
        ["cluster", "verb"];
    /// Attempts that joined one that stayed silent.
    Hedges = Kind::Counter, "vault_kms_proxy.hedges", "{attempt}", ["cluster"];
    /// Attempts that the retry budget refused.
    RetriesRefused = Kind::Counter, "vault_kms_proxy.retries.refused", "{attempt}", ["cluster"];
    /// Each address's breaker: 0 closed, 1 half-open, 2 open.
    BreakerState = Kind::Gauge, "vault_kms_proxy.breaker.state", "{state}",
        ["cluster", "server.address"];
    /// Logins to Vault.
    Logins = Kind::Counter, "vault_kms_proxy.logins", "{login}", ["cluster", "method", "result"];
    /// The token's time to live when it was last learnt.
    TokenTtl = Kind::Gauge, "vault_kms_proxy.token.ttl", "s", ["cluster"];
    /// When the last good login was, rehearsed ones included, in seconds since 1970.
    LastLogin = Kind::Gauge, "vault_kms_proxy.login.last_success", "s", ["cluster"];
    /// The version of the KEK that encrypts.
    ActiveKeyVersion = Kind::Gauge, "vault_kms_proxy.kek.active_version", "{version}", ["kek"];
    /// When the KEK was last proven to work, by canary or by real traffic, in seconds since 1970.
    LastProof = Kind::Gauge, "vault_kms_proxy.kek.last_proof", "s", ["kek"];
    /// Reloads of the configuration.
    Reloads = Kind::Counter, "vault_kms_proxy.reloads", "{reload}", ["result"];
    /// Panics that were caught, in calls and in long-lived tasks.
    Panics = Kind::Counter, "vault_kms_proxy.panics", "{panic}", [];
    /// `:authority` values that were rewritten so that HTTP/2 accepts them.
    AuthoritiesRewritten = Kind::Counter, "vault_kms_proxy.authorities.rewritten", "{header}", [];
    /// Peers of the socket that were refused because of their uid.
    PeersRefused = Kind::Counter, "vault_kms_proxy.peers.refused", "{connection}", [];
    /// Reads of a KEK's metadata.
    MetadataReads = Kind::Counter, "vault_kms_proxy.kek.metadata_reads", "{read}",
        ["kek", "result"];
    /// Spans that the OTLP receiver took.
    SpansExported = Kind::Counter, "vault_kms_proxy.spans.exported", "{span}", [];
    /// Spans that were lost: `queue_full` or `export_failed`.
    SpansLost = Kind::Counter, "vault_kms_proxy.spans.lost", "{span}", ["reason"];
    /// Log lines that were lost because stderr took no more.
    LogLinesLost = Kind::Counter, "vault_kms_proxy.log.lines.lost", "{line}", [];
    /// Questions for a configured name that DNS did not answer, or not with an address.
    NameFailures = Kind::Counter, "vault_kms_proxy.name.failures", "{question}",
        ["cluster", "name"];
    /// When a configured name was last resolved, in seconds since 1970.
    NameResolved = Kind::Gauge, "vault_kms_proxy.name.last_success", "s", ["cluster", "name"];
    /// Times that an address's breaker opened, and why.
    BreakerOpenings = Kind::Counter, "vault_kms_proxy.breaker.openings", "{opening}",
        ["cluster", "server.address", "reason"];
    /// Each address's role: 0 unknown, 1 active, 2 standby, 3 performance standby, 4 sealed,
    /// 5 not initialised, 6 disaster recovery secondary, 7 removed from its cluster.
    AddressRole = Kind::Gauge, "vault_kms_proxy.address.role", "{role}",
        ["cluster", "server.address"];
    /// Health checks of each address: `good`, `bad`, or `silent` when no answer came in time.
    Probes = Kind::Counter, "vault_kms_proxy.probes", "{probe}",
        ["cluster", "server.address", "result"];
    /// Logins that were only rehearsed: `ok`, `refused`, `unreachable`, or `skipped` because
    /// they would have cost something.
    LoginRehearsals = Kind::Counter, "vault_kms_proxy.logins.rehearsed", "{login}",
        ["cluster", "method", "result"];
    /// Calls that wait because no address of the cluster is usable, or because the budget
    /// has no repeat left for them.
    CallsParked = Kind::UpDownCounter, "vault_kms_proxy.calls.parked", "{call}", ["cluster"];
    /// Attempts that the budget has left: `retry` or `hedge`.
    BudgetLeft = Kind::Gauge, "vault_kms_proxy.budget.left", "{attempt}", ["cluster", "reason"];
    /// What each cluster of a KEK in several clusters encrypted and decrypted.
    TierCalls = Kind::Counter, "vault_kms_proxy.kek.tier_calls", "{call}",
        ["kek", "cluster", "verb"];
    /// Whether a replica is proven for the newest version of the KEK, so that it may encrypt: 1 or 0.
    ReplicaProven = Kind::Gauge, "vault_kms_proxy.kek.replica_proven", "{state}",
        ["kek", "cluster"];
    /// Certificates and authorities that changed on disk: taken into use (`ok`), of no use
    /// (`failed`), accepted by no address (`refused`), or tried for a minute while no address
    /// answered (`waiting`), so that those read before stay.
    TlsReloads = Kind::Counter, "vault_kms_proxy.tls.reloads", "{reload}", ["cluster", "result"];
    /// Whether the last accepted configuration runs because the file could not be used at the
    /// start, or a reload would refuse it: 1 or 0.
    ConfigFallback = Kind::Gauge, "vault_kms_proxy.config.fallback", "{state}", [];
    /// Whether the last reload took the configuration into use: 1, or 0 when it was refused.
    LastReloadOk = Kind::Gauge, "vault_kms_proxy.reload.last_ok", "{state}", [];
    /// When a reload last took a configuration into use, in seconds since 1970.
    LastReload = Kind::Gauge, "vault_kms_proxy.reload.last_success", "s", [];
    /// Calls that one request to Vault carried; more than 1 where calls came together.
    BatchSize = Kind::Histogram(SIZES), "vault_kms_proxy.batch.size", "{call}",
        ["cluster", "verb"];
    /// How long calls waited for requests before them, those that had to.
    BatchWait = Kind::Histogram(SECONDS), "vault_kms_proxy.batch.wait", "s", ["cluster", "verb"];
    /// Calls that wait for a request before them.
    BatchQueued = Kind::UpDownCounter, "vault_kms_proxy.batch.queued", "{call}",
        ["cluster", "verb"];
    /// Times that a batch did not bring its calls their answers: `too_large` (it was cut),
    /// `refused`, `odd_answers`, `garbled`, `unacceptable` or `unproven` (calls then go one by
    /// one for a while), `stale` (asked of the active node), `crowded` (a call was turned away),
    /// `panic`.
    BatchFallbacks = Kind::Counter, "vault_kms_proxy.batch.fallbacks", "{fallback}",
        ["cluster", "verb", "reason"];
}

/// The text form of all metrics.
#[derive(Clone, Debug)]
pub struct PrometheusText {
    registry: prometheus::Registry,
}

/// One instrument for each metric.
struct Instruments {
    by_metric: Vec<Instrument>,
    _provider: SdkMeterProvider,
}

enum Instrument {
    Counter(Counter<u64>),
    UpDownCounter(UpDownCounter<i64>),
    Histogram(Histogram<f64>),
    Gauge(Gauge<f64>),
}

static INSTALLED: OnceLock<(Instruments, PrometheusText)> = OnceLock::new();

/// Adds to a counter or up-down counter; a counter takes no negative value.
pub fn add(metric: Metric, value: i64, labels: &[KeyValue]) {
    if let Some((instruments, _)) = INSTALLED.get() {
        instruments.add(metric, value, labels);
    }
}

/// Records a value in a histogram.
pub fn record(metric: Metric, value: f64, labels: &[KeyValue]) {
    if let Some((instruments, _)) = INSTALLED.get() {
        instruments.record(metric, value, labels);
    }
}

/// Sets a gauge.
pub fn set(metric: Metric, value: f64, labels: &[KeyValue]) {
    if let Some((instruments, _)) = INSTALLED.get() {
        instruments.set(metric, value, labels);
    }
}

/// Makes the instruments, once for the process; later calls answer the same text.
///
/// # Errors
/// When the registry refuses the exporter.
pub fn install() -> Result<PrometheusText, String> {
    if let Some((_, text)) = INSTALLED.get() {
        return Ok(text.clone());
    }
    let made = Instruments::new()?;
    let (_, text) = INSTALLED.get_or_init(|| made);
    Ok(text.clone())
}

/// The table as `docs/metrics.md` shows it.
pub fn documentation() -> String {
    let mut text = String::from(
        "# Metrics\n\n\
         Generated from `src/telemetry/metrics.rs`; a test compares. After a change, run\n\
         `UPDATE_DOCS=1 cargo test --lib telemetry::metrics`.\n\n\
         `/metrics` serves them as Prometheus text under the second name; labels have `_`\n\
         where OpenTelemetry writes `.`. `target_info` carries the version and the host.\n\n\
         | OpenTelemetry | Prometheus | kind | unit | labels | what |\n\
         |---|---|---|---|---|---|\n",
    );
    for metric in Metric::ALL {
        let Description { name, unit, description, kind, labels } = metric.describe();
        let labels = labels.iter().map(|l| format!("`{l}`")).collect::<Vec<_>>().join(", ");
        let (prometheus, kind) = (metric.describe().prometheus_name(), kind.as_str());
        text.push_str(&format!(
            "| `{name}` | `{prometheus}` | {kind} | `{unit}` | {labels} | {description} |\n"
        ));
    }
    text
}

// === impl Description ===

impl Description {
    /// The name that the Prometheus exporter makes of it.
    pub fn prometheus_name(&self) -> String {
        let unit = if self.unit == "s" { "_seconds" } else { "" };
        let total = if self.kind == Kind::Counter { "_total" } else { "" };
        format!("{}{unit}{total}", self.name.replace('.', "_"))
    }
}

// === impl Kind ===

impl Kind {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::UpDownCounter => "up-down counter",
            Self::Histogram(_) => "histogram",
            Self::Gauge => "gauge",
        }
    }
}

// === impl PrometheusText ===

impl PrometheusText {
    /// The media type of [`Self::render`].
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// Every value as it stands now.
    ///
    /// # Errors
    /// When a value cannot be written, which takes a fault in the exporter.
    pub fn render(&self) -> Result<String, String> {
        let mut text = String::new();
        prometheus::TextEncoder::new()
            .encode_utf8(&self.registry.gather(), &mut text)
            .map_err(|e| e.to_string())?;
        Ok(text)
    }
}

// === impl Instruments ===

impl Instruments {
    fn new() -> Result<(Self, PrometheusText), String> {
        let registry = prometheus::Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false) // there is one scope: its labels say nothing
            .build()
            .map_err(|e| e.to_string())?;
        let provider = SdkMeterProvider::builder()
            .with_reader(exporter)
            .with_resource(super::resource().clone())
            .build();
        let meter = provider.meter(super::SERVICE);
        let by_metric = Metric::ALL.iter().map(|m| Instrument::new(&meter, m.describe())).collect();
        Ok((Self { by_metric, _provider: provider }, PrometheusText { registry }))
    }

    fn add(&self, metric: Metric, value: i64, labels: &[KeyValue]) {
        match (&self.by_metric[metric as usize], u64::try_from(value)) {
            (Instrument::Counter(counter), Ok(value)) => counter.add(value, labels),
            (Instrument::UpDownCounter(counter), _) => counter.add(value, labels),
            _ => debug_assert!(false, "{metric:?} does not take {value}"),
        }
    }

    fn record(&self, metric: Metric, value: f64, labels: &[KeyValue]) {
        match &self.by_metric[metric as usize] {
            Instrument::Histogram(histogram) => histogram.record(value, labels),
            _ => debug_assert!(false, "{metric:?} is no histogram"),
        }
    }

    fn set(&self, metric: Metric, value: f64, labels: &[KeyValue]) {
        match &self.by_metric[metric as usize] {
            Instrument::Gauge(gauge) => gauge.record(value, labels),
            _ => debug_assert!(false, "{metric:?} is no gauge"),
        }
    }
}

// === impl Instrument ===

impl Instrument {
    fn new(meter: &Meter, row: Description) -> Self {
        let Description { name, unit, description, kind, .. } = row;
        match kind {
            Kind::Counter => Self::Counter(
                meter.u64_counter(name).with_unit(unit).with_description(description).build(),
            ),
            Kind::UpDownCounter => Self::UpDownCounter(
                meter
                    .i64_up_down_counter(name)
                    .with_unit(unit)
                    .with_description(description)
                    .build(),
            ),
            Kind::Histogram(bounds) => Self::Histogram(
                meter
                    .f64_histogram(name)
                    .with_unit(unit)
                    .with_description(description)
                    .with_boundaries(bounds.to_vec())
                    .build(),
            ),
            Kind::Gauge => Self::Gauge(
                meter.f64_gauge(name).with_unit(unit).with_description(description).build(),
            ),
        }
    }
}

#[cfg(test)]
mod tests;
