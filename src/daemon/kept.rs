//! The last accepted configuration, kept in `stateDir` for a start with a broken file.
//!
//! A typo in a file does nothing to a daemon that runs. At the next start, which may be a
//! reboot months later, it would leave a control plane without its KMS. So what was accepted
//! last is kept beside the state and runs then, and nobody can overlook it: log, metric,
//! `/readyz` and systemd tell.

use std::fs::Metadata;
use std::io::{self, BufRead as _, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tokio::sync::watch;

use super::state::replace;
use crate::config::diagnostics::Problems;
use crate::config::load::{self, Loaded, Sources};
use crate::config::written::Written;
use crate::task::OwnedTask;

/// The file's name; YAML, whatever the configuration is.
const FILE: &str = "accepted.yaml";
/// Where it is looked for last.
const USUAL_FOLDER: &str = "/var/lib/vault-kms-proxy";
/// Where systemd says that `StateDirectory=` is.
const SYSTEMD_FOLDER: &str = "STATE_DIRECTORY";
/// `VAULT_KMS_PROXY_STATE_DIR`, as environment variables are read: without case and `_`.
const FOLDER_VARIABLE: &str = "vaultkmsproxystatedir";

/// Keeps each accepted configuration in the place of the one before.
#[derive(Debug)]
pub(super) struct Keeper {
    accepted: watch::Sender<Option<Written>>,
    _task: OwnedTask,
}

/// Why the last accepted configuration runs, and not the file.
#[derive(Debug)]
pub struct Fallback {
    /// Where it was kept.
    pub kept_in: PathBuf,
    /// What is wrong with the file.
    pub problems: Problems,
}

/// The configuration that was accepted last from the file of `sources`, which has these
/// `problems`; gives them back when there is none that can be used.
///
/// # Errors
/// When none was kept, or it cannot be used either.
pub fn last_accepted(
    sources: &Sources,
    problems: Problems,
) -> Result<(Loaded, Fallback), Problems> {
    let Some(file) = sources.file.as_deref() else { return Err(problems) };
    for folder in folders(sources, file) {
        let kept_in = folder.join(FILE);
        if !is_kept_of(&kept_in, file).unwrap_or(false) {
            continue;
        }
        let sources = Sources { file: Some(kept_in.clone()), ..sources.clone() };
        if let Ok(loaded) = load::load(&sources) {
            return Ok((loaded, Fallback { kept_in, problems }));
        }
    }
    Err(problems)
}

/// Where `stateDir` may be: as it is for a good file, then as far as it can be made out of a
/// broken one. A wrong guess finds nothing: what was kept names the file that it was made from.
fn folders(sources: &Sources, file: &Path) -> Vec<PathBuf> {
    let named = |name: &str| name.replace('_', "").eq_ignore_ascii_case(FOLDER_VARIABLE);
    let environment = &sources.environment;
    let of = |is: &dyn Fn(&str) -> bool| {
        environment.iter().find(|(name, _)| is(name)).map(|(_, value)| value.clone())
    };
    let of_systemd = of(&|name| name == SYSTEMD_FOLDER);
    let first = of_systemd.and_then(|list| list.split(':').next().map(str::to_owned));
    let all = [sources.flags.state_dir.clone(), of(&named), written_folder(file), first];
    let usual = Some(USUAL_FOLDER.to_owned());
    all.into_iter().chain([usual]).flatten().map(PathBuf::from).collect()
}

/// `stateDir` in a file that cannot be read as a whole.
fn written_folder(file: &Path) -> Option<String> {
    let file = io::BufReader::new(std::fs::File::open(file).ok()?.take(1 << 20));
    file.lines().map_while(Result::ok).find_map(|line| {
        let value = line.trim_start().strip_prefix("stateDir")?.trim_start();
        let value = value.strip_prefix([':', '='])?.split('#').next()?.trim();
        Some(value.trim_matches(['"', '\'']).to_owned()).filter(|value| value.starts_with('/'))
    })
}

/// Whether `kept` was made here, by us or by root, from `file`.
fn is_kept_of(kept: &Path, file: &Path) -> io::Result<bool> {
    let meta = kept.symlink_metadata()?;
    let first = io::BufReader::new(std::fs::File::open(kept)?.take(8_192)).lines().next();
    Ok(is_ours_alone(&meta) && first.transpose()? == Some(head(file)))
}

fn is_ours_alone(meta: &Metadata) -> bool {
    let us = rustix::process::geteuid().as_raw();
    meta.is_file() && (meta.uid() == us || meta.uid() == 0) && meta.mode() & 0o022 == 0
}

/// The first line, which tells which file it is about.
fn head(file: &Path) -> String {
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    format!("# The last configuration that vault-kms-proxy accepted from {}", file.display())
}

// === impl Keeper ===

impl Keeper {
    /// Keeps what is accepted from `file` in `folder`.
    pub(super) fn start(folder: PathBuf, file: PathBuf) -> Self {
        let (accepted, seen) = watch::channel(None);
        let begin = move || keep(folder.clone(), file.clone(), seen.clone());
        Self { accepted, _task: OwnedTask::spawn_again("accepted configuration", begin) }
    }

    /// Keeps this from now on.
    pub(super) fn keep(&self, written: Written) {
        self.accepted.send_replace(Some(written));
    }
}

async fn keep(folder: PathBuf, file: PathBuf, mut seen: watch::Receiver<Option<Written>>) {
    let mut failing = false;
    let mut has_secret = false;
    seen.mark_changed();
    while seen.changed().await.is_ok() {
        let Some(written) = seen.borrow_and_update().clone() else { continue };
        let had_secret = std::mem::replace(&mut has_secret, written.without_secret().is_none());
        if has_secret && !had_secret {
            tracing::warn!(
                "The configuration holds a secret, so no copy of it is kept in stateDir, and with \
                 a broken file the daemon could not start. Put the secret into a file of its own: \
                 tokenFile, secretIDFile, wrappedSecretIDFile or passwordFile."
            );
        }
        let (to, head) = (folder.clone(), head(&file));
        let done = tokio::task::spawn_blocking(move || match written.without_secret() {
            Some(text) => replace(&to, FILE, format!("{head}\n{text}").as_bytes()),
            None => remove(&to.join(FILE)),
        });
        match done.await {
            Ok(Ok(())) => failing = false,
            Ok(Err(error)) if !std::mem::replace(&mut failing, true) => tracing::warn!(
                folder = %folder.display(), %error,
                "The accepted configuration cannot be kept; with a broken file the next start \
                 would fail. Make stateDir a folder that the daemon may write."
            ),
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

/// What was kept before is older than what runs.
fn remove(kept: &Path) -> io::Result<()> {
    match std::fs::remove_file(kept) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_made_out_of_a_file_that_cannot_be_read_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("broken.yaml");
        for (text, found) in [
            ("keyNames: [\nstateDir: /a/b # here\n", Some("/a/b")),
            ("a = \nstateDir = \"/a/b\"\n", Some("/a/b")),
            ("# stateDir: /a/b\n", None),
            ("stateDir: relative\n", None),
            ("stateDirs: /a\n", None),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(written_folder(&file).as_deref(), found, "{text}");
        }
    }

    #[test]
    fn every_place_that_can_name_the_folder_is_looked_at() {
        let mut sources = Sources::default();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        sources.flags.state_dir = Some("/flag".into());
        sources.environment.push(pair("VAULT_KMS_PROXY_STATE_DIR", "/variable"));
        sources.environment.push(pair("STATE_DIRECTORY", "/systemd:/other"));
        let found = folders(&sources, Path::new("/nowhere"));
        let wanted = ["/flag", "/variable", "/systemd", USUAL_FOLDER].map(PathBuf::from);
        assert_eq!(found, wanted);
    }

    #[test]
    fn what_others_could_have_written_or_another_file_made_is_not_used() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let (kept, file) = (folder.path().join(FILE), Path::new("/etc/vkp.yaml"));
        let text = format!("{}\nkeyNames: [kube]\n", head(file));
        replace(folder.path(), FILE, text.as_bytes()).unwrap();
        let mode = kept.metadata().unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert!(is_kept_of(&kept, file).unwrap());
        assert!(!is_kept_of(&kept, Path::new("/etc/other.yaml")).unwrap());
        std::fs::set_permissions(&kept, std::fs::Permissions::from_mode(0o620)).unwrap();
        assert!(!is_kept_of(&kept, file).unwrap());
    }
}
