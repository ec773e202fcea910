//! The last accepted configuration, kept in `stateDir` for a start with a file that cannot be
//! used, or that a reload would refuse.
//!
//! A typo in a file does nothing to a daemon that runs, and a key that is missing in it
//! neither. At the next start, which may be a reboot months later, the one would leave a
//! control plane without its KMS, and the other without its objects. So what was accepted
//! last is kept beside the state. A start compares the file with it as a reload would, and
//! where it is not to be used the copy runs, and nobody can overlook it: log, metric,
//! `/readyz`, `/configz` and systemd tell.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::io::{self, BufRead as _, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::reload::one_line;
use super::state::State;
use super::watch::FileWatch;
use crate::config::change;
use crate::config::diagnostics::{Place, Problem, Problems};
use crate::config::load::{self, Loaded, Sources};
use crate::config::outline::Outline;
use crate::config::settings::KekName;

mod keeper;
#[cfg(test)]
mod tests;

pub(super) use keeper::Keeper;

/// The file's name; YAML, whatever the configuration is.
const FILE: &str = "accepted.yaml";
/// Where it is looked for last.
const USUAL_FOLDER: &str = "/var/lib/vault-kms-proxy";
/// Where systemd says that `StateDirectory=` is.
const SYSTEMD_FOLDER: &str = "STATE_DIRECTORY";
/// `VAULT_KMS_PROXY_STATE_DIR`, as environment variables are read: without case and `_`.
const FOLDER_VARIABLE: &str = "vaultkmsproxystatedir";

/// What the daemon starts with.
#[derive(Debug)]
pub struct Chosen {
    /// The configuration that it runs on.
    pub loaded: Loaded,
    /// Why that is not what the file says now.
    pub fallback: Option<Fallback>,
    /// What was accepted last, when this start had to heed it: a reload is compared with it
    /// while nothing is in force.
    pub(super) accepted: Option<Outline>,
    /// What the file held before it was read.
    pub(super) watch: Option<FileWatch>,
}

/// Why the last accepted configuration runs, and not the file.
#[derive(Debug)]
pub struct Fallback {
    /// Where it was kept.
    pub kept_in: PathBuf,
    /// What the file has against it.
    pub cause: Cause,
}

/// What a file has against it.
#[derive(Debug)]
pub enum Cause {
    /// It cannot be used.
    Broken(Problems),
    /// It can, and a reload would refuse it.
    Refused(Problems),
}

/// Reads the configuration, and chooses between it and the one that was accepted last.
///
/// # Errors
/// When the file cannot be used and no other configuration either.
pub fn choose(sources: &Sources) -> Result<Chosen, Problems> {
    // What is written from here on is a change that the watch sees.
    let watch = sources.file.clone().map(FileWatch::begin);
    let chosen = match load::load(sources) {
        Ok(loaded) => compared(sources, loaded),
        Err(problems) => last_accepted(sources, problems)?,
    };
    Ok(Chosen { watch, ..chosen })
}

/// The file's configuration, unless a reload would refuse it after the one that was accepted
/// last. That one says nothing where none of its keys has ever answered here: nothing can
/// have been encrypted with it, and whoever sets up a machine may correct a name.
fn compared(sources: &Sources, mut loaded: Loaded) -> Chosen {
    let folder = loaded.settings.state_dir.clone();
    let kept = folder.zip(sources.file.as_deref()).and_then(|(folder, file)| {
        let kept_in = folder.join(FILE);
        is_kept_of(&kept_in, file).unwrap_or(false).then_some((folder, kept_in))
    });
    let Some((folder, kept_in)) = kept else { return Chosen::file(loaded) };
    let kept = match load::load(&Sources { file: Some(kept_in.clone()), ..sources.clone() }) {
        Ok(kept) => kept,
        Err(why) => {
            let what = format!("the file was not compared with it: {}", one_line(&why));
            let place = Place::File(kept_in.as_path().into());
            loaded.warnings.push(Problem::warning("", Some(place), what, NOT_COMPARED));
            return Chosen::file(loaded);
        }
    };
    let (before, wanted) = (Outline::of(&kept.settings), Outline::of(&loaded.settings));
    if !State::has_seen_any_of(&folder, before.names()) {
        return Chosen::file(loaded);
    }
    let retired: BTreeSet<&str> =
        loaded.settings.reload.retired.iter().map(KekName::as_str).collect();
    let refused = change::unsafe_keys(&before, &wanted, &retired, &loaded.places);
    if refused.is_empty() {
        return Chosen { accepted: Some(before), ..Chosen::file(loaded) };
    }
    Chosen::kept(kept, kept_in, Cause::Refused(Problems::new(refused)))
}

const NOT_COMPARED: &str = "see that no key is missing in the file; the copy is written anew";

/// The configuration that was accepted last from the file of `sources`, which has these
/// `problems`; gives them back when there is none that can be used.
fn last_accepted(sources: &Sources, problems: Problems) -> Result<Chosen, Problems> {
    let Some(file) = sources.file.as_deref() else { return Err(problems) };
    for folder in folders(sources, file) {
        let kept_in = folder.join(FILE);
        if !is_kept_of(&kept_in, file).unwrap_or(false) {
            continue;
        }
        let sources = Sources { file: Some(kept_in.clone()), ..sources.clone() };
        if let Ok(loaded) = load::load(&sources) {
            return Ok(Chosen::kept(loaded, kept_in, Cause::Broken(problems)));
        }
    }
    Err(problems)
}

/// Where `stateDir` may be: as it is for a good file, as far as that can be made out of a
/// broken one. A wrong guess finds nothing: what was kept names the file that it was made from.
///
/// Where a folder is named it is the only one. A copy in another is one of before, which
/// nobody has removed: it may be another daemon's, too.
fn folders(sources: &Sources, file: &Path) -> Vec<PathBuf> {
    let named = |name: &str| name.replace('_', "").eq_ignore_ascii_case(FOLDER_VARIABLE);
    let environment = &sources.environment;
    let of = |is: &dyn Fn(&str) -> bool| {
        environment.iter().find(|(name, _)| is(name)).map(|(_, value)| value.clone())
    };
    let flag = sources.flags.state_dir.clone();
    if let Some(folder) = flag.or_else(|| of(&named)).or_else(|| written_folder(file)) {
        return vec![folder.into()];
    }
    let of_systemd = of(&|name| name == SYSTEMD_FOLDER);
    let first = of_systemd.and_then(|list| list.split(':').next().map(str::to_owned));
    let usual = Some(USUAL_FOLDER.to_owned());
    [first, usual].into_iter().flatten().map(PathBuf::from).collect()
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

// === impl Chosen ===

impl Chosen {
    fn file(loaded: Loaded) -> Self {
        Self { loaded, fallback: None, accepted: None, watch: None }
    }

    fn kept(loaded: Loaded, kept_in: PathBuf, cause: Cause) -> Self {
        let accepted = Some(Outline::of(&loaded.settings));
        Self { loaded, fallback: Some(Fallback { kept_in, cause }), accepted, watch: None }
    }
}
