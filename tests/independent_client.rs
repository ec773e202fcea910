//! The daemon answers a client that shares no code with it: gRPC's C core, from Python.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use lab::{Config, Context, Daemon, DevNode, FaultProxy};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/independent_client/client.py");
const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than each of the client's deadlines, shorter than the one it meets.
const SLOW: Duration = Duration::from_secs(3);

/// What the client must have said, whichever socket it dialled.
const EXPECTED: [&str; 12] = [
    "ok authority raw path (Kubernetes up to 1.28): :authority=",
    "ok authority percent-encoded path (1.29 to 1.31): :authority=%",
    "ok authority @name (abstract socket): :authority=@",
    "ok authority localhost (1.32 and later): :authority=localhost ",
    "ok deadline of 1 us: ",
    "ok deadline of 300000 us: ",
    "ok deadline of 900000 us: ",
    "ok deadline of 20 s: ",
    "ok cancellation: ",
    "ok four connections at once: ",
    "ok 64 KiB uid: ",
    "ok bad input: ",
];

/// One OpenBao behind a fault proxy, and the way to it.
struct Lab {
    proxy: FaultProxy,
    config: Config,
    _bao: DevNode,
}

#[tokio::test]
async fn an_independent_client_is_served_through_a_socket_file() -> lab::Result {
    let lab = Lab::start().await?;
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("kms.sock");
    let said = lab.serve_the_client(&socket, lab.config.clone()).await?;
    let raw = format!(":authority={} all six methods", socket.display());
    assert!(said.contains(&raw), "no {raw:?}");
    Ok(())
}

#[tokio::test]
async fn an_independent_client_is_served_through_an_abstract_socket() -> lab::Result {
    let lab = Lab::start().await?;
    let name = format!("@vault-kms-proxy-{}", std::process::id());
    let ours = std::fs::metadata("/proc/self")?.uid();
    let config = lab.config.clone().with("socket", json!({ "allowedUids": [ours] }));
    let said = lab.serve_the_client(Path::new(&name), config).await?;
    assert!(said.contains(&format!(" on unix-abstract:{}", &name[1..])), "no target in it");
    Ok(())
}

// === impl Lab ===

impl Lab {
    async fn start() -> lab::Result<Self> {
        let bao = DevNode::start().await?;
        bao.create_keys(&["kube"]).await?;
        let proxy = FaultProxy::start(bao.address()).await?;
        let config = bao.config(&["kube"]).await?.addresses(&[proxy.https()]);
        Ok(Self { proxy, config, _bao: bao })
    }

    /// Runs the client against a daemon on `socket`, does what it asks for, and answers
    /// everything that it said.
    async fn serve_the_client(&self, socket: &Path, config: Config) -> lab::Result<String> {
        let builder = Daemon::builder(DAEMON).config(config).socket(socket);
        let mut daemon = builder.clone().start().await?;
        daemon.wait_ready(PATIENCE).await?;

        let mut client = tokio::process::Command::new("python3")
            .arg(CLIENT)
            .arg("--socket")
            .arg(socket)
            .env("PYTHONPATH", tokio::task::spawn_blocking(lab::install::grpcio).await??)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot run python3; install it, for the independent client needs it")?;
        let mut answers = client.stdin.take().context("the client's stdin is a pipe")?;
        let stdout = client.stdout.take().context("the client's stdout is a pipe")?;
        let mut lines = BufReader::new(stdout).lines();
        let mut said = String::new();
        let next = |e| lab::Error::new(format!("the client said nothing for too long: {e}"));
        while let Some(line) =
            tokio::time::timeout(2 * PATIENCE, lines.next_line()).await.map_err(next)??
        {
            println!("{line}");
            match line.as_str() {
                "slow now" => self.proxy.delay(SLOW),
                "heal now" => self.proxy.heal().await?,
                "restart now" => daemon = restart(daemon, &builder, socket).await?,
                _ => said.extend([&line, "\n"]),
            }
            if line.ends_with(" now") {
                answers.write_all(b"done\n").await?;
            }
        }
        let end = client.wait().await?;
        assert!(end.success(), "the client ended with {end}:\n{said}");
        for expected in EXPECTED.iter().chain(&["ok reconnect after a restart: "]) {
            assert!(said.lines().any(|l| l.starts_with(expected)), "no {expected:?} in:\n{said}");
        }
        assert!(said.contains("all checks passed with grpcio "), "{said}");
        assert_eq!(daemon.stop().await?, 0);
        assert!(!socket.exists(), "the socket file is left behind");
        Ok(said)
    }
}

/// Kills the daemon, so that its socket file stays, and starts another on the same socket.
async fn restart(old: Daemon, builder: &lab::DaemonBuilder, socket: &Path) -> lab::Result<Daemon> {
    old.kill();
    // A second name keeps the inode of the file that is left, so that no other can get it.
    let left = socket.with_extension("left");
    if socket.exists() {
        std::fs::hard_link(socket, &left)?;
    }
    let new = builder.clone().start().await?;
    new.wait_ready(PATIENCE).await?;
    if left.exists() {
        let inodes = (left.metadata()?.ino(), socket.metadata()?.ino());
        assert_ne!(inodes.0, inodes.1, "the stale socket file is still there");
    }
    Ok(new)
}
