//! Names of KEKs and clusters.

use std::fmt;
use std::sync::Arc;

/// A KEK's name: 1 to 128 letters, digits, `_`, `-` and `.`, beginning with a letter or digit.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KekName(Arc<str>);

/// A cluster's name, under the same rules as [`KekName`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterName(Arc<str>);

/// A name that cannot be written into a ciphertext or a log line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a usable name: write 1 to 128 letters, digits, `_`, `-` or `.`, \
     beginning with a letter or a digit"
)]
pub struct InvalidName(pub String);

// === impl KekName, ClusterName ===

macro_rules! name {
    ($name:ident) => {
        impl $name {
            /// Checks `text` against the rules of names.
            ///
            /// # Errors
            /// When it is empty, longer than 128 bytes, or has another character.
            pub fn try_new(text: &str) -> Result<Self, InvalidName> {
                let begins_well = text.starts_with(|c: char| c.is_ascii_alphanumeric());
                let goes_on_well =
                    text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
                if begins_well && goes_on_well && text.len() <= 128 {
                    Ok(Self(text.into()))
                } else {
                    Err(InvalidName(text.escape_default().take(128).collect()))
                }
            }

            /// The name as written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &self.0)
            }
        }
    };
}

name!(KekName);
name!(ClusterName);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_would_break_a_ciphertext_is_refused() {
        for good in ["kube", "kube-2026", "a", "0_x.y"] {
            assert_eq!(KekName::try_new(good).unwrap().as_str(), good);
        }
        for bad in ["", "a:b", "-a", ".a", "a b", "ä", "a/b", &"x".repeat(129)] {
            assert!(KekName::try_new(bad).is_err(), "{bad}");
        }
    }
}
