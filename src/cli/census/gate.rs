//! `--require-none-on`: whether nothing needs an old key any more.

use std::fmt;
use std::str::FromStr;

use indicatif::HumanCount;

use super::steps::Configured;
use super::tally::{Count, Kek, Kind, Tally};

/// What values begin with that are encrypted, after `k8s:enc:`; a name may follow.
const FORMS: [&[&str]; 5] =
    [&["kms", "v1"], &["kms", "v2"], &["aescbc", "v1"], &["aesgcm", "v1"], &["secretbox", "v1"]];

/// What nothing may be left on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Old {
    /// A KEK, in all its versions or in those from the first to the second.
    Kek {
        /// Its name.
        name: String,
        /// Which of its versions.
        versions: Option<(u32, u32)>,
    },
    /// Values that are stored under this prefix, such as `k8s:enc:kms:v1:vault`.
    Stored(String),
    /// Values that are not encrypted.
    Plain,
}

/// How it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// What was asked.
    pub(super) old: Old,
    /// Objects that are on it.
    pub(super) on: Count,
    /// Objects that may be: they name no KEK.
    pub(super) maybe: Count,
    /// Objects on another name of what is, or may be, the same key of Vault.
    pub(super) shared: Count,
    /// Objects on names that the configuration does not know: any key of Vault may be behind
    /// them.
    pub(super) strangers: Count,
    /// Objects of which nothing is known.
    pub(super) unknown: Count,
    /// Whether the name stands in the configuration, when there is one. A name that nobody
    /// knows is spelt wrong, or it was removed without a trace.
    pub(super) is_configured: Option<bool>,
    /// Whether it is the first of `keyNames`, so that the next object is on it.
    pub(super) encrypts: bool,
}

// === impl Old ===

impl FromStr for Old {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let advice = || {
            format!(
                "{text:?}: write a KEK's name, NAME:vN, NAME:vN-vM, identity, or what values begin \
                 with, such as k8s:enc:kms:v1:vault"
            )
        };
        if text == "identity" {
            return Ok(Self::Plain);
        }
        // What kube-apiserver does not write would be found nowhere.
        if let Some(form) = text.strip_prefix("k8s:enc:") {
            let form = form.trim_end_matches(':');
            let words: Vec<&str> = form.split(':').collect();
            let fits = |known: &&[&str]| match words.as_slice() {
                [kind] => *kind == known[0],
                [kind, version] | [kind, version, _] => [*kind, *version] == **known,
                _ => false,
            };
            return match FORMS.iter().any(fits) {
                true => Ok(Self::Stored(format!("k8s:enc:{form}"))),
                false => Err(advice()),
            };
        }
        let (name, versions) = match text.split_once(':') {
            None => (text, None),
            Some((name, versions)) => {
                let number = |text: &str| text.strip_prefix('v')?.parse::<u32>().ok();
                let (first, last) = versions.split_once('-').unwrap_or((versions, versions));
                let range = number(first).zip(number(last)).filter(|(a, b)| 1 <= *a && a <= b);
                (name, Some(range.ok_or_else(advice)?))
            }
        };
        if name.is_empty() {
            return Err(advice());
        }
        Ok(Self::Kek { name: name.to_owned(), versions })
    }
}

impl fmt::Display for Old {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kek { name, versions: None } => f.write_str(name),
            Self::Kek { name, versions: Some((a, b)) } if a == b => write!(f, "{name}:v{a}"),
            Self::Kek { name, versions: Some((a, b)) } => write!(f, "{name}:v{a}-v{b}"),
            Self::Stored(prefix) => f.write_str(prefix),
            Self::Plain => f.write_str("identity"),
        }
    }
}

