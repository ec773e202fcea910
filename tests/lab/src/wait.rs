//! Waiting for a condition, with a deadline. Nothing in the lab sleeps for luck.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{Error, Result};

const PAUSE: Duration = Duration::from_millis(20);

/// Asks `poll` again and again until it answers `Some`, for at most `within`.
///
/// An `Err` counts as "not yet"; the last one is quoted when the time is up.
pub async fn eventually<T, F, Fut>(what: &str, within: Duration, mut poll: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let deadline = Instant::now() + within;
    let mut last = "; the first try never ended".to_owned();
    loop {
        match tokio::time::timeout_at(deadline, poll()).await {
            Ok(Ok(Some(value))) => return Ok(value),
            Ok(Ok(None)) => last.clear(),
            Ok(Err(error)) => last = format!("; the last error: {error}"),
            Err(_elapsed) => {}
        }
        if Instant::now() >= deadline {
            return Err(Error::new(format!("{what}: not so within {within:?}{last}")));
        }
        sleep(PAUSE).await;
    }
}
