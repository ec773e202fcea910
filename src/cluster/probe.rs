//! Asks each node what it is, beside the calls.
//!
//! A prober per address asks `sys/health`: regularly, seldom while nobody calls, and at once
//! when an attempt has failed or its answer spoke of another role. It goes past the breaker
//! and tells it what it found, so that an address that is out of order is tried by probes
//! and not by calls. What it learns besides is the node's role, for the choice of an
//! address, how long the way takes, and the node's clock. The connection that it uses is
//! one of those that calls use; so there is a warm one when the calls have to move.
//!
//! A probe may do harm in no case. Where `sys/health` is not to be had, because something
//! before Vault refuses it, the role is unknown and the address counts as alive: then
//! everything is as it would be without probes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tokio::time::{Instant, sleep_until};
use tower::{Service, ServiceExt as _};

use super::address::{Address, Role};
use super::breaker::{BreakerPhase, BreakerState};
use super::error::{AttemptError, Fault};
use super::operation::{
    AddressIndex, AddressSet, Answer, Attempt, AttemptReason, Call, Fate, Operation, Verb,
};
use super::pool::Endpoint;
use super::pool::members::Members;
use crate::clock::{Deadline, TimeSource, Told};
use crate::task::OwnedTask;
use health::Health;
#[cfg(test)]
pub(crate) use watch::BUSY_FOR;
pub use watch::Watch;

mod health;
mod watch;

const PATH: &str = "/v1/sys/health";

/// How often a node is asked what it is. Every span is jittered.
#[derive(Clone, Copy, Debug)]
pub struct ProbePolicy {
    /// Between two probes of a healthy address, while calls come.
    pub busy: Duration,
    /// The same while none come. Idle connections live for longer, so that it keeps one.
    pub idle: Duration,
    /// Between a probe and the next one, when that is wanted at once, or when the first was
    /// bad; it doubles each time.
    pub at_soonest: Duration,
    /// What that grows to while the address is out of order and calls come: what they would
    /// wait for.
    pub in_need: Duration,
    /// What that grows to otherwise.
    pub at_most: Duration,
    /// How long a probe waits for its answer: a short time finds a node that is back
    /// sooner, ...
    pub patience: Duration,
    /// ... and a long one gets through where the way is slow and the connection is new.
    /// Used while the address serves, and every second time when it is silent.
    pub long_patience: Duration,
}

/// Asks the node at one address.
struct Prober<S> {
    address: Address,
    breaker: BreakerState,
    transport: S,
    watch: Arc<Watch>,
}

/// What a prober remembers from one probe to the next.
#[derive(Default)]
struct Memory {
    /// Probes one after another that were bad, or wanted at once, since the breaker was
    /// last closed or opened.
    hasty: u32,
    was_closed: bool,
    /// Probes one after another that had no answer in time.
    silent: u32,
    is_clock_wrong: bool,
    /// The Vault and the version that answered last.
    who: Option<(Option<String>, Option<String>)>,
}

/// What a probe found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Good,
    Bad,
    Silence,
}

/// Probes all of `members` for as long as the task lives.
pub(super) fn probe_all<S>(members: Members<S>, watch: Arc<Watch>, policy: ProbePolicy) -> OwnedTask
where
    S: Service<Attempt, Response = Answer, Error = AttemptError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    OwnedTask::spawn_again("probes", move || {
        let (members, watch) = (members.clone(), Arc::clone(&watch));
        async move {
            let mut changes = members.changes();
            let mut probers: HashMap<AddressIndex, (Address, OwnedTask)> = HashMap::new();
            loop {
                changes.forget();
                let roster = members.roster();
                probers.retain(|index, (address, _)| {
                    let stays = roster.get(*index).is_some_and(|e| e.address.name == address.name);
                    if !stays {
                        watch.forget(address);
                    }
                    stays
                });
                for endpoint in roster.iter() {
                    probers.entry(endpoint.address.index).or_insert_with(|| {
                        (endpoint.address.clone(), Prober::start(endpoint, &watch, policy))
                    });
                }
                drop(roster);
                changes.next().await;
            }
        }
    })
}

// === impl ProbePolicy ===

