//! Real sockets on loopback: servers that break in every way that one can.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::server::WebPkiClientVerifier;
use secrecy::SecretString;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt as _;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::*;
use crate::clock::Deadline;
use crate::cluster::operation::{AddressIndex, Verb};
use crate::cluster::stack::testing::{attempt, operation};
use crate::cluster::tls::testing::{Authority, Identity, Valid};
use crate::config::settings::{ClientIdentity, TlsSettings};
use crate::task::OwnedTask;

const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";

/// A server that hands each connection, with its number, to `serve`.
async fn server<F, R>(serve: F) -> (u16, OwnedTask)
where
    F: Fn(u32, TcpStream) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = OwnedTask::spawn("test server", async move {
        for number in 1.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve(number, stream));
        }
    });
    (port, task)
}

/// Reads one request; its text, or nothing when the client is gone.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut seen = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let n = stream.read(&mut buffer).await.ok().filter(|n| *n > 0)?;
        seen.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&seen).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .lines()
            .find_map(|l| l.strip_prefix("content-length: ")?.parse::<usize>().ok())
            .unwrap_or(0);
        if body.len() >= length {
            return Some(text);
        }
    }
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
}

fn plain(port: u16) -> Http {
    at(&format!("http://127.0.0.1:{port}"), &TlsSettings::default())
}

fn at(url: &str, tls: &TlsSettings) -> Http {
    let address = Address::new(AddressIndex(0), url.parse().unwrap());
    Http::new(address, &LoadedTls::read(tls).unwrap())
}

async fn ask(http: &Http) -> Result<Answer, Fault> {
    let mut attempt = attempt();
    attempt.call.deadline = Deadline::after(Duration::from_secs(10));
    http.clone().oneshot(attempt).await.map_err(|error| error.fault)
}

#[tokio::test]
async fn a_request_carries_what_vault_needs_and_its_token_is_marked_sensitive() {
    let (sender, mut requests) = tokio::sync::mpsc::channel(1);
    let (port, _server) = server(move |_, mut stream| {
        let sender = sender.clone();
        async move {
            let text = request(&mut stream).await.unwrap();
            say(&mut stream, GOOD).await;
            sender.send(text).await.unwrap();
        }
    })
    .await;
    let mut attempt = attempt();
    let mut operation = operation(Verb::Decrypt);
    operation.namespace = Some("ops".into());
    attempt.call.operation = Arc::new(operation);
    attempt.call.token = Some(Arc::new(SecretString::from("s.secret")));

    let http = plain(port);
    let built = http.request(&attempt).unwrap();
    assert!(built.headers()["x-vault-token"].is_sensitive());
    assert!(!format!("{built:?} {attempt:?} {http:?}").contains("s.secret"));

    let answer = http.oneshot(attempt).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.body.as_slice()), (200, b"{}".as_slice()));
    assert_eq!(answer.address.as_str(), format!("http://127.0.0.1:{port}"));
    let text = requests.recv().await.unwrap();
    for expected in [
        "POST /v1/transit/decrypt/kube HTTP/1.1\r\n",
        "x-vault-request: true\r\n",
        "x-vault-token: s.secret\r\n",
        "x-vault-namespace: ops\r\n",
        "content-type: application/json\r\n",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    assert!(text.ends_with("\r\n\r\n{}"), "{text}");
}

#[tokio::test]
async fn the_trace_goes_on_to_vault() {
    use opentelemetry::trace::{TraceContextExt as _, TracerProvider as _};
    use opentelemetry_sdk::propagation::TraceContextPropagator;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_subscriber::layer::SubscriberExt as _;

    let without = plain(1).request(&attempt()).unwrap();
    assert_eq!(without.headers().get("traceparent"), None);

    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let provider = SdkTracerProvider::builder().build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
    let subscriber = tracing_subscriber::registry().with(layer);
    let _guard = tracing::subscriber::set_default(subscriber);
    let span = tracing::info_span!("vault.attempt");
    let request = span.in_scope(|| plain(1).request(&attempt())).unwrap();
    let trace = span.context().span().span_context().trace_id().to_string();
    let sent = request.headers()["traceparent"].to_str().unwrap();
    assert!(sent.starts_with(&format!("00-{trace}-")), "{sent}");
}

