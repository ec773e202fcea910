//! What was counted: how many objects there are of each kind, and a few of their keys.

use std::collections::HashMap;

use super::resource;
use crate::stored::{Api, Value, Writer};

/// How many kinds are told apart. A cluster has a few dozen; a plugin that gave each object a
/// key_id of its own would have as many as objects.
const MAX_KINDS: usize = 5_000;

/// How many keys of each kind are kept, and how long a text out of etcd may be.
const EXAMPLES: usize = 3;
const MAX_TEXT: usize = 300;

/// Objects of one resource that are stored in one way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Kind {
    /// Of which resource.
    pub(super) resource: String,
    /// What stands before the first thing that differs from object to object:
    /// `k8s:enc:kms:v2:<provider>`; nothing when it is not encrypted.
    pub(super) prefix: String,
    /// The KMS provider's name; `aescbc key1`; `identity`.
    pub(super) provider: String,
    /// The API that its plugin was spoken to.
    pub(super) api: Option<Api>,
    /// The KEK.
    pub(super) kek: Kek,
    /// Its version.
    pub(super) version: Option<u32>,
    /// The plugin that wrote it.
    pub(super) writer: Option<Writer>,
    /// The key_id of KMS v2.
    pub(super) key_id: Option<String>,
}

/// Which KEK a stored value needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kek {
    /// This one.
    Named(String),
    /// One of Vault's, but its name is not written there.
    Unnamed,
    /// None of Vault's: another service wrapped its data key.
    Elsewhere,
    /// None: it is plain text, or encrypted with a key of kube-apiserver's own file.
    None,
    /// It cannot be told: it is damaged, or of a form that is not known here.
    Unknown,
}

/// How many there are of a kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) objects: u64,
    /// The keys of the first few.
    pub(super) examples: Vec<String>,
}

/// How many objects there are of each kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    kinds: HashMap<Kind, Count>,
    total: u64,
}

// === impl Tally ===

impl Tally {
    /// Counts what is stored under `key`; `root` is what all keys begin with.
    pub(super) fn add(&mut self, key: &[u8], stored: &[u8], root: &str) {
        let key = String::from_utf8_lossy(key);
        let mut kind = Kind::of(resource::of_key(&key, root), stored);
        self.total += 1;
        // What there is no room for is counted all the same, as less and less.
        if self.is_full_for(&kind, MAX_KINDS) {
            kind.key_id = None;
        }
        if self.is_full_for(&kind, MAX_KINDS + MAX_KINDS / 10) {
            "(others)".clone_into(&mut kind.resource);
        }
        if self.is_full_for(&kind, 2 * MAX_KINDS) {
            kind = Kind::unknown("(others)".to_owned());
        }
        let count = self.kinds.entry(kind).or_default();
        count.objects += 1;
        if count.examples.len() < EXAMPLES {
            count.examples.push(clean(&key));
        }
    }

    fn is_full_for(&self, kind: &Kind, limit: usize) -> bool {
        self.kinds.len() >= limit && !self.kinds.contains_key(kind)
    }

    /// How many objects there are.
    pub(super) const fn total(&self) -> u64 {
        self.total
    }

    /// The kinds, in order.
    pub(super) fn sorted(&self) -> Vec<(&Kind, &Count)> {
        let mut all: Vec<_> = self.kinds.iter().collect();
        all.sort_by_key(|(kind, _)| *kind);
        all
    }

    /// How many objects there are of the kinds that `wanted` picks, and the keys of a few.
    pub(super) fn of(&self, wanted: impl Fn(&Kind) -> bool) -> Count {
        let mut sum = Count::default();
        for (kind, count) in self.sorted() {
            if wanted(kind) {
                sum.objects += count.objects;
                let room = EXAMPLES - sum.examples.len();
                sum.examples.extend(count.examples.iter().take(room).cloned());
            }
        }
        sum
    }
}

// === impl Kind ===

impl Kind {
    fn of(resource: String, stored: &[u8]) -> Self {
        let resource = clean(&resource);
        let mut kind = Self { resource, ..Self::unknown(String::new()) };
        match Value::parse(stored) {
            Value::Plain(_) => {
                kind.provider = "identity".to_owned();
                kind.kek = Kek::None;
            }
            Value::Local(local) => {
                kind.provider = clean(&format!("{} {}", local.provider, local.key));
                kind.prefix = clean(&format!("k8s:enc:{}:v1:{}", local.provider, local.key));
                kind.kek = Kek::None;
            }
            Value::Unknown => {}
            Value::Kms(kms) => {
                let api = kms.api.as_str();
                kind.provider = clean(kms.provider);
                kind.prefix = clean(&format!("k8s:enc:kms:{api}:{}", kms.provider));
                kind.api = Some(kms.api);
                let told = kms.describe();
                kind.kek = match (told.kek, told.writer) {
                    (Some(kek), _) => Kek::Named(clean(kek)),
                    (None, Writer::Unknown) => Kek::Unknown,
                    (None, Writer::AwsEncryptionProvider) => Kek::Elsewhere,
                    (None, _) => Kek::Unnamed,
                };
                kind.version = told.version;
                kind.writer = Some(told.writer);
                kind.key_id = told.key_id.map(clean);
            }
        }
        kind
    }

