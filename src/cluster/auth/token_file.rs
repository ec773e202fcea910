//! A file that holds a token, kept fresh by somebody else (Vault Agent, an init job).

use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;

use super::{AuthError, Begin, Method, Source, checked_token, read_secret};

/// Reads the file again whenever it changes and whenever its token is refused. By path
/// each time: those who write such files replace them by rename.
#[derive(Debug)]
pub(super) struct TokenFile {
    path: PathBuf,
}

// === impl TokenFile ===

impl TokenFile {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

impl Method for TokenFile {
    fn name(&self) -> &'static str {
        "tokenFile"
    }

    fn begin(&self) -> BoxFuture<'_, Result<Begin, AuthError>> {
        Box::pin(async { checked_token(read_secret(&self.path).await?).map(Begin::Token) })
    }

    fn source(&self) -> Source {
        Source::File
    }

    fn files(&self) -> Vec<&Path> {
        vec![&self.path]
    }
}
