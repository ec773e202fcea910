//! TLS to a cluster: the files, the `rustls` configuration made of them, and what its
//! errors mean for an operator. [`watch`] reads the files again when they change.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use hyper_rustls::{DefaultServerNameResolver, FixedServerNameResolver, ResolveServerName};
use rustls::client::Resumption;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use zeroize::Zeroizing;

use crate::config::settings::TlsSettings;

pub mod trial;
pub mod watch;

/// A CA bundle or a client certificate is a few kilobytes; a file above this is another
/// file.
const MAX_FILE: u64 = 4 << 20;

/// TLS as configured, its files read. Clones share what was read last; two are equal when
/// every byte of it is, so that a reload can tell whether connections may be kept.
#[derive(Clone)]
pub struct LoadedTls(Arc<ArcSwap<TlsSnapshot>>);

/// TLS as the files had it at one time. Connections that one snapshot made are not used
/// under the next.
pub struct TlsSnapshot {
    read: FileBytes,
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
}

#[derive(PartialEq, Eq)]
struct FileBytes {
    ca: Option<Vec<u8>>,
    client: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
    server_name: Option<String>,
}

/// TLS files that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file is no PEM file, or its PEM is broken.
    #[error("{} is not a PEM file of {what}: {cause}", path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// Why.
        cause: String,
    },
    /// A file holds nothing of what it should hold.
    #[error("{} holds no {what} (PEM, `-----BEGIN …-----`)", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// A certificate of the CA file is not one that can be trusted.
    #[error("{} holds a certificate that cannot be an authority: {cause}", path.display())]
    BadAuthority {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: rustls::Error,
    },
    /// The client's key does not fit its certificate, or cannot be used.
    #[error("the key in {} does not fit the certificate in {}: {cause}", key.display(), cert.display())]
    BadIdentity {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        cause: rustls::Error,
    },
    /// `tlsServerName` is neither a DNS name nor an IP address.
    #[error("tlsServerName `{0}` is neither a DNS name nor an IP address")]
    BadServerName(String),
    /// The cryptography that this program is built with does not work.
    #[error("TLS cannot be set up: {0}")]
    Provider(rustls::Error),
}

// === impl LoadedTls ===

impl LoadedTls {
    /// Reads the files that `settings` names. It blocks, for as long as a small file takes.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn read(settings: &TlsSettings) -> Result<Self, TlsError> {
        let snapshot = TlsSnapshot::of(settings, FileBytes::read(settings)?)?;
        Ok(Self(Arc::new(ArcSwap::from_pointee(snapshot))))
    }

    /// What never changes.
    pub(super) fn fixed(snapshot: Arc<TlsSnapshot>) -> Self {
        Self(Arc::new(ArcSwap::new(snapshot)))
    }

    /// What the files hold now; `None` when that is what was read last. It blocks as
    /// [`Self::read`] does.
    fn changed(&self, settings: &TlsSettings) -> Result<Option<TlsSnapshot>, TlsError> {
        let read = FileBytes::read(settings)?;
        if read == self.snapshot().read {
            return Ok(None);
        }
        TlsSnapshot::of(settings, read).map(Some)
    }

    /// Uses `next` from now on.
    fn adopt(&self, next: Arc<TlsSnapshot>) {
        self.0.store(next);
    }

    /// What was read last.
    pub fn snapshot(&self) -> Arc<TlsSnapshot> {
        self.0.load_full()
    }
}

impl PartialEq for LoadedTls {
    fn eq(&self, other: &Self) -> bool {
        self.snapshot().read == other.snapshot().read
    }
}

impl Eq for LoadedTls {}

impl fmt::Debug for LoadedTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snapshot = self.snapshot();
        f.debug_struct("LoadedTls")
            .field("private_ca", &snapshot.read.ca.is_some())
            .field("client_certificate", &snapshot.read.client.is_some())
            .field("server_name", &snapshot.read.server_name)
            .finish_non_exhaustive()
    }
}

// === impl TlsSnapshot ===

impl TlsSnapshot {
    /// The files of `settings` that are others than in `before`.
    fn files_changed_since(&self, before: &Self, settings: &TlsSettings) -> Vec<PathBuf> {
        let is_other = |f: fn(&FileBytes) -> Option<&[u8]>| f(&self.read) != f(&before.read);
        let mut files = Vec::new();
        if is_other(|read| read.ca.as_deref()) {
            files.extend(settings.ca_file.clone());
        }
        if let Some(identity) = &settings.client {
            if is_other(|read| read.client.as_ref().map(|(cert, _)| cert.as_slice())) {
                files.push(identity.cert_file.clone());
            }
            if is_other(|read| read.client.as_ref().map(|(_, key)| key.as_slice())) {
                files.push(identity.key_file.clone());
            }
        }
        files.dedup();
        files
    }

