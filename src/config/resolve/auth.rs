//! How to log in: the flat keys beside `addr`, and the block `auth`. [`methods`] reads
//! what each way needs.

mod methods;

use std::path::PathBuf;

use super::report::Report;
use super::values::{shown, vault_path};
use crate::config::diagnostics::Place;
use crate::config::load::Field;
use crate::config::settings::{AuthSettings, CertSettings, ClusterName};

/// The ways to log in, as keys of the block `auth`.
const METHODS: [&str; 7] =
    ["token", "tokenFile", "appRole", "kubernetes", "jwt", "cert", "userpass"];

/// What a login must know of the cluster around it.
pub(super) struct Around<'a> {
    pub(super) cluster: &'a ClusterName,
    /// The path of the cluster's keys, with a dot at its end unless it is empty.
    pub(super) path: &'a str,
    pub(super) place: Option<Place>,
    /// The cluster's keys stand beside `keyNames`.
    pub(super) is_flat: bool,
    pub(super) state_dir: Option<PathBuf>,
}

/// How to log in, and in which namespace.
pub(super) struct Login {
    pub(super) settings: AuthSettings,
    pub(super) namespace: AuthNamespace,
}

/// Where the login is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AuthNamespace {
    /// Where the cluster's keys are.
    Same,
    /// In the root namespace.
    Root,
    /// In another.
    Other(String),
}

/// Reads how the cluster with these `keys` is logged in to.
pub(super) fn login(
    report: &mut Report<'_>,
    keys: &Field<'_>,
    around: Around<'_>,
) -> Option<Login> {
    let auth = keys.get("auth");
    let namespace = match auth.as_ref().and_then(|auth| auth.get("namespace")) {
        Some(field) => namespace(report, &field)?,
        None => AuthNamespace::Same,
    };
    let mut candidates = Vec::new();
    if around.is_flat {
        let role = ["roleID", "roleIDFile", "secretID", "secretIDFile"];
        candidates.extend(["token", "tokenFile"].into_iter().filter_map(|key| keys.get(key)));
        candidates.extend(role.into_iter().find_map(|key| keys.get(key)));
    }
    candidates.extend(METHODS.into_iter().filter_map(|key| auth.as_ref()?.get(key)));
    let settings = match one_method(report, candidates)? {
        Some(method) if method.is_block() => block(report, keys, &method, &around),
        Some(method) if method.path().ends_with("token") => methods::token(report, &method),
        Some(method) if method.path().ends_with("tokenFile") => {
            Some(methods::token_file(report, &method))
        }
        Some(_) => {
            let mount = flat_mount(report, keys, "approle");
            methods::app_role(report, keys, "", mount, &around)
        }
        // As the Oracle plugin has it: a certificate and nothing else is the login.
        None if around.is_flat && keys.get("clientCert").is_some() => {
            let mount = flat_mount(report, keys, "cert");
            mount.map(|mount| AuthSettings::Cert(CertSettings { mount, role: None }))
        }
        None => {
            nothing(report, auth.as_ref(), &around);
            None
        }
    };
    Some(Login { settings: settings?, namespace })
}

/// A method that is a block of its own, under `auth`.
fn block(
    report: &mut Report<'_>,
    keys: &Field<'_>,
    method: &Field<'_>,
    around: &Around<'_>,
) -> Option<AuthSettings> {
    if let Some(field) = keys.get("authPath").filter(|_| around.is_flat) {
        report.error(
            &field,
            format!("it has no effect on {}", method.path()),
            format!("write {}.mount instead", method.path()),
        );
    }
    let name = method.path().rsplit('.').next().unwrap_or_default();
    match name {
        "appRole" => {
            let mount = methods::mount(report, method, "approle");
            methods::app_role(report, method, &format!("{}.", method.path()), mount, around)
        }
        "kubernetes" => methods::kubernetes(report, method),
        "jwt" => methods::jwt(report, method),
        "cert" => methods::cert(report, method, keys.get("clientCert").is_some()),
        _ => methods::userpass(report, method),
    }
}

fn nothing(report: &mut Report<'_>, auth: Option<&Field<'_>>, around: &Around<'_>) {
    let what = "there is no way to log in";
    if around.is_flat {
        report.missing("", None, what, "write tokenFile, or roleID and secretIDFile, or auth");
    } else {
        report.missing(
            format!("{}auth", around.path),
            auth.and_then(Field::place).or_else(|| around.place.clone()),
            what,
            "write `auth: { tokenFile: … }` or \
             `auth: { appRole: { roleID: …, secretIDFile: … } }`",
        );
    }
}

fn namespace(report: &mut Report<'_>, field: &Field<'_>) -> Option<AuthNamespace> {
    match field.text() {
        "root" | "/" => Some(AuthNamespace::Root),
        _ => vault_path(report, field).map(AuthNamespace::Other),
    }
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

/// The mount under `authPath`, which is what stands before `/approle/login` or
/// `/cert/login`, as the Oracle plugin means it.
fn flat_mount(report: &mut Report<'_>, keys: &Field<'_>, method: &str) -> Option<String> {
    let Some(field) = keys.get("authPath") else { return Some(method.to_owned()) };
    let path = vault_path(report, &field)?;
    match path.strip_prefix("auth") {
        Some("") => Some(method.to_owned()),
        Some(rest) if rest.starts_with('/') => Some(format!("{}/{method}", &rest[1..])),
        _ => {
            report.error(
                &field,
                format!(
                    "the login would be at {}/{method}, and Vault has all logins under auth/",
                    shown(&path)
                ),
                format!(
                    "write auth/{0} for auth/{0}/{method}; for another mount use the block auth",
                    shown(&path)
                ),
            );
            None
        }
    }
}

// === impl AuthNamespace ===

impl AuthNamespace {
    /// The namespace itself, given that of the cluster; `None` is the root.
    pub(super) fn within(self, cluster: Option<&String>) -> Option<String> {
        match self {
            Self::Same => cluster.cloned(),
            Self::Root => None,
            Self::Other(name) => Some(name),
        }
    }
}
