//! How much goes into one request.
//!
//! OpenBao refuses a request with more than `max_request_json_strings` keys and strings
//! (1,000 unless configured), and something before it may refuse large bodies. What a server
//! takes is learnt from its refusals, and forgotten again after a while: the next node, or the
//! same after an upgrade, may take more.

use std::time::Duration;

use tokio::time::Instant;

use crate::transit::verdict::TooLarge;

/// Keys and strings in one request: one less than OpenBao's default, for the `batch_input`
/// around the items.
const MOST_STRINGS: usize = 999;

/// Items in one request, where a count of keys and strings would allow more: another server
/// may count in another way.
const MOST_ITEMS: usize = 190;

/// Bytes in one request: a full batch of small items has 40 KiB, and proxies that bound
/// bodies begin at 1 MiB.
const MOST_BYTES: usize = 256 * 1024;

/// How long a lower ceiling holds.
pub(super) const RECOVERY: Duration = Duration::from_secs(600);

/// What one item adds to a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::transit) struct Cost {
    /// Keys and string values.
    pub(in crate::transit) strings: usize,
    /// Bytes.
    pub(in crate::transit) bytes: usize,
}

/// The most that goes into one request.
#[derive(Debug)]
pub(super) struct Ceiling {
    strings: Bound,
    bytes: Bound,
}

#[derive(Debug)]
struct Bound {
    most: usize,
    lowered: Option<(usize, Instant)>,
}

// === impl Ceiling ===

impl Default for Ceiling {
    fn default() -> Self {
        let bound = |most| Bound { most, lowered: None };
        Self { strings: bound(MOST_STRINGS), bytes: bound(MOST_BYTES) }
    }
}

impl Ceiling {
    /// Whether so many items of this cost, together, fit into one request.
    pub(super) fn fits(&self, items: usize, sum: Cost) -> bool {
        items <= MOST_ITEMS && sum.strings <= self.strings.now() && sum.bytes <= self.bytes.now()
    }

    /// A request of this cost was too large: half of it may not be.
    pub(super) fn lower(&mut self, of: TooLarge, sum: Cost) {
        match of {
            TooLarge::InStrings => self.strings.lower(sum.strings / 2),
            TooLarge::InBytes => self.bytes.lower(sum.bytes / 2),
        }
    }
}

// === impl Bound ===

impl Bound {
    fn now(&self) -> usize {
        let held = self.lowered.filter(|(_, since)| since.elapsed() < RECOVERY);
        held.map_or(self.most, |(bound, _)| bound)
    }

    fn lower(&mut self, to: usize) {
        self.lowered = Some((to.min(self.now()), Instant::now()));
    }
}

// === impl Cost ===

impl std::ops::Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { strings: self.strings + other.strings, bytes: self.bytes + other.bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn cost(strings: usize, bytes: usize) -> Cost {
        Cost { strings, bytes }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lower_ceiling_holds_for_a_while() {
        let mut ceiling = Ceiling::default();
        assert!(ceiling.fits(166, cost(996, 0)) && !ceiling.fits(167, cost(1_002, 0)));
        assert!(ceiling.fits(190, cost(760, 0)) && !ceiling.fits(191, cost(764, 0)));
        assert!(!ceiling.fits(2, cost(8, 300_000)));
        ceiling.lower(TooLarge::InStrings, cost(800, 9_000));
        assert!(ceiling.fits(100, cost(400, 200_000)) && !ceiling.fits(101, cost(404, 0)));
        ceiling.lower(TooLarge::InBytes, cost(100, 20_000));
        assert!(!ceiling.fits(100, cost(400, 10_001)));
        // One that is above what holds already raises nothing.
        ceiling.lower(TooLarge::InStrings, cost(900, 0));
        assert!(!ceiling.fits(101, cost(404, 0)));
        tokio::time::advance(RECOVERY).await;
        assert!(ceiling.fits(166, cost(996, 200_000)));
    }
}
