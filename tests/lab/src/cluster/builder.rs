//! Which cluster to start, and how each node of it is configured.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Cluster;
use crate::admin::Admin;
use crate::dev::audit_stanza;
use crate::node::{Launch, Node};
use crate::process::storage_folder;
use crate::tls::Authority;
use crate::{Context, Result, free_port, install};

/// What kind of cluster to start.
#[derive(Debug, Clone)]
pub struct ClusterBuilder {
    pub(super) nodes: usize,
    pub(super) multiplier: u32,
    pub(super) standby_reads: bool,
    pub(super) audit: bool,
    pub(super) client_certificates: bool,
}

// === impl ClusterBuilder ===

impl ClusterBuilder {
    /// How many nodes (default 3).
    #[must_use]
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes.max(1);
        self
    }

    /// Raft's timing: 1 (the default here) elects in about two seconds, 5 is what Vault and
    /// OpenBao come with.
    #[must_use]
    pub fn performance_multiplier(mut self, multiplier: u32) -> Self {
        self.multiplier = multiplier;
        self
    }

    /// Whether standbys serve Transit themselves (default) or forward to the active node,
    /// as those of Vault's community edition do.
    #[must_use]
    pub fn standby_reads(mut self, serve: bool) -> Self {
        self.standby_reads = serve;
        self
    }

    /// Whether each node keeps an audit log (default), from which
    /// [`Node::count_requests`] counts; a bench turns it off.
    #[must_use]
    pub fn audit(mut self, audit: bool) -> Self {
        self.audit = audit;
        self
    }

    /// Also listen, at the address that [`Cluster::mutual_tls_address`] answers, where
    /// clients must show a certificate of the lab's authority.
    #[must_use]
    pub fn client_certificates(mut self, demand: bool) -> Self {
        self.client_certificates = demand;
        self
    }

    /// Starts it and waits until all nodes vote.
    pub async fn start(self) -> Result<Cluster> {
        let mut tries = 3;
        loop {
            match self.try_start().await {
                Err(error) if tries > 1 && error.to_string().contains("address already in use") => {
                    tries -= 1;
                }
                result => return result,
            }
        }
    }

    async fn try_start(&self) -> Result<Cluster> {
        let program = tokio::task::spawn_blocking(install::bao).await??;
        let folder = storage_folder("lab-cluster-")?;
        let authority = Arc::new(Authority::new("lab")?);
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, authority.pem())?;
        authority.server()?.write(folder.path(), "server")?;

        let mut nodes = Vec::new();
        let mut leader = None;
        for index in 0..self.nodes {
            let node = self.node(index, &program, folder.path(), &authority, leader.as_deref())?;
            leader.get_or_insert_with(|| node.address().to_owned());
            nodes.push(node);
        }
        let addresses: Vec<String> = nodes.iter().map(|node| node.address().to_owned()).collect();

        nodes[0].start_sealed().await?;
        let keys = json!({ "secret_shares": 1, "secret_threshold": 1 });
        let answer = nodes[0].admin().write("sys/init", keys).await?;
        let part = |value: &Value| value.as_str().map(str::to_owned);
        let root_token = part(&answer["root_token"]).context("sys/init gave no root token")?;
        let key = part(&answer["keys_base64"][0]).context("sys/init gave no unseal key")?;
        for node in &mut nodes {
            node.set_root_token(&root_token);
            node.set_unseal_key(&key);
        }
        nodes[0].unseal().await?;
        nodes[0].wait_active().await?;

        let admin = Admin::new(&addresses, &authority, &root_token)?;
        let cluster = Cluster { nodes, authority, admin, ca, root_token, folder };
        crate::tls::replace_file(&cluster.root_token_file(), &cluster.root_token)?;
        cluster.join_all().await?;
        Ok(cluster)
    }

    fn node(
        &self,
        index: usize,
        program: &Path,
        folder: &Path,
        authority: &Arc<Authority>,
        leader: Option<&str>,
    ) -> Result<Node> {
        let name = format!("n{index}");
        let own = folder.join(&name);
        std::fs::create_dir_all(own.join("raft"))?;
        let (port, cluster_port) = (free_port()?, free_port()?);
        let address = format!("https://127.0.0.1:{port}");

        let listener = |port: u16, extra: &str| {
            format!(
                "listener \"tcp\" {{\n  address = \"127.0.0.1:{port}\"\n  \
                 tls_cert_file = \"../server.pem\"\n  tls_key_file = \"../server-key.pem\"\n\
                 {extra}}}\n"
            )
        };
        let mut text = format!(
            "api_addr = \"{address}\"\ncluster_addr = \"https://127.0.0.1:{cluster_port}\"\n\
             disable_mlock = true\nenable_response_header_raft_node_id = true\n"
        );
        if !self.standby_reads {
            text.push_str(super::STANDBYS_FORWARD);
        }
        let bind = format!("  cluster_address = \"127.0.0.1:{cluster_port}\"\n");
        text.push_str(&listener(port, &bind));
        if self.client_certificates {
            let extra = "  tls_require_and_verify_client_cert = true\n  \
                         tls_client_ca_file = \"../ca.pem\"\n";
            let port = free_port()?;
            std::fs::write(own.join("mutual-tls"), format!("https://127.0.0.1:{port}"))?;
            let other = free_port()?;
            let bind = format!("{extra}  cluster_address = \"127.0.0.1:{other}\"\n");
            text.push_str(&listener(port, &bind));
        }
        text.push_str(&format!(
            "storage \"raft\" {{\n  path = \"raft\"\n  node_id = \"{name}\"\n  \
             performance_multiplier = {}\n",
            self.multiplier
        ));
        if let Some(leader) = leader {
            text.push_str(&format!(
                "  retry_join {{\n    leader_api_addr = \"{leader}\"\n    \
                 leader_ca_cert_file = \"../ca.pem\"\n  }}\n"
            ));
        }
        text.push_str("}\n");
        if self.audit {
            text.push_str(audit_stanza(program));
        }
        let config = own.join("server.hcl");
        std::fs::write(&config, text)?;

        let args = vec!["server".to_owned(), format!("-config={}", config.display())];
        let log = own.join("server.log");
        let launch = Launch { program: program.to_owned(), args, folder: own, log };
        Node::new(&name, address, launch, authority)
    }
}
