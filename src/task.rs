//! Long-lived tasks: each has a name, one owner, and ends with it. A panic in one is a bug:
//! it is told and counted, and a task that can begin anew does so.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::telemetry::metrics::{self, Metric};

pub(crate) mod unbroken;

/// The wait before a task that panicked begins anew; it doubles while the panics go on.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest of these waits: a task that cannot live is tried once in a while, for what
/// breaks it may pass.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// A task that has lived for so long is well: its next panic counts as a first one.
const WELL: Duration = Duration::from_secs(300);

/// Owns a task. Dropping it ends the task at its next `await`.
#[derive(Debug)]
pub struct OwnedTask {
    name: &'static str,
    _cancel_on_drop: DropGuard,
    handle: tokio::task::JoinHandle<()>,
}

// === impl OwnedTask ===

impl OwnedTask {
    /// Starts `work`, which runs until it ends or its owner is dropped. When it panics it
    /// has ended.
    pub fn spawn<F>(name: &'static str, work: F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start(name, async move {
            if caught(work).await.is_err() {
                tell_panic(name, "it has ended, so restart the daemon");
            }
        })
    }

    /// Starts what `begin` makes, and starts it anew whenever it panics, after a pause that
    /// grows from panic to panic: for work that keeps nothing that a panic could leave half
    /// done.
    pub fn spawn_again<F, B>(name: &'static str, begin: B) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
        B: Fn() -> F + Send + 'static,
    {
        Self::start(name, async move {
            let mut pause = FIRST_PAUSE;
            loop {
                let began = Instant::now();
                if caught(begin()).await.is_ok() {
                    return;
                }
                if began.elapsed() >= WELL {
                    pause = FIRST_PAUSE;
                }
                tell_panic(name, "it begins anew");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        })
    }

    /// The same on a thread of its own: for work that may wait for a disk, or compute for
    /// long, between one `await` and the next. Nothing of that holds up the threads of the calls.
    pub fn spawn_apart<F>(name: &'static str, work: F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let work = async move {
            if caught(work).await.is_err() {
                tell_panic(name, "it has ended, so restart the daemon");
            }
        };
        let (token, work) = stoppable(work);
        let runtime = tokio::runtime::Handle::current();
        let handle = tokio::task::spawn_blocking(move || runtime.block_on(work));
        Self { name, _cancel_on_drop: token.drop_guard(), handle }
    }

    fn start<F>(name: &'static str, work: F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (token, work) = stoppable(work);
        Self { name, _cancel_on_drop: token.drop_guard(), handle: tokio::spawn(work) }
    }

    /// The name that log lines use.
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Whether the task has ended, for whatever reason.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

/// `work` that ends when the token is cancelled.
fn stoppable<F>(work: F) -> (CancellationToken, impl Future<Output = ()> + Send + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let token = CancellationToken::new();
    let stop = token.clone();
    let work = async move {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = work => {}
        }
    };
    (token, work)
}

/// Runs `work` to its end; `Err` when that is a panic. The panic hook has told of it then.
pub(crate) async fn caught<F: Future>(work: F) -> Result<F::Output, ()> {
    // What the work held is dropped with it; what it shares is behind locks and channels
    // that a panic leaves sound.
    AssertUnwindSafe(work).catch_unwind().await.map_err(|_| ())
}

/// Tells and counts that `task` panicked, and what comes of it.
pub(crate) fn tell_panic(task: &'static str, so: &'static str) {
    metrics::add(Metric::Panics, 1, &[]);
    tracing::error!(task, "A task panicked; {so}. Please report this bug.");
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_begins_anew() {
        let begun = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&begun);
        let task = OwnedTask::spawn_again("test", move || {
            let counter = Arc::clone(&counter);
            async move { assert!(counter.fetch_add(1, Ordering::SeqCst) > 1, "on purpose") }
        });
        let end = tokio::time::Instant::now() + Duration::from_secs(10);
        while !task.is_finished() {
            assert!(tokio::time::Instant::now() < end, "it goes on");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(begun.load(Ordering::SeqCst), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_cannot_live_begins_anew_more_and_more_seldom() {
        let begun = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (seen, start) = (Arc::clone(&begun), Instant::now());
        let _task = OwnedTask::spawn_again("test", move || {
            let seen = Arc::clone(&seen);
            async move {
                let at = start.elapsed().as_secs();
                seen.lock().unwrap().push(at);
                if at > 300 {
                    tokio::time::sleep(WELL).await; // well for a while
                }
                panic!("on purpose");
            }
        });
        tokio::time::sleep(Duration::from_secs(650)).await;
        let begun = begun.lock().unwrap().clone();
        assert_eq!(begun, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303, 604]);
    }

    #[tokio::test]
    async fn the_task_ends_with_its_owner() {
        let (held, mut seen) = tokio::sync::mpsc::channel::<()>(1);
        let task = OwnedTask::spawn("test", async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        assert!(!task.is_finished());
        drop(task);
        assert_eq!(seen.recv().await, None);
    }

    #[tokio::test]
    async fn a_task_apart_holds_up_no_other_while_it_blocks() {
        let (go, may_go) = std::sync::mpsc::channel();
        let (held, mut seen) = tokio::sync::mpsc::channel::<()>(1);
        let task = OwnedTask::spawn_apart("test", async move {
            // On the thread of this test, nobody would ever send.
            may_go.recv_timeout(Duration::from_secs(60)).unwrap();
            std::future::pending::<()>().await;
            drop(held);
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        go.send(()).unwrap();
        assert!(!task.is_finished());
        drop(task);
        assert_eq!(seen.recv().await, None);
    }
}
