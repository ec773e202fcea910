//! Vault's wall clock, kept as an offset to monotonic time.
//!
//! Each node has a clock of its own, and one of them may be wrong. The time that counts is
//! the active node's: it is the one that stamps key versions. But where three nodes or more
//! are known and the active one is far from what most of them say, the middle one counts,
//! so that one wrong clock moves nothing. While it is not known which node is active, the
//! middle one counts too; of two, the one that was heard first.
//!
//! A node says whole seconds, cut off, and says them a while before they are heard. So each
//! answer bounds its clock from both sides, and the estimate moves no further than the
//! bounds push it: it gets exact to a few milliseconds, from below, and never trembles.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::UnixSeconds;

/// A clock that is this far from most others is taken for wrong. Nodes without NTP drift
/// apart by a second in days; a wrong clock is off by minutes or by a time zone.
const WRONG_MS: i64 = 10_000;

/// A clock that is this far from its estimate was set; less is drift or a busy network.
const SET_MS: i64 = 1_000;

/// For this long after a node told its own time, a `Date` far from that is not its.
const OWN_WORD: Duration = Duration::from_secs(120);

/// As many nodes are remembered as a cluster can have addresses.
const MAX_NODES: usize = 64;

/// Vault's wall clock, learnt from its answers.
#[derive(Debug, Default)]
pub struct VaultClock {
    known: Mutex<Known>,
}

/// What an answer says about the clock of the node that gave it.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// The node's address.
    pub node: &'a str,
    /// Its time, cut to the second.
    pub time: UnixSeconds,
    /// How long ago the request for it was sent.
    pub took: Duration,
    /// Where in the answer it stood.
    pub source: TimeSource,
}

/// Where in an answer a time stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeSource {
    /// `Date`, which a proxy before the node may have written; of a call, which may have
    /// taken several requests.
    Date,
    /// `server_time_utc` of `sys/health`: the node's own word, by one request.
    Health,
}

#[derive(Debug, Default)]
struct Known {
    /// In the order in which they were first heard.
    nodes: Vec<Node>,
    active: Option<String>,
}

#[derive(Debug)]
struct Node {
    name: String,
    at: Instant,
    /// Milliseconds since 1970 at that instant.
    millis: i64,
    heard: Instant,
    own_word: Option<Instant>,
}

// === impl VaultClock ===

impl VaultClock {
    /// Takes in what an answer says about a node's clock.
    pub fn learn(&self, told: Told<'_>) {
        self.lock().learn(told, Instant::now());
    }

    /// Takes `node` for the active one until another is named.
    pub fn follow(&self, node: &str) {
        let mut known = self.lock();
        if known.active.as_deref() != Some(node) {
            known.active = Some(node.to_owned());
        }
    }

    /// Vault's time now, or `None` while no answer has told it.
    pub fn now(&self) -> Option<UnixSeconds> {
        let millis = self.lock().now(Instant::now())?;
        Some(UnixSeconds(millis.div_euclid(1_000)))
    }

    /// By how many seconds the clock of `node` is wrong (negative: slow), when it is.
    pub fn wrong_by(&self, node: &str) -> Option<i64> {
        let (known, at) = (self.lock(), Instant::now());
        let off = known.node(node)?.at(at) - known.now(at)?;
        (off.abs() > WRONG_MS).then_some(off / 1_000)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().expect("no code panics while it holds this lock")
    }
}

// === impl Known ===

impl Known {
    fn learn(&mut self, told: Told<'_>, now: Instant) {
        let Told { node: name, time, took, source } = told;
        let took = i64::try_from(took.as_millis()).unwrap_or(i64::MAX / 4);
        let said = time.0.saturating_mul(1_000);
        // The node looked at its clock between the request's departure and now.
        let at_least = match source {
            TimeSource::Date => said,
            TimeSource::Health => said.saturating_add(took / 2),
        };
        let at_most = said.saturating_add(999).saturating_add(took);
        let own_word = (source == TimeSource::Health).then_some(now);
        let Some(node) = self.nodes.iter_mut().find(|node| node.name == name) else {
            self.make_room();
            let name = name.to_owned();
            self.nodes.push(Node { name, at: now, millis: at_least, heard: now, own_word });
            return;
        };
        let believed = node.at(now);
        let nearest = believed.max(at_least).min(at_most);
        let is_far = (believed - nearest).abs() > SET_MS;
        let is_its_own = node.own_word.is_none_or(|at| now - at > OWN_WORD) || own_word.is_some();
        if is_far && !is_its_own {
            return;
        }
        node.heard = now;
        node.own_word = own_word.or(node.own_word);
        if nearest != believed {
            node.at = now;
            node.millis = if is_far { at_least } else { nearest };
        }
    }

    fn make_room(&mut self) {
        if self.nodes.len() < MAX_NODES {
            return;
        }
        let silent = self.nodes.iter().enumerate().min_by_key(|(_, node)| node.heard);
        if let Some((place, _)) = silent {
            self.nodes.remove(place);
        }
    }

    fn now(&self, at: Instant) -> Option<i64> {
        let active = self.active.as_deref().and_then(|name| self.node(name)).map(|n| n.at(at));
        let Some(middle) = self.middle(at) else {
            return active.or_else(|| self.nodes.first().map(|node| node.at(at)));
        };
        Some(active.filter(|active| (active - middle).abs() <= WRONG_MS).unwrap_or(middle))
    }

