//! JWT: a signed token that Vault verifies by itself, such as a SPIFFE JWT-SVID.

use std::path::Path;

use futures_util::future::BoxFuture;
use secrecy::ExposeSecret as _;

use super::{AuthError, Begin, Method, Source, login, read_jwt};
use crate::config::settings::JwtSettings;

/// Logs in with what the issuer's agent keeps fresh in the file. Such tokens live for
/// minutes, so it is read at each login.
#[derive(Debug)]
pub(super) struct Jwt {
    settings: JwtSettings,
    namespace: Option<String>,
}

// === impl Jwt ===

impl Jwt {
    pub(super) const fn new(settings: JwtSettings, namespace: Option<String>) -> Self {
        Self { settings, namespace }
    }
}

impl Method for Jwt {
    fn name(&self) -> &'static str {
        "jwt"
    }

    fn begin(&self) -> BoxFuture<'_, Result<Begin, AuthError>> {
        Box::pin(async {
            let JwtSettings { mount, role, token_file } = &self.settings;
            let token = read_jwt(token_file).await?;
            let mut fields = vec![("jwt", token.expose_secret())];
            fields.extend(role.as_ref().map(|role| ("role", role.as_str())));
            Ok(Begin::Login(login(mount, "", self.namespace.clone(), &fields)))
        })
    }

    fn source(&self) -> Source {
        Source::Login
    }

    fn identity(&self) -> BoxFuture<'_, Result<String, AuthError>> {
        let identity = format!("jwt {} {:?}", self.settings.mount, self.settings.role);
        Box::pin(std::future::ready(Ok(identity)))
    }

    fn files(&self) -> Vec<&Path> {
        vec![&self.settings.token_file]
    }
}
