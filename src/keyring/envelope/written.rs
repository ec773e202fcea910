//! Whose form a ciphertext has, told from its bytes and what is stored beside it, whatever
//! keys are configured. Nothing is copied, so that many can be looked at.
//!
//! The forms exclude each other: what follows a name is `:v` or `:-:`, and what has a name
//! is not binary. Only bao-kms-provider writes a form that is also another's, Transit's own,
//! and is known by its annotation or its key_id; so those are looked at first.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A recognised form, cut into its parts. The parts may still be damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written<'a> {
    /// bao-kms-provider: Transit's own form, bound to associated data; `None` when it is
    /// said to be its, but has another form.
    BaoKmsProvider(Option<Parts<'a>>),
    /// `<name>:vN:<base64>`: this daemon, and the Oracle plugin.
    Named {
        /// The name before the first colon; never `vault`.
        kek: &'a str,
        /// What follows it.
        parts: Parts<'a>,
    },
    /// A line for each provider: Trousseau 2.
    Trousseau(Lines<'a>),
    /// `vault:vN:<base64>`, which names no key.
    Bare(Parts<'a>),
    /// The digit 1, then what AWS KMS answered.
    AwsEncryptionProvider,
}

/// What follows the name in Transit's form.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parts<'a> {
    /// Decimal digits, at least one.
    pub(crate) version: &'a str,
    /// Base64, if it is sound.
    pub(crate) payload: &'a str,
}

/// The lines of a ciphertext of Trousseau 2.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lines<'a>(&'a [u8]);

/// What is stored beside a ciphertext, as far as it tells whose form that has.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Beside<'a> {
    /// The key_id; empty for KMS v1.
    pub(crate) key_id: &'a str,
    /// There is the annotation [`BAO_ANNOTATION`].
    pub(crate) bao_annotation: bool,
}

/// The annotation that only bao-kms-provider writes.
pub(crate) const BAO_ANNOTATION: &str = "provider.kms.openbao.org";

/// What Trousseau calls its providers.
const TROUSSEAU_PROVIDERS: [&[u8]; 4] = [b"vault", b"awskms", b"azurekms", b"debug"];
const SEPARATOR: &[u8] = b":-:";

// === impl Written ===

impl<'a> Written<'a> {
    /// Whose form `bytes` has; `None` when it is no Vault plugin's that is known.
    pub(crate) fn recognise(bytes: &'a [u8], beside: Beside<'_>) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok();
        let split = text.and_then(split);
        if beside.is_of_bao_kms_provider() {
            let parts = split.filter(|(name, _)| *name == "vault").map(|(_, parts)| parts);
            return Some(Self::BaoKmsProvider(parts));
        }
        match split {
            Some(("vault", parts)) => return Some(Self::Bare(parts)),
            Some((kek, parts)) if could_be_a_name(kek) => return Some(Self::Named { kek, parts }),
            _ => {}
        }
        if Lines(bytes).first().is_some() {
            return Some(Self::Trousseau(Lines(bytes)));
        }
        is_of_aws(bytes).then_some(Self::AwsEncryptionProvider)
    }
}

impl Beside<'_> {
    // A key_id of ours begins with the KEK's name, which may be `obk2.` too, and goes on
    // with a colon, which theirs never hold.
    fn is_of_bao_kms_provider(self) -> bool {
        let hash = self.key_id.strip_prefix("obk2.");
        self.bao_annotation || hash.is_some_and(|hash| !hash.contains(':'))
    }
}

/// `<name>:v<digits>:<payload>`, cut at its colons.
fn split(text: &str) -> Option<(&str, Parts<'_>)> {
    let (name, rest) = text.split_once(':')?;
    let (version, payload) = rest.strip_prefix('v')?.split_once(':')?;
    let digits = !version.is_empty() && version.bytes().all(|b| b.is_ascii_digit());
    digits.then_some((name, Parts { version, payload }))
}

/// A little wider than the names that are ours: Oracle's plugin took Vault's.
fn could_be_a_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

fn is_of_aws(bytes: &[u8]) -> bool {
    let text = |b: &u8| b.is_ascii_graphic() || b.is_ascii_whitespace();
    bytes.strip_prefix(b"1").is_some_and(|rest| !rest.iter().take(16).all(text))
}

// === impl Parts ===

impl<'a> Parts<'a> {
    /// The key version, if Transit could have given it.
    pub(crate) fn number(self) -> Option<u32> {
        if self.version.starts_with('0') { None } else { self.version.parse().ok() }
    }
}

// Not derived: the payload is a ciphertext.
impl std::fmt::Debug for Parts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Parts(v{}, {} characters)", self.version, self.payload.len())
    }
}

// === impl Lines ===

impl<'a> Lines<'a> {
    /// The payload of the `vault` line: base64 of what Transit answered, and empty when it
    /// answered nothing. `None` when there is no such line.
    pub(crate) fn vault(self) -> Option<&'a [u8]> {
        self.all().find(|(provider, _)| *provider == b"vault").map(|(_, payload)| payload)
    }

    /// Whether another provider than Vault has something that it could decrypt, and which.
    pub(crate) fn another(self) -> Option<&'a str> {
        let other =
            |(provider, payload): &(&[u8], &[u8])| *provider != b"vault" && !payload.is_empty();
        self.all().find(other).and_then(|(provider, _)| std::str::from_utf8(provider).ok())
    }

    /// The key version in the `vault` line, without decoding all of it.
    pub(crate) fn version(self) -> Option<u32> {
        let payload = self.vault()?;
        // Enough for `vault:v4294967295:`.
        let head = &payload[..payload.len().min(24) / 4 * 4];
        let mut decoded = [0; 18];
        let length = STANDARD.decode_slice(head, &mut decoded).ok()?;
        let text = std::str::from_utf8(decoded.get(..length)?.get(..8)?).ok();
        text.filter(|text| text.starts_with("vault:v"))?;
        let digits = decoded[7..length].split(|b| *b == b':').next()?;
        let version = std::str::from_utf8(digits).ok()?;
        Parts { version, payload: "" }.number()
    }

    fn first(self) -> Option<(&'a [u8], &'a [u8])> {
        line(self.0.split(|b| *b == b'\n').next()?)
    }

    // Other providers' payloads may be binary and hold line breaks: what follows one is no
    // line unless it looks like one.
    fn all(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.0.split(|b| *b == b'\n').filter_map(line)
    }
}

fn line(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let named = |provider: &&&[u8]| {
        line.strip_prefix(**provider).is_some_and(|rest| rest.starts_with(SEPARATOR))
    };
    let provider = TROUSSEAU_PROVIDERS.iter().find(named)?;
    Some(line.split_at(provider.len())).map(|(name, rest)| (name, &rest[SEPARATOR.len()..]))
}

impl std::fmt::Debug for Lines<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lines({} bytes)", self.0.len())
    }
}
