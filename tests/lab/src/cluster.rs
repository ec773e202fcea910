//! Several nodes with one storage: raft, TLS, on loopback.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use crate::admin::Admin;
use crate::config::{Config, grant};
use crate::node::{NODE_PATIENCE, Node};
use crate::tls::Authority;
use crate::{Context, Result, eventually};

mod builder;

/// With it in a node's configuration, its standbys forward what they could serve.
const STANDBYS_FORWARD: &str = "disable_standby_reads = true\n";

pub use self::builder::ClusterBuilder;

/// A raft cluster of OpenBao with TLS, in a temporary folder. Killed when dropped, or when
/// the process that holds it ends in any other way.
///
/// All its verbs take `&self`, so that the tests of one binary can share one (in a
/// `tokio::sync::OnceCell`): three nodes take about ten seconds to start.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    authority: Arc<Authority>,
    admin: Admin,
    ca: PathBuf,
    root_token: String,
    // Last, so that it goes after the processes.
    folder: tempfile::TempDir,
}

// === impl Cluster ===

impl Cluster {
    /// Three nodes that elect fast and keep an audit log.
    pub async fn start() -> Result<Self> {
        Self::builder().start().await
    }

    /// Chooses what kind to start.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder {
            nodes: 3,
            multiplier: 1,
            standby_reads: true,
            audit: true,
            client_certificates: false,
        }
    }

    async fn join_all(&self) -> Result {
        if self.nodes.len() == 1 {
            return Ok(());
        }
        let settings = json!({ "server_stabilization_time": "1s" });
        let path = "sys/storage/raft/autopilot/configuration";
        self.admin.write(path, settings).await?;
        for node in &self.nodes[1..] {
            node.start_sealed().await?;
        }
        // The key makes a node join; all of them join at the same time.
        for node in &self.nodes[1..] {
            let what = format!("{} takes the unseal key", node.name());
            eventually(&what, NODE_PATIENCE, || async { node.give_key().await.map(Some) }).await?;
        }
        for node in &self.nodes[1..] {
            node.wait_unsealed().await?;
        }
        self.wait_voters(self.nodes.len()).await
    }

    /// Waits until so many nodes vote.
    pub async fn wait_voters(&self, voters: usize) -> Result {
        eventually(&format!("{voters} nodes vote"), NODE_PATIENCE, || async {
            let answer = self.admin.read("sys/storage/raft/configuration").await?;
            let servers = answer["data"]["config"]["servers"].as_array();
            let now = servers.into_iter().flatten().filter(|s| s["voter"] == true).count();
            Ok((now == voters).then_some(()))
        })
        .await
    }

    /// Its nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// One node.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// The base URLs of its nodes, in order.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address().to_owned()).collect()
    }

    /// Where a node listens for clients with certificates only, if it was built so.
    pub fn mutual_tls_address(&self, index: usize) -> Result<String> {
        let file = self.nodes[index].folder().join("mutual-tls");
        std::fs::read_to_string(file).context("the cluster was not built with client_certificates")
    }

    /// Which node is active now, if one is.
    pub async fn leader_index(&self) -> Option<usize> {
        for (index, node) in self.nodes.iter().enumerate() {
            if node.is_leader().await {
                return Some(index);
            }
        }
        None
    }

    /// The active node; waits out an election.
    pub async fn leader(&self) -> Result<&Node> {
        eventually("the cluster has an active node", NODE_PATIENCE, || async {
            Ok(self.leader_index().await.map(|index| &self.nodes[index]))
        })
        .await
    }

    /// A node that is a standby now.
    pub async fn standby(&self) -> Result<&Node> {
        eventually("the cluster has a standby", NODE_PATIENCE, || async {
            for node in &self.nodes {
                if node.status().await.is_ok_and(|status| status == 429) {
                    return Ok(Some(node));
                }
            }
            Ok(None)
        })
        .await
    }

    /// Brings back every node that is down, frozen or sealed, and waits until one is active
    /// and all others stand by. A test that shares a cluster begins with this.
    pub async fn heal(&self) -> Result {
        for node in &self.nodes {
            if node.has_exited() {
                node.start().await?;
            } else {
                node.cont()?;
                if node.status().await.is_ok_and(|status| status == 503) {
                    node.unseal().await?;
                }
            }
        }
        eventually("every node serves", NODE_PATIENCE, || async {
            let mut active = 0;
            for node in &self.nodes {
                match node.status().await? {
                    200 => active += 1,
                    429 => {}
                    _ => return Ok(None),
                }
            }
            Ok((active == 1).then_some(()))
        })
        .await
    }

    /// The API, with the root token, at whichever node is active.
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// The root token.
    pub fn root_token(&self) -> &str {
        &self.root_token
    }

    /// The root token, as a file (0600) that is removed with the cluster.
    pub fn root_token_file(&self) -> PathBuf {
        self.folder.path().join("root-token")
    }

    /// The authority that signed the nodes' certificate.
    pub fn ca(&self) -> &Authority {
        &self.authority
    }

    /// That authority's certificate, as a file.
    pub fn ca_file(&self) -> &Path {
        &self.ca
    }

    /// The cluster's folder: a place for a test's own files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Gives all nodes another certificate, which they read again on SIGHUP.
    pub fn replace_certificate(&self, identity: &crate::Identity) -> Result {
        identity.write(self.folder.path(), "server")?;
        self.nodes.iter().try_for_each(Node::hang_up)
    }

    /// Whether standbys serve Transit themselves or forward to the active node. All nodes are
    /// restarted when that is a change.
    pub async fn serve_on_standbys(&self, serve: bool) -> Result {
        let mut changed = Vec::new();
        for node in &self.nodes {
            if node.configure(STANDBYS_FORWARD, !serve)? {
                node.kill();
                changed.push(node);
            }
        }
        // Without a quorum none becomes active, so none is waited for before all run.
        for node in &changed {
            node.start_sealed().await?;
            node.give_key().await?;
        }
        self.heal().await
    }

    /// Gives one node another certificate. (The others see it when they start or get SIGHUP,
    /// so that a test puts a good one back before it does anything else to them.)
    pub async fn replace_certificate_of(&self, node: &Node, authority: &Authority) -> Result {
        authority.server()?.write(self.folder.path(), "server")?;
        node.hang_up()?;
        node.wait_trusted_by(authority).await
    }

    /// Mounts Transit, makes the keys and waits until every running node knows them.
    pub async fn create_keys(&self, keys: &[&str]) -> Result {
        self.admin.mount_transit().await?;
        for key in keys {
            self.admin.create_key(key).await?;
            self.wait_version(key, 1).await?;
        }
        Ok(())
    }

    /// Adds a version to a key, waits until every running node knows it, and answers its
    /// number.
    pub async fn rotate(&self, key: &str) -> Result<u32> {
        self.admin.rotate(key).await?;
        let version = self.admin.key(key).await?.latest_version;
        self.wait_version(key, version).await?;
        Ok(version)
    }

    /// Waits until every running node knows this version of a key in `transit`. A standby
    /// lags behind the active node, and denies what it does not know yet.
    pub async fn wait_version(&self, key: &str, version: u32) -> Result {
        for node in self.nodes.iter().filter(|node| !node.has_exited()) {
            let what = format!("{} knows version {version} of {key}", node.name());
            eventually(&what, NODE_PATIENCE, || async {
                let known = node.admin().key(key).await?.latest_version;
                Ok((known >= version).then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// A daemon's configuration for these keys at all nodes: an AppRole of its own with the
    /// smallest policy, `rotation: {refresh: 1s, activationDelay: 2s}`.
    pub async fn config(&self, keys: &[&str]) -> Result<Config> {
        grant(&self.admin, &self.addresses(), &self.ca, self.folder.path(), keys).await
    }

    /// How many requests all nodes have handled whose path starts so.
    pub fn count_requests(&self, path: &str) -> usize {
        self.nodes.iter().map(|node| node.count_requests(path)).sum()
    }
}
