//! Steps of which the second must follow the first, whatever becomes of who began them: an
//! answer that Vault gives once has to reach its file. They run in tasks that nobody
//! cancels, and the process ends only when they have.

use std::sync::LazyLock;

use tokio::sync::watch;

static PROCESS: LazyLock<Unbroken> = LazyLock::new(Unbroken::default);

/// Counts what must not be broken off.
#[derive(Clone, Default)]
struct Unbroken(watch::Sender<Count>);

#[derive(Default)]
struct Count {
    running: usize,
    is_stopping: bool,
}

/// While it lives, [`stop`] waits.
pub(crate) struct Guard(Unbroken);

/// Says that something begins that must not be broken off; it lasts as long as the guard and
/// needs deadlines of its own. `None` when the process is about to end: it must not begin.
pub(crate) fn begin() -> Option<Guard> {
    PROCESS.begin()
}

/// Lets nothing more begin, and waits for what runs.
pub(crate) async fn stop() {
    PROCESS.stop().await;
}

/// Whether something runs that must not be broken off.
pub(crate) fn is_running() -> bool {
    PROCESS.0.borrow().running > 0
}

// === impl Unbroken ===

impl Unbroken {
    fn begin(&self) -> Option<Guard> {
        let may_begin = self.0.send_if_modified(|count| {
            count.running += usize::from(!count.is_stopping);
            !count.is_stopping
        });
        may_begin.then(|| Guard(self.clone()))
    }

    async fn stop(&self) {
        self.0.send_modify(|count| count.is_stopping = true);
        // An error would mean that the sender is gone, which is `self`.
        let _ = self.0.subscribe().wait_for(|count| count.running == 0).await;
    }
}

// === impl Guard ===

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| count.running -= 1);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn the_end_waits_for_what_runs_and_lets_nothing_more_begin() {
        let unbroken = Unbroken::default();
        let guards = [unbroken.begin().unwrap(), unbroken.begin().unwrap()];
        let mut stop = std::pin::pin!(unbroken.stop());
        for guard in guards {
            assert!(stop.as_mut().now_or_never().is_none());
            assert!(unbroken.begin().is_none());
            drop(guard);
        }
        assert!(stop.now_or_never().is_some());
    }
}
