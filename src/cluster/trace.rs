//! One span and one measurement per attempt.
//!
//! It stands over `classify`, so that both tell what the answer meant and not only its
//! status. No token and no body comes near a span.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::{KeyValue, Value};
use tokio::time::Instant;
use tracing::{Span, field, info_span};

use super::address::Address;
use super::breaker::BreakerState;
use super::error::{AttemptError, Fault};
use super::operation::{Answer, Attempt, AttemptReason, Verb};
use super::step::{Ended, Step};
use crate::config::settings::ClusterName;
use crate::telemetry::metrics::{self, Metric};

/// What an attempt that failed counts for in its address's latency: the repeat that follows
/// takes longer than any answer of a sound Vault, so that those come first for a while.
const FAULT_COST: Duration = Duration::from_millis(250);

/// Wraps each attempt at one address in a span, measures it, and keeps the address's
/// latency.
#[derive(Clone, Debug)]
pub struct Trace {
    cluster: ClusterName,
    address: Address,
    breaker: BreakerState,
    /// What all of this address's measurements say alike; a copy of it copies no text.
    labels: [KeyValue; 2],
}

/// An attempt under way.
#[derive(Debug)]
pub struct Traced {
    span: Span,
    verb: Verb,
    reason: AttemptReason,
    began: Instant,
}

// === impl Trace ===

impl Trace {
    /// Attempts at `address` of `cluster`, whose breaker is `breaker`.
    pub fn new(cluster: ClusterName, address: Address, breaker: BreakerState) -> Self {
        let shared = |text: &str| Value::from(Arc::<str>::from(text));
        let labels = [
            KeyValue::new("cluster", shared(cluster.as_str())),
            KeyValue::new("server.address", shared(address.name.as_str())),
        ];
        Self { cluster, address, breaker, labels }
    }

    fn make_span(&self, attempt: &Attempt) -> Span {
        let operation = &attempt.call.operation;
        info_span!(
            "vault.attempt",
            otel.name = format!("{} {}", operation.method, operation.path),
            otel.kind = "client",
            otel.status_code = field::Empty,
            server.address = self.address.host(),
            server.port = self.address.port(),
            network.peer.address = self.address.peer.map(|p| field::display(p.ip())),
            http.request.method = operation.method.as_str(),
            http.response.status_code = field::Empty,
            error.type = field::Empty,
            vault.cluster = %self.cluster,
            vault.verb = operation.verb.as_str(),
            vault.attempt.number = attempt.number,
            vault.attempt.reason = attempt.reason.as_str(),
            vault.breaker = self.breaker.phase().as_str(),
            vault.request_id = field::Empty,
        )
    }

    /// A redirect, or a fault of the server's, may come of a change of its role.
    fn note_elsewhere(&self, status: u16) {
        match status {
            300..=399 => self.address.role.redirected(),
            500.. => {}
            _ => return,
        }
        self.address.role.doubt();
    }

    fn finish(&self, traced: &Traced, result: &Ended) {
        let Traced { span, verb, reason, began } = traced;
        let took = began.elapsed();
        let outcome = match result {
            Ok(_) => "answer",
            Err(error) => error.fault.as_str(),
        };
        match result {
            Ok(answer) => {
                self.address.latency.observe(took);
                self.address.role.served();
                note_answer(span, answer);
            }
            Err(AttemptError { fault, .. }) => {
                span.record("otel.status_code", "ERROR");
                span.record("error.type", outcome);
                if fault.is_address_fault() {
                    self.address.latency.waited(took.max(FAULT_COST));
                }
                match fault {
                    Fault::Elsewhere { status, .. } => {
                        self.note_elsewhere(*status);
                        span.record("http.response.status_code", status);
                    }
                    Fault::Stale { answer, .. } => note_answer(span, answer),
                    Fault::TokenRefused => {
                        span.record("http.response.status_code", 403);
                    }
                    _ => {}
                }
            }
        }
        let [cluster, address] = self.labels.clone();
        metrics::record(
            Metric::AttemptDuration,
            took.as_secs_f64(),
            &[
                cluster,
                address,
                KeyValue::new("verb", verb.as_str()),
                KeyValue::new("reason", reason.as_str()),
                KeyValue::new("outcome", outcome),
            ],
        );
    }
}

impl Step for Trace {
    type Note = Traced;

    fn going(&self, attempt: &mut Attempt) -> Traced {
        let (verb, reason) = (attempt.call.operation.verb, attempt.reason);
        Traced { span: self.make_span(attempt), verb, reason, began: Instant::now() }
    }

    fn ended(&self, traced: Traced, result: Ended) -> Ended {
        self.finish(&traced, &result);
        result
    }

    fn span(traced: &Traced) -> Span {
        traced.span.clone()
    }
}

fn note_answer(span: &Span, answer: &Answer) {
    span.record("http.response.status_code", answer.status.as_u16());
    if let Some(id) = request_id(&answer.body) {
        span.record("vault.request_id", id);
    }
}

