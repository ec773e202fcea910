//! The table of latencies.

use std::fmt;
use std::time::Duration;

/// Latencies by API and call, in the order in which the calls were first made.
#[derive(Clone, Debug, Default)]
pub(super) struct Latencies {
    rows: Vec<Row>,
}

#[derive(Clone, Debug)]
struct Row {
    api: &'static str,
    call: &'static str,
    taken: Vec<Duration>,
}

// === impl Latencies ===

impl Latencies {
    /// Adds one call that ended well.
    pub(super) fn add(&mut self, api: &'static str, call: &'static str, took: Duration) {
        match self.rows.iter_mut().find(|row| row.api == api && row.call == call) {
            Some(row) => row.taken.push(took),
            None => self.rows.push(Row { api, call, taken: vec![took] }),
        }
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rows.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "{:4} {:8} {:>6} {:>10} {:>10} {:>10}",
            "api", "call", "calls", "p50", "p99", "worst"
        )?;
        for Row { api, call, taken } in &self.rows {
            let mut sorted = taken.clone();
            sorted.sort_unstable();
            let at = |percent: usize| milliseconds(sorted[(sorted.len() - 1) * percent / 100]);
            writeln!(
                f,
                "{api:4} {call:8} {:>6} {:>10} {:>10} {:>10}",
                sorted.len(),
                at(50),
                at(99),
                at(100)
            )?;
        }
        Ok(())
    }
}

fn milliseconds(span: Duration) -> String {
    format!("{:.2} ms", span.as_secs_f64() * 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_row_for_each_call_with_its_percentiles() {
        let mut latencies = Latencies::default();
        for millis in (1..=100).rev() {
            latencies.add("v2", "Encrypt", Duration::from_millis(millis));
        }
        latencies.add("v2", "Decrypt", Duration::from_micros(1_500));
        let table = latencies.to_string();
        let rows: Vec<&str> = table.lines().collect();
        assert_eq!(rows[0], "api  call      calls        p50        p99      worst");
        assert_eq!(rows[1], "v2   Encrypt     100   50.00 ms   99.00 ms  100.00 ms");
        assert_eq!(rows[2], "v2   Decrypt       1    1.50 ms    1.50 ms    1.50 ms");
    }
}
