//! How a cluster is logged in to.

use std::path::{Path, PathBuf};

use secrecy::SecretString;

/// How a token is got.
#[derive(Clone, Debug)]
pub enum AuthSettings {
    /// A token in the configuration or the environment.
    Token(SecretString),
    /// A file that holds a token, kept fresh by somebody else.
    TokenFile(PathBuf),
    /// AppRole.
    AppRole(AppRoleSettings),
    /// The token of a Kubernetes service account, which Vault has an apiserver review.
    Kubernetes(KubernetesSettings),
    /// A signed token (JWT), such as a SPIFFE JWT-SVID, which Vault verifies itself.
    Jwt(JwtSettings),
    /// The client certificate of [`TlsSettings::client`](super::TlsSettings::client).
    Cert(CertSettings),
    /// A user name and a password.
    Userpass(UserpassSettings),
}

/// The AppRole method.
#[derive(Clone, Debug)]
pub struct AppRoleSettings {
    /// Mount path under `auth/`, without slashes at its ends.
    pub mount: String,
    /// The role's id.
    pub role_id: SecretSource,
    /// What proves that we may use the role.
    pub secret_id: SecretId,
}

/// Where an AppRole's secret id comes from.
#[derive(Clone, Debug)]
pub enum SecretId {
    /// The role does without (`bind_secret_id=false`).
    None,
    /// It is there.
    Given(SecretSource),
    /// It is behind a wrapping token, which is good for one look.
    Wrapped {
        /// The wrapping token.
        token: SecretSource,
        /// Where the secret id is kept once it was unwrapped.
        kept_in: PathBuf,
    },
}

/// The Kubernetes method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesSettings {
    /// Mount path under `auth/`, without slashes at its ends.
    pub mount: String,
    /// The role in Vault.
    pub role: String,
    /// The service account's token.
    pub token_file: PathBuf,
}

/// The JWT method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtSettings {
    /// Mount path under `auth/`, without slashes at its ends.
    pub mount: String,
    /// The role in Vault; `None` leaves it to the mount's `default_role`.
    pub role: Option<String>,
    /// The signed token.
    pub token_file: PathBuf,
}

/// The TLS certificate method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertSettings {
    /// Mount path under `auth/`, without slashes at its ends.
    pub mount: String,
    /// The role in Vault; with `None` Vault takes the first that the certificate fits.
    pub role: Option<String>,
}

/// The userpass method.
#[derive(Clone, Debug)]
pub struct UserpassSettings {
    /// Mount path under `auth/`, without slashes at its ends.
    pub mount: String,
    /// The user.
    pub username: String,
    /// Their password.
    pub password: SecretSource,
}

/// A secret, or the file to read it from at each use.
#[derive(Clone, Debug)]
pub enum SecretSource {
    /// Written in the configuration.
    Inline(SecretString),
    /// Read at each use; white space at its ends is cut.
    File(PathBuf),
}

// === impl AuthSettings ===

impl AuthSettings {
    /// What people call the method.
    pub const fn title(&self) -> &'static str {
        match self {
            Self::Token(_) => "token",
            Self::TokenFile(_) => "token file",
            Self::AppRole(_) => "AppRole",
            Self::Kubernetes(_) => "Kubernetes",
            Self::Jwt(_) => "JWT",
            Self::Cert(_) => "TLS certificate",
            Self::Userpass(_) => "userpass",
        }
    }
}

// === impl SecretSource ===

impl SecretSource {
    /// The file, when it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Inline(_) => None,
            Self::File(path) => Some(path),
        }
    }
}
