//! How a token is got: one file per method, each behind the trait `Method`.
//!
//! A method says what to do next; the token task does it, so that pauses, logging and
//! lifetimes are the same for all. Files are read at each use, because they change while
//! the daemon runs.

mod app_role;
mod token;
mod token_file;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::BoxFuture;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;
use zeroize::Zeroizing;

use super::operation::Operation;
use super::{CallError, words};
use crate::config::settings::{AuthSettings, ClusterSettings, SecretSource};

/// Longest file that is read for a secret.
const LONGEST_SECRET: u64 = 64 * 1024;

/// How long a file may take to be read; a hung network mount must not hold the task.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// `invalid role or secret ID`.
    #[error(
        "AppRole login refused ({address}): invalid role or secret ID; the secret ID may have \
         expired or been used up: write a new one and check roleID and its mount"
    )]
    Rejected {
        /// Who said so.
        address: String,
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

/// The method that `settings` name.
pub(super) fn method(settings: &ClusterSettings) -> Box<dyn Method> {
    match &settings.auth {
        AuthSettings::Token(token) => Box::new(token::StaticToken::new(token.clone())),
        AuthSettings::TokenFile(path) => Box::new(token_file::TokenFile::new(path.clone())),
        AuthSettings::AppRole(role) => {
            Box::new(app_role::AppRole::new(role.clone(), settings.namespace.clone()))
        }
    }
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
    let read = async {
        let file = tokio::fs::metadata(path).await?;
        if !file.is_file() {
            return Err(std::io::Error::other("it is not a regular file"));
        }
        // As large as it gets, so that no smaller copy is left behind by growing.
        let room = usize::try_from(file.len().min(LONGEST_SECRET)).unwrap_or_default() + 64;
        let mut bytes = Zeroizing::new(Vec::with_capacity(room));
        let mut limited = tokio::fs::File::open(path).await?.take(LONGEST_SECRET + 1);
        limited.read_to_end(&mut bytes).await?;
        Ok(bytes)
    };
    let bytes = match tokio::time::timeout(READ_TIMEOUT, read).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) => return Err(wrong(format!("cannot read it: {error}"))),
        Err(_) => return Err(wrong("cannot read it: no answer from its file system".to_owned())),
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

/// The secret of `source` now.
async fn resolve(source: &SecretSource) -> Result<SecretString, AuthError> {
    match source {
        SecretSource::Inline(secret) => Ok(secret.clone()),
        SecretSource::File(path) => read_secret(path).await,
    }
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

// === impl AuthError ===

impl AuthError {
    /// What a final answer to a login means.
    pub(crate) fn of_login(method: &'static str, answer: &super::Answer) -> Self {
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
        let is_rejected = [
            "invalid role or secret id",
            "invalid secret id",
            "invalid role id",
            "invalid role_id",
        ]
        .iter()
        .any(|part| text.contains(part));
        if status == 400 && is_rejected {
            return Self::Rejected { address };
        }
        let remedy = match status {
            _ if text.contains("namespace") => "check `namespace`",
            403 => {
                "check that the auth method is mounted at the configured path, and that the role \
                 is not locked out after failed logins (for 15 minutes)"
            }
            404 | 405 => "check that the auth method is mounted at the configured path",
            _ => "check the auth settings",
        };
        Self::Refused { method, address, said: words::shortened(&errors), status, remedy }
    }
}

#[cfg(test)]
mod tests;
