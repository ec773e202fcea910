//! Chaos: one fault a row, under the calls of a busy kube-apiserver.
//!
//! A [`Row`] says what is done to the nodes, to the way there or to the login, how it is
//! undone, and what a caller may notice of it. [`run`] does it while eight callers mix both
//! KMS versions, each call with kube-apiserver's deadline of 3 s, and answers an
//! [`Outcome`]: what it cost, and what was seen that is not allowed. [`table`] lists the rows;
//! `cargo run -p lab -- chaos` plays them all at length, and `tests/chaos_*.rs` in short.
//!
//! One row is not here, because it takes ten minutes of nothing: the first fault after a long
//! idle time is a unit test of the daemon with a paused clock.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::{Cluster, Result, fail};

mod network;
mod nodes;
mod outage;
mod outcome;
mod replicas;
mod runner;
mod stage;
mod timeline;
mod trust;

pub use self::outcome::Outcome;
pub use self::runner::run;
pub use self::stage::Stage;

/// What kube-apiserver grants a call.
pub const DEADLINE: Duration = crate::kms::APISERVER_TIMEOUT;

/// How many call at the same time.
pub const CALLERS: usize = 8;

/// The key that encrypts in all rows.
pub const KEY: &str = "kube";

/// One fault.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// What happens, as the table prints it.
    pub name: &'static str,
    /// Which test binary runs it.
    pub group: Group,
    /// What the callers may notice.
    pub allowed: Allowed,
    /// Requests to Vault for each call, over the whole row, must be fewer.
    pub wire_bound: f64,
    victim: Victim,
    /// Whether the fault is a node that hangs.
    hangs: bool,
    /// Whether the first cluster is silent as a whole: the calls that find it so wait for it,
    /// and no others do.
    passed_over: bool,
    /// Whether standbys serve by themselves, as OpenBao's do.
    standbys_serve: bool,
    way: Way,
    recovery: RecoveryFrom,
    /// What the daemon is started with.
    prepare: Prepare,
    /// What the daemon must have done before calls begin.
    ready: Step,
    act: Step,
    undo: Step,
    /// What must be true afterwards, besides what callers saw.
    verify: Step,
}

/// Rows that share a test binary and its cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// What happens to nodes.
    Nodes,
    /// What happens on the way to them.
    Network,
    /// Tokens, certificates, keys.
    Trust,
    /// No node can answer for a while.
    Outage,
}

/// What callers may notice of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// Nothing but time: no call fails.
    NoFailure,
    /// Calls for which no node can answer end as UNAVAILABLE, within their deadline, and name
    /// each address. Those that have time left when one can answer again do not fail.
    Unavailable,
}

/// Which node the fault is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// None in particular.
    Nobody,
    /// The active node, which the daemon uses.
    Leader,
    /// A standby, which the daemon uses.
    Standby,
    /// Whichever the daemon uses.
    InUse,
}

/// How the daemon reaches the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// At their own addresses.
    Direct,
    /// Through a fault proxy each.
    Proxied,
}

/// From when on the time to recover counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RecoveryFrom {
    /// From the fault until calls are as fast as before, which does not wait for the undoing.
    Fault,
    /// The same from the beginning of the undoing, where everything stays slow until then.
    Undo,
    /// From when a node answers again, asked directly, until the first call is answered.
    Return,
}

type Work<'a> = Pin<Box<dyn Future<Output = Result> + 'a>>;
type Step = for<'a> fn(&'a Stage) -> Work<'a>;
type Prepare = for<'a> fn(&'a mut Stage) -> Work<'a>;

/// What rows share: three nodes, and the daemon's binary.
#[derive(Debug)]
pub struct Ground {
    cluster: Cluster,
    binary: PathBuf,
}

/// What becomes of answers that were good and later than promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lateness {
    /// They are printed: the machine may be busy.
    Told,
    /// They count like a call that failed.
    Counts,
}

/// How long a row goes on.
#[derive(Debug, Clone, Copy)]
pub struct Spans {
    /// Calls before the fault, with which later ones are compared.
    pub before: Duration,
    /// From the fault to its undoing.
    pub fault: Duration,
    /// Calls after the undoing.
    pub after: Duration,
}

