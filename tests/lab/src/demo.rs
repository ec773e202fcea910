//! The demo's story.

use std::path::PathBuf;
use std::time::Duration;

use lab::apiserver::{self, Store};
use lab::{Callers, Cluster, Config, Daemon, Result, Seen, fail};
use tokio::process::Command;
use tokio::time::Instant;

const NEW: &str = "kube-2026";
const OLD: &str = "kube-secret-enc-key";
const STEPS: usize = 11;
const CALLERS: usize = 4;
/// What stands for a key; a real one is random, and is never printed either.
const SAMPLE: &[u8; 32] = b"not a secret: 32 sample bytes...";
const SECRET: &str = "/registry/secrets/default/demo";

/// Counts the steps and prints their headings.
#[derive(Debug, Default)]
struct Story {
    step: usize,
}

pub(crate) async fn run(daemon: Option<PathBuf>) -> Result {
    let mut story = Story::default();

    story.step("OpenBao");
    let bao = tokio::task::spawn_blocking(lab::install::bao).await??;
    println!("  {}", version(&bao).await?);

    story.step("The daemon");
    let binary = crate::binary::find(daemon).await?;
    println!("  {}", binary.display());

    story.step("Three OpenBao nodes: raft, TLS from a CA of our own, on loopback");
    let started = Instant::now();
    let cluster = Cluster::start().await?;
    let leader = cluster.leader().await?.name().to_owned();
    for node in cluster.nodes() {
        let role = if node.name() == leader { "active" } else { "standby" };
        println!("  {}  {}  {role}", node.name(), node.address());
    }
    println!("  up in {:.1} s", started.elapsed().as_secs_f64());

    story.step("Two Transit keys, and a ciphertext as the Oracle plugin left it");
    cluster.create_keys(&[NEW, OLD]).await?;
    let made = cluster.admin().encrypt(OLD, SAMPLE).await?;
    let oracle = made.replacen("vault:", &format!("{OLD}:"), 1);
    println!("  keys: {NEW}, {OLD}");
    println!("  old ciphertext: {}", head(oracle.as_bytes()));

    story.step("The daemon against all three addresses, logged in with AppRole");
    let config = cluster.config(&[NEW, OLD]).await?;
    tell_config(&config);
    let daemon = Daemon::start(&binary, &config).await?;
    daemon.wait_ready(Duration::from_secs(30)).await?;
    println!("  pid {}, socket {}", daemon.pid(), daemon.socket().display());

    let told = Box::pin(with_daemon(&mut story, &cluster, &config, &daemon, &oracle)).await;
    if told.is_err() {
        eprintln!("\nThe daemon's log:\n{}", daemon.log());
    }
    told?;
    println!("\nEvery step held.");
    Ok(())
}

async fn with_daemon(
    story: &mut Story,
    cluster: &Cluster,
    config: &Config,
    daemon: &Daemon,
    oracle: &str,
) -> Result {
    story.step("KMS v1 and v2 on the unix socket");
    v1(daemon).await?;
    v2(daemon).await?;

    story.step("The Oracle plugin's ciphertext, decrypted by the key's name in it");
    let opened = daemon.kms().v1().decrypt(oracle.as_bytes()).await?;
    same(&opened)?;
    println!("  {} -> {} bytes, as they were", head(oracle.as_bytes()), opened.len());

    story.step("kill -9 of the active node during calls");
    killed_leader(cluster, daemon).await?;

    story.step("SIGHUP with keyNames turned round, during calls");
    let old_ciphertext = daemon.kms().v1().encrypt(SAMPLE).await?;
    turned_round(config, daemon).await?;
    same(&daemon.kms().v1().decrypt(&old_ciphertext).await?)?;
    println!("  older ciphertexts still open: {}", head(&old_ciphertext));

    story.step("A rotation, and an apiserver that lives through it");
    rotation(cluster, daemon).await?;

    story.step("SIGTERM");
    let code = daemon.stop().await?;
    println!("  exit code {code}");
    if code != 0 {
        fail!("the daemon should have ended with 0");
    }
    Ok(())
}

async fn v1(daemon: &Daemon) -> Result {
    let v1 = daemon.kms().v1();
    let version = v1.version().await?;
    println!(
        "  v1 Version  {} ({} {})",
        version.version, version.runtime_name, version.runtime_version
    );
    let cipher = v1.encrypt(SAMPLE).await?;
    println!("  v1 Encrypt  {}", head(&cipher));
    same(&v1.decrypt(&cipher).await?)?;
    println!("  v1 Decrypt  {} bytes, as they were", SAMPLE.len());
    named(&cipher, NEW)
}

