//! A value that one task publishes and many calls wait on, woken in the order of their
//! arrival.
//!
//! `tokio::sync::watch` spreads those who wait over eight lists and wakes them list by
//! list, at random: after an outage a call that has waited for a token for 2 s would come
//! behind one that has just begun.

use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

/// A value for the one who publishes it. Dropping it tells those who wait that no further
/// one comes.
pub(super) struct Publisher<T>(Arc<Shared<T>>);

/// The same value for those who read it and wait on it.
pub(super) struct Board<T>(Arc<Shared<T>>);

/// Whoever published is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Abandoned;

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Notify,
}

struct State<T> {
    value: T,
    is_abandoned: bool,
}

/// A value, and its two sides.
pub(super) fn board<T>(value: T) -> (Publisher<T>, Board<T>) {
    let state = Mutex::new(State { value, is_abandoned: false });
    let shared = Arc::new(Shared { state, changed: Notify::new() });
    (Publisher(Arc::clone(&shared)), Board(shared))
}

// === impl Publisher ===

impl<T> Publisher<T> {
    /// Changes the value, and wakes everybody who waits.
    pub(super) fn modify(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.0.lock().value);
        self.0.changed.notify_waiters();
    }

    /// What `look` finds in the value.
    pub(super) fn read<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.0.lock().value)
    }
}

impl<T> Drop for Publisher<T> {
    fn drop(&mut self) {
        self.0.lock().is_abandoned = true;
        self.0.changed.notify_waiters();
    }
}

// === impl Board ===

impl<T> Board<T> {
    /// What `look` finds in the value.
    pub(super) fn read<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.0.lock().value)
    }

    /// Whether no further value comes.
    pub(super) fn is_abandoned(&self) -> bool {
        self.0.lock().is_abandoned
    }

    /// Waits until `pick` finds something in the value.
    pub(super) async fn wait_for<R>(&self, pick: impl Fn(&T) -> Option<R>) -> Result<R, Abandoned> {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable(); // before the look, so that no change slips between
            {
                let state = self.0.lock();
                if let Some(picked) = pick(&state.value) {
                    return Ok(picked);
                }
                if state.is_abandoned {
                    return Err(Abandoned);
                }
            }
            changed.await;
        }
    }
}

// === impl Shared ===

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("no code panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_has_waited_longest_is_woken_first() {
        let (publisher, board) = board(0);
        let (board, woken) = (Arc::new(board), Arc::new(Mutex::new(Vec::new())));
        let mut waiting = tokio::task::JoinSet::new();
        for number in 0..20 {
            let (board, woken) = (Arc::clone(&board), Arc::clone(&woken));
            waiting.spawn(async move {
                board.wait_for(|value| (*value > 0).then_some(())).await.unwrap();
                woken.lock().unwrap().push(number);
            });
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        publisher.modify(|value| *value = 1);
        waiting.join_all().await;
        assert_eq!(*woken.lock().unwrap(), (0..20).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_a_publisher_that_is_gone() {
        let (publisher, board) = board(0);
        let (waited, ()) = tokio::join!(board.wait_for(|_| None::<()>), async {
            tokio::task::yield_now().await;
            drop(publisher);
        });
        assert_eq!((waited, board.is_abandoned()), (Err(Abandoned), true));
    }
}