#[test]
fn the_host_is_named_with_its_port_unless_that_is_the_schemes() {
    for (url, named) in [
        ("https://vault:8200", "vault:8200"),
        ("https://vault", "vault"),
        ("https://vault:443/", "vault"),
        ("http://vault:443", "vault:443"),
        ("http://vault:80", "vault"),
        ("https://[::1]:8200", "[::1]:8200"),
        ("https://user@192.0.2.1:8200", "192.0.2.1:8200"),
    ] {
        assert_eq!(host(&url.parse().unwrap()).unwrap(), named, "{url}");
    }
}

#[tokio::test]
async fn a_redirect_is_an_answer_and_is_not_followed() {
    let (port, _server) = server(|number, mut stream| async move {
        assert_eq!(number, 1, "nobody comes again");
        request(&mut stream).await.unwrap();
        let away = b"HTTP/1.1 307 X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
        say(&mut stream, away).await;
    })
    .await;
    assert_eq!(ask(&plain(port)).await.unwrap().status, 307);
}

#[tokio::test]
async fn a_refused_connection_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let fault = ask(&plain(port)).await.unwrap_err();
    assert!(matches!(fault, Fault::Unreachable(_)), "{fault:?}");
    assert_eq!(fault.to_string(), "cannot connect: connection refused");
}

