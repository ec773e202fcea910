//! Who stands in the line, and in what order it is left.

use super::*;
use crate::cluster::pool::parking::MOST_PARKED;

/// A cluster whose name is not resolved yet.
struct Nowhere;

impl View for Nowhere {
    fn seen(&self) -> Vec<Seen> {
        Vec::new()
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        std::future::pending().boxed()
    }
}

fn nowhere() -> Parking {
    let cluster = ClusterName::try_new("test").unwrap();
    Parking::new(cluster, Arc::new(Jitter::off()), Arc::new(Nowhere))
}

#[tokio::test(start_paused = true)]
async fn a_call_waits_for_the_first_address() {
    let parking = nowhere();
    let began = Instant::now();
    let attempt = Attempt { call: call_of(Verb::Decrypt, ms(500)), ..attempt() };
    assert!(parking.turn(&attempt).await.is_none());
    assert_eq!(began.elapsed(), ms(500));
}

#[tokio::test(start_paused = true)]
async fn a_line_that_is_full_takes_nobody_else() {
    let parking = nowhere();
    let attempt = Attempt { call: call_of(Verb::Decrypt, ms(500)), ..attempt() };
    let turns = (0..MOST_PARKED).map(|_| Box::pin(parking.turn(&attempt)));
    let mut waiting: Vec<_> = turns.collect();
    for turn in &mut waiting {
        assert!(futures_util::poll!(turn).is_pending());
    }
    let began = Instant::now();
    assert!(parking.turn(&attempt).await.is_none());
    assert_eq!(began.elapsed(), Duration::ZERO);
    waiting.pop();
    assert!(futures_util::poll!(Box::pin(parking.turn(&attempt))).is_pending());
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_while_others_wait_stands_behind_them() {
    let began = Instant::now();
    let (scripted, _) = away_until(began + ms(1_000), 1, |_| Does::Refuses);
    let at = |at: Instant| {
        let stack = scripted.stack.clone();
        async move {
            tokio::time::sleep_until(at).await;
            stack.call(call()).await.unwrap();
            (at, Instant::now())
        }
    };
    let line = join_all((0..100).map(|_| at(began)));
    let newcomers = join_all((1_000..2_500).map(|n| at(began + ms(n))));
    let (line, newcomers) = tokio::join!(line, newcomers);
    let ends = || line.iter().map(|(_, end)| *end);
    let (first, last) = (ends().min().unwrap(), ends().max().unwrap());
    // Those that came earlier may have been the scout.
    let meanwhile = |(at, _): &&(Instant, Instant)| *at > first && *at < last - ms(10);
    let meanwhile: Vec<_> = newcomers.iter().filter(meanwhile).collect();
    assert!(!meanwhile.is_empty(), "the line was left within {:?}", last - first);
    let overtook = meanwhile.iter().filter(|(_, end)| *end < last).count();
    assert_eq!(overtook, 0, "of {}", meanwhile.len());
}
