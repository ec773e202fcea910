//! A daemon that has just been started: when it answers, what its first calls take, how much
//! memory it holds.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lab::{Config, Context, Daemon, Result, fail};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::measure::{self, Measured};
use crate::side::{Side, Sides, Verb};

/// So many calls of a caller are its first ones.
const FIRST: usize = 20;

/// How long a daemon has for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// The first calls of one side.
pub(crate) struct Cold {
    pub(crate) name: &'static str,
    pub(crate) callers: usize,
    /// The first call of each caller.
    pub(crate) first: Measured,
    /// The first [`FIRST`] of them.
    pub(crate) early: Measured,
}

/// What a daemon holds.
pub(crate) struct Memory {
    pub(crate) idle_kib: u64,
    pub(crate) loaded_kib: u64,
}

/// The daemon as it is shipped: the file that was given, or one that cargo builds now. The
/// one that cargo builds for benches has no link-time optimisation.
pub(crate) async fn shipped(given: Option<PathBuf>) -> Result<(PathBuf, &'static str)> {
    if let Some(given) = given {
        return Ok((given, "--daemon"));
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = tokio::process::Command::new(cargo);
    command.args(["build", "--quiet", "--release", "--bin", "vault-kms-proxy"]);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).kill_on_drop(true);
    if !command.status().await.context("cannot run cargo")?.success() {
        fail!("cargo build --release has failed");
    }
    // This program lies in `deps` beside it.
    let program = std::env::current_exe()?;
    let folder = program.ancestors().nth(2).context("this program lies in no folder")?;
    Ok((folder.join("vault-kms-proxy"), "cargo build --release"))
}

/// The binary's bytes, and whether its symbols are gone.
pub(crate) fn size(binary: &Path) -> Result<(usize, bool)> {
    let bytes = std::fs::read(binary).context(binary.display())?;
    let names_symbols = bytes.windows(9).any(|window| window == b"\0.symtab\0");
    Ok((bytes.len(), !names_symbols))
}

/// Starts a daemon so many times; the time from before its exec to the first answer of its
/// socket, each time.
pub(crate) async fn starts(binary: &Path, config: &Config, times: usize) -> Result<Vec<Duration>> {
    let mut all = Vec::new();
    for _ in 0..times {
        let (daemon, took) = start(binary, config).await?;
        all.push(took);
        daemon.stop().await?;
    }
    all.sort();
    Ok(all)
}

async fn start(binary: &Path, config: &Config) -> Result<(Daemon, Duration)> {
    let begin = Instant::now();
    let daemon = Daemon::builder(binary).config(config).spawn()?;
    let answers = async {
        // A channel that has failed waits before it dials again; this does not.
        while lab::kms::connect(daemon.socket()).await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
        daemon.kms().v1().version().await
    };
    match timeout(PATIENCE, answers).await {
        Ok(Ok(_)) => Ok((daemon, begin.elapsed())),
        other => fail!("a fresh daemon does not answer: {other:?}\n{}", daemon.log()),
    }
}

/// The first calls of fresh clients of OpenBao, and of fresh daemons.
pub(crate) async fn cold(
    binary: &Path,
    config: &Config,
    sides: &Sides,
    callers: usize,
    times: usize,
) -> Result<[Cold; 2]> {
    let mut direct = Cold::new("direct", callers);
    let mut proxy = Cold::new("proxy v1", callers);
    for _ in 0..times {
        direct.add(&sides.direct()?).await?;
        let (daemon, _) = start(binary, config).await?;
        proxy.add(&sides.v1(daemon.kms())).await?;
        daemon.stop().await?;
    }
    Ok([direct, proxy])
}

/// What one daemon holds: idle for `seconds`, and at most under so many callers.
pub(crate) async fn memory(
    binary: &Path,
    config: &Config,
    sides: &Sides,
    callers: usize,
    seconds: f64,
) -> Result<Memory> {
    let daemon = Daemon::start(binary, config).await?;
    daemon.wait_ready(PATIENCE).await?;
    let span = Duration::from_secs_f64(seconds);
    sleep(span).await;
    let idle_kib = daemon.footprint()?.resident_kib;
    let side = sides.v1(daemon.kms());
    let load = async {
        measure::warm_up(&side, Verb::Decrypt, callers).await?;
        Measured::new().slice(&side, Verb::Decrypt, callers, span).await
    };
    let mut loaded_kib = idle_kib;
    let mut load = std::pin::pin!(load);
    loop {
        match timeout(Duration::from_millis(20), &mut load).await {
            Ok(ended) => break ended?,
            Err(_) => loaded_kib = loaded_kib.max(daemon.footprint()?.resident_kib),
        }
    }
    loaded_kib = loaded_kib.max(daemon.footprint()?.resident_kib);
    daemon.stop().await?;
    Ok(Memory { idle_kib, loaded_kib })
}

// === impl Cold ===

impl Cold {
    fn new(name: &'static str, callers: usize) -> Self {
        Self { name, callers, first: Measured::new(), early: Measured::new() }
    }

    async fn add(&mut self, side: &Side) -> Result {
        let mut tasks = JoinSet::new();
        let share = side.len() / self.callers;
        for caller in 0..self.callers {
            let side = side.clone();
            tasks.spawn(async move {
                let mut took = Vec::new();
                for round in 0..FIRST {
                    let begin = Instant::now();
                    side.decrypt(caller * share + round % share).await?;
                    took.push(begin.elapsed());
                }
                Ok::<_, lab::Error>(took)
            });
        }
        while let Some(ended) = tasks.join_next().await {
            for (round, took) in ended??.into_iter().enumerate() {
                if round == 0 {
                    self.first.record(took)?;
                }
                self.early.record(took)?;
            }
        }
        Ok(())
    }
}
