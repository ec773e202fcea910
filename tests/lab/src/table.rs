//! The whole table of faults.

use std::path::PathBuf;

use lab::chaos::{Lateness, Spans, play, table};
use lab::{Result, fail};

/// Plays the rows whose name contains `only`, and prints a line for each.
pub(crate) async fn run(
    only: &str,
    seconds: u64,
    lateness: Lateness,
    daemon: Option<PathBuf>,
) -> Result {
    let rows: Vec<_> = table().into_iter().filter(|row| row.name.contains(only)).collect();
    if rows.is_empty() {
        let names: Vec<_> = table().iter().map(|row| row.name).collect();
        fail!("no row's name contains {only:?}; the rows are:\n  {}", names.join("\n  "));
    }
    let binary = crate::binary::find(daemon).await?;
    play(&binary, &rows, Spans::around(seconds), lateness).await
}
