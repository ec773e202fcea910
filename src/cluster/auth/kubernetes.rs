//! Kubernetes: the token of a service account, which Vault has an apiserver review.

use std::path::Path;

use futures_util::future::BoxFuture;
use secrecy::ExposeSecret as _;

use super::{AuthError, Begin, Method, Source, login, read_jwt};
use crate::config::settings::KubernetesSettings;

/// Logs in with what a kubelet, or whoever else, keeps fresh in the file.
#[derive(Debug)]
pub(super) struct Kubernetes {
    settings: KubernetesSettings,
    namespace: Option<String>,
}

// === impl Kubernetes ===

impl Kubernetes {
    pub(super) const fn new(settings: KubernetesSettings, namespace: Option<String>) -> Self {
        Self { settings, namespace }
    }
}

impl Method for Kubernetes {
    fn name(&self) -> &'static str {
        "kubernetes"
    }

    fn begin(&self) -> BoxFuture<'_, Result<Begin, AuthError>> {
        Box::pin(async {
            let KubernetesSettings { mount, role, token_file } = &self.settings;
            let token = read_jwt(token_file).await?;
            let fields = [("role", role.as_str()), ("jwt", token.expose_secret())];
            Ok(Begin::Login(login(mount, "", self.namespace.clone(), &fields)))
        })
    }

    fn source(&self) -> Source {
        Source::Login
    }

    fn identity(&self) -> BoxFuture<'_, Result<String, AuthError>> {
        let identity = format!("kubernetes {} {}", self.settings.mount, self.settings.role);
        Box::pin(std::future::ready(Ok(identity)))
    }

    fn files(&self) -> Vec<&Path> {
        vec![&self.settings.token_file]
    }
}
