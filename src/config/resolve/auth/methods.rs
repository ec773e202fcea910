//! What each way to log in needs.

use std::path::PathBuf;

use secrecy::SecretString;

use super::Around;
use crate::config::load::Field;
use crate::config::resolve::report::{Holds, Report};
use crate::config::resolve::values::vault_path;
use crate::config::settings::{
    AppRoleSettings, AuthSettings, CertSettings, JwtSettings, KubernetesSettings, SecretId,
    SecretSource, UserpassSettings,
};

/// Where a kubelet puts the service account's token of a pod.
const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// The mount that a method's block names, under `auth/`.
pub(super) fn mount(report: &mut Report<'_>, keys: &Field<'_>, usual: &str) -> Option<String> {
    let Some(field) = keys.get("mount") else { return Some(usual.to_owned()) };
    vault_path(report, &field)
        .map(|mount| mount.strip_prefix("auth/").map(str::to_owned).unwrap_or(mount))
}

pub(super) fn token(report: &mut Report<'_>, field: &Field<'_>) -> Option<AuthSettings> {
    report.inline_secret(field, "tokenFile");
    token_text(report, field).map(AuthSettings::Token)
}

pub(super) fn token_file(report: &mut Report<'_>, field: &Field<'_>) -> AuthSettings {
    AuthSettings::TokenFile(report.file_to_come(field, Holds::Secret))
}

pub(super) fn app_role(
    report: &mut Report<'_>,
    keys: &Field<'_>,
    path: &str,
    mount: Option<String>,
    around: &Around<'_>,
) -> Option<AuthSettings> {
    let role_id = twins(report, keys, "roleID", "roleIDFile", Holds::Public);
    let secret_id = secret_id(report, keys, around);
    let (role_id, secret_id) = (role_id?, secret_id?);
    let Some(role_id) = role_id else {
        let secrets = ["secretID", "secretIDFile", "wrappedSecretID", "wrappedSecretIDFile"];
        let place = secrets.into_iter().find_map(|key| keys.get(key)).and_then(|f| f.place());
        report.missing(
            format!("{path}roleID"),
            place.or_else(|| keys.place()).filter(|_| !path.is_empty()),
            "a secret id needs the role that it belongs to",
            "add roleID: `vault read auth/approle/role/<role>/role-id` prints it",
        );
        return None;
    };
    Some(AuthSettings::AppRole(AppRoleSettings { mount: mount?, role_id, secret_id }))
}

fn secret_id(report: &mut Report<'_>, keys: &Field<'_>, around: &Around<'_>) -> Option<SecretId> {
    let plain = twins(report, keys, "secretID", "secretIDFile", Holds::Secret)?;
    let wrapped = match (keys.get("wrappedSecretID"), keys.get("wrappedSecretIDFile")) {
        (Some(_), Some(file)) => {
            both(report, &file, "wrappedSecretID", "wrappedSecretIDFile");
            return None;
        }
        (Some(inline), None) => {
            report.inline_secret(&inline, "wrappedSecretIDFile");
            Some((token_text(report, &inline).map(SecretSource::Inline)?, inline))
        }
        // Whoever brings it may come later, and may take it away again once it is used.
        (None, Some(file)) => {
            Some((SecretSource::File(report.file_to_come(&file, Holds::Secret)), file))
        }
        (None, None) => None,
    };
    match (plain, wrapped) {
        (None, None) => Some(SecretId::None),
        (Some(source), None) => Some(SecretId::Given(source)),
        (Some(_), Some((_, field))) => {
            let what = "both a secret id and a wrapped one are written";
            report.error(&field, what, "keep one of the two");
            None
        }
        (None, Some((token, field))) => match &around.state_dir {
            Some(folder) => {
                let name = format!("secret-id.{}.json", around.cluster);
                Some(SecretId::Wrapped { token, kept_in: folder.join(name) })
            }
            None => {
                report.error(
                    &field,
                    "a wrapping token can be used once, and there is nowhere to keep the secret \
                     id that comes out of it",
                    "write stateDir, such as /var/lib/vault-kms-proxy, or use secretIDFile",
                );
                None
            }
        },
    }
}

