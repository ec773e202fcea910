//! What a fleet asks of a Vault that is well: the figures of `docs/scale.md`, held against
//! the simulation.

use std::fmt::Write as _;

use super::*;
use crate::cluster::probe::{BUSY_FOR, ProbePolicy};
use crate::keyring::condition::PROOF_PERIOD;

/// The fleets that the document shows.
const SHOWN: [u32; 3] = [5, 50, 5_000];

/// A node of a busy control plane asks so seldom that each call stands alone, and so often that
/// its daemon never counts as idle.
const CALLS: f64 = 0.2;

/// The life of the tokens in the document.
const TTL: Duration = Duration::from_secs(3_600);

/// Requests of one daemon with one KEK, in a second.
struct Cost {
    calls: f64,
    canaries: f64,
    reads: f64,
    renewals: f64,
    probes: f64,
    /// That stay open.
    connections: f64,
}

// === impl Cost ===

impl Cost {
    /// With so many addresses and calls a second, when tokens live so long. Nothing that a
    /// call brings spares a canary here: decrypts prove nothing.
    fn of(addresses: usize, calls: f64, ttl: Duration) -> Self {
        let per_second = |span: Duration| 1.0 / span.as_secs_f64();
        let ProbePolicy { busy, .. } = ProbePolicy::default();
        let canary = per_second(PROOF_PERIOD);
        // Each call wakes the probers of an idle daemon, and keeps them busy for a while; so
        // does a canary. The last probe of that while comes in time in half of the cases.
        let of_one = 0.5 + BUSY_FOR.as_secs_f64() / busy.as_secs_f64();
        let of_address = ((calls + canary) * of_one).min(per_second(busy));
        Self {
            calls,
            canaries: 2.0 * canary,
            reads: per_second(settings().keyring.rotation.refresh),
            renewals: per_second(ttl * 2 / 3),
            probes: of_address * addresses as f64,
            connections: addresses as f64,
        }
    }

    fn all(&self) -> f64 {
        self.calls + self.canaries + self.reads + self.renewals + self.probes
    }
}

/// One line for each kind of request.
fn table() -> String {
    let addresses = settings().clusters[0].addresses.len();
    let [idle, busy] = [0.0, CALLS].map(|calls| Cost::of(addresses, calls, TTL));
    let mut text = String::from("| requests a second |");
    for daemons in SHOWN {
        let _ = write!(text, " {} daemons idle | busy |", with_commas(daemons));
    }
    text.push_str("\n|---|");
    text.push_str(&"---:|".repeat(2 * SHOWN.len()));
    type Of = fn(&Cost) -> f64;
    let rows: [(&str, Of); 7] = [
        ("decrypts for kube-apiserver", |cost| cost.calls),
        ("canaries (encrypt, decrypt)", |cost| cost.canaries),
        ("metadata reads", |cost| cost.reads),
        ("token renewals", |cost| cost.renewals),
        ("health checks, all nodes", |cost| cost.probes),
        ("all", Cost::all),
        ("connections that stay open", |cost| cost.connections),
    ];
    for (name, of) in rows {
        let _ = write!(text, "\n| {name} |");
        for daemons in SHOWN {
            for cost in [&idle, &busy] {
                let _ = write!(text, " {} |", figure(of(cost) * f64::from(daemons)));
            }
        }
    }
    text.push('\n');
    text
}

fn figure(number: f64) -> String {
    match number {
        0.0 => "0".to_owned(),
        n if n < 0.1 => format!("{n:.3}"),
        n if n < 10.0 => format!("{n:.2}"),
        n => with_commas(n.round() as u32),
    }
}

fn with_commas(number: u32) -> String {
    if number < 1_000 {
        number.to_string()
    } else {
        format!("{},{:03}", number / 1_000, number % 1_000)
    }
}

#[test]
fn the_document_says_what_the_constants_do() {
    const BEGIN: &str = "<!-- figures -->\n";
    const END: &str = "<!-- end -->";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/scale.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (figures, after) = rest.split_once(END).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{}{END}{after}", table())).unwrap();
        return;
    }
    assert!(
        figures == table(),
        "docs/scale.md is out of date; run UPDATE_DOCS=1 cargo test --lib fleet::cost"
    );
}

/// Fifty daemons for ten minutes in which all is well, and what they send from the second on.
fn calm(between_calls: Duration) -> Story {
    let (start, course, end) = (5, &[(0, Phase::Calm)], 600);
    Fleet { daemons: 50, between_calls, start, capacity: 100, course, end, seed: 3 }.play()
}

fn judge(story: &Story, cost: &Cost) {
    let (from, to) = (60, 600);
    for (kinds, each, what) in [
        (&[Kind::Call][..], cost.calls, "calls"),
        (&[Kind::Canary], cost.canaries, "canaries"),
        (&[Kind::Read], cost.reads, "reads"),
        (&[Kind::Renewal], cost.renewals, "renewals"),
        (&[Kind::Probe], cost.probes, "probes"),
        (&[Kind::Login], 0.0, "logins"),
    ] {
        let seen = story.count(from, to, kinds) as f64;
        let due = each * 50.0 * (to - from) as f64;
        println!("{what}: {seen} of {due:.0}");
        // The span begins and ends in the middle of everybody's period.
        let room = due * 0.03 + if due > 0.0 { 25.0 } else { 0.0 };
        assert!((seen - due).abs() <= room, "{what}: {seen} where {due:.0} are to be expected");
    }
}

#[test]
fn a_fleet_without_calls_costs_what_the_document_says() {
    // The first call of each daemon comes at its start, and no second one.
    judge(&calm(Duration::from_secs(1_000_000)), &Cost::of(3, 0.0, TOKEN_TTL));
}

#[test]
fn a_fleet_with_calls_costs_what_the_document_says() {
    let between = Duration::from_secs_f64(1.0 / CALLS);
    judge(&calm(between), &Cost::of(3, CALLS, TOKEN_TTL));
}
