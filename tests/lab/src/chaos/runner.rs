//! Plays a row.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::outcome::Times;
use super::{CALLERS, DEADLINE, Ground, KEY, Outcome, RecoveryFrom, Row, Spans, Stage};
use crate::{Callers, Context, Result, eventually};

/// How long nodes may take to come back, and the daemon to notice.
const RETURN: Duration = Duration::from_secs(60);

/// How long one that comes back may take to answer.
const ONE_TRY: Duration = Duration::from_millis(500);

/// Plays a row: calls, the fault, its undoing, and calls after it.
///
/// # Errors
/// When the lab could not do what the row says. What the daemon did stands in the outcome.
pub async fn run(row: &Row, ground: &Arc<Ground>, spans: Spans) -> Result<Outcome> {
    let stage = Box::pin(Stage::set(row, ground, spans)).await.context(row.name)?;
    (row.ready)(&stage).await.context(row.name)?;
    let callers = Callers::start(&stage.daemon()?.kms().timeout(DEADLINE), CALLERS, &[]);
    let before = stage.wire().await?;
    sleep(spans.before).await;

    let played = play(row, &stage).await;
    if let Ok((.., back)) = &played {
        sleep(spans.after).await;
        // In vain when none is, and that stands in the outcome then.
        let _ = callers.answered_since(*back, RETURN).await;
    }
    let end = Instant::now();
    let seen = callers.finish().await;
    let (fault, undo, back) = played.context(row.name)?;
    (row.verify)(&stage).await.context(row.name)?;
    let wire = stage.wire().await?;
    let times = Times { fault, undo, back, end };
    let per_call = wire.per_call(&before);
    let met = wire.has_met(row, &before);
    Ok(Outcome::new(row, seen, times, per_call, met, stage.all_addresses()))
}

/// Does it and undoes it; when it was done, when it was undone, when a node answered again.
async fn play(row: &Row, stage: &Stage) -> Result<(Instant, Instant, Instant)> {
    let fault = Instant::now();
    let acted = (row.act)(stage).await;
    let hold = async {
        if acted.is_ok() {
            sleep_until(fault + stage.spans().fault).await;
        }
        // What was done must not outlive the row, even when it was done by half.
        let undo = Instant::now();
        (row.undo)(stage).await.map(|()| undo)
    };
    let (undone, back) = if row.recovery == RecoveryFrom::Return {
        tokio::join!(hold, first_answer(stage))
    } else {
        (hold.await, Ok(fault))
    };
    acted?;
    Ok((fault, undone?, back?))
}

/// When the first node answers Transit again, asked directly, and not by the daemon.
async fn first_answer(stage: &Stage) -> Result<Instant> {
    let admins = stage.admins();
    eventually("a node answers again", RETURN, || async {
        for admin in &admins {
            let asked = timeout(ONE_TRY, admin.encrypt(KEY, b"is anybody there?")).await;
            if matches!(asked, Ok(Ok(_))) {
                return Ok(Some(Instant::now()));
            }
        }
        Ok(None)
    })
    .await
}
