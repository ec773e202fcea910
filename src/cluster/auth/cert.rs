//! TLS certificate: the connection's client certificate is the login.

use std::path::Path;

use futures_util::future::BoxFuture;

use super::{AuthError, Begin, Method, Source, login};
use crate::config::settings::{CertSettings, ClientIdentity};

/// Logs in with the certificate that the transport shows. When its files change, new
/// connections show the new one; Vault then refuses to renew a token that the old one got,
/// and another login follows.
#[derive(Debug)]
pub(super) struct Cert {
    settings: CertSettings,
    identity: Option<ClientIdentity>,
    namespace: Option<String>,
}

// === impl Cert ===

impl Cert {
    pub(super) const fn new(
        settings: CertSettings,
        identity: Option<ClientIdentity>,
        namespace: Option<String>,
    ) -> Self {
        Self { settings, identity, namespace }
    }
}

impl Method for Cert {
    fn name(&self) -> &'static str {
        "cert"
    }

    fn begin(&self) -> BoxFuture<'_, Result<Begin, AuthError>> {
        let CertSettings { mount, role } = &self.settings;
        let fields: Vec<_> = role.iter().map(|role| ("name", role.as_str())).collect();
        let login = login(mount, "", self.namespace.clone(), &fields);
        Box::pin(std::future::ready(Ok(Begin::Login(login))))
    }

    fn source(&self) -> Source {
        Source::Login
    }

    fn identity(&self) -> BoxFuture<'_, Result<String, AuthError>> {
        let identity = format!("cert {} {:?}", self.settings.mount, self.settings.role);
        Box::pin(std::future::ready(Ok(identity)))
    }

    fn files(&self) -> Vec<&Path> {
        match &self.identity {
            Some(ClientIdentity { cert_file, key_file }) => vec![cert_file, key_file],
            None => Vec::new(),
        }
    }
}
