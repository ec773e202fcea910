//! Why a reload changes nothing, with the line of the file that asks for it.
//!
//! What Vault, the kernel or a certificate has against a configuration is told like what
//! `config` has against it: place, key, cause, and what to write instead.

use std::collections::BTreeSet;
use std::path::Path;

use crate::cluster::tls::TlsError;
use crate::cluster::{CallError, CallErrorKind, Fault};
use crate::config::change;
use crate::config::diagnostics::Problem;
use crate::config::load::Places;
use crate::config::outline::Outline;
use crate::config::settings::{ClusterName, KekName, Settings};
use crate::daemon::generation::{BuildError, NotReady};
use crate::listener::unix::BindError;
use crate::telemetry::logs::InvalidFilter;
use crate::telemetry::traces::TraceError;

/// What is asked for, and where.
pub(super) struct Asked<'a> {
    pub(super) settings: &'a Settings,
    pub(super) places: &'a Places,
}

/// What says how a cluster is logged in to; the first that was written is shown.
const LOGIN: &[&str] =
    &["auth", "tokenFile", "token", "secretIDFile", "secretID", "roleIDFile", "roleID"];

// === impl Asked ===

impl Asked<'_> {
    fn refuse(&self, key: &str, what: impl ToString, advice: &str) -> Problem {
        Problem::error(key, self.places.of_key(key), what.to_string(), advice)
    }

    /// What may not change in a daemon that was `started` so and whose `running`
    /// configuration, or the one that ran before it, encrypts and decrypts.
    pub(super) fn forbidden(
        &self,
        started: &Outline,
        running: Option<&Outline>,
        wanted: &Outline,
    ) -> Vec<Problem> {
        let mut problems = change::needs_restart(started, wanted, self.places);
        if let Some(running) = running {
            let retired: BTreeSet<&str> =
                self.settings.reload.retired.iter().map(KekName::as_str).collect();
            problems.extend(change::unsafe_keys(running, wanted, &retired, self.places));
        }
        problems
    }

    pub(super) fn not_built(&self, error: &BuildError) -> Problem {
        let key = match error {
            BuildError::Tls { cluster, source } => {
                self.of_cluster(cluster, self.tls_key(cluster, source))
            }
            BuildError::Stack { cluster, .. } => self.of_cluster(cluster, "addr"),
            BuildError::NoCluster { kek, .. } => self.of_kek(kek),
        };
        self.refuse(&key, error, "correct the file, or name another one")
    }

    pub(super) fn not_ready(&self, error: &NotReady) -> Problem {
        match error {
            NotReady::Cluster(error) => {
                let key = self.key_of(error);
                let key = self.of_cluster(&error.cluster, key);
                let advice = "correct it, or see to the cluster; `check --online` shows more";
                self.refuse(&key, error, advice)
            }
            NotReady::AnotherKey { kek, .. } => self.refuse(
                &self.of_kek(kek),
                error,
                "give the new key a name of its own (`name`, with the old one in `transitKey`), \
                 and keep the old one behind it",
            ),
            NotReady::Kek { kek, error } => {
                let is_primary = self.settings.keyring.keks.first().is_some_and(|k| k.name == *kek);
                let advice = if is_primary {
                    "the first key must encrypt before it takes over: see to it (`check --online` \
                     shows what it lacks), or leave the running one in front"
                } else {
                    "with `reload.strict` every new key must answer: see to it (`check --online` \
                     shows what it lacks), or take it out"
                };
                self.refuse(&self.of_kek(kek), error, advice)
            }
        }
    }

    pub(super) fn no_port(&self, error: &std::io::Error) -> Problem {
        let address = self.settings.admin.map(|a| a.to_string()).unwrap_or_default();
        let what = format!("{address} cannot be bound: {error}");
        self.refuse("admin.listen", what, "free it, or write another port, or `off`")
    }

    pub(super) fn no_socket(&self, error: &BindError) -> Problem {
        let key = match error {
            BindError::UnknownName { kind: "owner", .. } => "socket.owner",
            BindError::UnknownName { .. } | BindError::Chown { .. } => "socket.group",
            BindError::AbstractForAnybody { .. } => "socket.allowedUids",
            _ => "socket.path",
        };
        self.refuse(key, error, "or leave it as it is")
    }

    pub(super) fn no_traces(&self, error: &TraceError) -> Problem {
        self.refuse("traces.endpoint", error, "correct it, or write `off`")
    }

    pub(super) fn no_log(&self, error: &InvalidFilter) -> Problem {
        self.refuse("log.level", error, "correct it")
    }

    /// The key path of `key` of a cluster, in whichever form the file has.
    fn of_cluster(&self, cluster: &ClusterName, key: &str) -> String {
        if self.places.has("clusters") {
            let path = format!("clusters.{cluster}.{key}");
            // What was not written is missing from the block.
            if self.places.has(&path) { path } else { format!("clusters.{cluster}") }
        } else {
            key.to_owned()
        }
    }

    fn of_kek(&self, kek: &KekName) -> String {
        let index = self.settings.keyring.keks.iter().position(|wanted| wanted.name == *kek);
        format!("keyNames[{}]", index.unwrap_or_default())
    }

    /// What to look at first. Of a token that did not come only words are left; they choose
    /// the line that is shown, and nothing else.
    fn key_of(&self, error: &CallError) -> &'static str {
        let why = match &error.kind {
            CallErrorKind::NoToken(why) => why.as_str(),
            _ => "",
        };
        let is_tls = error.attempts.iter().any(|a| matches!(a.fault, Fault::Tls(_)));
        if is_tls || why.contains(": TLS: ") {
            return if self.has_ca(&error.cluster) { "vaultCACert" } else { "addr" };
        }
        let is_login =
            ["login refused", "does not accept the token", "cannot unwrap", "the token "];
        let is_refused = matches!(error.kind, CallErrorKind::TokenRefused);
        if is_refused || is_login.iter().any(|words| why.contains(words)) {
            return self.login_key(&error.cluster);
        }
        "addr"
    }

    fn has_ca(&self, cluster: &ClusterName) -> bool {
        self.settings.clusters.iter().any(|c| c.name == *cluster && c.tls.ca_file.is_some())
    }

    fn login_key(&self, cluster: &ClusterName) -> &'static str {
        let is_written = |key: &&&str| self.places.has(&self.path_of(cluster, key));
        LOGIN.iter().find(is_written).copied().unwrap_or("auth")
    }

    fn path_of(&self, cluster: &ClusterName, key: &str) -> String {
        if self.places.has("clusters") {
            format!("clusters.{cluster}.{key}")
        } else {
            key.to_owned()
        }
    }

    /// Which key names the file that cannot be used.
    fn tls_key(&self, cluster: &ClusterName, error: &TlsError) -> &'static str {
        let tls = self.settings.clusters.iter().find(|c| c.name == *cluster).map(|c| &c.tls);
        let client = tls.and_then(|tls| tls.client.as_ref());
        let of_file = |path: &Path| match client {
            Some(client) if client.cert_file == path => "clientCert",
            Some(client) if client.key_file == path => "clientKey",
            _ => "vaultCACert",
        };
        match error {
            TlsError::Unreadable { path, .. }
            | TlsError::NotPem { path, .. }
            | TlsError::Empty { path, .. }
            | TlsError::BadAuthority { path, .. } => of_file(path),
            TlsError::BadIdentity { .. } => "clientKey",
            TlsError::BadServerName(_) => "tlsServerName",
            TlsError::Provider(_) => "addr",
        }
    }
}
