//! `--require-none-on`: whether nothing needs an old key any more.

use std::fmt;
use std::str::FromStr;

use indicatif::HumanCount;

use super::tally::{Count, Kek, Kind, Tally};

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
    /// Objects of which nothing is known.
    pub(super) unknown: Count,
    /// Whether the name stands in the configuration, when there is one. A name that nobody
    /// knows is spelt wrong, or it was removed without a trace.
    pub(super) is_configured: Option<bool>,
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
        if text.starts_with("k8s:enc:") && text.len() > "k8s:enc:".len() {
            return Ok(Self::Stored(text.trim_end_matches(':').to_owned()));
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
            Self::Plain => kind.is_plain(),
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
    /// Looks at everything that was counted; `configured` are the KEKs of the configuration.
    pub(super) fn of(old: &Old, tally: &Tally, configured: Option<&[String]>) -> Self {
        let is_configured = match old {
            Old::Kek { name, .. } => configured.map(|names| names.contains(name)),
            _ => Some(true),
        };
        Self {
            is_configured,
            old: old.clone(),
            on: tally.of(|kind| old.is_at(kind)),
            maybe: tally.of(|kind| old.may_be_at(kind)),
            unknown: tally.of(|kind| kind.kek == Kek::Unknown && !old.is_at(kind)),
        }
    }

    /// Whether nothing needs it any more.
    pub(super) const fn is_met(&self) -> bool {
        let none = self.on.objects == 0 && self.maybe.objects == 0 && self.unknown.objects == 0;
        none && !matches!(self.is_configured, Some(false))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "none on {}: ", self.old)?;
        if self.is_met() {
            f.write_str("yes")?;
            if self.is_configured.is_none() {
                f.write_str(" (no configuration says whether there is such a key; see --config)")?;
            }
            return Ok(());
        }
        f.write_str("no")?;
        for (count, what) in [
            (&self.on, "on it"),
            (&self.maybe, "may be: the value names no key"),
            (&self.unknown, "of an unknown form"),
        ] {
            if count.objects > 0 {
                let (objects, examples) = (count.objects, count.examples.join(", "));
                write!(f, "\n  {} {what}, such as {examples}", HumanCount(objects))?;
            }
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
        Verdict::of(&old.parse().unwrap(), &tally, None)
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
    fn only_what_needs_the_old_key_holds_it_up() {
        let counted = ["kube:v1:AA", "kube:v2:AA", "new:v1:AA"];
        let on = |old: &str| verdict(old, &counted).on.objects;
        assert_eq!((on("kube"), on("kube:v1"), on("kube:v1-v2"), on("kube:v3")), (2, 1, 2, 0));
        assert!(verdict("kube:v3", &counted).is_met() && verdict("kub", &counted).is_met());
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
        let (old, configured) = ("kub".parse().unwrap(), ["kube".to_owned()]);
        let verdict = Verdict::of(&old, &Tally::default(), Some(&configured));
        assert!(!verdict.is_met() && verdict.to_string().contains("is it spelt right?"));
        let verdict =
            Verdict::of(&"kube:v1".parse().unwrap(), &Tally::default(), Some(&configured));
        assert!(verdict.is_met());
        let verdict = Verdict::of(&old, &Tally::default(), None);
        assert!(verdict.is_met() && verdict.to_string().contains("see --config"));
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
