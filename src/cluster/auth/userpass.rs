//! Userpass: a user name and a password.

use std::path::Path;

use futures_util::future::BoxFuture;
use secrecy::ExposeSecret as _;

use super::{AuthError, Begin, Method, Source, login, resolve};
use crate::cluster::path;
use crate::config::settings::UserpassSettings;

/// Logs in at `auth/<mount>/login/<user>`.
#[derive(Debug)]
pub(super) struct Userpass {
    settings: UserpassSettings,
    namespace: Option<String>,
}

// === impl Userpass ===

impl Userpass {
    pub(super) const fn new(settings: UserpassSettings, namespace: Option<String>) -> Self {
        Self { settings, namespace }
    }
}

impl Method for Userpass {
    fn name(&self) -> &'static str {
        "userpass"
    }

    fn begin(&self) -> BoxFuture<'_, Result<Begin, AuthError>> {
        Box::pin(async {
            let UserpassSettings { mount, username, password } = &self.settings;
            let password = resolve(password).await?;
            let tail = format!("/{}", path::encode_segment(username));
            let fields = [("password", password.expose_secret())];
            Ok(Begin::Login(login(mount, &tail, self.namespace.clone(), &fields)))
        })
    }

    fn source(&self) -> Source {
        Source::Login
    }

    fn identity(&self) -> BoxFuture<'_, Result<String, AuthError>> {
        let identity = format!("userpass {} {}", self.settings.mount, self.settings.username);
        Box::pin(std::future::ready(Ok(identity)))
    }

    fn files(&self) -> Vec<&Path> {
        self.settings.password.file().into_iter().collect()
    }
}