/// All rows.
pub fn table() -> Vec<Row> {
    let groups = [nodes::rows(), network::rows(), trust::rows(), outage::rows(), replicas::rows()];
    groups.concat()
}

/// Plays a group's rows in short, against the daemon that this binary is.
///
/// # Errors
/// Says everything that callers noticed and may not notice.
pub async fn play_short(binary: impl AsRef<Path>, group: Group) -> Result {
    let rows: Vec<_> = table().into_iter().filter(|row| row.group == group).collect();
    play(binary.as_ref(), &rows, Spans::short(), Lateness::Told).await
}

/// Plays rows one after the other on one cluster, and prints a line for each.
///
/// # Errors
/// Says everything that callers noticed and may not notice, once all rows were played.
pub async fn play(binary: &Path, rows: &[Row], spans: Spans, lateness: Lateness) -> Result {
    let ground = Ground::start(binary).await?;
    println!("{}", Outcome::heading());
    let mut complaints = Vec::new();
    let (mut due, mut met) = (0, 0);
    for row in rows {
        let has_victim = row.victim != Victim::Nobody;
        let mut tries = if has_victim { 3 } else { 1 };
        due += usize::from(has_victim);
        while tries > 0 {
            let outcome = Box::pin(run(row, &ground, spans)).await?;
            println!("{outcome}");
            let slowness = outcome.slowness();
            slowness.iter().for_each(|what| println!("    {what}"));
            if let Some(failure) = outcome.example() {
                println!("    {failure}");
            }
            let counts = slowness.into_iter().filter(|_| lateness == Lateness::Counts);
            let wrong = outcome.complaints().into_iter().chain(counts);
            complaints.extend(wrong.map(|what| format!("{}: {what}", row.name)));
            if has_victim && outcome.has_met() {
                met += 1;
                break;
            }
            if has_victim {
                println!("    (no attempt met the fault: the daemon used other nodes)");
            }
            tries -= 1;
        }
    }
    // One row may have bad luck three times.
    if due > 0 && met + 1 < due.max(2) {
        complaints.push(format!("only {met} of {due} faults met an attempt"));
    }
    if !complaints.is_empty() {
        fail!("callers noticed what they may not notice:\n{}", complaints.join("\n"));
    }
    Ok(())
}

fn nothing(_: &Stage) -> Work<'_> {
    Box::pin(async { Ok(()) })
}

// === impl Row ===

impl Row {
    /// A row of which callers may notice nothing, at nodes that are reached directly and
    /// healed afterwards.
    fn new(name: &'static str, group: Group, victim: Victim, act: Step) -> Self {
        Self {
            name,
            group,
            allowed: Allowed::NoFailure,
            wire_bound: 1.5,
            victim,
            hangs: false,
            passed_over: false,
            standbys_serve: true,
            way: Way::Direct,
            recovery: RecoveryFrom::Fault,
            prepare: |_| Box::pin(async { Ok(()) }),
            ready: nothing,
            act,
            undo: |stage| Box::pin(stage.heal()),
            verify: nothing,
        }
    }
}

// === impl Ground ===

impl Ground {
    /// Three nodes, and the daemon that is to be started against them.
    pub async fn start(binary: impl Into<PathBuf>) -> Result<Arc<Self>> {
        let cluster = Cluster::start().await?;
        cluster.admin().mount_transit().await?;
        cluster.admin().create_replicable_key(KEY).await?;
        cluster.wait_version(KEY, 1).await?;
        Ok(Arc::new(Self { cluster, binary: binary.into() }))
    }
}

// === impl Spans ===

impl Spans {
    /// For `cargo test`.
    pub const fn short() -> Self {
        Self {
            before: Duration::from_millis(700),
            fault: Duration::from_secs(3),
            after: Duration::from_millis(700),
        }
    }

    /// For the full table: `seconds` around each fault in all, a third of it before and after.
    pub fn around(seconds: u64) -> Self {
        let all = Duration::from_secs(seconds.max(6));
        Self { before: all / 6, fault: all * 4 / 6, after: all / 6 }
    }
}
