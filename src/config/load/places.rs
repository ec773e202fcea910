//! Where each value of an accepted configuration was written, for whoever finds fault with
//! one later: a reload that Vault does not agree to names the line, too.

use std::collections::HashMap;

use super::layer::{Field, Merged};
use crate::config::diagnostics::Place;

/// Places by key path.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// The configuration file.
    whole: Option<Place>,
    by_path: HashMap<String, Place>,
}

// === impl Places ===

impl Places {
    pub(super) fn of(merged: &Merged<'_>, whole: Option<Place>) -> Self {
        let mut places = Self { whole, by_path: HashMap::new() };
        places.walk(&merged.root());
        places
    }

    fn walk(&mut self, field: &Field<'_>) {
        // A default stands nowhere that an operator could change it.
        if let Some(place) = field.place().filter(|place| *place != Place::Default) {
            self.by_path.insert(field.path().to_owned(), place);
        }
        if field.is_block() {
            field.entries().iter().for_each(|(_, below)| self.walk(below));
        } else if field.is_list() {
            field.items().iter().for_each(|item| self.walk(item));
        }
    }

    /// Where the value at `path` was written; the file when it is nowhere.
    pub fn of_key(&self, path: &str) -> Option<Place> {
        self.by_path.get(path).or(self.whole.as_ref()).cloned()
    }

    /// Whether somebody wrote it.
    pub fn has(&self, path: &str) -> bool {
        self.by_path.contains_key(path)
    }
}
