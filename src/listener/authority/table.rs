//! A shadow of HPACK's tables (RFC 7541, sections 2.3 and 4): of each entry how long it is
//! and whether it is called `:authority`.
//!
//! It is needed because a client may put `:authority` into the dynamic table with a
//! literal name and later refer to that name by its place in the table, with another
//! value. No client that we know does, but nothing forbids it.

use std::collections::VecDeque;

/// The size that the server allows: HTTP/2's default, which hyper and `h2` leave alone.
const MAX_SIZE: usize = 4_096;

/// What an entry costs beside its bytes.
const OVERHEAD: usize = 32;

/// Lengths of the names in the static table; the first is `:authority`.
const STATIC: [u8; 61] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14,
    16, 13, 12, 6, 4, 4, 6, 7, 4, 4, 8, 17, 13, 8, 19, 13, 4, 8, 12, 18, 19, 5, 7, 7, 11, 6, 10,
    25, 17, 10, 4, 3, 16,
];

/// What is known of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) length: usize,
    pub(super) is_authority: bool,
}

/// At most 128 entries, because each counts at least 32 bytes.
#[derive(Debug)]
pub(super) struct Table {
    /// The newest first.
    entries: VecDeque<Entry>,
    size: usize,
    max_size: usize,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Name,
    size: usize,
}

// === impl Table ===

impl Default for Table {
    fn default() -> Self {
        Self { entries: VecDeque::new(), size: 0, max_size: MAX_SIZE }
    }
}

impl Table {
    /// The name at `index`, which counts from 1 through both tables; `None` beyond them.
    pub(super) fn name(&self, index: usize) -> Option<Name> {
        let index = index.checked_sub(1)?;
        match STATIC.get(index) {
            Some(length) => Some(Name { length: usize::from(*length), is_authority: index == 0 }),
            None => self.entries.get(index - STATIC.len()).map(|entry| entry.name),
        }
    }

    /// Puts an entry in; one that is larger than the table empties it.
    pub(super) fn insert(&mut self, name: Name, value_length: usize) {
        let size = name.length + value_length + OVERHEAD;
        self.evict(self.max_size.saturating_sub(size));
        if size <= self.max_size {
            self.size += size;
            self.entries.push_front(Entry { name, size });
        }
    }

    /// Changes the size; `None` when it is more than the server allows.
    pub(super) fn resize(&mut self, max_size: usize) -> Option<()> {
        if max_size > MAX_SIZE {
            return None;
        }
        self.max_size = max_size;
        self.evict(max_size);
        Some(())
    }

    #[cfg(test)]
    pub(super) const fn size(&self) -> usize {
        self.size
    }

    fn evict(&mut self, down_to: usize) {
        while self.size > down_to {
            let Some(oldest) = self.entries.pop_back() else { return };
            self.size -= oldest.size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTHORITY: Name = Name { length: 10, is_authority: true };
    const OTHER: Name = Name { length: 5, is_authority: false };

    #[test]
    fn the_oldest_entries_make_room() {
        let mut table = Table::default();
        table.insert(AUTHORITY, 20);
        assert_eq!(table.name(62), Some(AUTHORITY));
        for _ in 0..108 {
            table.insert(OTHER, 0); // 37 bytes each
        }
        assert_eq!((table.size, table.name(62 + 108)), (62 + 108 * 37, Some(AUTHORITY)));
        table.insert(OTHER, 1);
        assert_eq!((table.size, table.name(62 + 109)), (4_096, Some(AUTHORITY)));
        table.insert(OTHER, 0);
        assert_eq!((table.name(62 + 109), table.name(62 + 110)), (Some(OTHER), None));
    }

    #[test]
    fn an_entry_that_is_larger_than_the_table_empties_it() {
        let mut table = Table::default();
        table.insert(OTHER, 0);
        table.insert(AUTHORITY, 4_096 - 42 + 1);
        assert_eq!((table.size, table.name(62)), (0, None));
        table.insert(AUTHORITY, 4_096 - 42);
        assert_eq!((table.size, table.name(62)), (4_096, Some(AUTHORITY)));
    }

    #[test]
    fn a_smaller_table_forgets_and_a_larger_one_than_allowed_is_refused() {
        let mut table = Table::default();
        table.insert(AUTHORITY, 0);
        table.insert(OTHER, 0);
        assert_eq!(table.resize(37), Some(()));
        assert_eq!((table.name(62), table.name(63)), (Some(OTHER), None));
        assert_eq!(table.resize(4_097), None);
        assert_eq!((table.name(0), table.name(usize::MAX)), (None, None));
    }
}
