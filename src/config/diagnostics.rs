//! What is wrong with a configuration: every problem at once, each with its place and
//! with what to write instead. No text here ever holds a secret or a URL's credentials.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// One thing that is wrong, or that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Whether the configuration can be used in spite of it.
    pub severity: Severity,
    /// The key, such as `socket.mode` or `keyNames[1].cluster`; empty for the whole file.
    pub key_path: String,
    /// Where it was written; `None` when nothing was written at all.
    pub place: Option<Place>,
    /// What is wrong.
    pub what: String,
    /// What to write or do instead.
    pub advice: String,
}

/// Whether a configuration can be used in spite of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It cannot.
    Error,
    /// It can.
    Warning,
}

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A file as a whole.
    File(Arc<Path>),
    /// A position in a file.
    Position {
        /// The file.
        file: Arc<Path>,
        /// Its line, from 1.
        line: usize,
        /// Its column in characters, from 1.
        column: usize,
    },
    /// An environment variable.
    Environment(Arc<str>),
    /// A command-line flag.
    Flag(&'static str),
    /// The built-in defaults.
    Default,
}

/// Everything that is wrong with a configuration, in the order of the file; it holds at
/// least one error, and the warnings beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

// === impl Problem ===

impl Problem {
    /// Something that makes the configuration unusable.
    pub fn error(
        key_path: impl Into<String>,
        place: Option<Place>,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Error,
            key_path: key_path.into(),
            place,
            what: what.into(),
            advice: advice.into(),
        }
    }

    /// Something that an operator should know.
    pub fn warning(
        key_path: impl Into<String>,
        place: Option<Place>,
        what: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { severity: Severity::Warning, ..Self::error(key_path, place, what, advice) }
    }

    /// Whether it makes the configuration unusable.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// All of it but the severity, on one line: for a log, whose lines have a level.
    pub fn one_line(&self) -> String {
        let Self { severity: _, key_path, place, what, advice } = self;
        let place = place.as_ref().map(|place| format!("{place}: ")).unwrap_or_default();
        let separator = if key_path.is_empty() { "" } else { ": " };
        let end = if advice.ends_with(['?', '.', '`']) { "" } else { "." };
        format!("{place}{key_path}{separator}{what}; {advice}{end}")
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { severity, key_path, place, what, advice } = self;
        if let Some(place) = place {
            write!(f, "{place}: ")?;
        }
        write!(f, "{severity}: ")?;
        if !key_path.is_empty() {
            write!(f, "{key_path}: ")?;
        }
        write!(f, "{what}\n    help: {advice}")
    }
}

// === impl Severity ===

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

// === impl Place ===

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => write!(f, "{}", file.display()),
            Self::Position { file, line, column } => {
                write!(f, "{}:{line}:{column}", file.display())
            }
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
            Self::Default => f.write_str("built-in default"),
        }
    }
}

// === impl Problems ===

impl Problems {
    /// Puts `problems` into the order of their places.
    pub(crate) fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort_by(|a, b| (&a.place, a.severity).cmp(&(&b.place, b.severity)));
        Self(problems)
    }

    /// Each of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    pub(super) fn into_inner(self) -> Vec<Problem> {
        self.0
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            writeln!(f, "{problem}")?;
        }
        let errors = self.0.iter().filter(|p| p.is_error()).count();
        let warnings = self.0.len() - errors;
        write!(f, "{}", counted(errors, "error"))?;
        if warnings > 0 { write!(f, ", {}", counted(warnings, "warning")) } else { Ok(()) }
    }
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
