use bytes::Bytes;

use super::*;
use crate::etcd::Entry;

/// So many objects of one size, and answers with an error for each page number named.
struct Store {
    objects: u64,
    size: usize,
    pages: u32,
    compacted_at: Vec<u32>,
    asked: Vec<(u32, Option<Revision>)>,
    claims_more: u64,
    /// The first entry of the pages after the first is the last one of the page before.
    repeats: bool,
    knows_no_revision: bool,
}

impl Store {
    fn new(objects: u64, size: usize) -> Self {
        let (pages, compacted_at, asked) = (0, Vec::new(), Vec::new());
        Self {
            objects,
            size,
            pages,
            compacted_at,
            asked,
            claims_more: 0,
            repeats: false,
            knows_no_revision: false,
        }
    }
}

impl Pages for Store {
    async fn page(&mut self, range: Range<'_>) -> Result<Page, EtcdError> {
        let number = self.pages;
        self.pages += 1;
        self.asked.push((range.limit, range.revision));
        if self.compacted_at.contains(&number) {
            return Err(EtcdError::Compacted(range.revision.unwrap()));
        }
        if range.limit as usize * self.size > 32 << 20 {
            return Err(EtcdError::TooLarge { limit: range.limit });
        }
        let key = |n: u64| format!("/registry/secrets/a/{n:08}");
        let begins = |n: &u64| range.from.is_none_or(|from| key(*n).as_bytes() >= from);
        let from = (0..self.objects).find(begins).unwrap_or(self.objects);
        let from = if self.repeats { from.saturating_sub(1) } else { from };
        let to = self.objects.min(from + u64::from(range.limit));
        let entries = (from..to).map(|n| Entry {
            key: key(n).into(),
            value: Bytes::from(vec![b'x'; self.size]),
            changed: Revision(1),
        });
        Ok(Page {
            entries: entries.collect(),
            more: to < self.objects,
            count: self.objects - from + self.claims_more,
            revision: Revision(if self.knows_no_revision { 0 } else { 100 + i64::from(number) }),
        })
    }
}

fn plan(rate: u32) -> Plan {
    Plan {
        root: "/registry/".into(),
        folders: vec!["/registry/secrets/".into()],
        rate: NonZeroU32::new(rate),
    }
}

async fn swept(store: &mut Store, rate: u32) -> Result<Sweep, SweepError> {
    sweep(store, &plan(rate), &ProgressBar::hidden()).await
}

#[tokio::test(start_paused = true)]
async fn every_object_is_counted_once_at_one_revision() {
    let mut store = Store::new(2_501, 100);
    let swept = swept(&mut store, 0).await.unwrap();
    assert_eq!((swept.tally.total(), swept.revision), (2_501, Revision(100)));
    let later: Vec<_> = store.asked[1..].iter().map(|(_, at)| *at).collect();
    assert_eq!(store.asked[0].1, None);
    assert!(!later.is_empty() && later.iter().all(|at| *at == Some(Revision(100))), "{later:?}");
}

#[tokio::test(start_paused = true)]
async fn a_compaction_begins_it_again_and_the_fourth_ends_it() {
    let mut store = Store::new(2_501, 100);
    store.compacted_at = vec![2, 4];
    let sweep = swept(&mut store, 0).await.unwrap();
    assert_eq!((sweep.tally.total(), sweep.restarts), (2_501, 2));
    assert_eq!(sweep.revision, Revision(105));

    let mut store = Store::new(2_501, 100);
    store.compacted_at = vec![1, 3, 5, 7];
    let error = swept(&mut store, 0).await.unwrap_err();
    assert!(matches!(error, SweepError::TooSlow(4)), "{error}");
    assert_eq!(store.pages, 8);
}

#[tokio::test(start_paused = true)]
async fn pages_shrink_until_large_objects_fit() {
    let mut store = Store::new(100, 1 << 20);
    let swept = swept(&mut store, 0).await.unwrap();
    assert_eq!(swept.tally.total(), 100);
    let limits: Vec<_> = store.asked.iter().map(|(limit, _)| *limit).collect();
    assert_eq!(limits[..4], [500, 125, 31, 4]);

    let mut store = Store::new(1, 40 << 20);
    let error = self::swept(&mut store, 0).await.unwrap_err();
    assert!(matches!(&error, SweepError::TooLarge(at) if at == "/registry/secrets/"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn no_more_objects_are_read_in_a_second_than_the_rate_allows() {
    let start = Instant::now();
    swept(&mut Store::new(10_000, 100), 1_000).await.unwrap();
    assert_eq!(start.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_gives_fewer_objects_than_it_counts_is_not_believed() {
    let mut store = Store::new(10, 100);
    store.claims_more = 1;
    let error = swept(&mut store, 0).await.unwrap_err().to_string();
    assert!(error.contains("there are 11 objects and gave 10"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_empty_folder_is_told() {
    let swept = swept(&mut Store::new(0, 100), 0).await.unwrap();
    assert_eq!((swept.tally.total(), swept.empty), (0, vec!["/registry/secrets/".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn an_object_that_comes_twice_does_not_make_up_for_one_that_is_missing() {
    let mut store = Store::new(2_501, 100);
    store.repeats = true;
    let error = swept(&mut store, 0).await.unwrap_err();
    assert!(matches!(&error, SweepError::OutOfPlace(at) if at.ends_with("/00000499")), "{error}");
}

#[tokio::test(start_paused = true)]
async fn pages_that_are_not_of_one_revision_are_not_counted() {
    let mut store = Store::new(2_501, 100);
    store.knows_no_revision = true;
    let error = swept(&mut store, 0).await.unwrap_err();
    assert!(matches!(error, SweepError::NoRevision), "{error}");
}
