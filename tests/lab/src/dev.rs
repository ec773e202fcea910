//! One node in memory, up in half a second.

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::admin::Admin;
use crate::config::{Config, grant};
use crate::node::{Launch, Node};
use crate::process::storage_folder;
use crate::tls::Authority;
use crate::{Result, eventually, fail, free_port, install};

const ROOT: &str = "lab-root";

/// One OpenBao in development mode: in memory, unsealed, active, with an audit log.
///
/// It listens with TLS at [`Node::address`] and in plain text at [`DevNode::http`]. A
/// killed or restarted one has forgotten everything; for a node with a disk, start a
/// [`Cluster`](crate::Cluster) of one.
#[derive(Debug)]
pub struct DevNode {
    node: Node,
    http: String,
    authority: Arc<Authority>,
    admin: Admin,
    ca: PathBuf,
    // Last, so that it goes after the process.
    folder: tempfile::TempDir,
}

// === impl DevNode ===

impl DevNode {
    /// Starts one.
    pub async fn start() -> Result<Self> {
        Self::start_with("").await
    }

    /// Starts one with these lines in its TLS listener's configuration.
    pub async fn start_with(listener: &str) -> Result<Self> {
        let mut tries = 3;
        loop {
            match Self::try_start(listener).await {
                Err(error) if tries > 1 && error.to_string().contains("address already in use") => {
                    tries -= 1;
                }
                result => return result,
            }
        }
    }

    async fn try_start(listener: &str) -> Result<Self> {
        let program = tokio::task::spawn_blocking(install::bao).await??;
        let folder = storage_folder("lab-dev-")?;
        let authority = Arc::new(Authority::new("lab")?);
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, authority.pem())?;
        let files = authority.server()?.write(folder.path(), "server")?;
        let (tls, plain) = (free_port()?, free_port()?);

        let config = folder.path().join("server.hcl");
        let text = format!(
            "{}\nlistener \"tcp\" {{\n  address = \"127.0.0.1:{tls}\"\n  \
             tls_cert_file = {:?}\n  tls_key_file = {:?}\n  {listener}\n}}\n",
            audit_stanza(&program),
            files.cert,
            files.key,
        );
        std::fs::write(&config, text)?;

        let args = [
            "server".to_owned(),
            "-dev".to_owned(),
            "-dev-no-store-token".to_owned(),
            format!("-dev-root-token-id={ROOT}"),
            format!("-dev-listen-address=127.0.0.1:{plain}"),
            format!("-config={}", config.display()),
        ];
        let log = folder.path().join("dev.log");
        let launch = Launch { program, args: args.into(), folder: folder.path().to_owned(), log };
        let mut node = Node::new("dev", format!("https://127.0.0.1:{tls}"), launch, &authority)?;
        node.set_root_token(ROOT);
        let admin = node.admin().clone();
        let http = format!("http://127.0.0.1:{plain}");
        let dev = Self { node, http, authority, admin, ca, folder };
        dev.come_up().await?;
        Ok(dev)
    }

    async fn come_up(&self) -> Result {
        self.node.start_sealed().await?;
        // It answers before it has made its root token.
        let log = || async {
            let log = self.node.log();
            let key = log.lines().rev().find_map(|line| line.strip_prefix("Unseal Key: "));
            Ok(key.map(|key| key.trim().to_owned()))
        };
        let key = eventually("the development node is ready", Duration::from_secs(20), log).await?;
        self.node.set_unseal_key(&key);
        self.node.wait_active().await?;
        if self.node.log().contains("Error initializing") {
            fail!("the development node is not whole:\n{}", self.node.log());
        }
        Ok(())
    }

    /// Kills it and starts it again, empty.
    pub async fn restart(&self) -> Result {
        self.node.kill();
        self.come_up().await
    }

    /// Starts it again after a kill, empty.
    pub async fn start_again(&self) -> Result {
        self.come_up().await
    }

    /// Its plain-text base URL: `http://127.0.0.1:<port>`.
    pub fn http(&self) -> &str {
        &self.http
    }

    /// The API, with the root token.
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// The root token.
    pub fn root_token(&self) -> &str {
        ROOT
    }

    /// The authority that signed its certificate.
    pub fn ca(&self) -> &Authority {
        &self.authority
    }

    /// That authority's certificate, as a file.
    pub fn ca_file(&self) -> &std::path::Path {
        &self.ca
    }

    /// Makes the keys, if they do not exist, in `transit`.
    pub async fn create_keys(&self, keys: &[&str]) -> Result {
        self.admin.mount_transit().await?;
        for key in keys {
            self.admin.create_key(key).await?;
        }
        Ok(())
    }

    /// A daemon's configuration for these keys: TLS, an AppRole of its own with the
    /// smallest policy.
    pub async fn config(&self, keys: &[&str]) -> Result<Config> {
        let addresses = [self.node.address().to_owned()];
        grant(&self.admin, &addresses, &self.ca, self.folder.path(), keys).await
    }
}

impl Deref for DevNode {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

/// OpenBao takes audit devices from its configuration alone; Vault does not know the
/// stanza, and there its requests cannot be counted.
pub(crate) fn audit_stanza(program: &std::path::Path) -> &'static str {
    if program.file_name().is_some_and(|name| name == "vault") {
        return "";
    }
    "audit \"file\" \"lab\" {\n  options {\n    file_path = \"audit.log\"\n  }\n}"
}
