//! How to log in: the flat keys beside `addr`, and the block `auth` of a cluster.

use secrecy::SecretString;

use super::report::{Holds, Report};
use super::values::{shown, vault_path};
use crate::config::diagnostics::Place;
use crate::config::load::Field;
use crate::config::settings::{AppRoleSettings, AuthSettings, SecretSource};

/// The flat keys of the Oracle plugin and their `…File` twins.
pub(super) fn flat(report: &mut Report<'_>, keys: &Field<'_>) -> Option<AuthSettings> {
    let role: Vec<_> = ["roleID", "roleIDFile", "secretID", "secretIDFile"]
        .into_iter()
        .filter_map(|key| keys.get(key))
        .collect();
    let methods = [keys.get("token"), keys.get("tokenFile"), role.into_iter().next()];
    let first = one_method(report, methods.into_iter().flatten().collect())?;
    let Some(first) = first else {
        let has_certificate = keys.get("clientCert").is_some();
        let what = if has_certificate {
            "there is no way to log in; a login with the client certificate is not supported yet"
        } else {
            "there is no way to log in"
        };
        report.missing("", None, what, "write tokenFile, or roleID and secretIDFile");
        return None;
    };
    match first.path() {
        "token" | "tokenFile" => token(report, &first),
        _ => {
            let mount = keys.get("authPath").map(|f| flat_mount(report, &f));
            app_role(report, keys, "", mount.unwrap_or_else(|| Some("approle".to_owned())))
        }
    }
}

/// The block `auth` of a cluster.
pub(super) fn block(
    report: &mut Report<'_>,
    keys: &Field<'_>,
    path: &str,
    place: Option<Place>,
) -> Option<AuthSettings> {
    let auth = keys.get("auth");
    let methods = ["token", "tokenFile", "appRole"].into_iter();
    let methods = methods.filter_map(|key| auth.as_ref()?.get(key)).collect();
    let Some(first) = one_method(report, methods)? else {
        report.missing(
            format!("{path}auth"),
            auth.and_then(|a| a.place()).or(place),
            "there is no way to log in",
            "write `auth: { tokenFile: … }` or \
             `auth: { appRole: { roleID: …, secretIDFile: … } }`",
        );
        return None;
    };
    if !first.is_block() {
        return token(report, &first);
    }
    let mount = match first.get("mount") {
        Some(field) => vault_path(report, &field)
            .map(|mount| mount.strip_prefix("auth/").map(str::to_owned).unwrap_or(mount)),
        None => Some("approle".to_owned()),
    };
    app_role(report, &first, &format!("{}.", first.path()), mount)
}

/// The only method of `methods`; `None` inside when there is none, outside when there are
/// several.
fn one_method<'a>(report: &mut Report<'_>, methods: Vec<Field<'a>>) -> Option<Option<Field<'a>>> {
    let mut methods = methods.into_iter();
    let first = methods.next();
    let mut alone = true;
    for other in methods {
        alone = false;
        let earlier = first.as_ref().map_or("", |f| f.path());
        report.error(
            &other,
            format!("this is a second way to log in, beside {earlier}"),
            "keep one of the two",
        );
    }
    alone.then_some(first)
}

fn token(report: &mut Report<'_>, field: &Field<'_>) -> Option<AuthSettings> {
    if field.path().ends_with("tokenFile") {
        return Some(AuthSettings::TokenFile(report.file_to_come(field, Holds::Secret)));
    }
    report.inline_secret(field, "tokenFile");
    let token = field.text().trim();
    if !token.bytes().all(|b| b.is_ascii_graphic()) {
        report.error(
            field,
            "the token holds characters that no token has",
            "copy it again, on one line",
        );
        return None;
    }
    Some(AuthSettings::Token(SecretString::from(token)))
}

fn app_role(
    report: &mut Report<'_>,
    keys: &Field<'_>,
    path: &str,
    mount: Option<String>,
) -> Option<AuthSettings> {
    let role_id = twins(report, keys, "roleID", "roleIDFile", Holds::Public);
    let secret_id = twins(report, keys, "secretID", "secretIDFile", Holds::Secret);
    let (role_id, secret_id) = (role_id?, secret_id?);
    let Some(role_id) = role_id else {
        report.missing(
            format!("{path}roleID"),
            keys.get("secretID").or_else(|| keys.get("secretIDFile")).and_then(|f| f.place()),
            "a secret id needs the role that it belongs to",
            "add roleID: `vault read auth/approle/role/<role>/role-id` prints it",
        );
        return None;
    };
    Some(AuthSettings::AppRole(AppRoleSettings { mount: mount?, role_id, secret_id }))
}

/// A value or the file that holds it; `None` outside when both are there.
fn twins(
    report: &mut Report<'_>,
    keys: &Field<'_>,
    inline: &str,
    in_file: &str,
    holds: Holds,
) -> Option<Option<SecretSource>> {
    match (keys.get(inline), keys.get(in_file)) {
        (Some(_), Some(file)) => {
            let what = format!("both {inline} and {in_file} are written");
            report.error(&file, what, "keep one of the two");
            None
        }
        (Some(text), None) => {
            if holds == Holds::Secret {
                report.inline_secret(&text, in_file);
            }
            Some(Some(SecretSource::Inline(SecretString::from(text.text().trim()))))
        }
        (None, Some(file)) => Some(Some(SecretSource::File(report.file(&file, holds)))),
        (None, None) => Some(None),
    }
}

/// `authPath` as the Oracle plugin means it: what stands before `/approle/login`.
fn flat_mount(report: &mut Report<'_>, field: &Field<'_>) -> Option<String> {
    let path = vault_path(report, field)?;
    match path.strip_prefix("auth") {
        Some("") => Some("approle".to_owned()),
        Some(rest) if rest.starts_with('/') => Some(format!("{}/approle", &rest[1..])),
        _ => {
            report.error(
                field,
                format!(
                    "the login would be at {}/approle, and Vault has all logins under auth/",
                    shown(&path)
                ),
                format!(
                    "write auth/{0} for auth/{0}/approle; for another mount use `clusters` and \
                     appRole.mount",
                    shown(&path)
                ),
            );
            None
        }
    }
}
