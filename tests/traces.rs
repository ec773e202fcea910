//! One trace from kube-apiserver's call to each request to Vault, as an OTLP receiver gets
//! it.

use std::time::Duration;

use base64::prelude::*;
use lab::otlp::{Receiver, Span};
use lab::proto::v2::EncryptRequest;
use lab::proto::v2::key_management_service_client::KeyManagementServiceClient;
use lab::{Config, Daemon, DevNode, FaultProxy, eventually};
use serde_json::json;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(20);

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const PLAINTEXT: &[u8] = b"a seed that must never be seen..";

const SERVER: i32 = 2;
const CLIENT: i32 = 3;

async fn vault() -> lab::Result<(DevNode, Config)> {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube"]).await?;
    // Vault's audit log then shows the header that joins its entry to the trace.
    let header = "sys/config/auditing/request-headers/traceparent";
    bao.admin().write(header, json!({ "hmac": false })).await?;
    let config = bao.config(&["kube"]).await?;
    Ok((bao, config))
}

/// A v2 Encrypt as a traced caller makes it; answers the ciphertext.
async fn traced_encrypt(daemon: &Daemon) -> lab::Result<Vec<u8>> {
    let message = EncryptRequest { plaintext: PLAINTEXT.to_vec(), uid: "uid".to_owned() };
    let mut request = tonic::Request::new(message);
    request.set_timeout(Duration::from_secs(3));
    let parent = format!("00-{TRACE}-{CALLER}-01").parse()?;
    request.metadata_mut().insert("traceparent", parent);
    let mut client = KeyManagementServiceClient::new(daemon.kms().channel());
    Ok(client.encrypt(request).await?.into_inner().ciphertext)
}

