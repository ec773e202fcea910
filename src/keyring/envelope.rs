//! Ciphertexts as kube-apiserver stores them: which form one has, and how ours is written.
//!
//! Vault KMS plugins left several forms behind. [`FORMATS`] is the one list of them, in
//! the order in which they are tried; the first that recognises a ciphertext decides.
//! What we write is frozen by golden tests: every release reads all earlier ones.

use super::{DecryptHints, KEK_ANNOTATION, KeyringError};
use crate::config::settings::{KekName, WriteFormat};
use crate::transit::VaultCiphertext;

#[cfg(test)]
mod tests;

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
    /// `vault:vN:…`, which names no key.
    Bare {
        /// The KEK to ask first: the one that stands in our annotation, or one that is
        /// really called `vault`.
        first: Option<KekName>,
        /// What Transit is asked to decrypt.
        ciphertext: VaultCiphertext,
    },
}

/// A ciphertext and what is known around it.
struct Input<'a> {
    bytes: &'a [u8],
    text: Option<&'a str>,
    hints: &'a DecryptHints,
    configured: &'a [KekName],
}

/// Answers `None` when the ciphertext has another form.
type Recogniser = fn(&Input<'_>) -> Option<Result<Form, KeyringError>>;

/// Every form, in the order in which they are tried.
const FORMATS: [Recogniser; 6] = [
    bao_kms_provider,        // needs what stands in the annotations, so it goes first
    named,                   // ours and the Oracle plugin's
    trousseau,               // several providers, a line each
    bare,           // Falco, Trousseau v1, Kleidi, vault-kms-provider, `write.format: vault`
    of_unknown_kek, // like `named`, so after every form that begins with a fixed word
    aws_encryption_provider, // never ours; named so that nobody looks for a fault in Vault
];

/// Says which form `bytes` has, and which of the `configured` KEKs it names.
///
/// # Errors
/// When no form fits, or one does and the ciphertext is damaged, foreign, or names a KEK
/// that is not configured. Errors describe the shape of the first bytes, never the bytes.
pub(crate) fn read(
    bytes: &[u8],
    hints: &DecryptHints,
    configured: &[KekName],
) -> Result<Form, KeyringError> {
    if bytes.len() > LONGEST_V1 {
        return Err(KeyringError::Unreadable(format!(
            "the ciphertext has {} bytes; none that kube-apiserver stores has more than \
             {LONGEST_V1}",
            bytes.len()
        )));
    }
    let input = Input { bytes, text: std::str::from_utf8(bytes).ok(), hints, configured };
    FORMATS.iter().find_map(|recognise| recognise(&input)).unwrap_or_else(|| {
        Err(KeyringError::Unreadable(format!(
            "the ciphertext ({} bytes) {}; no Vault KMS plugin that this daemon knows writes that",
            bytes.len(),
            shape(bytes)
        )))
    })
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

// Form 1. Its ciphertexts are bound to associated data that stands in the annotations, so
// they must not fall through to `bare`, where Vault would call them damaged.
fn bao_kms_provider(input: &Input<'_>) -> Option<Result<Form, KeyringError>> {
    let annotated = input.hints.annotations.contains_key("provider.kms.openbao.org");
    // A key_id of ours begins with the KEK's name, which may be such a word too, and goes
    // on with a colon, which theirs never hold.
    let key_id = input.hints.key_id.strip_prefix("obk2.");
    (annotated || key_id.is_some_and(|hash| !hash.contains(':'))).then(|| {
        Err(KeyringError::Unreadable(
            "the ciphertext was written by bao-kms-provider, which binds it to data that this \
             version cannot rebuild yet"
                .into(),
        ))
    })
}

// Form 2. Names hold no colon, so the first one ends the name. A KEK that is really called
// `vault` is asked first by form 4, because any other may have written that as well.
fn named(input: &Input<'_>) -> Option<Result<Form, KeyringError>> {
    let (name, version, payload) = split(input.text?)?;
    let kek = configured(input, name).filter(|_| name != "vault")?;
    Some(ciphertext(version, payload).map(|ciphertext| Form::Named { kek, ciphertext }))
}

// Form 3.
fn trousseau(input: &Input<'_>) -> Option<Result<Form, KeyringError>> {
    let (provider, rest) = input.text?.split_once(':')?;
    let known = ["vault", "awskms", "azurekms", "debug"].contains(&provider);
    (known && rest.starts_with("-:")).then(|| {
        Err(KeyringError::Unreadable(
            "the ciphertext was written by Trousseau for several providers, which this version \
             cannot read yet"
                .into(),
        ))
    })
}

// Form 4.
fn bare(input: &Input<'_>) -> Option<Result<Form, KeyringError>> {
    let (name, version, payload) = split(input.text?)?;
    let annotated = input.hints.annotations.get(KEK_ANNOTATION);
    let annotated = annotated.and_then(|kek| configured(input, std::str::from_utf8(kek).ok()?));
    let first = annotated.or_else(|| configured(input, "vault"));
    (name == "vault")
        .then(|| ciphertext(version, payload).map(|ciphertext| Form::Bare { first, ciphertext }))
}

fn of_unknown_kek(input: &Input<'_>) -> Option<Result<Form, KeyringError>> {
    let (name, version, payload) = split(input.text?)?;
    let is_name = (1..=128).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
    (is_name && ciphertext(version, payload).is_ok()).then(|| {
        let configured: Vec<_> = input.configured.iter().map(KekName::as_str).collect();
        Err(KeyringError::UnknownKek { named: name.into(), configured: configured.join(", ") })
    })
}

// Form 5: the digit 1, then what AWS KMS answered.
fn aws_encryption_provider(input: &Input<'_>) -> Option<Result<Form, KeyringError>> {
    let rest = input.bytes.strip_prefix(b"1")?;
    let binary = rest.iter().take(16).any(|b| !(b.is_ascii_graphic() || b.is_ascii_whitespace()));
    binary.then(|| {
        Err(KeyringError::Unreadable(
            "the ciphertext was written by aws-encryption-provider; only AWS KMS can decrypt it"
                .into(),
        ))
    })
}

fn configured(input: &Input<'_>, name: &str) -> Option<KekName> {
    input.configured.iter().find(|kek| kek.as_str() == name).cloned()
}

/// `<name>:v<digits>:<payload>`, cut at its colons.
fn split(text: &str) -> Option<(&str, &str, &str)> {
    let (name, rest) = text.split_once(':')?;
    let (version, payload) = rest.strip_prefix('v')?.split_once(':')?;
    let digits = !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit());
    digits.then_some((name, version, payload))
}

fn ciphertext(version: &str, payload: &str) -> Result<VaultCiphertext, KeyringError> {
    let number = if version.starts_with('0') { None } else { version.parse().ok() };
    let Some(number) = number else {
        return Err(KeyringError::Unreadable(
            "the ciphertext names a key version that Transit never gives".into(),
        ));
    };
    VaultCiphertext::try_new(number, payload).ok_or_else(|| {
        KeyringError::Unreadable(format!(
            "the ciphertext's {} bytes after the key version are no base64: it was cut or changed \
             after it was written",
            payload.len()
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