pub(super) fn kubernetes(report: &mut Report<'_>, keys: &Field<'_>) -> Option<AuthSettings> {
    report.warn(
        keys,
        "Vault asks a kube-apiserver whether the token is good. If that is the one that needs \
         this daemon to start, neither can start without the other",
        "use appRole, cert or jwt, unless Vault asks the apiserver of another cluster",
    );
    let mount = mount(report, keys, "kubernetes");
    let role = keys.get("role").map(|field| field.text().to_owned());
    if role.is_none() {
        report.missing(
            format!("{}.role", keys.path()),
            keys.place(),
            "the login needs the name of a role",
            "add role: `vault list auth/kubernetes/role` prints the names",
        );
    }
    let token_file = match keys.get("tokenFile") {
        Some(field) => report.file_to_come(&field, Holds::Secret),
        None => PathBuf::from(SERVICE_ACCOUNT_TOKEN),
    };
    Some(AuthSettings::Kubernetes(KubernetesSettings { mount: mount?, role: role?, token_file }))
}

pub(super) fn jwt(report: &mut Report<'_>, keys: &Field<'_>) -> Option<AuthSettings> {
    let mount = mount(report, keys, "jwt");
    let role = keys.get("role").map(|field| field.text().to_owned());
    let Some(file) = keys.get("tokenFile") else {
        report.missing(
            format!("{}.tokenFile", keys.path()),
            keys.place(),
            "the login needs a signed token",
            "add tokenFile: the file that the issuer's agent keeps fresh",
        );
        return None;
    };
    let token_file = report.file_to_come(&file, Holds::Secret);
    Some(AuthSettings::Jwt(JwtSettings { mount: mount?, role, token_file }))
}

pub(super) fn cert(
    report: &mut Report<'_>,
    keys: &Field<'_>,
    has_certificate: bool,
) -> Option<AuthSettings> {
    if !has_certificate {
        report.error(
            keys,
            "the login needs a client certificate",
            "add clientCert and clientKey beside addr",
        );
    }
    let mount = mount(report, keys, "cert");
    let role = keys.get("role").map(|field| field.text().to_owned());
    Some(AuthSettings::Cert(CertSettings { mount: mount?, role })).filter(|_| has_certificate)
}

pub(super) fn userpass(report: &mut Report<'_>, keys: &Field<'_>) -> Option<AuthSettings> {
    let mount = mount(report, keys, "userpass");
    let username = keys.get("username").map(|field| field.text().to_owned());
    let password = twins(report, keys, "password", "passwordFile", Holds::Secret)?;
    for (key, is_there) in [("username", username.is_some()), ("passwordFile", password.is_some())]
    {
        if !is_there {
            report.missing(
                format!("{}.{key}", keys.path()),
                keys.place(),
                "the login needs a user and a password",
                format!("add {key}"),
            );
        }
    }
    Some(AuthSettings::Userpass(UserpassSettings {
        mount: mount?,
        username: username?,
        password: password?,
    }))
}

/// A token of Vault, which fits into an HTTP header.
fn token_text(report: &mut Report<'_>, field: &Field<'_>) -> Option<SecretString> {
    let token = field.text().trim();
    if token.bytes().all(|b| b.is_ascii_graphic()) {
        return Some(SecretString::from(token));
    }
    report.error(
        field,
        "the token holds characters that no token has",
        "copy it again, on one line",
    );
    None
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
            both(report, &file, inline, in_file);
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

fn both(report: &mut Report<'_>, field: &Field<'_>, inline: &str, in_file: &str) {
    let what = format!("both {inline} and {in_file} are written");
    report.error(field, what, "keep one of the two");
}
