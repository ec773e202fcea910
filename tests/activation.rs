//! Under systemd: the socket outlives the daemon, and systemd hears what becomes of it. The
//! test plays systemd: it listens, and starts the daemon anew whenever that has ended.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use lab::{Callers, Config, Daemon, DaemonBuilder, DevNode, Kms, Systemd, eventually};
use serde_json::json;
use tokio::time::Instant;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(20);
const CALLERS: usize = 8;
const ROUNDS: usize = 4;

/// A daemon whose Vault nobody ever reaches.
fn alone() -> DaemonBuilder {
    let config = Config::new()
        .keys(&["kube"])
        .addresses(&["https://127.0.0.1:1"])
        .token("hvs.nobody")
        .with("admin", json!({ "listen": "off" }));
    Daemon::builder(DAEMON).config(config)
}

/// Dials again and again, for as long as it lives.
struct Dialler {
    stop: Arc<AtomicBool>,
    dialled: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<Vec<String>>>,
}

impl Dialler {
    fn start(systemd: &Systemd) -> Self {
        let (stop, dialled) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (until, counter) = (Arc::clone(&stop), Arc::clone(&dialled));
        let socket = systemd.socket().to_owned();
        let thread = std::thread::spawn(move || {
            let mut refused = Vec::new();
            while !until.load(Ordering::Relaxed) {
                match UnixStream::connect(&socket) {
                    Ok(_) => _ = counter.fetch_add(1, Ordering::Relaxed),
                    Err(error) => refused.push(error.to_string()),
                }
                #[allow(clippy::disallowed_methods)] // a thread of its own, which no task runs on
                std::thread::sleep(Duration::from_millis(2));
            }
            refused
        });
        Self { stop, dialled, thread: Some(thread) }
    }

    /// How often it has dialled, and how it was refused.
    fn finish(mut self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it is taken here only");
        let refused = thread.join().expect("it does not panic");
        (self.dialled.load(Ordering::Relaxed), refused)
    }
}

impl Drop for Dialler {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn with_an_inherited_socket_a_kill_costs_the_calls_in_flight_and_a_stop_none() -> lab::Result
{
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube"]).await?;
    let state = tempfile::tempdir()?;
    let config = bao.config(&["kube"]).await?;
    let config = config.with("stateDir", state.path().join("state").display().to_string());
    let systemd = Systemd::start()?;
    let service = systemd.service(Daemon::builder(DAEMON).config(config))?;
    let mut daemon = service.clone().start().await?;
    daemon.wait_ready(PATIENCE).await?;
    // A kill leaves no time for it: what was proven is kept within a second.
    eventually("the proof is kept", PATIENCE, || async {
        let text = std::fs::read_to_string(state.path().join("state/state.json"))?;
        Ok(text.contains("\"proven\": 1").then_some(()))
    })
    .await?;

    for signal in ["SIGKILL", "SIGTERM"] {
        let dialler = Dialler::start(&systemd);
        let callers = Callers::start(&daemon.kms(), CALLERS, &[]);
        callers.more(50, PATIENCE).await?;
        for _ in 0..ROUNDS {
            let before = callers.so_far().failures.len();
            if signal == "SIGKILL" {
                daemon.kill();
            } else {
                assert_eq!(daemon.stop().await?, 0);
            }
            let began = Instant::now();
            daemon = service.clone().start().await?;
            println!("{signal}: answers {:.0?} after its exec", began.elapsed());
            // By now every caller has noticed that its connection is gone.
            let lost = callers.so_far().failures.len();
            let in_flight = if signal == "SIGKILL" { CALLERS } else { 0 };
            assert!(lost - before <= in_flight, "{}", callers.so_far().failures_told());
            let good = callers.so_far().good + 50;
            eventually("50 more calls are answered", PATIENCE, || async {
                Ok((callers.so_far().good >= good).then_some(()))
            })
            .await?;
            let told = callers.so_far().failures_told();
            assert_eq!(callers.so_far().failures.len(), lost, "after the restart: {told}");
        }
        let seen = callers.finish().await;
        let (dialled, refused) = dialler.finish();
        let (good, lost, slowest) = (seen.good, seen.failures.len(), seen.slowest);
        println!(
            "{ROUNDS} times {signal}: {good} calls good, {lost} lost, slowest {slowest:.0?}; \
             {dialled} times dialled, {} refused",
            refused.len()
        );
        assert!(refused.is_empty(), "{refused:?}");
        let wrong = seen.failures.iter().find(|failure| failure.code.is_none());
        assert!(wrong.is_none(), "{wrong:?}");
    }

    assert_eq!(daemon.stop().await?, 0);
    assert!(systemd.socket().exists(), "the socket unit's file was removed");
    let folder = systemd.socket().parent().expect("it is in a folder");
    let names: Vec<_> = std::fs::read_dir(folder)?.flatten().map(|e| e.file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().contains("lock")), "{names:?}");
    Ok(())
}

fn monotonic_usec() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec * 1_000_000 + now.tv_nsec / 1_000).expect("it is not negative")
}

