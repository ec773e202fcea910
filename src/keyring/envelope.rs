//! Ciphertexts as kube-apiserver stores them: which key one needs, and how ours is written.
//!
//! Vault KMS plugins left several forms behind. [`written`] tells them apart; here it is
//! decided what each means for the keys that are configured. What we write is frozen by
//! golden tests: every release reads all earlier ones.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{DecryptHints, KEK_ANNOTATION, KeyringError};
use crate::config::settings::{BaoKmsProvider, KekName, WriteFormat};
use crate::transit::VaultCiphertext;
use written::{BAO_ANNOTATION, Beside, Lines, Parts, Written};

mod bao_kms_provider;
#[cfg(test)]
mod tests;
pub(crate) mod written;

/// The longest ciphertext that KMS v1 can store: its length is a u16.
pub(crate) const LONGEST_V1: usize = 65_535;
/// The longest ciphertext that KMS v2 accepts.
pub(crate) const LONGEST_V2: usize = 1_024;

/// Nonce and tag of AES-GCM and ChaCha20-Poly1305, the least that Transit adds.
const LEAST_OVERHEAD: usize = 12 + 16;

/// A ciphertext that says which KEK can decrypt it, or that it does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// It names a configured KEK.
    Named {
        /// The KEK.
        kek: KekName,
        /// What Transit is asked to decrypt.
        ciphertext: VaultCiphertext,
    },
    /// It names no key.
    Bare {
        /// The KEK to ask first: the one that stands in our annotation, or one that is
        /// really called `vault`.
        first: Option<KekName>,
        /// What Transit is asked to decrypt.
        ciphertext: VaultCiphertext,
    },
}

/// What a ciphertext is read by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    /// The names of the configured KEKs.
    pub(crate) keks: &'a [KekName],
    /// What bao-kms-provider bound its ciphertexts to, if it ran here.
    pub(crate) bao: Option<&'a BaoKmsProvider>,
}

// === impl Reader ===

impl Reader<'_> {
    /// Says which form `bytes` has, and which of the configured KEKs it names.
    ///
    /// # Errors
    /// When no form fits, or one does and the ciphertext is damaged, foreign, or names a KEK
    /// that is not configured. Errors describe the shape of the first bytes, never the bytes.
    pub(crate) fn read(self, bytes: &[u8], hints: &DecryptHints) -> Result<Form, KeyringError> {
        if bytes.len() > LONGEST_V1 {
            return Err(KeyringError::Unreadable(format!(
                "the ciphertext has {} bytes; none that kube-apiserver stores has more than \
                 {LONGEST_V1}",
                bytes.len()
            )));
        }
        let beside = Beside {
            key_id: &hints.key_id,
            bao_annotation: hints.annotations.contains_key(BAO_ANNOTATION),
        };
        match Written::recognise(bytes, beside) {
            Some(Written::Named { kek, parts }) => match self.configured(kek) {
                Some(kek) => Ok(Form::Named { kek, ciphertext: ciphertext(parts)? }),
                // What is neither a name of ours nor sound after it is not told as a name.
                None if ciphertext(parts).is_ok() => Err(self.unknown_kek(kek)),
                None => Err(foreign(bytes)),
            },
            Some(Written::Bare(parts)) => {
                Ok(Form::Bare { first: self.first(hints), ciphertext: ciphertext(parts)? })
            }
            Some(Written::Trousseau(lines)) => {
                Ok(Form::Bare { first: None, ciphertext: of_trousseau(lines)? })
            }
            Some(Written::BaoKmsProvider(parts)) => self.of_bao_kms_provider(parts, hints),
            Some(Written::AwsEncryptionProvider) => Err(KeyringError::Unreadable(
                "the ciphertext was written by aws-encryption-provider; only AWS KMS can decrypt it"
                    .into(),
            )),
            None => Err(foreign(bytes)),
        }
    }

    fn configured(self, name: &str) -> Option<KekName> {
        self.keks.iter().find(|kek| kek.as_str() == name).cloned()
    }

    /// Who most likely wrote `vault:vN:…`. A KEK that is really called `vault` is only asked
    /// first, because any other may have written that as well.
    fn first(self, hints: &DecryptHints) -> Option<KekName> {
        let annotated = hints.annotations.get(KEK_ANNOTATION);
        let annotated = annotated.and_then(|kek| self.configured(std::str::from_utf8(kek).ok()?));
        annotated.or_else(|| self.configured("vault"))
    }

    // They must not be taken for bare ones: without their associated data Vault calls them
    // damaged.
    fn of_bao_kms_provider(
        self,
        parts: Option<Parts<'_>>,
        hints: &DecryptHints,
    ) -> Result<Form, KeyringError> {
        let Some(bao) = self.bao else {
            return Err(KeyringError::NotConfigured(
                "the ciphertext was written by bao-kms-provider, which binds it to names in its \
                 own configuration; write them under legacy.baoKmsProvider: providerName, \
                 clusterId and instanceId"
                    .into(),
            ));
        };
        let Some(parts) = parts else {
            return Err(KeyringError::Unreadable(
                "the ciphertext stands beside the annotations of bao-kms-provider and does not \
                 have its form: it was cut or changed after it was written"
                    .into(),
            ));
        };
        let data = bao_kms_provider::associated_data(bao, parts, hints)?;
        Ok(Form::Bare { first: None, ciphertext: ciphertext(parts)?.bound_to(&data) })
    }

    fn unknown_kek(self, name: &str) -> KeyringError {
        let configured: Vec<_> = self.keks.iter().map(KekName::as_str).collect();
        KeyringError::UnknownKek { named: name.into(), configured: configured.join(", ") }
    }
}

