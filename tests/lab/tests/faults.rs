//! The fault proxy, the fake Vault, the trace receiver and the installer do what they say.

use std::time::Duration;

use lab::{Answer, Authority, FakeVault, FaultProxy, Flow, Gate, Result, install, otlp};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

const SOON: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(300);

/// A server that answers every line with 1,000 bytes, and a proxy before it.
async fn proxy() -> Result<FaultProxy> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let proxy = FaultProxy::start(&listener.local_addr()?.to_string()).await?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut line = [0; 64];
                while stream.read(&mut line).await.is_ok_and(|count| count > 0) {
                    if stream.write_all(&[b'x'; 1000]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    Ok(proxy)
}

async fn connect(proxy: &FaultProxy) -> std::io::Result<TcpStream> {
    TcpStream::connect(proxy.url("http").trim_start_matches("http://")).await
}

async fn ask(stream: &mut TcpStream) -> std::io::Result<usize> {
    stream.write_all(b"hello\n").await?;
    let mut answer = [0; 1000];
    let mut count = 0;
    while count < answer.len() {
        match stream.read(&mut answer[count..]).await? {
            0 => break,
            more => count += more,
        }
    }
    Ok(count)
}

#[tokio::test]
async fn an_open_proxy_passes_and_counts() -> Result {
    let proxy = proxy().await?;
    let mut stream = connect(&proxy).await?;
    assert_eq!(ask(&mut stream).await?, 1000);
    assert_eq!((proxy.connections(), proxy.open_connections()), (1, 1));
    drop(stream);
    lab::eventually("it is closed", SOON, || async {
        Ok((proxy.open_connections() == 0).then_some(()))
    })
    .await
}

#[tokio::test]
async fn a_refusing_proxy_resets_what_is_open_and_comes_back() -> Result {
    let proxy = proxy().await?;
    let mut stream = connect(&proxy).await?;
    assert_eq!(ask(&mut stream).await?, 1000);
    proxy.refuse().await?;
    let gone = timeout(SOON, ask(&mut stream)).await?;
    assert_eq!(gone.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let refused = connect(&proxy).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    proxy.heal().await?;
    assert_eq!(ask(&mut connect(&proxy).await?).await?, 1000);
    Ok(())
}

#[tokio::test]
async fn a_resetting_proxy_resets_each_connection() -> Result {
    let proxy = proxy().await?;
    proxy.reset().await?;
    let error = async { ask(&mut connect(&proxy).await?).await };
    let error = timeout(SOON, error).await?.unwrap_err();
    assert!(
        matches!(
            error.kind(),
            std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe
        ),
        "{error}"
    );
    assert_eq!(proxy.connections(), 1);
    Ok(())
}

#[tokio::test]
async fn an_unreachable_proxy_lets_connecting_hang() -> Result {
    let proxy = proxy().await?;
    proxy.gate(Gate::Unreachable).await?;
    assert!(timeout(SILENCE, connect(&proxy)).await.is_err());
    proxy.heal().await?;
    assert_eq!(timeout(SOON, async { ask(&mut connect(&proxy).await?).await }).await??, 1000);
    Ok(())
}

#[tokio::test]
async fn an_unaccepting_proxy_connects_and_stays_silent() -> Result {
    let proxy = proxy().await?;
    proxy.gate(Gate::Unaccepted).await?;
    let mut stream = timeout(SOON, connect(&proxy)).await??;
    assert!(timeout(SILENCE, ask(&mut stream)).await.is_err());
    proxy.heal().await?;
    assert_eq!(timeout(SOON, ask(&mut connect(&proxy).await?)).await??, 1000);
    Ok(())
}

#[tokio::test]
async fn a_blackhole_takes_everything_and_answers_nothing() -> Result {
    let proxy = proxy().await?;
    let mut open = connect(&proxy).await?;
    assert_eq!(ask(&mut open).await?, 1000);
    proxy.blackhole();
    assert!(timeout(SILENCE, ask(&mut open)).await.is_err());
    let mut fresh = timeout(SOON, connect(&proxy)).await??;
    assert!(timeout(SILENCE, ask(&mut fresh)).await.is_err());
    proxy.heal().await?;
    assert_eq!(timeout(SOON, ask(&mut connect(&proxy).await?)).await??, 1000);
    Ok(())
}

#[tokio::test]
async fn answers_are_delayed_throttled_and_cut() -> Result {
    let proxy = proxy().await?;
    let mut stream = connect(&proxy).await?;
    proxy.delay(Duration::from_millis(200));
    let started = Instant::now();
    assert_eq!(ask(&mut stream).await?, 1000);
    assert!(started.elapsed() >= Duration::from_millis(200));

    proxy.to_client(Flow::Throttle(4000));
    let started = Instant::now();
    assert_eq!(ask(&mut stream).await?, 1000);
    assert!(started.elapsed() >= Duration::from_millis(230), "{:?}", started.elapsed());

    proxy.cut_answers_after(300);
    stream.write_all(b"hello\n").await?;
    let mut got = Vec::new();
    let end = timeout(SOON, stream.read_to_end(&mut got)).await?;
    assert_eq!(got.len(), 300);
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    Ok(())
}

#[tokio::test]
async fn a_fake_vault_answers_its_script_and_remembers() -> Result {
    let authority = Authority::new("lab")?;
    let fake = FakeVault::start_tls(&authority).await?;
    let http = reqwest::Client::builder()
        .tls_backend_preconfigured(authority.client_config()?)
        .no_proxy()
        .build()?;
    let url = format!("{}/v1/transit/encrypt/kube", fake.address());
    fake.script(
        "transit/encrypt/",
        [
            Answer::errors(500, &["boom"]).header("Retry-After", "7"),
            Answer::hang_up(),
            Answer::json(200, json!({ "data": {} })).after(Duration::from_millis(50)),
        ],
    );
    let first = http.post(&url).header("X-Vault-Token", "t").body("{\"a\":1}").send().await?;
    assert_eq!((first.status().as_u16(), &first.headers()["retry-after"]), (500, &"7".parse()?));
    assert!(http.post(&url).send().await.is_err());
    assert_eq!(http.post(&url).send().await?.status(), 200);
    assert_eq!(http.post(&url).send().await?.status(), 200);
    fake.on("transit/encrypt/", Answer::hang());
    assert!(timeout(SILENCE, http.post(&url).send()).await.is_err());

    fake.wait_received("transit/encrypt/kube", 5, SOON).await?;
    let first = &fake.received_at("transit/")[0];
    assert_eq!(first.line, "POST /v1/transit/encrypt/kube");
    assert_eq!((first.header("X-Vault-Token"), &first.json()["a"]), ("t", &json!(1)));
    let health = http.get(format!("{}/v1/sys/health", fake.address())).send().await?;
    assert_eq!(health.status(), 200);
    Ok(())
}

#[tokio::test]
async fn the_trace_receiver_takes_grpc_and_http() -> Result {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
    use prost::Message;

    let span = Span { name: "call".to_owned(), trace_id: vec![0xab; 16], ..Span::default() };
    let scope = ScopeSpans { spans: vec![span], ..ScopeSpans::default() };
    let group = ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() };
    let export = ExportTraceServiceRequest { resource_spans: vec![group] };

    let grpc = otlp::Receiver::grpc().await?;
    let mut client = TraceServiceClient::connect(grpc.endpoint().to_owned()).await?;
    client.export(export.clone()).await?;
    grpc.wait_for(SOON, |span| span.name == "call").await?;

    let http = otlp::Receiver::http().await?;
    let tls = Authority::new("unused")?.client_config()?;
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build()?;
    let url = format!("{}/v1/traces", http.endpoint());
    assert_eq!(client.post(&url).body(export.encode_to_vec()).send().await?.status(), 200);
    http.wait_for(SOON, |span| span.trace_id == "ab".repeat(16)).await?;
    assert_eq!(http.trace(&"ab".repeat(16)).len(), 1);
    let error = http.wait_for(SILENCE, |span| span.name == "other").await.unwrap_err();
    assert!(error.to_string().contains("[\"call\"]"), "{error}");
    Ok(())
}

#[tokio::test]
async fn an_install_that_is_there_is_used_again() -> Result {
    let first = tokio::task::spawn_blocking(install::bao).await??;
    let made = std::fs::metadata(&first)?.modified()?;
    let again = tokio::task::spawn_blocking(install::bao).await??;
    assert_eq!(again, first);
    assert_eq!(std::fs::metadata(&again)?.modified()?, made);
    Ok(())
}