#[tokio::test]
async fn systemd_hears_of_the_start_of_vault_of_reloads_and_of_the_end() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube", "other"]).await?;
    let config = bao.config(&["kube", "other"]).await?;
    let systemd = Systemd::start()?;
    let service = systemd.service(Daemon::builder(DAEMON).config(&config))?;
    let daemon = service.env("WATCHDOG_USEC", "400000").spawn()?;
    systemd.hears(0, "READY=1", PATIENCE).await?;
    systemd.hears(0, "STATUS=Vault: ok", PATIENCE).await?;

    let mark = systemd.heard().len();
    daemon.write_config(config.clone().keys(&["other", "kube"]))?;
    // systemd takes a message for an answer to its signal when it is younger than that.
    let before = monotonic_usec();
    daemon.sighup()?;
    systemd.hears(mark, "RELOADING=1", PATIENCE).await?;
    let clock = systemd.hears(mark, "MONOTONIC_USEC=", PATIENCE).await?;
    let at = clock.trim_start_matches("MONOTONIC_USEC=").parse::<u64>()?;
    assert!((before..=monotonic_usec()).contains(&at), "{clock}, and {before} before the signal");
    systemd.hears(mark, "READY=1", PATIENCE).await?;

    let mark = systemd.heard().len();
    daemon.write_config(config.clone().with("keyname", "kube"))?;
    daemon.sighup()?;
    systemd.hears(mark, "RELOADING=1", PATIENCE).await?;
    systemd.hears(mark, "READY=1", PATIENCE).await?;
    let status = systemd.hears(mark, "STATUS=Vault: ok. The last reload failed", PATIENCE).await?;
    assert!(status.contains("did you mean `keyNames`"), "{status}");
    println!("{status}");

    // The watchdog is fed by a daemon that answers, and by no other.
    let mark = systemd.heard().len();
    systemd.hears(mark, "WATCHDOG=1", PATIENCE).await?;
    daemon.freeze(true)?;
    eventually("nothing is heard of a frozen daemon", PATIENCE, || async {
        let before = systemd.heard().len();
        tokio::time::sleep(Duration::from_millis(800)).await;
        Ok((systemd.heard().len() == before).then_some(()))
    })
    .await?;
    let mark = systemd.heard().len();
    daemon.freeze(false)?;
    systemd.hears(mark, "WATCHDOG=1", PATIENCE).await?;

    assert_eq!(daemon.stop().await?, 0);
    systemd.hears(mark, "STOPPING=1", PATIENCE).await?;
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_with_what_to_write() -> lab::Result {
    let systemd = Systemd::start()?;
    let tcp = std::net::TcpListener::bind("127.0.0.1:0")?;
    let datagrams = UnixDatagram::bind(systemd.socket().with_extension("datagrams"))?;
    let connection = UnixStream::connect(systemd.socket())?;
    let unix = "is not a valid unix stream socket; write `ListenStream=` and a path";
    let wrong: [(DaemonBuilder, &str); 4] = [
        (systemd.start_with(alone(), tcp.into()), unix),
        (systemd.start_with(alone(), datagrams.into()), unix),
        (systemd.start_with(alone(), connection.into()), "write `Accept=no`"),
        (
            systemd.service(alone())?.env("LISTEN_FDS", "2"),
            "2 sockets were handed over (LISTEN_FDS) and one can be served",
        ),
    ];
    for (daemon, words) in wrong {
        let daemon = daemon.spawn()?;
        assert_eq!(daemon.wait(PATIENCE).await?, 1, "{}", daemon.log());
        println!("{}", daemon.log().trim());
        assert!(daemon.log().contains(words), "{}", daemon.log());
        assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    }
    Ok(())
}

#[tokio::test]
async fn the_inherited_socket_is_served_as_it_is() -> lab::Result {
    let folder = tempfile::tempdir_in("/tmp")?;
    let inherited = folder.path().join("inherited.sock");
    let listener = UnixListener::bind(&inherited)?;
    std::fs::set_permissions(&inherited, std::fs::Permissions::from_mode(0o666))?;
    let configured = folder.path().join("configured.sock");
    let socket = |path: &str| json!({ "path": path });
    let config = |path: &std::path::Path| {
        Config::new()
            .keys(&["kube"])
            .addresses(&["https://127.0.0.1:1"])
            .token("hvs.nobody")
            .with("admin", json!({ "listen": "off" }))
            .with("socket", socket(&path.display().to_string()))
    };
    let daemon = alone()
        .config(config(&configured))
        .args(["serve", "--config", "{config}"])
        .inherit(listener.try_clone()?)
        .spawn()?;
    let kms = Kms::new(&inherited);
    eventually("the inherited socket answers", PATIENCE, || async {
        Ok(Some(kms.v1().version().await?))
    })
    .await?;
    let differs = daemon.wait_for_log("socket.path is not", PATIENCE).await?;
    assert!(differs.contains("WARN") && differs.contains("configured.sock"), "{differs}");
    let wide = daemon.wait_for_log("write `SocketMode=0600`", PATIENCE).await?;
    assert!(wide.contains("WARN") && wide.contains("mode=0666"), "{wide}");
    assert!(!configured.exists(), "the configured socket was bound beside it");

    let mark = daemon.log_mark();
    daemon.write_config(config(&folder.path().join("another.sock")))?;
    daemon.sighup()?;
    let refused = daemon.wait_for_log_after(mark, "Reload failed", PATIENCE).await?;
    assert!(refused.contains("socket"), "{refused}");
    assert_eq!(kms.v1().version().await?.version, "v1beta1");
    assert_eq!(daemon.stop().await?, 0);
    assert!(inherited.exists(), "the file of the socket unit was removed");
    assert!(UnixStream::connect(&inherited).is_ok(), "it does not listen any more");
    Ok(())
}
