//! No node can answer for a while. One cluster serves the whole file.

use lab::chaos::{Group, play_short};

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_is_told_in_time_and_ends_with_the_outage() -> lab::Result {
    play_short(DAEMON, Group::Outage).await
}
