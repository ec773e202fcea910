//! What is printed.

use std::time::Duration;

use crate::fresh::Cold;
use crate::measure::Measured;
use crate::side::{Side, Verb};
use crate::storm::Storm;

/// What must be reached, and what was.
#[derive(Default)]
pub(crate) struct Goals(Vec<Goal>);

struct Goal {
    what: String,
    measured: f64,
    wanted: f64,
    unit: &'static str,
    is_floor: bool,
}

/// The heading of [`rows`].
pub(crate) fn heading() {
    println!(
        "\n{:7} {:>7} {:9}| {:>8} {:>6} | {:>8} {:>6} | {:>8} {:>6} | {:>6} | {:>7} {:>6} {:>7} {:>5} \
         | {:>8}",
        "verb",
        "callers",
        "side",
        "calls/s",
        "ratio",
        "p50 ms",
        "ratio",
        "p99 ms",
        "ratio",
        "failed",
        "callers",
        "daemon",
        "OpenBao",
        "full",
        "a request"
    );
}

/// One row: a line for each side, its ratios to the first one.
pub(crate) fn rows(verb: Verb, callers: usize, sides: &[Side], all: &[Measured]) {
    let first = &all[0];
    for (side, one) in sides.iter().zip(all) {
        let ratio = |of: f64, to: f64| match side.is_direct() {
            true => String::new(),
            false => format!("{:.2}", of / to),
        };
        let micros = |seconds: f64| seconds * 1e6 / one.latencies.len() as f64;
        let carried = match one.spent.requests > 0.0 {
            true => format!("{:.1}", one.spent.carried / one.spent.requests),
            false => String::new(),
        };
        println!(
            "{:7} {callers:>7} {:9}| {:>8.0} {:>6} | {:>8.2} {:>6} | {:>8.2} {:>6} | {:>6} | {:>7.0} {:>6.0} \
             {:>7.0} {:>4.0}% | {:>8}",
            format!("{verb:?}"),
            side.name,
            one.rate(),
            ratio(one.rate(), first.rate()),
            one.millis(0.5),
            ratio(one.millis(0.5), first.millis(0.5)),
            one.millis(0.99),
            ratio(one.millis(0.99), first.millis(0.99)),
            one.failed,
            micros(one.spent.callers),
            micros(one.spent.daemon),
            micros(one.spent.nodes),
            one.spent.load(one.busy.as_secs_f64()) * 100.0,
            carried,
        );
    }
    for (side, one) in sides.iter().zip(all) {
        failure(side.name, one.first_failure.as_deref());
    }
}

/// The storm: a line for each side.
pub(crate) fn storm(objects: usize, listers: usize, sides: &[Side], all: &[Storm]) {
    println!(
        "\nRestart storm: {objects} objects of KMS v1, {listers} listers, one call at a time each"
    );
    let direct = all[0].wall.as_secs_f64();
    for (side, one) in sides.iter().zip(all) {
        let wall = one.wall.as_secs_f64();
        let rate = objects as f64 / wall;
        let ratio = if side.is_direct() { String::new() } else { format!("{:.2}", wall / direct) };
        println!(
            "{:24} | {wall:>8.2} s | {rate:>8.0} objects/s | ratio {ratio:>6} | failed {}",
            side.name, one.failed
        );
        failure(side.name, one.first_failure.as_deref());
    }
}

/// Calls of fresh daemons and fresh clients.
pub(crate) fn cold(pair: &[Cold; 2]) {
    let [direct, _] = pair;
    for one in pair {
        let ratio = |of: f64, to: f64| match std::ptr::eq(one, direct) {
            true => String::new(),
            false => format!("{:.2}", of / to),
        };
        let (first, early) = (one.first.millis(0.5), one.early.millis(0.5));
        println!(
            "Cold    {:>7} {:9}| first call p50 {first:>7.2} ms {:>6} | first 20 p50 {early:>7.2} ms \
             {:>6} | slowest {:>7.2} ms",
            one.callers,
            one.name,
            ratio(first, direct.first.millis(0.5)),
            ratio(early, direct.early.millis(0.5)),
            one.early.millis(1.0),
        );
    }
}

fn failure(side: &str, why: Option<&str>) {
    if let Some(why) = why {
        println!("        {side}: the first failure was: {why}");
    }
}

/// In ms.
pub(crate) fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1_000.0
}

// === impl Goals ===

impl Goals {
    /// Something that may be at most so much.
    pub(crate) fn at_most(&mut self, what: &str, measured: f64, wanted: f64, unit: &'static str) {
        let what = what.to_owned();
        self.0.push(Goal { what, measured, wanted, unit, is_floor: false });
    }

    /// Something that must be at least so much.
    pub(crate) fn at_least(&mut self, what: &str, measured: f64, wanted: f64, unit: &'static str) {
        let what = what.to_owned();
        self.0.push(Goal { what, measured, wanted, unit, is_floor: true });
    }

    /// Those that the decrypts of one row are held against.
    pub(crate) fn of_row(&mut self, callers: usize, sides: &[Side], all: &[Measured]) {
        let direct = &all[0];
        let proxies = sides.iter().zip(all).filter(|(side, _)| side.name.starts_with("proxy"));
        for (side, proxy) in proxies {
            let name = side.name;
            if callers == 1 {
                let p50 = proxy.millis(0.5) / direct.millis(0.5);
                self.at_most(&format!("decrypt p50, 1 caller, {name} / direct"), p50, 1.30, "");
            }
            let floors = [(16, 3.0), (64, 8.0), (256, 10.0)];
            if let Some((_, floor)) = floors.into_iter().find(|(of, _)| *of == callers) {
                let what = format!("decrypts a second, {callers} callers, {name} / direct");
                self.at_least(&what, proxy.rate() / direct.rate(), floor, "");
            }
            if callers == 64 {
                let p99 = proxy.millis(0.99) / direct.millis(0.99);
                self.at_most(&format!("decrypt p99, 64 callers, {name} / direct"), p99, 0.2, "");
            }
        }
    }

    /// Prints the table. A goal that is missed ends nothing: times are never asserted.
    pub(crate) fn print(&self) {
        println!("\n{:52} | {:>10} | {:>10} |", "goal", "wanted", "measured");
        for Goal { what, measured, wanted, unit, is_floor } in &self.0 {
            let (sign, reached) =
                if *is_floor { (">=", measured >= wanted) } else { ("<=", measured <= wanted) };
            let word = if reached { "reached" } else { "not reached" };
            let wanted = format!("{sign} {wanted}{unit}");
            let measured = format!("{measured:.2}{unit}");
            println!("{what:52} | {wanted:>10} | {measured:>10} | {word}");
        }
    }
}
