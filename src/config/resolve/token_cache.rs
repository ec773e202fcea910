//! `tokenCache`: where a cluster's token is kept for a later process.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::clusters::Cluster;
use super::files::FileFacts;
use super::report::{Holds, Report};
use crate::config::load::Field;
use crate::config::settings::AuthSettings;

/// The path of `keys`' cache, when one is wanted and has a use for `auth`.
pub(super) fn token_cache(
    report: &mut Report<'_>,
    keys: &Field<'_>,
    auth: &AuthSettings,
) -> Option<PathBuf> {
    let field = keys.get("tokenCache")?;
    let path = report.path(&field, Holds::Secret);
    let folder = path.parent().unwrap_or(Path::new("/"));
    if matches!(auth, AuthSettings::Token(_) | AuthSettings::TokenFile(_)) {
        let what = "there is no login whose token could be kept";
        report.warn(&field, what, "remove it: a configured token is there after a restart, too");
        return None;
    }
    if report.files.look(&path) == FileFacts::Folder {
        report.error(&field, "this is a folder", "write the path of a file in it");
    } else if report.files.is_open_to_all(folder) {
        report.error(
            &field,
            format!("everybody may write to {}", folder.display()),
            "put it into a folder of the daemon's own, mode 0700, on tmpfs",
        );
    }
    Some(path)
}

/// Two clusters with one file would take turns in throwing the other's token away.
pub(super) fn each_its_own(report: &mut Report<'_>, clusters: &[Cluster<'_>]) {
    let mut seen = HashMap::new();
    for cluster in clusters {
        let path = cluster.settings.as_ref().and_then(|s| s.token_cache.as_ref());
        let field = cluster.block.as_ref().and_then(|block| block.get("tokenCache"));
        let (Some(path), Some(field)) = (path, field) else { continue };
        if let Some(other) = seen.insert(path.clone(), cluster.name.clone()) {
            let what = format!("cluster {other} has the same file");
            report.error(&field, what, "give each cluster a file of its own");
        }
    }
}