impl Old {
    fn is_at(&self, kind: &Kind) -> bool {
        match self {
            Self::Kek { name, .. } => kind.is_on(name) && self.has_version(kind.version),
            Self::Stored(prefix) => {
                let rest = kind.prefix.strip_prefix(prefix.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
            }
            // A KEK may be called so.
            Self::Plain => kind.is_plain() || kind.is_on("identity"),
        }
    }

    /// A value that names no KEK may be on any, in the version that it names.
    fn may_be_at(&self, kind: &Kind) -> bool {
        matches!(self, Self::Kek { .. })
            && kind.kek == Kek::Unnamed
            && self.has_version(kind.version)
    }

    fn has_version(&self, version: Option<u32>) -> bool {
        match (self, version) {
            (Self::Kek { versions: Some((first, last)), .. }, Some(version)) => {
                (*first..=*last).contains(&version)
            }
            // One that is not known may be any.
            _ => true,
        }
    }
}

// === impl Verdict ===

impl Verdict {
    /// Looks at everything that was counted; `configured` is what a configuration says.
    pub(super) fn of(old: &Old, tally: &Tally, configured: Option<&Configured>) -> Self {
        let mut verdict = Self {
            is_configured: Some(true),
            encrypts: false,
            old: old.clone(),
            on: tally.of(|kind| old.is_at(kind)),
            maybe: tally.of(|kind| old.may_be_at(kind)),
            shared: Count::default(),
            strangers: Count::default(),
            unknown: tally.of(|kind| kind.kek == Kek::Unknown && !old.is_at(kind)),
        };
        let Old::Kek { name, versions } = old else { return verdict };
        verdict.is_configured = configured.map(|configured| configured.knows(name));
        let Some(configured) = configured else { return verdict };
        verdict.encrypts = versions.is_none() && configured.keks.first() == Some(name);
        let others = |wanted: &dyn Fn(&str) -> bool| {
            tally.of(|kind| match &kind.kek {
                Kek::Named(other) => {
                    other != name && old.has_version(kind.version) && wanted(other)
                }
                _ => false,
            })
        };
        verdict.shared = others(&|other| configured.is_same(name, other));
        verdict.strangers = others(&|other| !configured.knows(other));
        verdict
    }

    /// Whether nothing needs it any more.
    pub(super) fn is_met(&self) -> bool {
        let none = self.counts().iter().all(|(count, _)| count.objects == 0);
        none && self.is_configured == Some(true) && !self.encrypts
    }

