//! How a token is got: one file per method, each behind the trait `Method`.
//!
//! A method says what to do next; the token task does it, so that pauses, logging and
//! lifetimes are the same for all. Files are read at each use, because they change while
//! the daemon runs.

mod app_role;
mod cert;
mod jwt;
mod kubernetes;
mod token;
mod token_file;
mod userpass;

use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::authenticate::Link;
use super::{CallError, Operation, Transport, Verb, path, words};
use crate::blocking;
use crate::config::settings::{AuthSettings, ClusterSettings, SecretSource};

/// Longest file that is read for a secret.
const LONGEST_SECRET: u64 = 64 * 1024;

/// How long a file may take to be read; a hung network mount must not hold the task.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// What Vault says of a wrong secret, in lower case, and what to do about it.
const REJECTED: [(&str, &str); 5] = [
    ("invalid role or secret id", WRONG_SECRET_ID),
    ("invalid secret id", WRONG_SECRET_ID),
    ("invalid role id", WRONG_SECRET_ID),
    ("invalid role_id", WRONG_SECRET_ID),
    ("invalid username or password", "invalid user name or password; write the right one"),
];

const WRONG_SECRET_ID: &str = "invalid role or secret ID; the secret ID may have expired or been \
                               used up: write a new one and check roleID and its mount";

/// One way to get a token.
pub(crate) trait Method: fmt::Debug + Send + Sync + 'static {
    /// The word that metrics and log lines use.
    fn name(&self) -> &'static str;

    /// What to do to get a token now.
    fn begin(&self) -> BoxFuture<'_, Result<Begin, AuthError>>;

    /// What another token could come from once this one has ended.
    fn source(&self) -> Source;

    /// The files that it reads.
    fn files(&self) -> Vec<&Path>;

    /// What tells its logins from those of other settings (mount, role) now, for whoever
    /// keeps a token and must not offer it where it does not belong. To be shown as a digest
    /// only: a role id may be in it.
    fn identity(&self) -> BoxFuture<'_, Result<String, AuthError>> {
        Box::pin(std::future::ready(Ok(self.name().to_owned())))
    }

    /// Whether a login may be made only to see that it works. `role` is what Vault called
    /// the role at the last login (`role_name`), when it did.
    fn rehearsal<'a>(
        &'a self,
        _role: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Rehearsal, AuthError>> {
        Box::pin(std::future::ready(Ok(Rehearsal::Free)))
    }
}

/// What a login costs that is made only to see that it works.
#[derive(Debug)]
pub(crate) enum Rehearsal {
    /// Nothing.
    Free,
    /// Perhaps a use of a limited secret id: Vault's answer to this tells.
    Ask(Operation),
    /// Nobody can tell whether it costs a use of a limited secret id, so it is not made.
    Unknown,
}

/// The first step to a token.
#[derive(Debug)]
pub(crate) enum Begin {
    /// It is there already; ask Vault how long it lives.
    Token(SecretString),
    /// Log in with this; the answer carries the token.
    Login(Operation),
}

/// What another token could come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Nowhere: the configuration holds the only one.
    Nowhere,
    /// A file that somebody else writes: a change of it means a new token.
    File,
    /// A login, at any time.
    Login,
}

/// A digest of what a method's files hold, to notice a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint([u8; 32]);

