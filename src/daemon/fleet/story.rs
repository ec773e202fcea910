//! What a fleet did, and what is to be read from it.

use std::collections::HashMap;
use std::time::Duration;

use super::model::{Course, Kind, Model, Request};

/// How one call of kube-apiserver ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) began: Duration,
    pub(super) took: Duration,
    pub(super) is_good: bool,
}

/// What happened, in the order in which it did.
pub(super) struct Story {
    pub(super) daemons: u32,
    pub(super) course: Course,
    pub(super) end: u64,
    pub(super) requests: Vec<Request>,
    pub(super) calls: Vec<Ended>,
}

pub(super) const ALL_BUT_PROBES: &[Kind] =
    &[Kind::Call, Kind::Canary, Kind::Read, Kind::Login, Kind::Renewal];

// === impl Story ===

impl Story {
    fn sent(&self, from: u64, to: u64, kinds: &[Kind]) -> impl Iterator<Item = &Request> {
        let span = Duration::from_secs(from)..Duration::from_secs(to);
        let place = |at| self.requests.partition_point(|sent| sent.at < at);
        let requests = self.requests[place(span.start)..place(span.end)].iter();
        requests.filter(move |sent| kinds.contains(&sent.kind))
    }

    /// Requests of these kinds between two seconds.
    pub(super) fn count(&self, from: u64, to: u64, kinds: &[Kind]) -> usize {
        self.sent(from, to, kinds).count()
    }

    /// The most of them within any one second.
    pub(super) fn peak(&self, from: u64, to: u64, kinds: &[Kind]) -> usize {
        let at: Vec<_> = self.sent(from, to, kinds).map(|sent| sent.at).collect();
        let within = |(n, first): (usize, &Duration)| {
            at[n..].partition_point(|at| *at < *first + Duration::from_secs(1))
        };
        at.iter().enumerate().map(within).max().unwrap_or(0)
    }

    /// The most logins that one daemon had in flight together.
    pub(super) fn logins_together(&self) -> usize {
        let mut in_flight: HashMap<u32, Vec<Duration>> = HashMap::new();
        let together = |sent: &Request| {
            let ends = in_flight.entry(sent.daemon).or_default();
            ends.retain(|end| *end > sent.at);
            ends.push(sent.until);
            ends.len()
        };
        self.sent(0, self.end, &[Kind::Login]).map(together).max().unwrap_or(0)
    }

    pub(super) fn calls(&self, from: u64, to: u64) -> impl Iterator<Item = &Ended> {
        let span = Duration::from_secs(from)..Duration::from_secs(to);
        self.calls.iter().filter(move |call| span.contains(&call.began))
    }

    pub(super) fn failed(&self, from: u64, to: u64) -> usize {
        self.calls(from, to).filter(|call| !call.is_good).count()
    }

    pub(super) fn longest(&self, from: u64, to: u64) -> Duration {
        self.calls(from, to).map(|call| call.took).max().unwrap_or_default()
    }

    /// Requests for each hundred calls of kube-apiserver.
    pub(super) fn percent_sent(&self, from: u64, to: u64) -> usize {
        self.count(from, to, &[Kind::Call]) * 100 / self.calls(from, to).count().max(1)
    }

    /// The first thing that differs from `other`, if anything does.
    pub(super) fn differs(&self, other: &Self) -> Option<String> {
        let sent = self.requests.iter().zip(&other.requests).find(|(a, b)| a != b);
        let calls = self.calls.iter().zip(&other.calls).find(|(a, b)| a != b);
        let lengths = |story: &Self| (story.requests.len(), story.calls.len());
        sent.map(|(a, b)| format!("{a:?} or {b:?}"))
            .or_else(|| calls.map(|(a, b)| format!("{a:?} or {b:?}")))
            .or_else(|| {
                let (a, b) = (lengths(self), lengths(other));
                (a != b).then(|| format!("{a:?} or {b:?} requests and calls"))
            })
    }

    /// Five seconds a line.
    pub(super) fn print(&self) {
        println!("{} daemons", self.daemons);
        println!(
            "   from  phase            calls  failed     sent  peak/s  canaries  reads  logins  renewals  probes"
        );
        for from in (0..self.end).step_by(5) {
            let to = (from + 5).min(self.end);
            let phase = format!("{:?}", Model::phase_at(self.course, Duration::from_secs(from)));
            let count = |kind| self.count(from, to, &[kind]);
            println!(
                "{from:5} s  {phase:14} {:7} {:7} {:8} {:7} {:9} {:6} {:7} {:9} {:7}",
                self.calls(from, to).count(),
                self.failed(from, to),
                count(Kind::Call),
                self.peak(from, to, ALL_BUT_PROBES),
                count(Kind::Canary),
                count(Kind::Read),
                count(Kind::Login),
                count(Kind::Renewal),
                count(Kind::Probe),
            );
        }
    }
}
