//! Configuration: what an operator writes, and what the daemon runs on.
//!
//! ```text
//! file         YAML or TOML -> a tree in which every node knows its place
//! file/schema  which keys there are; the tree fits it or says where it does not
//! load         defaults < file < environment < flags, merged by figment
//! resolve      the merged values -> settings: parsed once, never checked again
//! written      the file again, to be kept for a later start
//! outline      what the settings say, without secrets
//! change       from one outline to the next: what differs, and what a reload refuses
//! diagnostics  every problem at once: file, line, column, key, what to write instead
//! ```

pub mod change;
pub mod diagnostics;
mod file;
pub mod load;
pub mod outline;
mod resolve;
pub mod settings;
pub mod written;

#[cfg(test)]
mod tests;

pub use diagnostics::{Place, Problem, Problems, Severity};
pub use load::{FileForm, Flags, Loaded, Places, Sources, load};
pub use outline::Outline;
pub use settings::Settings;
