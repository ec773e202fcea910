//! Work that blocks, such as a look at a file: done beside the async threads, and waited
//! for no longer than agreed.
//!
//! A file system that hangs (NFS whose server is gone) holds the thread that asked it, and
//! no one can take it back. So at most one thread a path waits, in the whole process:
//! whoever comes later waits for that one, or is told at once when it is overdue already.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

static PATHS: LazyLock<Mutex<HashMap<PathBuf, Arc<Turn>>>> = LazyLock::new(Mutex::default);

/// Whose turn it is at a path.
#[derive(Default)]
struct Turn {
    /// Held by whoever works there, until the work itself has ended.
    work: Arc<tokio::sync::Mutex<()>>,
    /// When the work that goes on must have been done.
    due: Mutex<Option<Instant>>,
}

/// Why there is no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoOutcome {
    /// The file system gave no answer in time.
    #[error("no answer from its file system within {} s", .0.as_secs())]
    Silent(Duration),
    /// An earlier ask has had none either, and is still out.
    #[error("its file system does not answer; an earlier ask still waits for it")]
    StillSilent,
    /// The work panicked.
    #[error("the attempt panicked; please report this bug")]
    Panicked,
}

/// Does `work`, which concerns the file at `path`, where it may block, and waits for it for
/// `patience` at most. What is not waited for any more goes on to its end.
///
/// # Errors
/// When there is no outcome, and why.
pub(crate) async fn at<T: Send + 'static>(
    path: &Path,
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NoOutcome> {
    let turn = turn_at(path);
    let until = Instant::now() + patience;
    let is_overdue = || turn.due().is_some_and(|due| due <= Instant::now());
    let guard = match Arc::clone(&turn.work).try_lock_owned() {
        Ok(guard) => guard,
        Err(_) if is_overdue() => return Err(NoOutcome::StillSilent),
        Err(_) => timeout_at(until, Arc::clone(&turn.work).lock_owned())
            .await
            .map_err(|_| NoOutcome::StillSilent)?,
    };
    turn.set_due(Some(until));
    let ended = Arc::clone(&turn);
    let working = tokio::task::spawn_blocking(move || {
        let outcome = work();
        ended.set_due(None);
        drop(guard);
        outcome
    });
    match timeout_at(until, working).await {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(_)) => Err(NoOutcome::Panicked),
        Err(_) => Err(NoOutcome::Silent(patience)),
    }
}

fn turn_at(path: &Path) -> Arc<Turn> {
    let mut paths = PATHS.lock().expect("no code panics while it holds this lock");
    if let Some(turn) = paths.get(path) {
        return Arc::clone(turn);
    }
    // Paths of configurations that are gone.
    paths.retain(|_, turn| Arc::strong_count(turn) > 1);
    Arc::clone(paths.entry(path.to_owned()).or_default())
}

// === impl Turn ===

impl Turn {
    fn due(&self) -> Option<Instant> {
        *self.due.lock().expect("no code panics while it holds this lock")
    }

    fn set_due(&self, due: Option<Instant>) {
        *self.due.lock().expect("no code panics while it holds this lock") = due;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_path_that_hangs_holds_one_thread_and_later_asks_are_told() {
        let path = Path::new("/no/such/file/hangs");
        let (release, hangs) = mpsc::channel::<()>();
        let begun = Arc::new(AtomicUsize::new(0));
        let short = Duration::from_millis(50);
        let count = Arc::clone(&begun);
        let first = at(path, short, move || {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = hangs.recv();
        });
        assert_eq!(first.await, Err(NoOutcome::Silent(short)));
        for _ in 0..20 {
            let count = Arc::clone(&begun);
            let later = at(path, PATIENCE, move || count.fetch_add(1, Ordering::SeqCst)).await;
            assert_eq!(later, Err(NoOutcome::StillSilent));
        }
        assert_eq!(begun.load(Ordering::SeqCst), 1, "asks pile up behind one that hangs");
        assert_eq!(at(Path::new("/no/such/file"), PATIENCE, || 7).await, Ok(7), "another path");

        drop(release);
        let end = Instant::now() + Duration::from_secs(20);
        while at(path, PATIENCE, || 7).await != Ok(7) {
            assert!(Instant::now() < end, "it never answers again");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn whoever_comes_while_one_is_asked_in_good_time_waits_for_its_turn() {
        let path = Path::new("/no/such/file/waits");
        let (release, waits) = mpsc::channel::<()>();
        let has_ended = Arc::new(AtomicUsize::new(0));
        let (ends, seen) = (Arc::clone(&has_ended), has_ended);
        let first = at(path, PATIENCE, move || {
            let _ = waits.recv();
            ends.store(1, Ordering::SeqCst);
        });
        let second = async {
            let mut second =
                std::pin::pin!(at(path, PATIENCE, move || seen.load(Ordering::SeqCst)));
            for _ in 0..20 {
                assert!(futures_util::poll!(&mut second).is_pending(), "it did not wait");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            drop(release);
            second.await
        };
        assert_eq!(tokio::join!(first, second), (Ok(()), Ok(1)));
    }

    #[tokio::test]
    async fn a_panic_frees_the_path() {
        let path = Path::new("/no/such/file/panics");
        let panicked = at(path, PATIENCE, || panic!("on purpose")).await;
        assert_eq!(panicked, Err::<(), _>(NoOutcome::Panicked));
        assert_eq!(at(path, PATIENCE, || 7).await, Ok(7));
    }
}
