//! Moves of a whole control plane's objects, end to end, and that docs/migration.md shows what
//! an operator sees on the way: a real etcd, a kube-apiserver's storage over it, real OpenBao,
//! and the daemon in the middle of calls. What must hold at each step is said in [`lab::moves`].

use std::path::Path;

use lab::moves::Kind;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PAGE: &str = include_str!("../docs/migration.md");

async fn holds(kind: Kind) -> lab::Result {
    let told = kind.walk(Path::new(DAEMON)).await?;
    println!("{told}");
    let section = PAGE.split_once(&format!("{}\n", kind.heading())).map(|(_, rest)| rest);
    let section = section.unwrap_or_else(|| panic!("docs/migration.md has no {}", kind.heading()));
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    assert!(section.contains("```text\n$ "), "docs/migration.md shows nothing of {kind:?}");
    let differs = told.differs_from(section);
    assert_eq!(
        differs, None,
        "docs/migration.md shows a line that was not printed (in this place)"
    );
    Ok(())
}

#[tokio::test]
async fn all_objects_move_from_an_old_key_to_a_new_one_and_no_call_fails() -> lab::Result {
    holds(Kind::Key).await
}

#[tokio::test]
async fn all_objects_move_to_the_next_version_and_the_old_one_is_shut() -> lab::Result {
    holds(Kind::Version).await
}

#[tokio::test]
async fn all_objects_move_to_a_cluster_that_calls_its_key_the_same_and_the_old_one_is_stopped()
-> lab::Result {
    holds(Kind::Vault).await
}

#[tokio::test]
async fn all_objects_move_from_kms_v1_to_v2_while_one_apiserver_is_ahead_of_the_other()
-> lab::Result {
    holds(Kind::Api).await
}

#[tokio::test]
async fn all_objects_of_another_plugin_are_read_moved_to_a_new_key_and_its_key_is_deleted()
-> lab::Result {
    holds(Kind::Plugin).await
}
