//! `check --online` of one cluster: its addresses, and its token.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::Value;
use tokio::time::Instant;

use super::Report;
use crate::clock::{Deadline, Jitter};
use crate::cluster::operation::{AddressIndex, AddressName, Call};
use crate::cluster::stack::Stack;
use crate::cluster::tls::LoadedTls;
use crate::cluster::token::Lifetime;
use crate::cluster::{CallErrorKind, Cluster, Operation, Transport, Verb, auth};
use crate::config::settings::ClusterSettings;
use crate::transit::verdict::TransitVerdicts;

/// Answers 200 in every state, so that the body can be read.
const HEALTH_PATH: &str = "/v1/sys/health?standbyok=true&perfstandbyok=true&sealedcode=200\
                           &uninitcode=200&drsecondarycode=200";

/// A shorter ttl leaves no time to mend a cluster that has lost its quorum.
const SHORT_TTL: Duration = Duration::from_secs(3600);

/// Reaches every address of `settings` and gets a token; `None` when no KEK can be looked at.
pub(super) async fn check(
    report: &mut Report,
    settings: &Arc<ClusterSettings>,
    timeout: Duration,
) -> Option<Arc<Cluster>> {
    let tls = match LoadedTls::read(&settings.tls) {
        Ok(tls) => tls,
        Err(error) => {
            report.fail(error.to_string());
            return None;
        }
    };
    let jitter = Arc::new(Jitter::from_entropy());
    let stack = Stack::try_new(settings, &tls, Arc::new(TransitVerdicts), Arc::clone(&jitter));
    let stack = match stack {
        Ok(stack) => stack,
        Err(error) => {
            report.fail(error.to_string());
            return None;
        }
    };
    stack.resolved(Deadline::after(timeout)).await;
    for status in stack.addresses() {
        address(report, &stack, status.index, &status.name, timeout).await;
    }
    let transport: Arc<dyn Transport> = Arc::new(stack);
    // It can be done once, and the daemon is to do it.
    match auth::would_unwrap(settings, &transport).await {
        None => {}
        Some(Ok(made_at)) => {
            report.good(format!("AppRole: the wrapping token is good; it was made at {made_at}"));
            report.warn(
                "no login was tried, and no key was looked at: the daemon will unwrap the secret \
                 ID when it starts; check again then",
            );
            return None;
        }
        Some(Err(error)) => {
            report.fail(format!("no token: {error}"));
            return None;
        }
    }
    // The daemon's own token is none of our business: a look must not replace it.
    let settings = ClusterSettings { token_cache: None, ..ClusterSettings::clone(settings) };
    let cluster = Cluster::new(Arc::new(settings), transport, jitter);
    match cluster.ready(Deadline::after(timeout)).await {
        Ok(()) => token(report, &cluster),
        Err(error) => {
            report.fail(match error.kind {
                CallErrorKind::NoToken(why) => format!("no token: {why}"),
                _ => format!("no token: {error}"),
            });
            return None;
        }
    }
    Some(cluster)
}

async fn address(
    report: &mut Report,
    stack: &Stack,
    index: AddressIndex,
    name: &AddressName,
    timeout: Duration,
) {
    let operation = Operation {
        needs_active: false,
        verb: Verb::Health,
        method: Method::GET,
        path: HEALTH_PATH.into(),
        namespace: None,
        body: None,
    };
    let call =
        Call { operation: Arc::new(operation), token: None, deadline: Deadline::after(timeout) };
    let start = Instant::now();
    let answer = match stack.call_at(index, call).await {
        Ok(answer) => answer,
        Err(error) => return report.fail(error.to_string()),
    };
    let took = start.elapsed().as_millis();
    let Ok(health) = serde_json::from_slice::<Value>(&answer.body) else {
        let status = answer.status.as_u16();
        return report.fail(format!("{name}: HTTP {status}, but no answer of Vault; is it Vault?"));
    };
    let is = |key: &str| health.get(key).and_then(Value::as_bool);
    let version = health.get("version").and_then(Value::as_str).unwrap_or("of unknown version");
    match (is("initialized"), is("sealed"), is("standby")) {
        (Some(false), _, _) => report.fail(format!("{name}: not initialised")),
        (_, Some(true), _) => report.fail(format!("{name}: sealed; unseal it")),
        (_, Some(false), Some(true)) => {
            report.good(format!("{name}: standby, {version}, {took} ms"));
        }
        (_, Some(false), Some(false)) => {
            report.good(format!("{name}: active, {version}, {took} ms"));
        }
        _ => report.fail(format!("{name}: its health is not one of Vault's; is it Vault?")),
    }
}

fn token(report: &mut Report, cluster: &Cluster) {
    let state = cluster.token_state();
    let method = cluster.settings().auth.title();
    match state.lifetime {
        Lifetime::Unlimited => report.warn(format!(
            "{method}: the token never expires; is it a root token? Use AppRole with the least \
             policy instead"
        )),
        Lifetime::Unknown => report.warn(format!(
            "{method}: the token's ttl is unknown; grant read on auth/token/lookup-self"
        )),
        Lifetime::Limited { ttl, .. } => {
            let span = humantime::format_duration(ttl);
            let renewal = if state.renewable { "renewable" } else { "not renewable" };
            if ttl < SHORT_TTL {
                report.warn(format!(
                    "{method}: the token has a ttl of {span}, {renewal}; while Vault has no \
                     quorum nothing renews it, so an outage that is longer ends all calls: \
                     raise the ttl to what you want to survive"
                ));
            } else {
                report.good(format!("{method}: a token with a ttl of {span}, {renewal}"));
            }
        }
    }
}
