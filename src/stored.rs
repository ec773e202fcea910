//! A value as kube-apiserver keeps it in etcd: who encrypted it, and with which key.
//!
//! [`Value::parse`] cuts the bytes into their parts and copies none of them, so that a
//! hundred thousand can be looked at; [`Kms::describe`] says which KEK and which plugin
//! wrapped its data key. What is inside stays encrypted: there is no key here.
//!
//! | stored | what it is |
//! |---|---|
//! | `k8s:enc:kms:v1:<provider>:` | length of the wrapped data key (2 bytes), that, the object |
//! | `k8s:enc:kms:v2:<provider>:` | a protobuf message with the same and what the plugin said |
//! | `k8s:enc:aescbc:v1:<key>:` and the like | encrypted with a key of kube-apiserver's own file |
//! | anything else | not encrypted |

use std::fmt;

pub use describe::{Description, Writer};
pub use object::{Annotations, Source};

mod describe;
mod object;
#[cfg(test)]
mod tests;

/// What every value begins with that is encrypted.
const ENCRYPTED: &[u8] = b"k8s:enc:";

/// A stored value, cut into its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Its data key was wrapped by a KMS plugin.
    Kms(Kms<'a>),
    /// Encrypted by kube-apiserver with a key from its own configuration.
    Local(Local<'a>),
    /// Not encrypted, as under the provider `identity`.
    Plain(Plain),
    /// It says that it is encrypted, but not in a way that kube-apiserver has.
    Unknown,
}

/// A value whose data key was wrapped by a KMS plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kms<'a> {
    /// The provider's name in the EncryptionConfiguration.
    pub provider: &'a str,
    /// The API that the plugin was spoken to.
    pub api: Api,
    /// What follows, if it is sound.
    pub body: Result<Body<'a>, Damage>,
}

/// The parts of a value that a KMS plugin had a hand in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Body<'a> {
    /// The wrapped data key or seed: what the plugin's Decrypt is asked.
    pub ciphertext: &'a [u8],
    /// The object, encrypted with that data key.
    pub data: &'a [u8],
    /// How the data key follows from what is unwrapped.
    pub source: Source,
    /// The key_id that the plugin gave; empty for v1.
    pub key_id: &'a str,
    /// What else the plugin gave; none for v1.
    pub annotations: Annotations<'a>,
}

/// The API between kube-apiserver and a KMS plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Api {
    /// KMS v1.
    V1,
    /// KMS v2.
    V2,
}

/// A value that kube-apiserver encrypted with a key from its own configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local<'a> {
    /// The provider: `aescbc`, `aesgcm` or `secretbox`.
    pub provider: &'a str,
    /// The key's name in the EncryptionConfiguration.
    pub key: &'a str,
    /// How many bytes follow.
    pub data: usize,
}

/// What a value that is not encrypted holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Plain {
    /// An object in Kubernetes' protobuf form.
    Protobuf,
    /// An object in JSON.
    Json,
    /// Something else, such as a lease or a counter.
    Other,
    /// Nothing at all.
    Empty,
}

/// Why what follows the prefix cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Damage {
    /// v1: it ends before the length that it gives.
    #[error("it ends before the wrapped data key does")]
    Cut,
    /// v2: it is not the message that kube-apiserver writes.
    #[error("what follows the prefix is not the message that kube-apiserver writes; was it cut?")]
    NoObject,
    /// There is no wrapped data key in it, so that nothing can ever decrypt it.
    #[error("it holds no wrapped data key, so nothing can decrypt it: it is lost")]
    NoDataKey,
}

// === impl Value ===

impl<'a> Value<'a> {
    /// Cuts `stored` into its parts. Everything is something: what has no prefix is plain.
    pub fn parse(stored: &'a [u8]) -> Self {
        let Some(rest) = stored.strip_prefix(ENCRYPTED) else {
            return Self::Plain(Plain::of(stored));
        };
        // provider, version, name; a name holds no colon.
        let mut parts = rest.splitn(4, |b| *b == b':');
        let mut word = || parts.next().and_then(|part| std::str::from_utf8(part).ok());
        let (Some(kind), Some(version), Some(name)) = (word(), word(), word()) else {
            return Self::Unknown;
        };
        let Some(body) = parts.next() else { return Self::Unknown };
        match (kind, version) {
            ("kms", "v1") => {
                Self::Kms(Kms { provider: name, api: Api::V1, body: Body::of_v1(body) })
            }
            ("kms", "v2") => {
                Self::Kms(Kms { provider: name, api: Api::V2, body: object::parse(body) })
            }
            ("aescbc" | "aesgcm" | "secretbox", "v1") => {
                Self::Local(Local { provider: kind, key: name, data: body.len() })
            }
            _ => Self::Unknown,
        }
    }

    /// The provider as the EncryptionConfiguration calls it: the name of a KMS provider,
    /// else its kind.
    pub fn provider(&self) -> &'a str {
        match self {
            Self::Kms(kms) => kms.provider,
            Self::Local(local) => local.provider,
            Self::Plain(_) => "identity",
            Self::Unknown => "unknown",
        }
    }

    /// Which key and which plugin wrapped its data key; `None` where no plugin did.
    pub fn describe(&self) -> Option<Description<'a>> {
        if let Self::Kms(kms) = self { Some(kms.describe()) } else { None }
    }
}

// === impl Body ===

impl<'a> Body<'a> {
    fn of_v1(bytes: &'a [u8]) -> Result<Self, Damage> {
        let (length, rest) = bytes.split_first_chunk::<2>().ok_or(Damage::Cut)?;
        let length = usize::from(u16::from_be_bytes(*length));
        if length == 0 {
            return Err(Damage::NoDataKey);
        }
        let (ciphertext, data) = rest.split_at_checked(length).ok_or(Damage::Cut)?;
        let (source, annotations) = (Source::Key, Annotations::default());
        Ok(Self { ciphertext, data, source, key_id: "", annotations })
    }
}

// Not derived: what is encrypted is nobody's to print.
impl fmt::Debug for Body<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("ciphertext", &format_args!("{} bytes", self.ciphertext.len()))
            .field("data", &format_args!("{} bytes", self.data.len()))
            .field("source", &self.source)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

// === impl Api ===

impl Api {
    /// As in the prefix.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

// === impl Plain ===

impl Plain {
    fn of(stored: &[u8]) -> Self {
        match stored {
            [] => Self::Empty,
            [b'k', b'8', b's', 0, ..] => Self::Protobuf,
            [b'{', ..] => Self::Json,
            _ => Self::Other,
        }
    }
}