#[tokio::test]
async fn a_closed_pooled_connection_is_no_fault() {
    let (port, _server) = server(|_, mut stream| async move {
        request(&mut stream).await.unwrap();
        say(&mut stream, GOOD).await;
        // The next request on this connection is read and then meets its end.
        request(&mut stream).await;
        stream.set_zero_linger().unwrap();
    })
    .await;
    let http = plain(port);
    for _ in 0..10 {
        ask(&http).await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_breaks_off_under_two_requests_is_at_fault() {
    let broken = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&broken);
    let all = Arc::new(tokio::sync::Barrier::new(4));
    let (port, _server) = server(move |_, mut stream| {
        let (counter, all) = (Arc::clone(&counter), Arc::clone(&all));
        async move {
            request(&mut stream).await.unwrap();
            all.wait().await; // so that each request has a connection of its own
            say(&mut stream, GOOD).await;
            request(&mut stream).await;
            counter.fetch_add(1, Ordering::Relaxed);
            stream.set_zero_linger().unwrap();
        }
    })
    .await;
    let http = plain(port);
    // Four connections that have all served, and will all break under their next request.
    for answer in futures_util::future::join_all((0..4).map(|_| ask(&http))).await {
        answer.unwrap();
    }
    let fault = ask(&http).await.unwrap_err();
    assert!(matches!(fault, Fault::Connection(_)), "{fault:?}");
    assert_eq!(broken.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn a_login_is_not_sent_again_when_a_pooled_connection_breaks_under_it() {
    let (port, _server) = server(|_, mut stream| async move {
        request(&mut stream).await.unwrap();
        say(&mut stream, GOOD).await;
        request(&mut stream).await;
    })
    .await;
    let http = plain(port);
    ask(&http).await.unwrap();
    let mut login = attempt();
    login.call.operation = Arc::new(operation(Verb::Login));
    let fault = http.oneshot(login).await.unwrap_err().fault;
    assert!(matches!(fault, Fault::Connection(_)), "{fault:?}");
    assert!(fault.may_have_been_served());
}

#[tokio::test]
async fn a_fresh_connection_that_breaks_is_a_fault() {
    let (port, _server) = server(|_, mut stream| async move {
        request(&mut stream).await.unwrap();
    })
    .await;
    let fault = ask(&plain(port)).await.unwrap_err();
    assert_eq!(fault.to_string(), "the connection was closed before an answer");
}

#[tokio::test]
async fn an_answer_that_is_cut_short_is_broken() {
    for reset in [false, true] {
        let (port, _server) = server(move |_, mut stream| async move {
            request(&mut stream).await.unwrap();
            say(&mut stream, b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"data\"").await;
            if reset {
                stream.set_zero_linger().unwrap();
            }
        })
        .await;
        let fault = ask(&plain(port)).await.unwrap_err();
        // A reset may overtake the head that was sent before it.
        let expected = matches!(&fault, Fault::Broken(why) if why.contains("in the middle"))
            || reset && matches!(fault, Fault::Connection(_));
        assert!(expected, "{fault:?}");
    }
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_broken() {
    for announced in [true, false] {
        let (port, _server) = server(move |_, mut stream| async move {
            request(&mut stream).await.unwrap();
            let head = if announced {
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", MAX_ANSWER + 1)
            } else {
                "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".into()
            };
            say(&mut stream, head.as_bytes()).await;
            let chunk = vec![b'x'; 1 << 20];
            while stream.write_all(&chunk).await.is_ok() {}
        })
        .await;
        let fault = ask(&plain(port)).await.unwrap_err();
        assert_eq!(fault.to_string(), "broken answer: its body is over 8 MiB");
    }
}

#[tokio::test]
async fn what_is_not_http_is_broken() {
    let (port, _server) = server(|_, mut stream| async move {
        request(&mut stream).await.unwrap();
        say(&mut stream, b"SSH-2.0-OpenSSH_9.6\r\n").await;
    })
    .await;
    let fault = ask(&plain(port)).await.unwrap_err();
    assert!(fault.to_string().starts_with("broken answer: not HTTP"), "{fault}");
}

#[tokio::test]
async fn a_silent_server_is_given_up_at_the_deadline() {
    let (port, _server) = server(|_, mut stream| async move {
        request(&mut stream).await;
        std::future::pending().await
    })
    .await;
    let mut attempt = attempt();
    attempt.call.deadline = Deadline::after(Duration::from_millis(50));
    let fault = plain(port).oneshot(attempt).await.unwrap_err().fault;
    assert!(matches!(fault, Fault::Deadline), "{fault:?}");
}

#[tokio::test]
async fn what_no_header_can_carry_is_not_sent() {
    let mut attempt = attempt();
    attempt.call.token = Some(Arc::new(SecretString::from("s.se\ncret")));
    let fault = plain(1).oneshot(attempt).await.unwrap_err().fault;
    assert!(matches!(fault, Fault::Unsendable(_)), "{fault:?}");
    assert!(!fault.to_string().contains("cret"));
}

// === TLS ===

/// A TLS server with `identity` that asks for a certificate of `clients`, if there is one.
async fn tls_server(identity: Identity, clients: Option<&Authority>) -> (u16, OwnedTask) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(authority.der()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let config = builder.with_single_cert(identity.chain(), identity.private_key()).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    server(move |_, stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            while request(&mut stream).await.is_some() {
                say(&mut stream, GOOD).await;
            }
        }
    })
    .await
}

/// What a client that trusts `trusted` meets at a server with `identity`.
async fn over_tls(
    trusted: &Authority,
    identity: Identity,
    server_name: Option<&str>,
) -> Result<Answer, Fault> {
    let folder = tempfile::tempdir().unwrap();
    let tls = TlsSettings {
        ca_file: Some(trusted.write(folder.path(), "ca.pem")),
        client: None,
        server_name: server_name.map(str::to_owned),
    };
    let (port, _server) = tls_server(identity, None).await;
    ask(&at(&format!("https://127.0.0.1:{port}"), &tls)).await
}

#[tokio::test]
async fn tls_errors_tell_an_operator_what_to_do() {
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let here = "127.0.0.1";
    let table = [
        (theirs.issue(here, Valid::Now), "not signed by the CA in vaultCACert"),
        (ours.issue("vault.example", Valid::Now), "set tlsServerName"),
        (ours.issue(here, Valid::NoMore), "has expired"),
        (ours.issue(here, Valid::NotYet), "check this machine's clock"),
    ];
    for (identity, expected) in table {
        let fault = over_tls(&ours, identity, None).await.unwrap_err();
        assert!(matches!(fault, Fault::Tls(_)), "{fault:?}");
        assert!(fault.to_string().contains(expected), "{fault}");
    }
    over_tls(&ours, ours.issue(here, Valid::Now), None).await.unwrap();
}

#[tokio::test]
async fn every_connection_verifies_the_certificate_anew() {
    let ours = Authority::new("ours");
    let identity = ours.issue("127.0.0.1", Valid::Now);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(identity.chain(), identity.private_key())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (told, mut kinds) = tokio::sync::mpsc::unbounded_channel();
    let (port, _server) = server(move |_, stream| {
        let (acceptor, told) = (acceptor.clone(), told.clone());
        async move {
            let mut stream = acceptor.accept(stream).await.unwrap();
            request(&mut stream).await;
            told.send(stream.get_ref().1.handshake_kind()).unwrap();
            say(&mut stream, b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                .await;
        }
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let tls =
        TlsSettings { ca_file: Some(ours.write(folder.path(), "ca.pem")), ..Default::default() };
    let http = at(&format!("https://127.0.0.1:{port}"), &tls);
    for number in 1..=3 {
        ask(&http).await.unwrap();
        let kind = kinds.recv().await.unwrap();
        assert_ne!(kind, Some(rustls::HandshakeKind::Resumed), "connection {number}");
    }
}

#[tokio::test]
async fn a_server_that_freezes_in_its_tls_handshake_is_unreachable_before_a_logins_deadline() {
    let (port, _server) = server(|_, stream| async move {
        let _held = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let http = at(&format!("https://127.0.0.1:{port}"), &TlsSettings::default());
    let fault = ask(&http).await.unwrap_err(); // a deadline of 10 s
    assert_eq!(fault.to_string(), "cannot connect: timed out");
    assert!(!fault.may_have_been_served());
}

#[tokio::test]
async fn the_configured_server_name_is_the_one_that_is_verified() {
    let ours = Authority::new("ours");
    let named = || ours.issue("vault.example", Valid::Now);
    over_tls(&ours, named(), Some("vault.example")).await.unwrap();
    over_tls(&ours, named(), Some("other.example")).await.unwrap_err();
}

#[tokio::test]
async fn a_missing_client_certificate_is_asked_for_by_name() {
    let ours = Authority::new("ours");
    let folder = tempfile::tempdir().unwrap();
    let (port, _server) = tls_server(ours.issue("127.0.0.1", Valid::Now), Some(&ours)).await;
    let url = format!("https://127.0.0.1:{port}");
    let mut tls =
        TlsSettings { ca_file: Some(ours.write(folder.path(), "ca.pem")), ..Default::default() };
    let fault = ask(&at(&url, &tls)).await.unwrap_err();
    assert!(fault.to_string().contains("set clientCert and clientKey"), "{fault}");

    let (cert_file, key_file) = ours.issue("us", Valid::Now).write(folder.path(), "us");
    tls.client = Some(ClientIdentity { cert_file, key_file });
    ask(&at(&url, &tls)).await.unwrap();
}

#[tokio::test]
async fn plain_http_where_tls_is_expected_is_named() {
    let (port, _server) = server(|_, mut stream| async move {
        let mut hello = [0; 64];
        let _ = stream.read(&mut hello).await;
        say(&mut stream, b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request").await;
    })
    .await;
    let fault = ask(&at(&format!("https://127.0.0.1:{port}"), &TlsSettings::default())).await;
    let fault = fault.unwrap_err();
    assert!(fault.to_string().contains("does not speak TLS"), "{fault}");
}
