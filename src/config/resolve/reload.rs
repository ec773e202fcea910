//! How a changed configuration is taken into use.

use super::report::Report;
use super::values::{self, shown};
use super::{MINUTE, SECOND, duration};
use crate::config::load::Field;
use crate::config::settings::{KekName, KeyringSettings, ReloadSettings};

/// `reloadTimeout`, `reload`, `watchConfig` and `retired`.
pub(super) fn reload(
    report: &mut Report<'_>,
    file: &Field<'_>,
    keyring: Option<&KeyringSettings>,
) -> Option<ReloadSettings> {
    let timeout = duration(report, file, &["reloadTimeout"], SECOND, 10 * MINUTE);
    let strict = file.find(&["reload", "strict"]).and_then(|f| values::flag(report, &f));
    let watch = file.find(&["watchConfig"]).and_then(|f| values::flag(report, &f));
    let retired = match file.get("retired") {
        Some(list) => retired(report, &list, keyring),
        None => Some(Vec::new()),
    };
    Some(ReloadSettings { timeout: timeout?, strict: strict?, watch: watch?, retired: retired? })
}

/// Names that nothing may need any more. One that is still in `keyNames` is on its way out.
fn retired(
    report: &mut Report<'_>,
    list: &Field<'_>,
    keyring: Option<&KeyringSettings>,
) -> Option<Vec<KekName>> {
    let primary = keyring.and_then(|keyring| keyring.keks.first()).map(|kek| &kek.name);
    let name = |item: Field<'_>| match KekName::try_new(item.text()) {
        Ok(name) if Some(&name) == primary => {
            report.error(
                &item,
                format!("`{}` is the first of keyNames, so it encrypts", shown(item.text())),
                "take it out of `retired`, or move another key to the front of keyNames first",
            );
            None
        }
        Ok(name) => Some(name),
        Err(error) => {
            report.error(&item, error.to_string(), "write a name as it stands in keyNames");
            None
        }
    };
    // All of them are looked at, so that all problems are seen.
    let names: Vec<Option<KekName>> = list.items().into_iter().map(name).collect();
    names.into_iter().collect()
}