    /// What may hold it up, and in which words.
    const fn counts(&self) -> [(&Count, &'static str); 5] {
        [
            (&self.on, "on it"),
            (&self.maybe, "may be: the value names no key"),
            (&self.shared, "on another name of what may be the same key of Vault (transitKey)"),
            (&self.strangers, "may be: the configuration does not know the key that they name"),
            (&self.unknown, "of an unknown form"),
        ]
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "none on {}: ", self.old)?;
        if self.is_met() {
            return f.write_str("yes");
        }
        f.write_str("no")?;
        for (count, what) in self.counts() {
            if count.objects > 0 {
                let (objects, examples) = (count.objects, count.examples.join(", "));
                write!(f, "\n  {} {what}, such as {examples}", HumanCount(objects))?;
            }
        }
        if self.encrypts {
            f.write_str("\n  it is the first of keyNames: the next object is on it")?;
        }
        if self.is_configured.is_none() {
            f.write_str(
                "\n  no configuration says that there is such a key, and one that is spelt wrong \
                 is never found: name the configuration with --config",
            )?;
        }
        if self.is_configured == Some(false) && self.on.objects == 0 {
            f.write_str(
                "\n  neither keyNames nor `retired` names it: is it spelt right? Write it under \
                 `retired` if it is gone from keyNames",
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tally::tests::v1;
    use super::*;

    fn verdict(old: &str, ciphers: &[&str]) -> Verdict {
        let mut tally = Tally::default();
        for (n, cipher) in ciphers.iter().enumerate() {
            let key = format!("/registry/secrets/a/{n}");
            tally.add(key.as_bytes(), &v1("vault", cipher), "/registry/");
        }
        tally.add(b"/registry/pods/a/plain", b"k8s\0pod", "/registry/");
        Verdict::of(&old.parse().unwrap(), &tally, Some(&configured()))
    }

    fn configured() -> Configured {
        let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let twin = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        Configured {
            file: "vkp.yaml".into(),
            keks: texts(&["new", "kube", "again"]),
            retired: texts(&["gone"]),
            twins: [twin("kube", "again"), twin("again", "kube")].into(),
        }
    }

    #[test]
    fn an_old_key_is_written_in_the_ways_that_help_shows() {
        for good in ["kube", "kube:v3", "kube:v1-v9", "identity", "k8s:enc:kms:v1:vault"] {
            assert_eq!(good.parse::<Old>().unwrap().to_string(), good);
        }
        for bad in ["", ":v1", "kube:", "kube:3", "kube:v", "kube:v0", "kube:v3-v2", "kube:v1-"] {
            assert!(bad.parse::<Old>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_no_value_can_begin_with_is_refused_and_not_found_nowhere() {
        for good in ["kms", "kms:v1", "kms:v2:p", "aescbc:v1:key1", "aesgcm", "secretbox:v1"] {
            assert!(format!("k8s:enc:{good}").parse::<Old>().is_ok(), "{good}");
        }
        for bad in ["", "kmz:v1", "kms:v3", "kms:1:p", "kms:v1:p:x", "aescbc:v2", "identity"] {
            assert!(format!("k8s:enc:{bad}").parse::<Old>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_what_needs_the_old_key_holds_it_up() {
        let counted = ["kube:v1:AA", "kube:v2:AA", "new:v1:AA"];
        let on = |old: &str| verdict(old, &counted).on.objects;
        assert_eq!((on("kube"), on("kube:v1"), on("kube:v1-v2"), on("kube:v3")), (2, 1, 2, 0));
        assert!(verdict("kube:v3", &counted).is_met() && verdict("gone", &counted).is_met());
        assert!(!verdict("kube:v2", &counted).is_met());
        assert_eq!(
            (on("k8s:enc:kms:v1:vault"), on("k8s:enc:kms:v1"), on("k8s:enc:kms:v2")),
            (3, 3, 0)
        );
        assert_eq!((on("k8s:enc:kms:v1:va"), on("identity")), (0, 1));
    }

    #[test]
    fn what_names_no_key_may_be_on_the_old_one_in_its_version() {
        assert!(!verdict("kube", &["vault:v2:AA"]).is_met());
        assert!(!verdict("kube:v2", &["vault:v2:AA"]).is_met());
        assert!(verdict("kube:v1", &["vault:v2:AA"]).is_met());
        assert!(verdict("k8s:enc:kms:v2", &["vault:v2:AA"]).is_met());
    }

    #[test]
    fn a_name_that_no_configuration_knows_is_not_passed() {
        for old in ["kub", "kub:v1"] {
            let verdict = verdict(old, &[]);
            assert!(!verdict.is_met() && verdict.to_string().contains("is it spelt right?"));
            let verdict = Verdict::of(&old.parse().unwrap(), &Tally::default(), None);
            assert!(!verdict.is_met() && verdict.to_string().contains("with --config"));
        }
        let prefix = "k8s:enc:kms:v1:vault".parse().unwrap();
        assert!(Verdict::of(&prefix, &Tally::default(), None).is_met());
    }

    #[test]
    fn a_key_of_vaults_with_two_names_is_needed_under_either() {
        let verdict = verdict("kube", &["again:v2:AA"]);
        assert_eq!((verdict.on.objects, verdict.shared.objects), (0, 1));
        assert!(!verdict.is_met() && verdict.to_string().contains("the same key of Vault"));
        assert!(!self::verdict("kube:v1-v2", &["again:v2:AA"]).is_met());
        assert!(self::verdict("kube:v1", &["again:v2:AA"]).is_met());
        assert!(self::verdict("kube", &["new:v2:AA"]).is_met());
    }

    #[test]
    fn an_object_on_a_key_that_the_configuration_lost_may_need_any() {
        let verdict = verdict("kube", &["lost:v2:AA"]);
        assert_eq!(verdict.strangers.examples, ["/registry/secrets/a/0"]);
        assert!(!verdict.is_met() && verdict.to_string().contains("does not know the key"));
        assert!(!self::verdict("kube:v2", &["lost:v2:AA"]).is_met());
        assert!(self::verdict("kube:v1", &["lost:v2:AA", "gone:v1:AA"]).is_met());
    }

    #[test]
    fn the_key_that_encrypts_is_never_without_need() {
        let verdict = verdict("new", &["kube:v1:AA"]);
        assert!(!verdict.is_met() && verdict.to_string().contains("the first of keyNames"));
        assert!(self::verdict("new:v1", &["new:v2:AA"]).is_met());
    }

    #[test]
    fn a_key_that_is_called_as_what_is_plain_holds_that_up() {
        assert_eq!(verdict("identity", &["identity:v1:AA"]).on.objects, 2);
    }

    #[test]
    fn what_cannot_be_read_is_never_taken_for_none() {
        for old in ["kube", "kube:v9", "k8s:enc:kms:v2", "identity"] {
            let verdict = verdict(old, &["damaged"]);
            assert!(!verdict.is_met(), "{old}");
            assert_eq!(verdict.unknown.examples, ["/registry/secrets/a/0"]);
            assert!(verdict.to_string().contains("1 of an unknown form, such as /registry/"));
        }
    }
}