/// Vault's `request_id`, the first member of a successful answer, found without reading
/// the rest. It joins the span to Vault's audit log.
fn request_id(body: &[u8]) -> Option<&str> {
    let rest = body.strip_prefix(br#"{"request_id":""#)?;
    let id = rest.get(..36)?;
    let well_formed = id.iter().all(|b| b.is_ascii_hexdigit() || *b == b'-');
    (well_formed && rest.get(36) == Some(&b'"')).then(|| std::str::from_utf8(id).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use tower::{Layer as _, ServiceExt as _};
    use tracing::field::{Field, Visit};
    use tracing_subscriber::layer::{Context as LayerContext, SubscriberExt as _};

    use super::*;
    use crate::clock::Jitter;
    use crate::cluster::breaker::BreakerPolicy;
    use crate::cluster::operation::AddressIndex;
    use crate::cluster::stack::testing::{answer, attempt, sealed};
    use crate::cluster::step::StepLayer;

    /// Keeps every field of every span, as a collector would get it.
    #[derive(Clone, Default)]
    struct Fields(Arc<Mutex<BTreeMap<String, String>>>);

    impl Visit for Fields {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            let shown = format!("{value:?}").trim_matches('"').to_owned();
            self.0.lock().unwrap().insert(field.name().to_owned(), shown);
        }
    }

    impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Fields {
        fn on_new_span(
            &self,
            attributes: &tracing::span::Attributes<'_>,
            _: &tracing::span::Id,
            _: LayerContext<'_, S>,
        ) {
            attributes.record(&mut self.clone());
        }

        fn on_record(
            &self,
            _: &tracing::span::Id,
            values: &tracing::span::Record<'_>,
            _: LayerContext<'_, S>,
        ) {
            values.record(&mut self.clone());
        }
    }

    async fn fields_of(result: Result<Answer, Fault>) -> BTreeMap<String, String> {
        let fields = Fields::default();
        let subscriber = tracing_subscriber::registry().with(fields.clone());
        let _guard = tracing::subscriber::set_default(subscriber);
        let address = Address::new(AddressIndex(0), "https://vault-0:8200".parse().unwrap());
        let cluster = ClusterName::try_new("test").unwrap();
        let (policy, jitter) = (BreakerPolicy::default(), Arc::new(Jitter::off()));
        let breaker = BreakerState::new(cluster.clone(), address.name.clone(), policy, jitter);
        let layer = StepLayer(Trace::new(cluster, address.clone(), breaker));
        let result = Mutex::new(Some(result));
        let inner = tower::service_fn(|_: Attempt| {
            let (index, address) = (address.index, address.name.clone());
            let result = result.lock().unwrap().take().unwrap();
            async move { result.map_err(|fault| AttemptError { address, index, fault }) }
        });
        let mut attempt = attempt();
        attempt.call.token = Some(Arc::new("s.secret".into()));
        let _ = layer.layer(inner).oneshot(attempt).await;
        let fields = fields.0.lock().unwrap().clone();
        assert!(!format!("{fields:?}").contains("s.secret"));
        fields
    }

    #[tokio::test]
    async fn a_span_tells_where_why_and_what_came_of_it() {
        let mut good = answer(200);
        let id = "0b0fa3b1-5b3f-2d0e-7e7a-111111111111";
        good.body.extend_from_slice(format!(r#"{{"request_id":"{id}"}}"#).as_bytes());
        let fields = fields_of(Ok(good)).await;
        for (name, value) in [
            ("otel.name", "POST /v1/transit/decrypt/kube"),
            ("otel.kind", "client"),
            ("server.address", "vault-0"),
            ("server.port", "8200"),
            ("http.request.method", "POST"),
            ("http.response.status_code", "200"),
            ("vault.attempt.number", "1"),
            ("vault.attempt.reason", "first"),
            ("vault.breaker", "closed"),
            ("vault.request_id", id),
        ] {
            assert_eq!(fields.get(name).map(String::as_str), Some(value), "{name}: {fields:?}");
        }
        assert_eq!(fields.get("error.type"), None);
    }

    #[tokio::test]
    async fn a_failed_attempts_span_says_so() {
        let fields = fields_of(Err(Fault::Elsewhere { status: 503, verdict: sealed() })).await;
        assert_eq!(fields["otel.status_code"], "ERROR");
        assert_eq!(fields["error.type"], "elsewhere");
        assert_eq!(fields["http.response.status_code"], "503");
    }

    #[test]
    fn a_request_id_is_taken_only_where_vault_puts_it() {
        let id = "0b0fa3b1-5b3f-2d0e-7e7a-111111111111";
        let body = format!(r#"{{"request_id":"{id}","lease_id":""}}"#);
        assert_eq!(request_id(body.as_bytes()), Some(id));
        for other in ["", "{}", r#"{"request_id":"short"}"#, r#"{"errors":["permission denied"]}"#]
        {
            assert_eq!(request_id(other.as_bytes()), None);
        }
        let sneaky = r#"{"request_id":"not a request id but a plaintext!!!"}"#;
        assert_eq!(request_id(sneaky.as_bytes()), None);
    }
}
