//! What environment variables say.
//!
//! Our own begin with `VAULT_KMS_PROXY_`; `__` goes one block deeper; case and single
//! underscores do not count: `VAULT_KMS_PROXY_SOCKET__ALLOWED_UIDS=[0, 65534]` is
//! `socket.allowedUids`. Those of Vault's, OpenBao's and OpenTelemetry's own tools fill
//! in what nothing else says.

use super::{Field, Merged};
use crate::config::diagnostics::{Place, Problem};
use crate::config::file::conform::conform;
use crate::config::file::schema::{self, FILE, Key, Shape};
use crate::config::file::{Node, parse_flow};
use crate::config::load::FileForm;

const PREFIX: &str = "VAULT_KMS_PROXY_";

/// Variables with our prefix that are not ours to read: the path of the file itself, and
/// what Kubernetes sets for a Service that is called like the daemon.
const NOT_KEYS: &[&str] = &["CONFIG", "LAB_", "SERVICE_", "PORT"];

/// The one endpoint that is a whole URL, to which nothing is added; every other is a base.
pub(in crate::config) const OTEL_WHOLE_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";

/// The tree that the `VAULT_KMS_PROXY_*` variables say.
pub(super) fn own(environment: &[(String, String)], problems: &mut Vec<Problem>) -> Node {
    let mut root = Node::block(Place::Environment(PREFIX.into()));
    let mut variables: Vec<_> = environment.iter().collect();
    variables.sort(); // so that the result does not depend on the order of the environment
    for (name, value) in variables {
        let upper = name.to_ascii_uppercase();
        let Some(rest) = upper.strip_prefix(PREFIX) else { continue };
        if NOT_KEYS.iter().any(|other| rest.starts_with(other)) {
            continue;
        }
        let place = Place::Environment(name.as_str().into());
        match path_of(rest) {
            Ok(path) => root.insert(&path, read(value, place, problems)),
            Err(advice) => problems.push(Problem::warning(
                "",
                Some(place),
                "this names no key and is ignored",
                advice,
            )),
        }
    }
    conform(root, FILE, FileForm::Ours, problems)
}

/// A list or a block is written in YAML's flow form; anything else is text.
fn read(value: &str, place: Place, problems: &mut Vec<Problem>) -> Node {
    if value.starts_with(['[', '{']) {
        let broken = Node::block(place.clone());
        parse_flow(value, &place, problems).unwrap_or(broken)
    } else {
        Node::text(value, place)
    }
}

fn path_of(name: &str) -> Result<Vec<String>, String> {
    let mut path = Vec::new();
    let mut keys: &'static [Key] = FILE;
    let mut segments = name.split("__");
    while let Some(segment) = segments.next() {
        let Some(key) = schema::find_loosely(keys, segment) else {
            let known = schema::closest(keys, segment);
            return Err(known.map_or_else(
                || "see docs/configuration.md for the names; `__` goes one block deeper".into(),
                |known| format!("did you mean `{known}`?"),
            ));
        };
        path.push(key.name.to_owned());
        keys = match key.shape {
            Shape::Block(keys) => keys,
            Shape::Named(keys) => {
                path.extend(segments.next().map(str::to_ascii_lowercase));
                keys
            }
            _ => &[],
        };
    }
    Ok(path)
}

/// What the variables of Vault's, OpenBao's and OpenTelemetry's tools add to `merged`.
pub(super) fn ambient(
    environment: &[(String, String)],
    merged: &Merged<'_>,
    problems: &mut Vec<Problem>,
) -> Node {
    let find = |name: &str| {
        let found = environment.iter().find(|(n, value)| n == name && !value.is_empty());
        found.map(|(n, value)| Node::text(value, Place::Environment(n.as_str().into())))
    };
    let vault =
        |name: &str| find(&format!("BAO_{name}")).or_else(|| find(&format!("VAULT_{name}")));
    let file = merged.root();
    let written = |keys: &[&str]| keys.iter().any(|key| file.get(key).is_some());
    let mut root = Node::block(Place::Environment("VAULT_*".into()));
    let mut fill = |path: &[&str], value: Option<Node>| {
        if let Some(value) = value {
            let path: Vec<_> = path.iter().map(|&key| key.to_owned()).collect();
            root.insert(&path, value);
        }
    };

    if !written(&["clusters"]) {
        fill(&["addr"], vault("ADDR"));
        fill(&["vaultCACert"], vault("CACERT"));
        fill(&["namespace"], vault("NAMESPACE"));
        fill(&["tlsServerName"], vault("TLS_SERVER_NAME"));
        // A certificate of one source never meets a key of another.
        if !written(&["clientCert", "clientKey"]) {
            fill(&["clientCert"], vault("CLIENT_CERT"));
            fill(&["clientKey"], vault("CLIENT_KEY"));
        }
        let logs_in = ["token", "tokenFile", "roleID", "roleIDFile", "secretID", "secretIDFile"];
        if !written(&logs_in) && !names_a_method(&file) {
            fill(&["token"], vault("TOKEN"));
        }
        if let Some(skip) = vault("SKIP_VERIFY") {
            problems.push(Problem::warning(
                "",
                Some(skip.place),
                "certificates are always verified; this is ignored",
                "name the certificate authority in vaultCACert",
            ));
        }
    }

    let endpoint = find(OTEL_WHOLE_ENDPOINT).or_else(|| find("OTEL_EXPORTER_OTLP_ENDPOINT"));
    if endpoint.is_some() || file.find(&["traces", "endpoint"]).is_some() {
        let protocol = find("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
            .or_else(|| find("OTEL_EXPORTER_OTLP_PROTOCOL"));
        fill(&["traces", "protocol"], protocol);
    }
    fill(&["traces", "endpoint"], endpoint);
    root
}

/// Whether the block `auth` says how to log in, and not only where.
fn names_a_method(file: &Field<'_>) -> bool {
    let auth = file.get("auth");
    auth.is_some_and(|auth| auth.entries().iter().any(|(name, _)| *name != "namespace"))
}