impl Default for ProbePolicy {
    /// Five seconds is how old a role may be, and for the nodes of a cluster with a thousand
    /// control planes 200 small requests a second. Thirty seconds keep a connection warm.
    /// One second is what an address that is back costs those who wait for it.
    fn default() -> Self {
        Self {
            busy: Duration::from_secs(5),
            idle: Duration::from_secs(30),
            at_soonest: Duration::from_millis(500),
            in_need: Duration::from_secs(1),
            at_most: Duration::from_secs(5),
            patience: Duration::from_secs(1),
            long_patience: Duration::from_secs(2),
        }
    }
}

impl ProbePolicy {
    /// What must lie between a probe and the next, after so many hasty ones.
    fn spacing(&self, hasty: u32, is_needed: bool) -> Duration {
        let factor = 1_u32.checked_shl(hasty.saturating_sub(1)).unwrap_or(u32::MAX);
        let longest = if is_needed { self.in_need } else { self.at_most };
        self.at_soonest.saturating_mul(factor).min(longest)
    }
}

// === impl Prober ===

impl<S> Prober<S>
where
    S: Service<Attempt, Response = Answer, Error = AttemptError> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    fn start(endpoint: &Endpoint<S>, watch: &Arc<Watch>, policy: ProbePolicy) -> OwnedTask {
        let prober = Arc::new(Self {
            address: endpoint.address.clone(),
            breaker: endpoint.breaker.clone(),
            transport: endpoint.transport.clone(),
            watch: Arc::clone(watch),
        });
        OwnedTask::spawn_again("probe", move || Arc::clone(&prober).run(policy))
    }

    async fn run(self: Arc<Self>, policy: ProbePolicy) {
        self.watch.show_role(&self.address); // one that never changes must show too
        let mut memory = Memory { was_closed: self.is_closed(), ..Memory::default() };
        loop {
            let began = Instant::now();
            let is_in_hurry = !self.is_closed() && memory.silent.is_multiple_of(2);
            let patience = if is_in_hurry { policy.patience } else { policy.long_patience };
            let found = self.look(patience, &mut memory).await;
            self.watch.count_probe(&self.address, found.as_str());
            memory.silent = if found == Found::Silence { memory.silent + 1 } else { 0 };
            let is_good = found == Found::Good;
            memory.hasty += u32::from(!is_good);
            let was_wanted = self.rest(&policy, began, is_good, &mut memory).await;
            memory.hasty = match (is_good, was_wanted) {
                (true, false) => 0,
                (true, true) => memory.hasty + 1,
                (false, _) => memory.hasty,
            };
        }
    }

    /// One probe, and everything that follows from it.
    async fn look(&self, patience: Duration, memory: &mut Memory) -> Found {
        let began = Instant::now();
        let answer = self.transport.clone().oneshot(question(patience)).await;
        let took = began.elapsed();
        let found = match answer.map(|answer| health::read(&answer)) {
            Ok(Ok(health)) => return self.take(&health, took, memory),
            Ok(Err(why)) => (Found::Bad, why),
            Err(AttemptError { fault: Fault::Deadline, .. }) => {
                let why = format!("no answer to a health check within {} s", patience.as_secs());
                (Found::Silence, why)
            }
            Err(error) => (Found::Bad, error.fault.to_string()),
        };
        self.set_role(Role::Unknown);
        let (found, why) = found;
        if found == Found::Bad {
            self.address.hands_on.forget(); // whoever is back may be another
        }
        tracing::debug!(server.address = %self.address.name, why, "A health check failed.");
        self.breaker.probe_bad(why);
        found
    }

    fn take(&self, health: &Health, took: Duration, memory: &mut Memory) -> Found {
        let name = &self.address.name;
        self.set_role(health.role);
        if let Some(time) = health.time {
            let clock = self.watch.clock();
            let node = name.as_str();
            clock.learn(Told { node, time, took, source: TimeSource::Health });
            if health.role == Role::Active {
                clock.follow(node);
            }
            let wrong_by = clock.wrong_by(node);
            if let (Some(seconds), false) = (wrong_by, memory.is_clock_wrong) {
                tracing::warn!(
                    server.address = %name,
                    seconds,
                    "The clock of a Vault node differs from the others'; check its time service.",
                );
            }
            memory.is_clock_wrong = wrong_by.is_some();
        }
        if let Some(id) = &health.cluster_id {
            self.watch.note_cluster_id(&self.address, id);
        }
        let who = (health.cluster_id.clone(), health.version.clone());
        if memory.who.replace(who.clone()).is_some_and(|was| was != who) {
            self.address.hands_on.forget();
        }
        if !health.role.can_serve() {
            self.address.hands_on.forget();
            // As a call's answer says it, with the remedy.
            let what = match health.role {
                Role::Sealed => "is sealed; unseal it".to_owned(),
                role => role.to_string(),
            };
            self.breaker.probe_bad(format!("{what}, says its health check"));
            return Found::Bad;
        }
        self.address.latency.probed(took);
        self.breaker.probe_good();
        Found::Good
    }

    fn set_role(&self, role: Role) {
        let Some(was) = self.address.role.set(role) else { return };
        tracing::info!(
            server.address = %self.address.name,
            role = role.as_str(),
            was = was.as_str(),
            "A Vault node has another role.",
        );
        self.watch.show_role(&self.address);
    }

    fn is_closed(&self) -> bool {
        self.breaker.phase() == BreakerPhase::Closed
    }

    /// Waits until the next probe is due; whether it was wanted before its time. What the
    /// breaker does meanwhile counts at once: the address is another one then, and what has
    /// been asked of it too often does not hold up the first look at it.
    async fn rest(
        &self,
        policy: &ProbePolicy,
        began: Instant,
        is_good: bool,
        memory: &mut Memory,
    ) -> bool {
        let factor = self.watch.jitter().around(Duration::from_secs(1)).as_secs_f64();
        let mut is_wanted = false;
        loop {
            let (resumed, changed) = (self.watch.resumed(), self.breaker.changed());
            tokio::pin!(resumed, changed);
            // before the look, so that nothing slips between
            resumed.as_mut().enable();
            changed.as_mut().enable();
            memory.heed(self.is_closed());
            let (is_sound, is_busy) = (is_good && memory.was_closed, self.watch.is_busy());
            let span = match (is_sound && !is_wanted, is_busy) {
                (true, true) => policy.busy,
                (true, false) => policy.idle,
                (false, _) => policy.spacing(memory.hasty, is_busy && !is_sound),
            };
            let due = began + span.mul_f64(factor);
            if due <= Instant::now() {
                return is_wanted;
            }
            tokio::select! {
                biased;
                () = self.breaker.probe_wanted(), if !is_wanted => is_wanted = true,
                () = self.address.role.doubted(), if !is_wanted => is_wanted = true,
                () = changed => {}
                () = resumed => {}
                () = sleep_until(due) => {}
            }
        }
    }
}