async fn v2(daemon: &Daemon) -> Result {
    let v2 = daemon.kms().v2();
    let status = v2.status().await?;
    apiserver::v2::check_status(&status)?;
    println!("  v2 Status   {} {} key_id={}", status.version, status.healthz, status.key_id);
    let made = v2.encrypt(SAMPLE, "demo").await?;
    apiserver::v2::check_encrypted(&made)?;
    println!("  v2 Encrypt  {} key_id={}", head(&made.ciphertext), made.key_id);
    same(&v2.decrypt(&made, "demo").await?)?;
    println!("  v2 Decrypt  {} bytes, as they were", SAMPLE.len());
    named(&made.ciphertext, NEW)
}

async fn killed_leader(cluster: &Cluster, daemon: &Daemon) -> Result {
    let callers = Callers::start(&daemon.kms(), CALLERS, &[]);
    pass(Duration::from_secs(1)).await;
    let leader = cluster.leader().await?;
    leader.kill();
    println!("  {} killed", leader.name());
    let since = Instant::now();
    let next = cluster.leader().await?;
    println!("  {} leads after {:.1} s", next.name(), since.elapsed().as_secs_f64());
    pass(Duration::from_secs(1)).await;
    tell(callers.finish().await)?;
    leader.start().await?;
    cluster.heal().await?;
    println!("  {} is back", leader.name());
    Ok(())
}

async fn turned_round(config: &Config, daemon: &Daemon) -> Result {
    let v2 = daemon.kms().v2();
    let before = v2.status().await?.key_id;
    let callers = Callers::start(&daemon.kms(), CALLERS, &[]);
    pass(Duration::from_millis(500)).await;
    daemon.write_config(config.clone().keys(&[OLD, NEW]))?;
    daemon.sighup()?;
    let after = v2.wait_other_key_id(&before, Duration::from_secs(20)).await?.key_id;
    pass(Duration::from_millis(500)).await;
    tell(callers.finish().await)?;
    println!("  key_id before  {before}");
    println!("  key_id after   {after}");
    let cipher = daemon.kms().v1().encrypt(SAMPLE).await?;
    println!("  new ciphertexts: {}", head(&cipher));
    named(&cipher, OLD)
}

async fn rotation(cluster: &Cluster, daemon: &Daemon) -> Result {
    let mut server = apiserver::v2::Server::new(daemon.kms().v2(), "vault");
    let mut store = Store::new();
    server.write(&mut store, SECRET, b"password").await?;
    let before = server.probe().await?;

    let version = cluster.rotate(OLD).await?;
    println!("  {OLD} has version {version} now");
    let v2 = daemon.kms().v2();
    v2.wait_other_key_id(&before, Duration::from_secs(20)).await?;
    server.restart();
    let after = server.probe().await?;
    println!("  key_id before  {before}");
    println!("  key_id after   {after}");

    let object = server.read(&store, SECRET).await?;
    if object.value != b"password" || !object.stale {
        fail!("the object that was written before the rotation should read, and be stale");
    }
    println!("  a Secret from before is read by a restarted apiserver, and is due for a rewrite");
    server.write(&mut store, SECRET, &object.value).await?;
    if server.read(&store, SECRET).await?.stale {
        fail!("a rewritten object should not be stale");
    }
    println!("  rewritten, it is up to date");
    Ok(())
}

// === small things ===

impl Story {
    fn step(&mut self, heading: &str) {
        self.step += 1;
        println!("\n[{}/{STEPS}] {heading}", self.step);
    }
}

/// The time for which calls go on: not a wait for anything.
async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

async fn version(bao: &PathBuf) -> Result<String> {
    let output = Command::new(bao).arg("version").output().await?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Prints what became of the calls; any that failed is an error.
fn tell(seen: Seen) -> Result {
    let (calls, failed, slowest) = (seen.calls.len(), seen.failures.len(), seen.slowest);
    println!("  calls {calls}, failed {failed}, slowest {} ms", slowest.as_millis());
    if failed > 0 {
        fail!("calls failed:\n{}", seen.failures_told());
    }
    Ok(())
}

fn tell_config(config: &Config) {
    for line in config.to_string().lines() {
        println!("  | {line}");
    }
}

/// The key's name, the version, and a little of what follows.
fn head(cipher: &[u8]) -> String {
    let text = String::from_utf8_lossy(cipher);
    let from = text.match_indices(':').nth(1).map_or(0, |(at, _)| at + 1);
    let shown: String = text.chars().take(from + 8).collect();
    format!("{shown}... ({} bytes)", cipher.len())
}

fn same(opened: &[u8]) -> Result {
    if opened != SAMPLE {
        fail!("Decrypt answered something else than what was encrypted");
    }
    Ok(())
}

fn named(cipher: &[u8], key: &str) -> Result {
    if !cipher.starts_with(format!("{key}:v").as_bytes()) {
        fail!("the ciphertext {} does not name {key}", head(cipher));
    }
    Ok(())
}
