//! `cargo run -p lab -- instructions`: what one call costs the daemon, in instructions.
//!
//! Times are noise on a machine that has other things to do; instructions are not. The daemon
//! runs under callgrind, is warmed up, and is counted over a number of calls of one caller.
//! What the kernel does is not in the figure, and valgrind knows no AVX-512, so that ciphers
//! take an older path than on most machines.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lab::{Context, Daemon, DevNode, Result, fail};
use tokio::process::Command;

use crate::binary;

const KEY: &str = "kube";

/// Calls before any is counted.
const WARM_UP: usize = 100;

/// valgrind makes everything some fifty times slower.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is counted.
#[derive(Clone, Copy, Debug)]
enum What {
    Decrypt,
    Encrypt,
    Status,
}

/// Counts `calls` calls of each kind; the profiles stay in `keep`.
pub(crate) async fn run(daemon: Option<PathBuf>, calls: usize, keep: &Path) -> Result {
    let binary = std::path::absolute(binary::find(daemon).await?)?;
    std::fs::create_dir_all(keep)?;
    let keep = std::path::absolute(keep)?;
    let bao = DevNode::start().await?;
    bao.create_keys(&[KEY]).await?;
    // A Transit key's minute of silence between metadata reads would do; logs would not.
    let config = bao.config(&[KEY]).await?;
    let out = format!("--callgrind-out-file={}/callgrind.%p", keep.display());
    let under = ["--tool=callgrind", "--separate-threads=no", &out];
    let words = under.into_iter().map(str::to_owned).chain([binary.display().to_string()]);
    let rest = ["serve", "--config", "{config}", "--socket", "{socket}"].map(str::to_owned);
    let daemon = Daemon::builder("valgrind").config(config).args(words.chain(rest)).spawn()?;
    daemon.wait_serving(PATIENCE).await?;
    let kms = daemon.kms().timeout(Duration::from_secs(30));
    kms.v2().wait_ok(PATIENCE).await?;
    let ciphertext = bao.admin().encrypt(KEY, &[7; 32]).await?;
    let ciphertext = ciphertext.replacen("vault:", "kube:", 1);

    println!("{:8} {:>6} {:>24}", "call", "calls", "instructions per call");
    for what in [What::Decrypt, What::Encrypt, What::Status] {
        call(&kms, what, &ciphertext, WARM_UP).await?;
        control(&["--zero"], daemon.pid()).await?;
        call(&kms, what, &ciphertext, calls).await?;
        control(&[&format!("--dump={what:?}")], daemon.pid()).await?;
        let total = total(&keep, what)?;
        println!("{:8} {calls:>6} {:>24}", format!("{what:?}"), total / calls as u64);
    }
    daemon.terminate()?;
    daemon.wait(PATIENCE).await?;
    println!("Profiles for callgrind_annotate: {}", keep.display());
    Ok(())
}

async fn call(kms: &lab::Kms, what: What, ciphertext: &str, calls: usize) -> Result {
    for _ in 0..calls {
        match what {
            What::Decrypt => {
                let plain = kms.v1().decrypt(ciphertext.as_bytes()).await?;
                if plain != [7; 32] {
                    fail!("another plaintext than was encrypted");
                }
            }
            What::Encrypt => drop(kms.v1().encrypt(&[7; 32]).await?),
            What::Status => drop(kms.v2().status().await?),
        }
    }
    Ok(())
}

async fn control(words: &[&str], pid: u32) -> Result {
    let mut command = Command::new("callgrind_control");
    command.args(words).arg(pid.to_string());
    let output = command.output().await.context("cannot run callgrind_control")?;
    if !output.status.success() {
        fail!("callgrind_control {words:?}: {}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}

/// The instructions of the profile that was dumped under this name; the file takes it then.
fn total(folder: &Path, what: What) -> Result<u64> {
    let trigger = format!("{what:?}");
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with("callgrind.") {
            continue;
        }
        let text = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
        let is_it = |line: &str| line.starts_with("desc: Trigger:") && line.contains(&trigger);
        if !text.lines().take(40).any(is_it) {
            continue;
        }
        let summary = text.lines().find_map(|line| {
            line.strip_prefix("summary: ").or_else(|| line.strip_prefix("totals: "))
        });
        let total = summary.context("a profile without a sum")?.trim().parse()?;
        std::fs::rename(&path, folder.join(format!("{trigger}.callgrind")))?;
        return Ok(total);
    }
    fail!("callgrind wrote no profile of {trigger} into {}", folder.display())
}
