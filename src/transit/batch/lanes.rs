//! Those who wait, in the order in which they go.

use std::collections::VecDeque;
use std::sync::Arc;

use super::Batched;
use super::item::Item;
use super::queue::Place;
use crate::clock::Lane;

/// Items that may wait in one lane: more calls than the daemon lets run at once, unless it is
/// configured to let more.
const MOST_WAITING: usize = 8_192;

/// Bytes of request that may wait in one lane.
const MOST_BYTES_WAITING: usize = 16 << 20;

/// Lines that take turns: first come, first served within each.
pub(super) struct Lanes<K: Batched> {
    lanes: [Waiting<K>; 2],
    /// Whose turn it is.
    turn: usize,
}

struct Waiting<K: Batched> {
    items: VecDeque<Arc<Item<K>>>,
    bytes: usize,
}

/// So many wait in the lane already.
pub(super) struct Full(pub(super) usize);

// === impl Lanes ===

impl<K: Batched> Default for Lanes<K> {
    fn default() -> Self {
        let lane = || Waiting { items: VecDeque::new(), bytes: 0 };
        Self { lanes: [lane(), lane()], turn: 0 }
    }
}

impl<K: Batched> Lanes<K> {
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.items.is_empty())
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.lanes.iter().map(|lane| lane.items.len()).sum()
    }

    /// Puts an item into a lane.
    pub(super) fn push(
        &mut self,
        item: &Arc<Item<K>>,
        lane: Lane,
        place: Place,
    ) -> Result<(), Full> {
        let lane = &mut self.lanes[usize::from(lane == Lane::Objects)];
        let bytes = lane.bytes + item.cost.bytes;
        let is_full = lane.items.len() >= MOST_WAITING || bytes > MOST_BYTES_WAITING;
        // An item is never too large for an empty lane: a single call has no such bound. And who
        // came first had its place before the others.
        if is_full && place == Place::Back && !lane.items.is_empty() {
            return Err(Full(lane.items.len()));
        }
        lane.bytes = bytes;
        match place {
            Place::Front => lane.items.push_front(Arc::clone(item)),
            Place::Back => lane.items.push_back(Arc::clone(item)),
        }
        Ok(())
    }

    /// Who goes next.
    pub(super) fn first(&self) -> Option<&Arc<Item<K>>> {
        self.lanes[self.next_lane()].items.front()
    }

    /// Takes out who goes next; then it is the other lane's turn.
    pub(super) fn pop(&mut self) -> Option<Arc<Item<K>>> {
        let next = self.next_lane();
        let lane = &mut self.lanes[next];
        let item = lane.items.pop_front()?;
        lane.bytes -= item.cost.bytes;
        self.turn = 1 - next;
        Some(item)
    }

    fn next_lane(&self) -> usize {
        if self.lanes[self.turn].items.is_empty() { 1 - self.turn } else { self.turn }
    }
}