/// The `vault` line holds base64 of what Vault answered. It is empty when Vault answered
/// nothing and a fixed token was configured: Trousseau then took the error for a success.
fn of_trousseau(lines: Lines<'_>) -> Result<VaultCiphertext, KeyringError> {
    let refuse = |what: String| Err(KeyringError::Unreadable(what));
    let by = "the ciphertext was written by Trousseau";
    match (lines.vault(), lines.another()) {
        (Some([]), None) => refuse(format!(
            "{by} without anything that Vault answered; the data key is lost, and nothing can \
             decrypt the object"
        )),
        (Some([]), Some(other)) => refuse(format!(
            "{by} without anything that Vault answered; only its provider {other} can decrypt it"
        )),
        (None, Some(other)) => {
            refuse(format!("{by} without Vault; only its provider {other} can decrypt it"))
        }
        (None, None) => refuse(format!("{by} and is empty; nothing can decrypt the object")),
        (Some(payload), _) => {
            let decoded = STANDARD.decode(payload).ok();
            let text = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
            text.and_then(|text| VaultCiphertext::parse(&text)).map_or_else(
                || {
                    refuse(format!(
                        "{by}, and its line for Vault does not hold base64 of a ciphertext of \
                         Transit: it was cut or changed after it was written"
                    ))
                },
                Ok,
            )
        }
    }
}

fn foreign(bytes: &[u8]) -> KeyringError {
    KeyringError::Unreadable(format!(
        "the ciphertext ({} bytes) {}; no Vault KMS plugin that this daemon knows writes that",
        bytes.len(),
        shape(bytes)
    ))
}

/// Writes `ciphertext` as kube-apiserver will store it.
pub(crate) fn write(format: WriteFormat, kek: &KekName, ciphertext: &VaultCiphertext) -> Vec<u8> {
    match format {
        WriteFormat::Named => {
            format!("{kek}:v{}:{}", ciphertext.version(), ciphertext.payload()).into_bytes()
        }
        WriteFormat::Vault => ciphertext.to_vault().into_bytes(),
    }
}

/// The least length of what [`write`] will give for `plaintext` bytes, before Vault is asked.
pub(crate) fn least_length(format: WriteFormat, kek: &KekName, plaintext: usize) -> usize {
    let name = match format {
        WriteFormat::Named => kek.as_str().len(),
        WriteFormat::Vault => "vault".len(),
    };
    let payload = plaintext.saturating_add(LEAST_OVERHEAD).div_ceil(3).saturating_mul(4);
    (name + ":v1:".len()).saturating_add(payload)
}

fn ciphertext(parts: Parts<'_>) -> Result<VaultCiphertext, KeyringError> {
    let Some(number) = parts.number() else {
        return Err(KeyringError::Unreadable(
            "the ciphertext names a key version that Transit never gives".into(),
        ));
    };
    VaultCiphertext::try_new(number, parts.payload).ok_or_else(|| {
        KeyringError::Unreadable(format!(
            "the ciphertext's {} bytes after the key version are no base64: it was cut or changed \
             after it was written",
            parts.payload.len()
        ))
    })
}

/// Describes how `bytes` begin without showing one of them.
fn shape(bytes: &[u8]) -> String {
    let printable = bytes.iter().take_while(|b| b.is_ascii_graphic() && **b != b':').count();
    let plural = if printable == 1 { "" } else { "s" };
    match (printable, bytes.get(printable)) {
        (0, None) => "is empty".into(),
        (0, Some(b':')) => "begins with a colon".into(),
        (0, Some(_)) => "is binary".into(),
        (n, None) => format!("is {n} printable byte{plural} and no colon"),
        (n, Some(b':')) => format!("begins with {n} printable byte{plural} and a colon"),
        (n, Some(_)) => format!("begins with {n} printable byte{plural} and no colon, then others"),
    }
}
