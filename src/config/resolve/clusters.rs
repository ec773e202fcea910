//! Clusters: addresses and TLS; [`auth`] is how to log in.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::Uri;

use super::auth;
use super::report::{Holds, Report};
use super::token_cache::{self, token_cache};
use super::values::{self, Path, shown, vault_path};
use crate::config::load::{Field, FileForm};
use crate::config::settings::{
    ClientIdentity, ClusterName, ClusterSettings, SERVICE_SCHEME, TlsSettings,
};

/// How many addresses the pool of a cluster can hold.
const MAX_ADDRESSES: usize = 64;

/// The port of a DNS server.
const DNS_PORT: u16 = 53;

/// The mount that both Vault's documentation and the Oracle plugin use.
pub(super) const DEFAULT_TRANSIT: &str = "transit";

/// The flat keys that describe the cluster `default`.
const FLAT: &[&str] = &[
    "addr",
    "namespace",
    "transitPath",
    "vaultCACert",
    "clientCert",
    "clientKey",
    "tlsServerName",
    "allowPlaintext",
    "tokenCache",
    "token",
    "tokenFile",
    "roleID",
    "roleIDFile",
    "secretID",
    "secretIDFile",
    "authPath",
    "auth",
];

/// A cluster, and what its KEKs inherit. The settings are `None` when they had problems,
/// so that a KEK's reference to the cluster is not a second one.
pub(super) struct Cluster<'a> {
    pub(super) name: ClusterName,
    pub(super) settings: Option<Arc<ClusterSettings>>,
    pub(super) namespace: Option<String>,
    pub(super) transit: String,
    /// The cluster's own block; `None` for the flat form.
    pub(super) block: Option<Field<'a>>,
}

/// Every cluster, in the file's order.
pub(super) fn clusters<'a>(report: &mut Report<'_>, file: &Field<'a>) -> Vec<Cluster<'a>> {
    let dns = file.find(&["dns", "servers"]).map(|field| dns_servers(report, &field));
    let dns = dns.unwrap_or_default();
    let Some(block) = file.get("clusters") else {
        let name = ClusterName::try_new("default").expect("it follows the rules of names");
        return vec![cluster(report, file, file, name, None, &dns)];
    };
    for key in FLAT {
        if let Some(flat) = file.get(key) {
            report.error(
                &flat,
                "it describes the one cluster of a file without `clusters`, and there is `clusters`",
                format!("move it into a cluster: clusters.<name>.{key}"),
            );
        }
    }
    let entries = block.entries();
    if entries.is_empty() {
        report.error(&block, "there is no cluster", "write a name and, below it, addr and auth");
    }
    let mut found = Vec::new();
    for (name, field) in entries {
        match ClusterName::try_new(name) {
            Ok(name) => found.push(cluster(report, file, &field, name, Some(field.clone()), &dns)),
            Err(error) => report.error(&field, error.to_string(), "give the cluster another name"),
        }
    }
    token_cache::each_its_own(report, &found);
    found
}

fn cluster<'a>(
    report: &mut Report<'_>,
    file: &Field<'a>,
    keys: &Field<'a>,
    name: ClusterName,
    block: Option<Field<'a>>,
    dns: &[SocketAddr],
) -> Cluster<'a> {
    let path_prefix = block.as_ref().map(|b| format!("{}.", b.path())).unwrap_or_default();
    let place = block.as_ref().and_then(Field::place);
    let mut allow_plaintext =
        keys.get("allowPlaintext").and_then(|f| values::flag(report, &f)).unwrap_or(false);
    let addresses = match keys.get("addr") {
        Some(field) => addresses(report, &field, &mut allow_plaintext),
        None => {
            report.missing(
                format!("{path_prefix}addr"),
                place.clone(),
                "there is no address",
                "write the address of every node: addr: [https://vault-0:8200, https://vault-1:8200]",
            );
            None
        }
    };
    let tls = tls(report, keys);
    if let (Some(field), Some(addresses), Some(tls)) = (keys.get("addr"), &addresses, &tls) {
        service_is_verified(report, &field, addresses, tls);
    }
    let namespace = keys.get("namespace").and_then(|f| vault_path(report, &f));
    let around = auth::Around {
        cluster: &name,
        path: &path_prefix,
        place,
        is_flat: block.is_none(),
        state_dir: file.get("stateDir").map(|f| f.text().into()),
    };
    let auth = auth::login(report, keys, around);
    let transit = keys.get("transitPath").and_then(|f| vault_path(report, &f));
    let token_cache = auth.as_ref().and_then(|login| token_cache(report, keys, &login.settings));
    let settings = addresses.zip(auth).zip(tls).map(|((addresses, login), tls)| {
        Arc::new(ClusterSettings {
            name: name.clone(),
            addresses,
            dns_servers: dns.to_vec(),
            namespace: namespace.clone(),
            auth_namespace: login.namespace.within(namespace.as_ref()),
            tls,
            auth: login.settings,
            allow_plaintext,
            token_cache,
        })
    });
    let transit = transit.unwrap_or_else(|| DEFAULT_TRANSIT.to_owned());
    Cluster { name, settings, namespace, transit, block }
}

