//! Reads everything once, at one revision of the store.

use std::num::NonZeroU32;
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::time::Instant;

use super::tally::Tally;
use crate::etcd::{Etcd, EtcdError, Page, Range, Revision};

/// How many objects a page has at first, and at most.
const FIRST_LIMIT: u32 = 500;
const MAX_LIMIT: u32 = 1_000;

/// About how many bytes a page should have: the limit follows from the size of the objects
/// that were seen.
const PAGE_BYTES: u64 = 4 << 20;

/// How often it begins again when etcd has dropped the revision that it reads at.
const MAX_RESTARTS: u32 = 3;

/// What to read, and how fast.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// What all keys begin with.
    pub(super) root: String,
    /// The folders to read.
    pub(super) folders: Vec<String>,
    /// How many objects a second at most.
    pub(super) rate: Option<NonZeroU32>,
}

/// What was read.
#[derive(Debug)]
pub(super) struct Sweep {
    /// What was counted.
    pub(super) tally: Tally,
    /// As it was then.
    pub(super) revision: Revision,
    /// How often it had to begin again.
    pub(super) restarts: u32,
    /// Folders in which there is nothing.
    pub(super) empty: Vec<String>,
    /// How long it took.
    pub(super) took: Duration,
}

/// Why there is no count.
#[derive(Debug, thiserror::Error)]
pub(super) enum SweepError {
    /// etcd could not be read.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// It took too long for the history that etcd keeps.
    #[error(
        "etcd compacted its history away {0} times while it was read; let it go faster (--rate), \
         or count in parts (--resource)"
    )]
    TooSlow(u32),
    /// One value alone is too large.
    #[error("what is stored under the first key after {0:?} is too large to be read")]
    TooLarge(String),
    /// It cannot be read as it was at one moment.
    #[error("etcd does not say at which revision it answers: is there something between?")]
    NoRevision,
    /// A page is not the one that was asked for.
    #[error("etcd gave {0:?} where it has no place: the objects cannot be counted")]
    OutOfPlace(String),
    /// etcd contradicts itself.
    #[error("etcd said that there are {expected} objects and gave {found}; count again")]
    Incomplete {
        /// How many there should be.
        expected: u64,
        /// How many there were.
        found: u64,
    },
}

/// Where pages come from.
pub(super) trait Pages {
    /// Reads one.
    async fn page(&mut self, range: Range<'_>) -> Result<Page, EtcdError>;
}

impl Pages for Etcd {
    async fn page(&mut self, range: Range<'_>) -> Result<Page, EtcdError> {
        self.range(range).await
    }
}

/// Reads and counts everything that `plan` names. At most one page is held at a time.
///
/// # Errors
/// Why there is no count; there is never half of one.
pub(super) async fn sweep(
    pages: &mut impl Pages,
    plan: &Plan,
    progress: &ProgressBar,
) -> Result<Sweep, SweepError> {
    let start = Instant::now();
    for restarts in 0..=MAX_RESTARTS {
        progress.reset();
        progress.set_length(0);
        let mut pass = Pass { plan, progress, begun: Instant::now(), limit: FIRST_LIMIT };
        match pass.run(pages).await {
            Err(SweepError::Etcd(EtcdError::Compacted(_))) => {}
            Err(error) => return Err(error),
            Ok((tally, revision, empty)) => {
                let took = start.elapsed();
                return Ok(Sweep { tally, revision, restarts, empty, took });
            }
        }
    }
    Err(SweepError::TooSlow(MAX_RESTARTS + 1))
}

struct Pass<'a> {
    plan: &'a Plan,
    progress: &'a ProgressBar,
    begun: Instant,
    limit: u32,
}

// === impl Pass ===

impl Pass<'_> {
    async fn run(
        &mut self,
        pages: &mut impl Pages,
    ) -> Result<(Tally, Revision, Vec<String>), SweepError> {
        let mut tally = Tally::default();
        let mut revision = None;
        let mut empty = Vec::new();
        let mut expected = 0;
        for folder in &self.plan.folders {
            let before = expected;
            let mut from: Option<Vec<u8>> = None;
            loop {
                let range = Range {
                    prefix: folder.as_bytes(),
                    from: from.as_deref(),
                    limit: self.limit,
                    revision,
                };
                let page = match pages.page(range).await {
                    Err(EtcdError::TooLarge { .. }) => {
                        self.less(folder, from.as_deref())?;
                        continue;
                    }
                    other => other?,
                };
                if page.revision <= Revision(0) {
                    return Err(SweepError::NoRevision);
                }
                revision.get_or_insert(page.revision);
                if from.is_none() {
                    expected += page.count;
                    self.progress.inc_length(page.count);
                }
                let mut bytes = 0;
                // One that stands twice would make up for one that is missing.
                let mut above = from.as_deref().unwrap_or(folder.as_bytes()).to_vec();
                for entry in &page.entries {
                    if !entry.key.starts_with(folder.as_bytes()) || *entry.key < *above {
                        return Err(SweepError::OutOfPlace(entry.name()));
                    }
                    above.clear();
                    above.extend_from_slice(&entry.key);
                    above.push(0);
                    tally.add(&entry.key, &entry.value, &self.plan.root);
                    bytes += entry.value.len() as u64;
                }
                self.fit(page.entries.len() as u64, bytes);
                self.progress.set_position(tally.total());
                // The lowest key that comes after the last one.
                from = page.entries.last().map(|last| [&last.key[..], b"\0"].concat());
                let more = page.more;
                drop(page);
                self.pace(tally.total()).await;
                if !more || from.is_none() {
                    break;
                }
            }
            if expected == before {
                empty.push(folder.clone());
            }
        }
        let found = tally.total();
        if found != expected {
            return Err(SweepError::Incomplete { expected, found });
        }
        Ok((tally, revision.unwrap_or(Revision(0)), empty))
    }

    /// Chooses how many objects the next page has.
    fn fit(&mut self, objects: u64, bytes: u64) {
        let average = bytes / objects.max(1);
        let fitting = PAGE_BYTES / average.max(1);
        self.limit = u32::try_from(fitting).unwrap_or(u32::MAX).clamp(1, MAX_LIMIT);
    }

    fn less(&mut self, folder: &str, from: Option<&[u8]>) -> Result<(), SweepError> {
        if self.limit == 1 {
            let from = from.unwrap_or(folder.as_bytes());
            let name = String::from_utf8_lossy(from).trim_end_matches('\0').to_owned();
            return Err(SweepError::TooLarge(name));
        }
        self.limit /= 4;
        self.limit = self.limit.max(1);
        Ok(())
    }

    /// Waits until so many objects may have been read.
    async fn pace(&self, objects: u64) {
        if let Some(rate) = self.plan.rate {
            let due = objects as f64 / f64::from(rate.get());
            tokio::time::sleep_until(self.begun + Duration::from_secs_f64(due)).await;
        }
    }
}

#[cfg(test)]
mod tests;
