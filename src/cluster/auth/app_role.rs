//! AppRole: a role id and, unless the role does without, a secret id.

use std::path::Path;

use futures_util::future::BoxFuture;
use http::Method as HttpMethod;
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use super::{AuthError, Begin, Method, Source, resolve};
use crate::cluster::{Operation, Verb, path};
use crate::config::settings::{AppRoleSettings, SecretSource};

/// Logs in at `auth/<mount>/login`. Each login uses up one use of a limited secret id.
#[derive(Debug)]
pub(super) struct AppRole {
    settings: AppRoleSettings,
    namespace: Option<String>,
}

// === impl AppRole ===

impl AppRole {
    pub(super) const fn new(settings: AppRoleSettings, namespace: Option<String>) -> Self {
        Self { settings, namespace }
    }

    async fn login(&self) -> Result<Operation, AuthError> {
        let role_id = resolve(&self.settings.role_id).await?;
        let secret_id = match &self.settings.secret_id {
            Some(source) => Some(resolve(source).await?),
            None => None,
        };
        Ok(Operation {
            verb: Verb::Login,
            method: HttpMethod::POST,
            path: format!("/v1/auth/{}/login", path::encode(&self.settings.mount)),
            namespace: self.namespace.clone(),
            body: Some(login_body(&role_id, secret_id.as_ref())),
        })
    }
}

impl Method for AppRole {
    fn name(&self) -> &'static str {
        "appRole"
    }

    fn begin(&self) -> BoxFuture<'_, Result<Begin, AuthError>> {
        Box::pin(async { self.login().await.map(Begin::Login) })
    }

    fn source(&self) -> Source {
        Source::Login
    }

    fn files(&self) -> Vec<&Path> {
        [Some(&self.settings.role_id), self.settings.secret_id.as_ref()]
            .into_iter()
            .flatten()
            .filter_map(|source| match source {
                SecretSource::File(path) => Some(path.as_path()),
                SecretSource::Inline(_) => None,
            })
            .collect()
    }
}

/// The body, in a buffer that does not grow: a character takes six bytes at most.
fn login_body(role_id: &SecretString, secret_id: Option<&SecretString>) -> Zeroizing<Vec<u8>> {
    let (role_id, secret_id) = (role_id.expose_secret(), secret_id.map(|s| s.expose_secret()));
    let room = 64 + 6 * (role_id.len() + secret_id.map_or(0, str::len));
    let mut body = Zeroizing::new(Vec::with_capacity(room));
    body.extend_from_slice(b"{\"role_id\":");
    push_json(&mut body, role_id);
    if let Some(secret_id) = secret_id {
        body.extend_from_slice(b",\"secret_id\":");
        push_json(&mut body, secret_id);
    }
    body.push(b'}');
    body
}

fn push_json(body: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(body, text).expect("a string always fits into memory as JSON");
}
