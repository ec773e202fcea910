use super::*;
use crate::daemon::generations::Generations;
use crate::daemon::pulse::pulse;

struct Systemd {
    socket: UnixDatagram,
    _folder: tempfile::TempDir,
}

impl Systemd {
    fn listen() -> (Self, Variables) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let socket = Self { socket, _folder: folder };
        (socket, Variables { socket: Some(path.into()), ..Variables::default() })
    }

    async fn hears(&self) -> String {
        let mut text = vec![0; 4_096];
        let length = self.socket.recv(&mut text).await.unwrap();
        String::from_utf8(text[..length].to_vec()).unwrap()
    }
}

#[tokio::test]
async fn messages_arrive_in_order_one_datagram_each() {
    let (systemd, variables) = Systemd::listen();
    let notifier = Notifier::new(&variables);
    notifier.ready();
    notifier.status("Vault:\nok");
    notifier.reloading();
    notifier.ready();
    notifier.stopping().await;
    assert_eq!(systemd.hears().await, "READY=1");
    assert_eq!(systemd.hears().await, "STATUS=Vault: ok", "a status is one line");
    let reloading = systemd.hears().await;
    let usec = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
    assert!(usec.parse::<u64>().unwrap() <= monotonic_usec());
    assert_eq!(systemd.hears().await, "READY=1");
    assert!(systemd.hears().await.starts_with("STOPPING=1\nSTATUS="));
}

#[tokio::test]
async fn an_abstract_socket_is_heard_too() {
    let name = format!("vault-kms-proxy-notify-{}", std::process::id());
    let listens = StdDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let socket = Some(format!("@{name}").into());
    Notifier::new(&Variables { socket, ..Variables::default() }).stopping().await;
    let mut text = [0; 10];
    listens.set_nonblocking(true).unwrap();
    assert_eq!(listens.recv(&mut text).unwrap(), text.len());
    assert_eq!(&text, b"STOPPING=1");
}

#[tokio::test]
async fn nobody_there_costs_nothing() {
    let nobody = Notifier::default();
    nobody.ready();
    nobody.stopping().await;
    assert!(!nobody.is_heard());
    let gone = Variables { socket: Some("/nowhere/notify".into()), ..Variables::default() };
    let gone = Notifier::new(&gone);
    for _ in 0..LINE * 2 {
        gone.ready();
    }
    gone.stopping().await;
    let strange = Variables { socket: Some("vsock:2:1".into()), ..Variables::default() };
    assert!(!Notifier::new(&strange).is_heard());
}

#[tokio::test(start_paused = true)]
async fn the_watchdog_is_fed_only_while_the_daemon_answers_itself() {
    let (systemd, variables) = Systemd::listen();
    let variables = Variables { watchdog_usec: Some("10000000".into()), ..variables };
    let notifier = Notifier::new(&variables);
    let (pulse, incoming) = pulse();
    let service = crate::kms::v1::Service::new(Arc::new(Generations::default()) as _);
    let router = tonic::transport::Server::builder().add_service(
        crate::proto::v1beta1::key_management_service_server::KeyManagementServiceServer::new(
            service,
        ),
    );
    let server = tokio::spawn(router.serve_with_incoming(incoming));
    let _watch = notifier.watch(pulse).unwrap();
    for _ in 0..3 {
        assert_eq!(systemd.hears().await, "WATCHDOG=1");
    }
    server.abort();
    let silence = tokio::time::timeout(Duration::from_secs(60), systemd.hears()).await;
    assert!(silence.is_err(), "a dead daemon fed the watchdog: {silence:?}");
}

/// A call is lost each time: systemd hears of the next one before its patience ends.
#[tokio::test(start_paused = true)]
async fn one_call_that_is_not_answered_starves_no_watchdog() {
    use futures_util::StreamExt as _;
    let (systemd, variables) = Systemd::listen();
    let variables = Variables { watchdog_usec: Some("10000000".into()), ..variables };
    let notifier = Notifier::new(&variables);
    let (pulse, incoming) = pulse();
    let (mut lost, mut count) = (Vec::new(), 0);
    let incoming = incoming.filter_map(move |connection| {
        count += 1;
        let answered = if count % 2 == 0 {
            lost.push(connection);
            None
        } else {
            Some(connection)
        };
        std::future::ready(answered)
    });
    let service = crate::kms::v1::Service::new(Arc::new(Generations::default()) as _);
    let router = tonic::transport::Server::builder().add_service(
        crate::proto::v1beta1::key_management_service_server::KeyManagementServiceServer::new(
            service,
        ),
    );
    let _server = tokio::spawn(router.serve_with_incoming(incoming));
    let _watch = notifier.watch(pulse).unwrap();
    assert_eq!(systemd.hears().await, "WATCHDOG=1");
    for _ in 0..5 {
        let heard = Instant::now();
        assert_eq!(systemd.hears().await, "WATCHDOG=1");
        assert!(heard.elapsed() < Duration::from_secs(10), "{:?}", heard.elapsed());
    }
}

#[test]
fn a_watchdog_of_another_process_is_not_ours() {
    let ours = std::process::id().to_string();
    let of = |usec: &str, pid: Option<&str>| {
        let (watchdog_usec, watchdog_pid) = (Some(usec.to_owned()), pid.map(str::to_owned));
        Variables { socket: None, watchdog_usec, watchdog_pid }.watchdog()
    };
    assert_eq!(of("30000000", None), Some(Duration::from_secs(30)));
    assert_eq!(of("30000000", Some(&ours)), Some(Duration::from_secs(30)));
    assert_eq!(of("30000000", Some("1")), None);
    assert_eq!(of("0", None), None);
    assert_eq!(of("soon", None), None);
}

#[test]
fn the_status_says_what_the_keys_and_the_reloads_do() {
    let generations = Generations::default();
    let story = Story::default();
    assert_eq!(story.line(&generations), "Vault: its configuration is being built");
    story.tell("Reload failed: no such key");
    let line = story.line(&generations);
    assert_eq!(line, "Vault: its configuration is being built. Reload failed: no such key");
}