    /// What the middle one of three nodes or more says.
    fn middle(&self, at: Instant) -> Option<i64> {
        let mut times: Vec<_> = self.nodes.iter().map(|node| node.at(at)).collect();
        times.sort_unstable();
        (times.len() > 2).then(|| times[(times.len() - 1) / 2])
    }

    fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }
}

// === impl Node ===

impl Node {
    fn at(&self, now: Instant) -> i64 {
        let passed = now.saturating_duration_since(self.at).as_millis();
        self.millis.saturating_add(i64::try_from(passed).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn told(node: &str, time: i64, took: u64, source: TimeSource) -> Told<'_> {
        Told { node, time: UnixSeconds(time), took: ms(took), source }
    }

    fn health(clock: &VaultClock, node: &str, time: i64) {
        clock.learn(told(node, time, 0, TimeSource::Health));
    }

    fn now(clock: &VaultClock) -> i64 {
        clock.now().unwrap().0
    }

    #[tokio::test(start_paused = true)]
    async fn it_goes_on_by_monotonic_time() {
        let clock = VaultClock::default();
        assert_eq!(clock.now(), None);
        health(&clock, "a", 1_000);
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!(now(&clock), 1_090);
    }

    #[tokio::test(start_paused = true)]
    async fn half_the_way_there_and_back_is_added_to_a_nodes_own_word() {
        let clock = VaultClock::default();
        clock.learn(told("a", 1_000, 1_800, TimeSource::Health));
        tokio::time::advance(ms(99)).await;
        assert_eq!(now(&clock), 1_000);
        tokio::time::advance(ms(1)).await;
        assert_eq!(now(&clock), 1_001);
    }

    #[tokio::test(start_paused = true)]
    async fn seconds_that_were_cut_off_come_back_with_more_answers() {
        let clock = VaultClock::default();
        health(&clock, "a", 1_000); // it was 1000.9 there
        tokio::time::advance(ms(100)).await;
        health(&clock, "a", 1_001);
        for (after, expected) in [(0, 1_001), (999, 1_001), (1, 1_002)] {
            tokio::time::advance(ms(after)).await;
            assert_eq!(now(&clock), expected);
        }
        // An answer that was long on its way is no reason to go back.
        clock.learn(told("a", 1_000, 1_500, TimeSource::Date));
        assert_eq!(now(&clock), 1_002);
        // The node drifts behind by a little: the estimate follows by no more than that.
        health(&clock, "a", 1_001);
        tokio::time::advance(ms(1)).await;
        assert_eq!(now(&clock), 1_002);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_was_set_is_believed() {
        let clock = VaultClock::default();
        for time in [1_000, 5_000, 2_000] {
            health(&clock, "a", time);
            assert_eq!(now(&clock), time);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_wrong_clock_moves_nothing_whichever_node_it_is() {
        for wrong in ["a", "b", "c"] {
            for off in [-600, 600] {
                let clock = VaultClock::default();
                for node in ["a", "b", "c"] {
                    health(&clock, node, if node == wrong { 1_000 + off } else { 1_000 });
                }
                assert_eq!(now(&clock), 1_000, "{wrong}, nobody is active");
                for active in ["a", "b", "c"] {
                    clock.follow(active);
                    assert_eq!(now(&clock), 1_000, "{wrong}, {active} is active");
                }
                assert_eq!(clock.wrong_by(wrong), Some(off));
                assert_eq!(["a", "b", "c"].map(|n| clock.wrong_by(n)).iter().flatten().count(), 1);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_active_nodes_time_counts_among_those_that_agree() {
        let clock = VaultClock::default();
        for (node, time) in [("a", 1_000), ("b", 1_003), ("c", 1_006)] {
            health(&clock, node, time);
        }
        assert_eq!(now(&clock), 1_003);
        for (active, expected) in [("c", 1_006), ("a", 1_000), ("unheard", 1_003)] {
            clock.follow(active);
            assert_eq!(now(&clock), expected, "{active}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_nodes_the_active_one_counts_and_else_the_first() {
        let clock = VaultClock::default();
        health(&clock, "a", 1_000);
        health(&clock, "b", 1_600);
        assert_eq!(now(&clock), 1_000);
        clock.follow("b");
        assert_eq!(now(&clock), 1_600);
        health(&clock, "a", 1_000);
        assert_eq!(now(&clock), 1_600);
    }

    #[tokio::test(start_paused = true)]
    async fn a_date_that_a_proxy_wrote_does_not_replace_the_nodes_own_word() {
        let clock = VaultClock::default();
        clock.learn(told("a", 9_000, 0, TimeSource::Date));
        assert_eq!(now(&clock), 9_000);
        health(&clock, "a", 1_000);
        clock.learn(told("a", 9_000, 0, TimeSource::Date));
        assert_eq!(now(&clock), 1_000);
        clock.learn(told("a", 1_001, 0, TimeSource::Date));
        assert_eq!(now(&clock), 1_001, "one that is near makes it more exact");
        tokio::time::advance(OWN_WORD * 2).await;
        clock.learn(told("a", 9_000, 0, TimeSource::Date));
        assert_eq!(now(&clock), 9_000, "the node's own word is no longer to be had");
    }

    #[test]
    fn nodes_are_forgotten_before_they_are_too_many() {
        let clock = VaultClock::default();
        for n in 0..200 {
            health(&clock, &n.to_string(), 1_000);
        }
        assert_eq!(clock.lock().nodes.len(), MAX_NODES);
    }
}
