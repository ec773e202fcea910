//! Certificates: our own authority, and every kind of wrong one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::client::{Resumption, WantsClientCert};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ConfigBuilder, RootCertStore};

use crate::{Context, Result};

/// A certificate authority of the lab's own.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// When a certificate holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Validity {
    /// From 1975 to 4096.
    #[default]
    Now,
    /// Ran out in 2001.
    Expired,
    /// Begins in the year 4000.
    NotYet,
}

/// A certificate with its key, both as PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub cert_pem: String,
    /// Its private key.
    pub key_pem: String,
}

/// Where [`Identity::write`] put them.
#[derive(Debug, Clone)]
pub struct IdentityFiles {
    /// The certificate's file.
    pub cert: PathBuf,
    /// The key's file.
    pub key: PathBuf,
}

// === impl Authority ===

impl Authority {
    /// A new authority; another call makes one that nobody trusts yet.
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// Its certificate, to be trusted.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A server certificate for 127.0.0.1, `::1` and localhost.
    pub fn server(&self) -> Result<Identity> {
        self.server_for(&["127.0.0.1", "::1", "localhost"], Validity::Now)
    }

    /// A server certificate for other names (DNS names or IP addresses) or times.
    pub fn server_for(&self, names: &[&str], validity: Validity) -> Result<Identity> {
        self.issue("server", names, validity, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client certificate with this common name.
    pub fn client(&self, name: &str, validity: Validity) -> Result<Identity> {
        self.issue(name, &[], validity, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(
        &self,
        name: &str,
        sans: &[&str],
        validity: Validity,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        for san in sans {
            params.subject_alt_names.push(match san.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName((*san).try_into()?),
            });
        }
        match validity {
            Validity::Now => {}
            Validity::Expired => {
                params.not_before = date_time_ymd(2000, 1, 1);
                params.not_after = date_time_ymd(2001, 1, 1);
            }
            Validity::NotYet => params.not_before = date_time_ymd(4000, 1, 1),
        }
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Identity { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }

    /// A TLS client that trusts this authority alone, and looks at the certificate each
    /// time: a resumed session would not.
    pub fn client_config(&self) -> Result<rustls::ClientConfig> {
        let mut config = client_builder(self.roots()?)?.with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    /// The same, which shows a certificate.
    pub fn client_config_as(&self, identity: &Identity) -> Result<rustls::ClientConfig> {
        let (chain, key) = identity.parse()?;
        let mut config = client_builder(self.roots()?)?.with_client_auth_cert(chain, key)?;
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    fn roots(&self) -> Result<RootCertStore> {
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(self.pem.as_bytes()) {
            roots.add(cert?)?;
        }
        Ok(roots)
    }
}

// === impl Identity ===

impl Identity {
    /// Writes `<stem>.pem` and `<stem>-key.pem` (0600), by rename, so that a reader never
    /// sees half of one.
    pub fn write(&self, folder: &Path, stem: &str) -> Result<IdentityFiles> {
        let cert = folder.join(format!("{stem}.pem"));
        let key = folder.join(format!("{stem}-key.pem"));
        replace_file(&cert, &self.cert_pem)?;
        replace_file(&key, &self.key_pem)?;
        Ok(IdentityFiles { cert, key })
    }

    /// A TLS server with this certificate, which asks clients for none.
    pub fn server_config(&self) -> Result<rustls::ServerConfig> {
        let (chain, key) = self.parse()?;
        Ok(rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)?)
    }

    fn parse(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let chain = CertificateDer::pem_slice_iter(self.cert_pem.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())?;
        Ok((chain.collect::<Result<_, _>>()?, key))
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// Writes a file (0600) beside its place and renames it there.
pub(crate) fn replace_file(path: &Path, content: &str) -> Result {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let half = tempfile::NamedTempFile::new_in(folder)?;
    std::fs::write(half.path(), content)?;
    half.persist(path).context(format!("cannot write {}", path.display()))?;
    Ok(())
}

/// A client for plain HTTP: it trusts nobody.
pub(crate) fn untrusting_client() -> Result<rustls::ClientConfig> {
    Ok(client_builder(RootCertStore::empty())?.with_no_client_auth())
}

fn client_builder(
    roots: RootCertStore,
) -> Result<ConfigBuilder<rustls::ClientConfig, WantsClientCert>> {
    Ok(rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots))
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
