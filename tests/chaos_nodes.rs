//! Nodes die, freeze, are sealed, hand over and are restarted while kube-apiserver calls.
//! One cluster serves the whole file.

use lab::chaos::{Group, play_short};

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_fails_whatever_happens_to_one_node() -> lab::Result {
    play_short(DAEMON, Group::Nodes).await
}
