//! AppRole: a role id and, unless the role does without, a secret id.

mod wrapped;

use std::path::Path;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use secrecy::ExposeSecret as _;

use self::wrapped::Wrapped;
use super::{AuthError, Begin, Method, Rehearsal, Source, body, login, resolve};
use crate::cluster::authenticate::Link;
use crate::cluster::{Operation, Verb, path};
use crate::config::settings::{AppRoleSettings, SecretId, SecretSource};

/// Logs in at `auth/<mount>/login`. Each login uses up one use of a limited secret id.
#[derive(Debug)]
pub(super) struct AppRole {
    mount: String,
    role_id: SecretSource,
    proof: Proof,
    link: Link,
}

/// What proves that we may use the role.
#[derive(Debug)]
enum Proof {
    Nothing,
    SecretId(SecretSource),
    Wrapped(Arc<Wrapped>),
}

// === impl AppRole ===

impl AppRole {
    pub(super) fn new(settings: AppRoleSettings, link: Link) -> Self {
        let AppRoleSettings { mount, role_id, secret_id } = settings;
        let proof = match secret_id {
            SecretId::None => Proof::Nothing,
            SecretId::Given(source) => Proof::SecretId(source),
            SecretId::Wrapped { token, kept_in } => {
                Proof::Wrapped(Arc::new(Wrapped::new(token, kept_in, &mount, link.clone())))
            }
        };
        Self { mount, role_id, proof, link }
    }

    /// Where the secret id was made that the next login would unwrap, if it would.
    pub(super) async fn would_unwrap(&self) -> Option<Result<String, AuthError>> {
        match &self.proof {
            Proof::Nothing | Proof::SecretId(_) => None,
            Proof::Wrapped(wrapped) => match resolve(&self.role_id).await {
                Ok(role_id) => wrapped.fresh(&role_id).await.transpose(),
                Err(error) => Some(Err(error)),
            },
        }
    }

    async fn login(&self) -> Result<Operation, AuthError> {
        let role_id = resolve(&self.role_id).await?;
        let secret_id = match &self.proof {
            Proof::Nothing => None,
            Proof::SecretId(source) => Some(resolve(source).await?),
            Proof::Wrapped(wrapped) => Some(wrapped.secret_id(&role_id).await?),
        };
        let mut fields = vec![("role_id", role_id.expose_secret())];
        fields.extend(secret_id.iter().map(|secret| ("secret_id", secret.expose_secret())));
        Ok(login(&self.mount, "", self.link.namespace().cloned(), &fields))
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
        let secret = match &self.proof {
            Proof::Nothing => None,
            Proof::SecretId(source) => source.file(),
            Proof::Wrapped(wrapped) => wrapped.token_file(),
        };
        self.role_id.file().into_iter().chain(secret).collect()
    }

    fn identity(&self) -> BoxFuture<'_, Result<String, AuthError>> {
        // By content: the file of another role has the same path.
        Box::pin(async {
            let role_id = resolve(&self.role_id).await?;
            Ok(format!("appRole {} {}", self.mount, role_id.expose_secret()))
        })
    }

    fn rehearsal<'a>(
        &'a self,
        role: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Rehearsal, AuthError>> {
        Box::pin(async move {
            let secret_id = match &self.proof {
                Proof::Nothing => return Ok(Rehearsal::Free),
                // A new wrapping token is unwrapped now: it may have ended by the next login.
                Proof::Wrapped(wrapped) => {
                    wrapped.secret_id(&resolve(&self.role_id).await?).await?
                }
                Proof::SecretId(source) => resolve(source).await?,
            };
            let Some(role) = role else { return Ok(Rehearsal::Unknown) };
            let (mount, role) = (path::encode(&self.mount), path::encode_segment(role));
            Ok(Rehearsal::Ask(Operation {
                needs_active: false,
                verb: Verb::Read,
                method: http::Method::POST,
                path: format!("/v1/auth/{mount}/role/{role}/secret-id/lookup"),
                namespace: self.link.namespace().cloned(),
                body: Some(body(&[("secret_id", secret_id.expose_secret())])),
            }))
        })
    }
}
