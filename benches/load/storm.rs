//! What a control plane with KMS v1 asks when it starts: every object decrypted once, list by
//! list, each list one call after the other.

use std::time::Duration;

use lab::Result;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::side::{Failure, Side};

/// In so many pieces the sides take turns.
const PIECES: usize = 10;

/// What one side took for all objects.
pub(crate) struct Storm {
    pub(crate) wall: Duration,
    pub(crate) failed: u64,
    pub(crate) first_failure: Option<String>,
}

/// Lets each side decrypt `objects` by `listers`.
pub(crate) async fn decrypt_all(
    sides: &[Side],
    objects: usize,
    listers: usize,
) -> Result<Vec<Storm>> {
    let new = |_| Storm { wall: Duration::ZERO, failed: 0, first_failure: None };
    let mut all: Vec<_> = sides.iter().map(new).collect();
    for side in sides {
        let mut unmeasured = new(side);
        unmeasured.piece(side, 0..objects.min(listers * 20), listers).await?;
    }
    for piece in 0..PIECES {
        let range = objects * piece / PIECES..objects * (piece + 1) / PIECES;
        for (side, storm) in sides.iter().zip(&mut all) {
            storm.piece(side, range.clone(), listers).await?;
        }
    }
    Ok(all)
}

// === impl Storm ===

impl Storm {
    async fn piece(
        &mut self,
        side: &Side,
        objects: std::ops::Range<usize>,
        listers: usize,
    ) -> Result {
        let begin = Instant::now();
        let mut tasks = JoinSet::new();
        for lister in 0..listers {
            let (side, objects) = (side.clone(), objects.clone());
            tasks.spawn(async move {
                let mut failed = Vec::new();
                for number in objects.skip(lister).step_by(listers) {
                    match side.decrypt(number).await {
                        Ok(()) => {}
                        Err(Failure::Call(why)) => failed.push(why),
                        Err(wrong) => return Err(wrong),
                    }
                }
                Ok(failed)
            });
        }
        while let Some(ended) = tasks.join_next().await {
            for why in ended?.map_err(lab::Error::from)? {
                self.failed += 1;
                self.first_failure.get_or_insert(why);
            }
        }
        self.wall += begin.elapsed();
        Ok(())
    }
}
