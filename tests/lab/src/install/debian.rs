//! A server out of a Debian package, fetched and unpacked as any user, beside the system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::{Context, Error, Result, fail};

const PACKAGE: &str = "etcd-server";

/// Its folder in the lab's.
pub(super) const FOLDER: &str = "etcd-server";

/// What the package holds.
pub(super) const PROOF: &str = "usr/bin/etcd";

/// Fills `folder` with what the package would install. Changes nothing of the system: where it
/// has no list of packages, one is fetched into a folder of our own.
pub(super) fn unpack(folder: &Path) -> Result {
    let work = tempfile::Builder::new().prefix("fetching-").tempdir_in(folder)?;
    let archive = match fetch(work.path(), &[]) {
        Ok(archive) => archive,
        Err(first) => fetch_with_own_lists(work.path()).map_err(|second| {
            Error::new(format!(
                "cannot get {PACKAGE}: {first}\n  and with a new list of packages: {second}\n  check \
                 that apt-get can reach its mirror, or put etcd on PATH, or name it in {}",
                super::ETCD_VARIABLE
            ))
        })?,
    };
    let mut unpacking = Command::new("dpkg-deb");
    unpacking.arg("--extract").arg(&archive).arg(work.path().join("root"));
    run(unpacking)?;
    let (from, to) = (work.path().join("root").join(PROOF), folder.join(PROOF));
    fs::create_dir_all(to.parent().unwrap_or(folder))?;
    fs::rename(&from, &to).context(format!("{PACKAGE} holds no {PROOF}"))?;
    Ok(())
}

fn fetch_with_own_lists(folder: &Path) -> Result<PathBuf> {
    let state = folder.join("state");
    fs::create_dir_all(state.join("lists/partial"))?;
    fs::create_dir_all(folder.join("cache/archives/partial"))?;
    let options = [
        format!("Dir::State={}", state.display()),
        "Dir::State::status=/var/lib/dpkg/status".to_owned(),
        format!("Dir::Cache={}", folder.join("cache").display()),
    ];
    run(apt(folder, &options, &["update"]))?;
    fetch(folder, &options)
}

/// Downloads the package into `folder`.
fn fetch(folder: &Path, options: &[String]) -> Result<PathBuf> {
    run(apt(folder, options, &["download", PACKAGE]))?;
    let files = fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut archives = files.filter(|path| path.extension().is_some_and(|e| e == "deb"));
    archives.next().context("apt-get download left no .deb file")
}

fn apt(folder: &Path, options: &[String], words: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.current_dir(folder).arg("--quiet=2");
    // Its own user for downloads may not write into our folder.
    command.args(["-o", "APT::Sandbox::User=root"]);
    for option in options {
        command.args(["-o", option]);
    }
    command.args(words);
    command
}

fn run(mut command: Command) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(std::process::Stdio::null());
    let output = command.output().map_err(|e| Error::new(format!("{program}: {e}")))?;
    if !output.status.success() {
        fail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output)
}
