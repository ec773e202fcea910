//! A token in the configuration or the environment.

use std::path::Path;

use futures_util::future::BoxFuture;
use secrecy::SecretString;

use super::{AuthError, Begin, Method, Source, checked_token};

/// The only token there is: it can be renewed, never got again.
#[derive(Debug)]
pub(super) struct StaticToken {
    token: SecretString,
}

// === impl StaticToken ===

impl StaticToken {
    pub(super) const fn new(token: SecretString) -> Self {
        Self { token }
    }
}

impl Method for StaticToken {
    fn name(&self) -> &'static str {
        "token"
    }

    fn begin(&self) -> BoxFuture<'_, Result<Begin, AuthError>> {
        Box::pin(async { checked_token(self.token.clone()).map(Begin::Token) })
    }

    fn source(&self) -> Source {
        Source::Nowhere
    }

    fn files(&self) -> Vec<&Path> {
        Vec::new()
    }
}