    fn unknown(resource: String) -> Self {
        Self {
            resource,
            prefix: String::new(),
            provider: "unknown".to_owned(),
            api: None,
            kek: Kek::Unknown,
            version: None,
            writer: None,
            key_id: None,
        }
    }

    /// Whether it is stored as it is: not encrypted.
    pub(super) fn is_plain(&self) -> bool {
        self.kek == Kek::None && self.prefix.is_empty()
    }

    /// Whether it is on the KEK of this name.
    pub(super) fn is_on(&self, kek: &str) -> bool {
        matches!(&self.kek, Kek::Named(named) if named == kek)
    }
}

/// A text out of etcd, fit for a terminal: not long, without control characters.
fn clean(text: &str) -> String {
    let shown = text.chars().take(MAX_TEXT);
    shown.map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const ROOT: &str = "/registry/";

    /// A value as KMS v1 stores it.
    pub(in super::super) fn v1(provider: &str, cipher: &str) -> Vec<u8> {
        let length = u16::try_from(cipher.len()).unwrap().to_be_bytes();
        let prefix = format!("k8s:enc:kms:v1:{provider}:");
        [prefix.as_bytes(), &length, cipher.as_bytes(), b"object"].concat()
    }

    fn tally(values: &[(&str, Vec<u8>)]) -> Tally {
        let mut tally = Tally::default();
        values.iter().for_each(|(key, value)| tally.add(key.as_bytes(), value, ROOT));
        tally
    }

    #[test]
    fn every_value_is_counted_as_what_it_is() {
        let tally = tally(&[
            ("/registry/secrets/a/1", v1("vault", "kube:v3:AAAA")),
            ("/registry/secrets/a/2", v1("vault", "kube:v3:BBBB")),
            ("/registry/secrets/a/3", v1("vault", "vault:v2:AAAA")),
            ("/registry/secrets/a/4", v1("aws", "1\u{1}\u{2}")),
            ("/registry/secrets/a/5", v1("vault", "?")),
            ("/registry/secrets/a/6", b"k8s:enc:kms:v1:vault:\xff".to_vec()),
            ("/registry/secrets/a/7", b"k8s:enc:aescbc:v1:key1:....".to_vec()),
            ("/registry/secrets/a/8", b"k8s\0...".to_vec()),
            ("/registry/secrets/a/9", b"k8s:enc:rot13:v1:x:....".to_vec()),
        ]);
        assert_eq!(tally.total(), 9);
        let counted = |wanted: &dyn Fn(&Kind) -> bool| tally.of(wanted).objects;
        assert_eq!(counted(&|kind| kind.is_on("kube") && kind.version == Some(3)), 2);
        assert_eq!(counted(&|kind| kind.kek == Kek::Unnamed && kind.version == Some(2)), 1);
        assert_eq!(counted(&|kind| kind.kek == Kek::Elsewhere), 1);
        assert_eq!(counted(&|kind| kind.kek == Kek::None && kind.provider == "aescbc key1"), 1);
        assert_eq!(counted(&Kind::is_plain), 1);
        let unknown = tally.of(|kind| kind.kek == Kek::Unknown);
        assert_eq!(unknown.objects, 3);
        let named = ["/registry/secrets/a/5", "/registry/secrets/a/6", "/registry/secrets/a/9"];
        let mut examples = unknown.examples;
        examples.sort();
        assert_eq!(examples, named);
    }

    #[test]
    fn kinds_without_end_are_all_counted_in_bounded_memory() {
        let mut tally = Tally::default();
        let objects = 3 * MAX_KINDS;
        for n in 0..objects {
            tally.add(format!("/registry/r{n}/a/b").as_bytes(), &v1("vault", "kube:v1:AA"), ROOT);
            tally.add(b"/registry/secrets/a/b", &v1(&format!("p{n}"), "kube:v1:AA"), ROOT);
        }
        assert_eq!(tally.total(), 2 * objects as u64);
        assert!(tally.sorted().len() <= 2 * MAX_KINDS + 1, "{}", tally.sorted().len());
        assert_eq!(tally.of(|_| true).objects, tally.total());
        assert!(tally.of(|kind| kind.kek == Kek::Unknown).objects > 0);
    }

    #[test]
    fn what_etcd_holds_cannot_command_a_terminal() {
        let tally = tally(&[("/registry/secrets/a/\x1b[2J", v1("va\x1b[2Jult", "kube:v1:AA"))]);
        let (kind, count) = tally.sorted()[0];
        assert!(!kind.provider.contains('\x1b') && !count.examples[0].contains('\x1b'));
    }
}
