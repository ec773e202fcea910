//! A key version that is younger than what a standby knows: the daemon's Vault side asks the
//! active node, and believes nobody else that there is no such version. One cluster of three
//! nodes serves the whole file.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::time::Duration;

use lab::Cluster as Nodes;
use secrecy::SecretString;
use vault_kms_proxy::clock::{Deadline, UnixSeconds};
use vault_kms_proxy::config::settings::AuthSettings;
use vault_kms_proxy::secret::Plaintext;
use vault_kms_proxy::transit::{
    HttpTransitKey, KeyVersion, Refusal, TransitKey as _, VaultCiphertext,
};

#[path = "parts/vault_side.rs"]
mod vault_side;

use vault_side::{cluster_at, key_in};

const ROUNDS: u32 = 15;

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

/// A version that no metadata has told, for the node to judge.
fn version(number: u32) -> Option<KeyVersion> {
    Some(KeyVersion { number, created: UnixSeconds(0) })
}

fn seed() -> Plaintext {
    Plaintext::new(b"secret seed of thirty two bytes!".to_vec())
}

/// The key `kube` at these addresses, asked with the root token.
fn key_at(nodes: &Nodes, addresses: &[&str]) -> HttpTransitKey {
    let auth = AuthSettings::Token(SecretString::from(nodes.root_token()));
    key_in(&cluster_at(addresses, nodes.ca_file(), auth), "transit", "kube")
}

#[tokio::test]
async fn what_a_standby_does_not_know_yet_is_asked_of_the_active_node() -> lab::Result {
    let nodes = Nodes::start().await?;
    nodes.create_keys(&["kube"]).await?;
    let leader = nodes.leader().await?.address().to_owned();
    let standby = nodes.standby().await?.address().to_owned();

    // One address, as behind a load balancer: the standby itself has to ask. Both, the
    // standby first: either way.
    for addresses in [&[standby.as_str()][..], &[standby.as_str(), leader.as_str()]] {
        let key = key_at(&nodes, addresses);
        key.read(soon()).await.unwrap();
        for round in 0..ROUNDS {
            nodes.admin().rotate("kube").await?;
            let made = nodes.admin().encrypt("kube", seed().expose()).await?;
            let made = VaultCiphertext::parse(&made).unwrap();
            let decrypted = key.decrypt(&made, soon()).await;
            assert_eq!(decrypted.unwrap(), seed(), "round {round} at {addresses:?}");

            nodes.admin().rotate("kube").await?;
            let newest = made.version() + 1;
            let pinned = key.encrypt(&seed(), version(newest), soon()).await;
            assert_eq!(pinned.unwrap().ciphertext.version(), newest, "round {round}");
        }

        // What the active node does not know either is final, and soon.
        let newest = nodes.admin().key("kube").await?.latest_version;
        let never = VaultCiphertext::try_new(newest + 1, "AAECAwQFBgcICQoLDA0ODw==").unwrap();
        let refused = key.decrypt(&never, soon()).await.unwrap_err();
        assert_eq!(refused.refusal(), Some(&Refusal::TooNew), "{refused}");
        let refused = key.encrypt(&seed(), version(newest + 1), soon()).await.unwrap_err();
        assert_eq!(refused.refusal(), Some(&Refusal::AboveLatest), "{refused}");
    }

    // Without the active node, a standby's word is not final.
    let key = key_at(&nodes, &[standby.as_str()]);
    key.read(soon()).await.unwrap();
    let newest = nodes.admin().key("kube").await?.latest_version;
    let never = VaultCiphertext::try_new(newest + 1, "AAECAwQFBgcICQoLDA0ODw==").unwrap();
    for node in nodes.nodes().iter().filter(|node| node.address() != standby) {
        node.kill();
    }
    let deadline = Deadline::after(Duration::from_secs(3));
    let undecided = key.decrypt(&never, deadline).await.unwrap_err();
    assert!(undecided.is_outage(), "{undecided}");
    Ok(())
}