// === impl Found ===

impl Found {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Bad => "bad",
            Self::Silence => "silent",
        }
    }
}

// === impl Memory ===

impl Memory {
    /// The breaker is closed, or not. When it was otherwise, all begins anew.
    fn heed(&mut self, is_closed: bool) {
        if self.was_closed != is_closed {
            (self.was_closed, self.hasty) = (is_closed, 0);
        }
    }
}

/// What the node behind `transport` says that it is when it is asked now; unknown when it
/// does not say so in time.
pub(super) async fn role_of<S>(transport: S, patience: Duration) -> Role
where
    S: Service<Attempt, Response = Answer, Error = AttemptError>,
{
    let answer = transport.oneshot(question(patience)).await.ok();
    answer.and_then(|answer| health::read(&answer).ok()).map_or(Role::Unknown, |h| h.role)
}

/// `sys/health`, as one attempt.
pub(super) fn question(patience: Duration) -> Attempt {
    // A namespace header would make it a bad request, and it needs no token.
    let operation = Operation {
        needs_active: false,
        verb: Verb::Health,
        method: Method::GET,
        path: PATH.into(),
        namespace: None,
        body: None,
    };
    Attempt {
        call: Call {
            operation: Arc::new(operation),
            token: None,
            deadline: Deadline::after(patience),
        },
        number: 1,
        reason: AttemptReason::First,
        tried: AddressSet::default(),
        is_over_budget: false,
        is_second_opinion: false,
        needs_active: false,
        hand_on: AddressSet::default(),
        index: None,
        fate: Fate::default(),
    }
}

#[cfg(test)]
mod tests;
