//! Which KEK wrapped a data key, and which plugin asked for it.

use super::Kms;
use crate::config::settings::KekName;
use crate::keyring::envelope::Reader;
use crate::keyring::envelope::written::{BAO_ANNOTATION, Beside, Written};
use crate::keyring::{DecryptHints, KEK_ANNOTATION, KeyringError};

/// What a wrapped data key says about its origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Description<'a> {
    /// The KEK, where it is named.
    pub kek: Option<&'a str>,
    /// The version of the Transit key.
    pub version: Option<u32>,
    /// The plugin that wrote it.
    pub writer: Writer,
    /// The key_id; `None` for KMS v1, which has none.
    pub key_id: Option<&'a str>,
}

/// A plugin, as far as its ciphertexts tell. Those of several look alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Writer {
    /// This one: the annotation says so.
    VaultKmsProxy,
    /// `<name>:vN:…` without that annotation, as KMS v1 stores none.
    VaultKmsProxyOrOracle,
    /// `vault:vN:…` bound to associated data.
    BaoKmsProvider,
    /// A line for each provider.
    Trousseau2,
    /// `vault:vN:…` under a key_id of its own.
    Kleidi,
    /// `vault:vN:…` and nothing that says whose.
    NamesNoKey,
    /// Only AWS KMS can decrypt it.
    AwsEncryptionProvider,
    /// None that is known here.
    Unknown,
}

// === impl Kms ===

impl<'a> Kms<'a> {
    /// Which KEK wrapped its data key, and which plugin asked for it.
    pub fn describe(&self) -> Description<'a> {
        let Ok(body) = self.body else {
            return Description { kek: None, version: None, writer: Writer::Unknown, key_id: None };
        };
        let annotations = body.annotations;
        let annotated = annotations.get(KEK_ANNOTATION).and_then(|b| std::str::from_utf8(b).ok());
        let beside = Beside {
            key_id: body.key_id,
            bao_annotation: annotations.get(BAO_ANNOTATION).is_some(),
        };
        let written = Written::recognise(body.ciphertext, beside);
        let (kek, version, writer) = match written {
            Some(Written::Named { kek, parts }) => {
                let writer = match annotated {
                    Some(_) => Writer::VaultKmsProxy,
                    None => Writer::VaultKmsProxyOrOracle,
                };
                (Some(kek), parts.number(), writer)
            }
            Some(Written::Bare(parts)) => {
                let writer = match annotated {
                    Some(_) => Writer::VaultKmsProxy,
                    None if body.key_id.starts_with("kleidi-kms-plugin_") => Writer::Kleidi,
                    None => Writer::NamesNoKey,
                };
                (annotated, parts.number(), writer)
            }
            Some(Written::BaoKmsProvider(parts)) => {
                (None, parts.and_then(|parts| parts.number()), Writer::BaoKmsProvider)
            }
            Some(Written::Trousseau(lines)) => (None, lines.version(), Writer::Trousseau2),
            Some(Written::AwsEncryptionProvider) => (None, None, Writer::AwsEncryptionProvider),
            None => (None, None, Writer::Unknown),
        };
        let key_id = Some(body.key_id).filter(|id| !id.is_empty());
        Description { kek, version, writer, key_id }
    }

    /// Why no configuration of this daemon can decrypt it, where that is certain without
    /// asking: it is damaged, or made by what is no Vault.
    pub fn trouble(&self) -> Option<String> {
        let body = match self.body {
            Ok(body) => body,
            Err(damage) => return Some(damage.to_string()),
        };
        // A copy of the two that tell whose it is: a damaged value may seem to hold millions.
        let known = [KEK_ANNOTATION, BAO_ANNOTATION].into_iter();
        let known = known.filter_map(|name| Some((name, body.annotations.get(name)?)));
        let hints = DecryptHints {
            key_id: body.key_id.to_owned(),
            annotations: known.map(|(name, value)| (name.to_owned(), value.to_vec())).collect(),
        };
        let kek = self.describe().kek.and_then(|kek| KekName::try_new(kek).ok());
        match (Reader { keks: kek.as_slice(), bao: None }).read(body.ciphertext, &hints) {
            Err(KeyringError::Unreadable(why)) => Some(why),
            _ => None,
        }
    }
}

// === impl Writer ===

impl Writer {
    /// As people call it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::VaultKmsProxy => "vault-kms-proxy",
            Self::VaultKmsProxyOrOracle => "vault-kms-proxy or the Oracle plugin",
            Self::BaoKmsProvider => "bao-kms-provider",
            Self::Trousseau2 => "Trousseau 2",
            Self::Kleidi => "Kleidi",
            Self::NamesNoKey => {
                "one that names no key: vault-kubernetes-kms (Falco), Trousseau 1, Kleidi, \
                 vault-kms-provider, or vault-kms-proxy with write.format: vault"
            }
            Self::AwsEncryptionProvider => "aws-encryption-provider",
            Self::Unknown => "unknown",
        }
    }

    /// The same in one word, for tables and scripts.
    pub const fn id(self) -> &'static str {
        match self {
            Self::VaultKmsProxy => "vault-kms-proxy",
            Self::VaultKmsProxyOrOracle => "vault-kms-proxy-or-oracle",
            Self::BaoKmsProvider => "bao-kms-provider",
            Self::Trousseau2 => "trousseau-2",
            Self::Kleidi => "kleidi",
            Self::NamesNoKey => "names-no-key",
            Self::AwsEncryptionProvider => "aws-encryption-provider",
            Self::Unknown => "unknown",
        }
    }
}