/// Why there is no token. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthError {
    /// A file that cannot be read.
    #[error("{path}: {why}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// What was to be sent can be no token.
    #[error("the token {0}")]
    NotAToken(&'static str),
    /// The secret itself is wrong. Vault locks a user or role out after a few of these.
    #[error("{method} login refused ({address}): {what}")]
    Rejected {
        /// The method.
        method: &'static str,
        /// Who said so.
        address: String,
        /// What is wrong, and what to do.
        what: &'static str,
    },
    /// A wrapping token that gives no secret id.
    #[error("cannot unwrap the secret ID: {why}; {remedy}")]
    Wrapping {
        /// What is wrong.
        why: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A login that Vault does not know how to take, or will not.
    #[error("{method} login refused ({address}): {said} (HTTP {status}); {remedy}")]
    Refused {
        /// The method.
        method: &'static str,
        /// Who said so.
        address: String,
        /// Vault's words.
        said: String,
        /// The HTTP status.
        status: u16,
        /// What to look at.
        remedy: &'static str,
    },
    /// Vault does not accept the token that is configured, or in the file.
    #[error("Vault does not accept the token: it has expired or was revoked; {remedy}")]
    Dead {
        /// What to do.
        remedy: &'static str,
    },
    /// A success that holds no token.
    #[error("{address} answered the login with success but {what}")]
    Unacceptable {
        /// Who did.
        address: String,
        /// What was wrong.
        what: &'static str,
    },
    /// No address could answer.
    #[error("{0}")]
    Unreachable(#[source] CallError),
}

/// The method that `settings` name; `link` is for those that ask Vault something before
/// they can log in.
pub(super) fn method(settings: &ClusterSettings, link: &Link) -> Box<dyn Method> {
    let namespace = settings.auth_namespace.clone();
    match &settings.auth {
        AuthSettings::Token(token) => Box::new(token::StaticToken::new(token.clone())),
        AuthSettings::TokenFile(path) => Box::new(token_file::TokenFile::new(path.clone())),
        AuthSettings::AppRole(role) => Box::new(app_role::AppRole::new(role.clone(), link.clone())),
        AuthSettings::Kubernetes(role) => {
            Box::new(kubernetes::Kubernetes::new(role.clone(), namespace))
        }
        AuthSettings::Jwt(role) => Box::new(jwt::Jwt::new(role.clone(), namespace)),
        AuthSettings::Cert(role) => {
            Box::new(cert::Cert::new(role.clone(), settings.tls.client.clone(), namespace))
        }
        AuthSettings::Userpass(user) => Box::new(userpass::Userpass::new(user.clone(), namespace)),
    }
}

/// Whether a first login would use a wrapping token up: where the secret id in it was made,
/// or why nobody can tell. `None` when nothing would be used up.
pub(crate) async fn would_unwrap(
    settings: &ClusterSettings,
    transport: &Arc<dyn Transport>,
) -> Option<Result<String, AuthError>> {
    let AuthSettings::AppRole(role) = &settings.auth else { return None };
    let link = Link::new(settings, transport, &Arc::default());
    app_role::AppRole::new(role.clone(), link).would_unwrap().await
}

/// A login at `auth/<mount>/login<tail>` with these texts as its body.
fn login(
    mount: &str,
    tail: &str,
    namespace: Option<String>,
    fields: &[(&'static str, &str)],
) -> Operation {
    Operation {
        needs_active: false,
        verb: Verb::Login,
        method: http::Method::POST,
        path: format!("/v1/auth/{}/login{tail}", path::encode(mount)),
        namespace,
        body: Some(body(fields)),
    }
}

/// A JSON object of texts, in a buffer that does not grow and so leaves no smaller copy
/// behind: a character takes six bytes at most.
fn body(fields: &[(&'static str, &str)]) -> Zeroizing<Vec<u8>> {
    let room = fields.iter().map(|(name, text)| name.len() + 6 * text.len() + 8).sum::<usize>();
    let mut body = Zeroizing::new(Vec::with_capacity(room + 2));
    body.push(b'{');
    for (name, text) in fields {
        if body.len() > 1 {
            body.push(b',');
        }
        body.push(b'"');
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(b"\":");
        serde_json::to_writer(&mut *body, text).expect("a text always fits into memory as JSON");
    }
    body.push(b'}');
    body
}

/// The digest of the files now; a file that cannot be read counts as empty.
pub(crate) async fn fingerprint(files: &[&Path]) -> Fingerprint {
    let mut digest = Sha256::new();
    for path in files {
        let content = read_secret(path).await.ok();
        let text = content.as_ref().map_or("", |c| c.expose_secret());
        digest.update((text.len() as u64).to_be_bytes());
        digest.update(text);
    }
    Fingerprint(digest.finalize().into())
}

/// Reads a file that holds one secret; white space at its ends is cut.
async fn read_secret(path: &Path) -> Result<SecretString, AuthError> {
    let wrong = |why: String| AuthError::File { path: path.to_owned(), why };
    let file = path.to_owned();
    let bytes = match blocking::at(path, READ_TIMEOUT, move || read_bytes(&file)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => return Err(wrong(format!("cannot read it: {error}"))),
        Err(why) => return Err(wrong(format!("cannot read it: {why}"))),
    };
    if bytes.len() as u64 > LONGEST_SECRET {
        return Err(wrong("too long for a secret".to_owned()));
    }
    match std::str::from_utf8(&bytes).map(str::trim) {
        Ok("") => Err(wrong("it is empty".to_owned())),
        Ok(text) => Ok(SecretString::from(text)),
        Err(_) => Err(wrong("it is not text".to_owned())),
    }
}

/// The first bytes of the file, one more than a secret may have. It blocks.
fn read_bytes(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let facts = std::fs::metadata(path)?;
    if !facts.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    // As large as it gets, so that no smaller copy is left behind by growing.
    let room = usize::try_from(facts.len().min(LONGEST_SECRET)).unwrap_or_default() + 64;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    std::fs::File::open(path)?.take(LONGEST_SECRET + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The secret of `source` now.
async fn resolve(source: &SecretSource) -> Result<SecretString, AuthError> {
    match source {
        SecretSource::Inline(secret) => Ok(secret.clone()),
        SecretSource::File(path) => read_secret(path).await,
    }
}

/// A signed token (JWT) from `path`: three parts in base64url, with dots between.
async fn read_jwt(path: &Path) -> Result<SecretString, AuthError> {
    let token = read_secret(path).await?;
    let is_encoded = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    let parts = token.expose_secret().split('.');
    if parts.clone().count() == 3 && parts.clone().all(is_encoded) {
        return Ok(token);
    }
    let why = "it holds no signed token (JWT), which is three parts with dots between".to_owned();
    Err(AuthError::File { path: path.to_owned(), why })
}

/// A token that can be sent as an HTTP header, which every real one can.
fn checked_token(token: SecretString) -> Result<SecretString, AuthError> {
    let text = token.expose_secret();
    if text.is_empty() {
        Err(AuthError::NotAToken("is empty"))
    } else if !text.bytes().all(|b| b.is_ascii_graphic()) {
        Err(AuthError::NotAToken("holds white space or characters that no token has"))
    } else {
        Ok(token)
    }
}

/// The name of a method at the head of a sentence.
fn title(name: &'static str) -> &'static str {
    match name {
        "appRole" => "AppRole",
        "kubernetes" => "Kubernetes",
        "jwt" => "JWT",
        "cert" => "Certificate",
        "userpass" => "Userpass",
        other => other,
    }
}

// === impl AuthError ===

impl AuthError {
    /// What a final answer to a login means.
    pub(crate) fn of_login(method: &'static str, answer: &super::Answer) -> Self {
        let method = title(method);
        let Some(errors) = words::errors(&answer.body) else {
            return Self::Refused {
                method,
                address: answer.address.to_string(),
                said: "the answer is not Vault's".into(),
                status: answer.status.as_u16(),
                remedy: "check the address and whether it is http:// or https://",
            };
        };
        let text = errors.join("\n").to_ascii_lowercase();
        let address = answer.address.to_string();
        let status = answer.status.as_u16();
        let rejected = REJECTED.iter().find(|(part, _)| text.contains(part));
        if let (400, Some((_, what))) = (status, rejected) {
            return Self::Rejected { method, address, what };
        }
        let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
        let remedy = match status {
            _ if has(&["namespace"]) => "check `namespace` and `auth.namespace`",
            404 | 405 => "check that the auth method is mounted at the configured path",
            _ if has(&["expired", "not yet valid"]) => {
                "have whoever writes the token's file write a new one, and compare the clocks"
            }
            _ if has(&["certificate"]) => {
                "check clientCert against the certificates and names that the role allows"
            }
            _ if has(&["role", "claim", "audience", "service account"]) => {
                "check the name of the role, and what it allows"
            }
            403 => {
                "check that the auth method is mounted at the configured path, and that the role \
                 is not locked out after failed logins (for 15 minutes)"
            }
            _ => "check the auth settings",
        };
        Self::Refused { method, address, said: words::shortened(&errors), status, remedy }
    }
}

#[cfg(test)]
mod tests;