fn addresses(
    report: &mut Report<'_>,
    field: &Field<'_>,
    allow_plaintext: &mut bool,
) -> Option<Vec<Uri>> {
    let items = field.items();
    if items.is_empty() {
        report.error(field, "the list is empty", "write at least one address");
        return None;
    }
    if items.len() > MAX_ADDRESSES {
        report.error(
            field,
            format!("there are {} addresses; a cluster has at most {MAX_ADDRESSES}", items.len()),
            "write the addresses of the cluster's own nodes, or of its load balancer",
        );
        return None;
    }
    let mut seen = HashSet::new();
    let mut addresses = Vec::new();
    let mut sound = true;
    for item in &items {
        let uri = match item.text().split_once("://") {
            Some((scheme, _)) if scheme.starts_with("srv+") => service(report, item),
            _ => values::url(report, item, Path::Refused, "https://vault.example:8200"),
        };
        let Some(uri) = uri else {
            sound = false;
            continue;
        };
        let named = shown(item.text());
        let plain = uri.scheme_str() == Some("http") && !values::is_loopback(&uri);
        if plain && !*allow_plaintext {
            report.refuse_unless_oracle(
                item,
                format!("`{named}` sends tokens and keys over the network unencrypted"),
                "write https://, or add `allowPlaintext: true` if something else encrypts the way",
            );
            sound &= report.form == FileForm::Oracle;
        }
        if seen.insert(uri.to_string()) {
            addresses.push(uri);
        } else {
            report.warn(item, format!("`{named}` stands here twice"), "remove one of the two");
        }
    }
    *allow_plaintext |= report.form == FileForm::Oracle;
    sound.then_some(addresses)
}

/// `srv+https://` and the name of a service.
fn service(report: &mut Report<'_>, item: &Field<'_>) -> Option<Uri> {
    let text = item.text();
    let name = text.strip_prefix(SERVICE_SCHEME).and_then(|rest| rest.strip_prefix("://"));
    let name = name.map(|name| name.trim_end_matches('/'));
    let is_name = |name: &str| {
        let sound = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !name.is_empty() && name.chars().all(sound) && name.parse::<IpAddr>().is_err()
    };
    let uri =
        name.filter(|n| is_name(n)).and_then(|n| format!("{SERVICE_SCHEME}://{n}").parse().ok());
    if uri.is_none() {
        report.error(
            item,
            "it names no service in DNS",
            "write the name that has the SRV records, which say the ports: \
             srv+https://_vault._tcp.example",
        );
    }
    uri
}

/// An SRV record says which host to believe, and nothing vouches for the record. With the
/// certificate authorities that everybody has, whoever can forge it can present a good
/// certificate too, and would be handed the token.
fn service_is_verified(
    report: &mut Report<'_>,
    field: &Field<'_>,
    addresses: &[Uri],
    tls: &TlsSettings,
) {
    let is_service = addresses.iter().any(|uri| uri.scheme_str() == Some(SERVICE_SCHEME));
    if is_service && tls.ca_file.is_none() && tls.server_name.is_none() {
        report.error(
            field,
            "DNS alone would say whose certificate is believed",
            "write vaultCACert, the authority that signs your nodes' certificates, or \
             tlsServerName, a name that stands in all of them",
        );
    }
}

/// IP addresses, each with a port or without.
fn dns_servers(report: &mut Report<'_>, field: &Field<'_>) -> Vec<SocketAddr> {
    let parse = |text: &str| {
        let bare = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, DNS_PORT));
        bare.or_else(|_| text.parse::<SocketAddr>()).ok().filter(|server| server.port() > 0)
    };
    let mut servers = Vec::new();
    for item in field.items() {
        match parse(item.text()) {
            Some(server) => servers.push(server),
            None => report.error(
                &item,
                format!("`{}` is no address of a DNS server", shown(item.text())),
                "write an IP address, with a port when it is not 53: 10.0.0.53 or 127.0.0.1:5353",
            ),
        }
    }
    servers
}

fn tls(report: &mut Report<'_>, keys: &Field<'_>) -> Option<TlsSettings> {
    let ca_file = keys.get("vaultCACert").map(|field| report.file(&field, Holds::Public));
    let server_name = match keys.get("tlsServerName") {
        Some(field) => server_name(report, &field).map(Some),
        None => Some(None),
    };
    let client = match (keys.get("clientCert"), keys.get("clientKey")) {
        (Some(cert), Some(key)) => Some(ClientIdentity {
            cert_file: report.file(&cert, Holds::Public),
            key_file: report.file(&key, Holds::Secret),
        }),
        (Some(alone), None) => {
            report.error(
                &alone,
                "a certificate needs its key",
                "add clientKey: the same path when the file holds both",
            );
            return None;
        }
        (None, Some(alone)) => {
            report.error(&alone, "a key needs its certificate", "add clientCert");
            return None;
        }
        (None, None) => None,
    };
    Some(TlsSettings { ca_file, client, server_name: server_name? })
}

fn server_name(report: &mut Report<'_>, field: &Field<'_>) -> Option<String> {
    let text = field.text();
    if rustls_pki_types::ServerName::try_from(text).is_err() {
        let what = format!("`{}` is no host name", shown(text));
        report.error(field, what, "write the name in the server's certificate, without a port");
        return None;
    }
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::schema::FILE;

    #[test]
    fn every_flat_key_exists() {
        for flat in FLAT {
            assert!(FILE.iter().any(|key| key.name == *flat), "{flat}");
        }
    }
}