#[tokio::test]
async fn a_call_and_its_attempts_are_one_trace_over_grpc() -> lab::Result {
    let (bao, config) = vault().await?;
    // The address in use refuses all at once, so that there is a fault to see.
    let broken = FaultProxy::start(bao.authority()).await?;
    let sound = FaultProxy::start(bao.authority()).await?;
    let receiver = Receiver::grpc().await?;
    let config = config.addresses(&[broken.https(), sound.https()]);
    let traces = json!({ "endpoint": receiver.endpoint(), "protocol": "grpc" });
    let daemon = Daemon::start(DAEMON, config.with("traces", traces)).await?;
    daemon.wait_ready(PATIENCE).await?;
    go_to(&broken, &sound, &daemon).await?;
    broken.refuse().await?;
    let cipher = traced_encrypt(&daemon).await?;

    let call = receiver.wait_for(PATIENCE, |span| span.trace_id == TRACE && span.kind == SERVER);
    let call = call.await?;
    let trace = receiver.trace(TRACE);
    print_tree(&trace, CALLER, 0);

    assert_eq!(call.name, "v2.KeyManagementService/Encrypt");
    assert_eq!(call.parent_id, CALLER);
    assert_eq!(call.attribute("rpc.system"), "grpc");
    assert_eq!(call.attribute("rpc.grpc.status_code"), "0");
    assert_eq!(call.resource["service.name"], "vault-kms-proxy");

    // Encrypt at the broken address, Encrypt and the proof at the sound one.
    let attempts: Vec<_> = trace.iter().filter(|span| span.kind == CLIENT).collect();
    assert!(attempts.iter().all(|span| span.parent_id == call.span_id), "{attempts:#?}");
    assert!(attempts.iter().all(|span| span.attribute("server.address") == "127.0.0.1"));
    let failed = attempts.iter().find(|span| span.status == 2).expect("a failed attempt");
    assert_eq!(failed.attribute("server.port"), port(&broken.https()));
    assert_eq!(failed.attribute("error.type"), "unreachable");
    let expected = [
        ("POST /v1/transit/encrypt/kube", "2", "retry"),
        ("POST /v1/transit/decrypt/kube", "1", "first"),
    ];
    for (name, number, reason) in expected {
        let span = attempts.iter().find(|span| span.name == name && span.status != 2);
        let span = span.unwrap_or_else(|| panic!("no good {name}: {attempts:#?}"));
        assert_eq!(span.attribute("server.port"), port(&sound.https()));
        assert_eq!(span.attribute("vault.attempt.number"), number, "{span:#?}");
        assert_eq!(span.attribute("vault.attempt.reason"), reason, "{span:#?}");
        assert_eq!(span.attribute("http.response.status_code"), "200");
        reached_vault(&bao, span).await?;
    }

    let secrets = [
        String::from_utf8_lossy(PLAINTEXT).into_owned(),
        BASE64_STANDARD.encode(PLAINTEXT),
        String::from_utf8_lossy(&cipher).rsplit(':').next().unwrap_or_default().to_owned(),
        "s.".to_owned(), // what every token of OpenBao begins with
    ];
    for span in receiver.spans() {
        for (name, value) in span.attributes.iter().chain(&span.resource) {
            for secret in &secrets {
                assert!(!value.contains(secret.as_str()), "{}: {name} = {value}", span.name);
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn calls_that_went_together_are_found_from_each_other() -> lab::Result {
    const CALLS: usize = 40;
    let (bao, config) = vault().await?;
    let proxy = FaultProxy::start(bao.authority()).await?;
    let receiver = Receiver::grpc().await?;
    let traces = json!({ "endpoint": receiver.endpoint(), "protocol": "grpc" });
    let config = config.addresses(&[proxy.https()]).with("traces", traces);
    let daemon = Daemon::start(DAEMON, config).await?;
    daemon.wait_ready(PATIENCE).await?;
    let kms = daemon.kms();
    // Each asks for another one: identical ones would be one item.
    let mut asked = Vec::new();
    for _ in 0..CALLS {
        let again = bao.admin().encrypt("kube", PLAINTEXT).await?;
        asked.push(again.replacen("vault:", "kube:", 1));
    }
    proxy.delay(Duration::from_millis(100));
    let calls = asked.iter().map(|ciphertext| {
        let kms = &kms;
        async move { kms.v1().decrypt(ciphertext.as_bytes()).await.unwrap() }
    });
    for plaintext in futures_util::future::join_all(calls).await {
        assert_eq!(plaintext, PLAINTEXT);
    }

    let of_batches = || {
        let spans = receiver.spans().into_iter();
        spans.filter(|span| span.name == "batch decrypt").collect::<Vec<_>>()
    };
    let batched = eventually("all that waited have a span", PATIENCE, || async {
        let spans = of_batches();
        Ok((spans.len() >= CALLS - 2).then_some(spans))
    })
    .await?;
    let spans = receiver.spans();
    let by_id = |id: &str| spans.iter().find(|span| span.span_id == id);
    let mut leaders = 0;
    for span in &batched {
        let call = by_id(&span.parent_id).expect("its call's span");
        assert_eq!(call.name, "v1beta1.KeyManagementService/Decrypt");
        let size: usize = span.attribute("vault.batch.size").parse()?;
        let waited: u64 = span.attribute("vault.batch.wait_ms").parse()?;
        assert!((1..=CALLS).contains(&size) && waited < 10_000, "{span:#?}");
        let attempts: Vec<_> = spans.iter().filter(|s| s.parent_id == span.span_id).collect();
        if attempts.is_empty() {
            // The attempt is in another call's trace, which this one names.
            let leader = span.links.iter().find_map(|id| by_id(id)).expect("a link");
            assert_eq!(leader.attribute("vault.batch.size"), span.attribute("vault.batch.size"));
            assert!(spans.iter().any(|s| s.parent_id == leader.span_id), "{leader:#?}");
        } else {
            leaders += 1;
            assert_eq!(span.links.len(), (size - 1).min(16), "{span:#?}");
            assert!(attempts.iter().all(|s| s.name == "POST /v1/transit/decrypt/kube"));
        }
    }
    assert!((1..=4).contains(&leaders), "{leaders} batches");
    Ok(())
}

#[tokio::test]
async fn the_endpoint_of_the_environment_is_used_and_http_is_spoken_to_it() -> lab::Result {
    let (_bao, config) = vault().await?;
    let receiver = Receiver::http().await?;
    let daemon = Daemon::builder(DAEMON)
        .config(config)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint())
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        .start()
        .await?;
    daemon.wait_ready(PATIENCE).await?;
    traced_encrypt(&daemon).await?;
    let is_it = |span: &Span| span.trace_id == TRACE && span.parent_id == CALLER;
    let call = receiver.wait_for(PATIENCE, is_it).await?;
    assert_eq!(call.name, "v2.KeyManagementService/Encrypt");
    assert!(receiver.trace(TRACE).iter().any(|span| span.parent_id == call.span_id));

    // What was not sent yet is sent when the daemon stops.
    let kms = daemon.kms();
    kms.v1().version().await?;
    assert_eq!(daemon.stop().await?, 0);
    let last = |span: &Span| span.name == "v1beta1.KeyManagementService/Version";
    receiver.wait_for(PATIENCE, last).await?;
    Ok(())
}

#[tokio::test]
async fn without_an_endpoint_there_are_no_traces_and_vault_is_told_of_none() -> lab::Result {
    let (bao, config) = vault().await?;
    let daemon = Daemon::start(DAEMON, config).await?;
    daemon.wait_ready(PATIENCE).await?;
    traced_encrypt(&daemon).await?;
    for metric in ["vault_kms_proxy_spans_exported_total", "vault_kms_proxy_spans_lost_total"] {
        assert_eq!(daemon.metric(metric, "").await?, 0.0, "{metric}");
    }
    let entries = bao.audited();
    let told =
        entries.iter().find(|entry| !entry.entry["request"]["headers"]["traceparent"].is_null());
    assert!(told.is_none(), "{told:?}");
    Ok(())
}

/// Makes the daemon prefer `proxy` to `other`, which is slow for a while, so that the fault
/// of `proxy` is met.
async fn go_to(proxy: &FaultProxy, other: &FaultProxy, daemon: &Daemon) -> lab::Result {
    other.delay(Duration::from_millis(500));
    let asked = async || -> lab::Result<(f64, f64)> {
        let proxy = daemon.metric(ATTEMPTS, &label(proxy)).await?;
        Ok((proxy, daemon.metric(ATTEMPTS, &label(other)).await?))
    };
    eventually("a call goes to the one address only", PATIENCE, || async {
        let before = asked().await?;
        daemon.kms().v1().encrypt(PLAINTEXT).await?;
        let after = asked().await?;
        Ok((after.0 > before.0 && after.1 == before.1).then_some(()))
    })
    .await?;
    other.heal().await
}

const ATTEMPTS: &str = "vault_kms_proxy_attempt_duration_seconds_count";

fn label(proxy: &FaultProxy) -> String {
    format!(":{}\"", port(&proxy.https()))
}

fn port(address: &str) -> &str {
    address.rsplit(':').next().unwrap_or_default()
}

/// Vault's audit log has the request of this span: it carried the trace and the span's id.
async fn reached_vault(bao: &DevNode, span: &Span) -> lab::Result {
    let wanted = format!("00-{TRACE}-{}-01", span.span_id);
    eventually("Vault's audit log has the traceparent", PATIENCE, || async {
        let entries = bao.audited();
        let entry = entries.iter().find(|request| {
            request.entry["request"]["headers"]["traceparent"][0] == wanted.as_str()
        });
        let Some(entry) = entry else { return Ok(None) };
        assert!(span.name.ends_with(&entry.path), "{} at {}", span.name, entry.path);
        assert_eq!(entry.entry["request"]["id"], span.attribute("vault.request_id"));
        Ok(Some(()))
    })
    .await
}

fn print_tree(trace: &[Span], parent: &str, depth: usize) {
    if depth == 0 {
        println!("trace {TRACE}\n└ {parent} (kube-apiserver's span)");
    }
    for span in trace.iter().filter(|span| span.parent_id == parent) {
        let indent = "  ".repeat(depth + 1);
        let shown = [
            "rpc.grpc.status_code",
            "server.port",
            "vault.attempt.number",
            "vault.attempt.reason",
            "vault.breaker",
            "http.response.status_code",
            "error.type",
            "vault.request_id",
        ];
        let shown = shown.iter().filter(|name| !span.attribute(name).is_empty());
        let shown: Vec<_> = shown.map(|name| format!("{name}={}", span.attribute(name))).collect();
        println!("{indent}└ {} {:.1?} {}", span.name, span.duration, shown.join(" "));
        print_tree(trace, &span.span_id, depth + 1);
    }
}
