//! The daemon's binary.

use std::path::PathBuf;

use lab::{Context, Result, fail};
use tokio::process::Command;

/// The one that was given, else one that is built now.
pub(crate) async fn find(given: Option<PathBuf>) -> Result<PathBuf> {
    match given {
        Some(given) => Ok(given),
        None => build().await,
    }
}

/// Builds the daemon beside this program, in the same profile.
async fn build() -> Result<PathBuf> {
    let folder = std::env::current_exe()?;
    let folder = folder.parent().context("this program lies in no folder")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--package", "vault-kms-proxy"]);
    command.args(["--bin", "vault-kms-proxy"]);
    if folder.ends_with("release") {
        command.arg("--release");
    }
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let status = command.kill_on_drop(true).status().await.context("cannot run cargo")?;
    let binary = folder.join("vault-kms-proxy");
    if !status.success() || !binary.is_file() {
        fail!("cargo build --bin vault-kms-proxy did not make {}", binary.display());
    }
    Ok(binary)
}