    fn of(settings: &TlsSettings, read: FileBytes) -> Result<Self, TlsError> {
        let roots = match (&settings.ca_file, &read.ca) {
            (Some(path), Some(pem)) => authorities(path, pem)?,
            _ => public_authorities(),
        };
        let builder = ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(TlsError::Provider)?
        .with_root_certificates(roots);

        let mut config = match (&settings.client, &read.client) {
            (Some(identity), Some((cert_pem, key_pem))) => {
                let (cert, key) = (&identity.cert_file, &identity.key_file);
                let chain = certificates(cert, cert_pem)?;
                let private = private_key(key, key_pem)?;
                builder.with_client_auth_cert(chain, private).map_err(|cause| {
                    TlsError::BadIdentity { cert: cert.clone(), key: key.clone(), cause }
                })?
            }
            _ => builder.with_no_client_auth(),
        };
        // A resumed session takes the certificate for verified: one that has expired, or
        // that another has replaced, would go on to work until this process restarts. New
        // connections are rare enough to verify each.
        config.resumption = Resumption::disabled();
        let server_name = match &settings.server_name {
            None => None,
            Some(name) => Some(
                ServerName::try_from(name.clone())
                    .map_err(|_| TlsError::BadServerName(name.clone()))?,
            ),
        };
        Ok(Self { read, config: Arc::new(config), server_name })
    }

    /// The configuration. No session is resumed: every connection verifies a certificate.
    pub fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    /// Which name a certificate must carry: `tlsServerName`, else the URL's host.
    pub fn server_name_resolver(&self) -> Arc<dyn ResolveServerName + Send + Sync> {
        match &self.server_name {
            Some(name) => Arc::new(FixedServerNameResolver::new(name.clone())),
            None => Arc::new(DefaultServerNameResolver::default()),
        }
    }
}

// === impl FileBytes ===

impl FileBytes {
    fn read(settings: &TlsSettings) -> Result<Self, TlsError> {
        let ca = settings.ca_file.as_deref().map(read_file).transpose()?;
        let client = match &settings.client {
            None => None,
            Some(identity) => {
                let cert = read_file(&identity.cert_file)?;
                Some((cert, Zeroizing::new(read_file(&identity.key_file)?)))
            }
        };
        Ok(Self { ca, client, server_name: settings.server_name.clone() })
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |cause| TlsError::Unreadable { path: path.to_owned(), cause };
    let about = std::fs::metadata(path).map_err(unreadable)?;
    if about.is_dir() {
        return Err(unreadable(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory")));
    }
    if about.len() > MAX_FILE {
        return Err(unreadable(io::Error::new(io::ErrorKind::FileTooLarge, "it is over 4 MiB")));
    }
    std::fs::read(path).map_err(unreadable)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let what = "certificates";
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e| TlsError::NotPem { path: path.to_owned(), what, cause: e.to_string() })?;
    if found.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned(), what: "certificate" });
    }
    Ok(found)
}

fn private_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    let what = "a private key";
    match PrivateKeyDer::from_pem_slice(pem) {
        Ok(key) => Ok(key),
        Err(rustls_pki_types::pem::Error::NoItemsFound) => {
            Err(TlsError::Empty { path: path.to_owned(), what: "private key" })
        }
        Err(e) => Err(TlsError::NotPem { path: path.to_owned(), what, cause: e.to_string() }),
    }
}

fn authorities(path: &Path, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots
            .add(certificate)
            .map_err(|cause| TlsError::BadAuthority { path: path.to_owned(), cause })?;
    }
    Ok(roots)
}

fn public_authorities() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
    roots
}

/// What went wrong with TLS and what an operator can do about it.
pub fn explain(error: &rustls::Error) -> String {
    use CertificateError as C;
    match error {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            C::UnknownIssuer => "its certificate is not signed by the CA in vaultCACert (nor by a \
                 public CA, when vaultCACert is not set)"
                .into(),
            C::Expired | C::ExpiredContext { .. } => {
                "its certificate has expired; renew it, or check this machine's clock".into()
            }
            C::NotValidYet | C::NotValidYetContext { .. } => {
                "its certificate is not valid yet; check this machine's clock".into()
            }
            C::NotValidForNameContext { expected, presented } => format!(
                "its certificate is for {}, not for {}; set tlsServerName to a name that it \
                 carries",
                if presented.is_empty() { "no name".into() } else { bare_names(presented) },
                expected.to_str()
            ),
            C::NotValidForName => "its certificate is for another name; set tlsServerName to a \
                 name that it carries"
                .into(),
            C::Revoked => "its certificate was revoked".into(),
            other => format!("its certificate cannot be verified: {other}"),
        },
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure,
        ) => "it asks for a client certificate; set clientCert and clientKey".into(),
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied),
        ) => format!("it does not accept our client certificate ({alert:?}); check clientCert"),
        rustls::Error::InvalidMessage(_) => {
            "it does not speak TLS on this port; is it an http:// address?".into()
        }
        other => other.to_string(),
    }
}

/// `IpAddress(127.0.0.1), DnsName("localhost")`, as rustls writes them, without the kinds.
fn bare_names(presented: &[String]) -> String {
    let bare = |name: &String| {
        let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
        let inner = inner.unwrap_or(name).trim_matches('"');
        // rustls writes ::1 as 0::1.
        inner.parse().map_or_else(|_| inner.to_owned(), |ip: std::net::IpAddr| ip.to_string())
    };
    presented.iter().map(bare).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
