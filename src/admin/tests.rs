use std::net::SocketAddr;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::config::load::Flags;
use crate::config::outline::Outline;
use crate::task::OwnedTask;

/// Says what it was told to say.
#[derive(Debug, Default)]
struct Said(Mutex<Vec<Check>>);

impl Readiness for Said {
    fn checks(&self) -> Vec<Check> {
        self.0.lock().unwrap().clone()
    }

    fn running(&self) -> Running {
        Running {
            version: "0.0.0".into(),
            pid: 1,
            file: Some("/etc/x.yaml".into()),
            flags: Flags { socket: Some("@kms".into()), ..Flags::default() },
            generation: Some(7),
            configuration: Some(Outline::default()),
            started_with: Outline::default(),
            fallback: None,
            last_reload: None,
        }
    }
}

struct Admin {
    address: SocketAddr,
    said: Arc<Said>,
    stop: CancellationToken,
    task: OwnedTask,
}

impl Admin {
    async fn start() -> Self {
        Self::start_with(HEAD_TIMEOUT, CONNECTION_TIMEOUT).await
    }

    async fn start_with(head: Duration, connection: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let said = Arc::new(Said::default());
        let prometheus = crate::telemetry::metrics::install().unwrap();
        let state = AdminState { readiness: said.clone(), prometheus };
        let stop = CancellationToken::new();
        let served = serve_with(listener, router(state), stop.clone(), head, connection);
        Self { address, said, stop, task: OwnedTask::spawn("admin", served) }
    }

    fn say(&self, name: &'static str, ok: bool, detail: &str) {
        let check = Check { name: name.into(), ok, detail: detail.to_owned() };
        self.said.0.lock().unwrap().push(check);
    }

    /// Sends `request` and reads until the connection closes.
    async fn send(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The server may close before it has read a request that is too large.
        let _ = stream.write_all(request.as_bytes()).await;
        read_to_end(&mut stream).await
    }

    async fn get(&self, path: &str) -> String {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await
    }
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    let _ = tokio::time::timeout(Duration::from_secs(20), read).await.expect("it must close");
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn livez_says_ok_while_nothing_is_ready() {
    let admin = Admin::start().await;
    admin.say("vault", false, "sealed");
    let answer = admin.get("/livez").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nok\n"), "{answer}");
}

#[tokio::test]
async fn readyz_has_a_line_for_each_check_and_fails_when_one_does() {
    let admin = Admin::start().await;
    admin.say("socket", true, "");
    let answer = admin.get("/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n[+] socket\n"), "{answer}");
    admin.say("kek/kube", false, "no address could answer:\nforged");
    let answer = admin.get("/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    let lines = "[+] socket\n[-] kek/kube: no address could answer: forged\n";
    assert!(answer.ends_with(lines), "{answer}");
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let admin = Admin::start().await;
    crate::telemetry::metrics::add(crate::telemetry::metrics::Metric::Panics, 1, &[]);
    let answer = admin.get("/metrics").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    assert!(answer.contains("# TYPE vault_kms_proxy_panics_total counter\n"), "{answer}");
}

#[tokio::test]
async fn other_paths_and_methods_are_told_what_is_served() {
    let admin = Admin::start().await;
    let answer = admin.get("/").await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert!(answer.ends_with("Served here: /livez, /readyz, /metrics, /configz.\n"), "{answer}");
    let answer = admin.send("POST /livez HTTP/1.1\r\nHost: l\r\nContent-Length: 0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    assert!(answer.contains("allow: GET,HEAD\r\n"), "{answer}");
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let admin = Admin::start().await;
    let large = "x".repeat(3 * LARGEST_HEAD);
    let answer = admin.send(&format!("GET /livez HTTP/1.1\r\nX: {large}\r\n\r\n")).await;
    // Closing with bytes unread may cost the client the answer, but never brings a 200.
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert!(admin.get("/livez").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_client_that_does_not_finish_its_head_is_cut() {
    let admin = Admin::start_with(Duration::from_millis(100), CONNECTION_TIMEOUT).await;
    let mut stream = TcpStream::connect(admin.address).await.unwrap();
    stream.write_all(b"GET /livez HT").await.unwrap();
    let begin = tokio::time::Instant::now();
    let answer = read_to_end(&mut stream).await;
    assert!(!answer.contains("200"), "{answer}");
    assert!(begin.elapsed() < CONNECTION_TIMEOUT / 2, "the head's own timeout did not act");
}

#[tokio::test]
async fn silent_clients_in_number_delay_a_probe_but_do_not_lock_it_out() {
    let admin = Admin::start_with(Duration::from_secs(60), Duration::from_millis(300)).await;
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS {
        silent.push(TcpStream::connect(admin.address).await.unwrap());
    }
    let begin = tokio::time::Instant::now();
    assert!(admin.get("/livez").await.starts_with("HTTP/1.1 200"));
    assert!(begin.elapsed() >= Duration::from_millis(100), "there was no bound");
}

#[tokio::test]
async fn it_ends_when_it_is_told_to_even_with_a_client_connected() {
    let admin = Admin::start().await;
    let mut stream = TcpStream::connect(admin.address).await.unwrap();
    stream.write_all(b"GET /livez HT").await.unwrap();
    assert!(admin.get("/livez").await.starts_with("HTTP/1.1 200"));
    admin.stop.cancel();
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    while !admin.task.is_finished() {
        assert!(tokio::time::Instant::now() < end, "it goes on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(TcpStream::connect(admin.address).await.is_err());
}

#[tokio::test]
async fn configz_is_what_check_reads() {
    let admin = Admin::start().await;
    let answer = admin.get("/configz").await;
    assert!(answer.contains("content-type: application/json"), "{answer}");
    let json = answer.split_once("\r\n\r\n").unwrap().1;
    let running: Running = serde_json::from_str(json).unwrap();
    assert_eq!(running, admin.said.running());
}
