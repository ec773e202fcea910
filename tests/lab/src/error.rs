//! One error for the whole lab: a message that says what failed, where, and what to do.

use std::fmt;

/// What went wrong in the lab. Every [`std::error::Error`] turns into it with `?`.
///
/// It is no `std::error::Error` itself, which is what lets the conversion be general; a
/// test that returns [`Result`] prints the whole chain of causes.
pub struct Error {
    message: String,
}

/// What lab functions return, and what tests may return as well.
pub type Result<T = (), E = Error> = std::result::Result<T, E>;

/// Puts words before a failure.
pub trait Context<T> {
    /// Says what was being done when it failed.
    fn context(self, doing: impl fmt::Display) -> Result<T>;
}

/// Returns early with a formatted [`Error`](crate::Error).
#[macro_export]
macro_rules! fail {
    ($($words:tt)*) => { return Err($crate::Error::new(format!($($words)*))) };
}

// === impl Error ===

impl Error {
    /// An error that says `message`.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(next) = cause {
            let words = next.to_string();
            // Many errors already quote their cause.
            if !message.contains(&words) {
                message.push_str(": ");
                message.push_str(&words);
            }
            cause = next.source();
        }
        Self { message }
    }
}

// === impl Context ===

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Error::new(format!("{doing}: {}", error.into())))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, doing: impl fmt::Display) -> Result<T> {
        self.ok_or_else(|| Error::new(doing.to_string()))
    }
}
