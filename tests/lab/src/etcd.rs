//! A real etcd of one member.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::process::{Process, storage_folder};
use crate::tls::{Authority, IdentityFiles, Validity};
use crate::{Context, Result, eventually, fail, free_port, install};

mod client;

pub use client::{EtcdClient, StoredValue};

/// How long it may take to start.
const PATIENCE: Duration = Duration::from_secs(30);

/// One etcd: real, on loopback, with a folder of its own. Killed when dropped.
#[derive(Debug)]
pub struct Etcd {
    process: Process,
    client: EtcdClient,
    endpoint: String,
    tls: Option<Tls>,
    // Last, so that it goes after the process.
    folder: tempfile::TempDir,
}

/// What a client of an etcd with TLS needs.
#[derive(Debug)]
struct Tls {
    authority: Authority,
    ca: std::path::PathBuf,
    client: IdentityFiles,
}

// === impl Etcd ===

impl Etcd {
    /// Starts one that listens in plain text.
    pub async fn start() -> Result<Self> {
        Self::start_some(false).await
    }

    /// Starts one that listens with TLS and asks for a client certificate, as those of
    /// control planes do.
    pub async fn start_with_tls() -> Result<Self> {
        Self::start_some(true).await
    }

    async fn start_some(with_tls: bool) -> Result<Self> {
        let mut tries = 3;
        loop {
            match Self::try_start(with_tls).await {
                Err(error) if tries > 1 && error.to_string().contains("address already in use") => {
                    tries -= 1;
                }
                result => return result,
            }
        }
    }

    async fn try_start(with_tls: bool) -> Result<Self> {
        let program = tokio::task::spawn_blocking(install::etcd).await??;
        let folder = storage_folder("lab-etcd-")?;
        let tls = if with_tls { Some(Tls::make(folder.path())?) } else { None };
        let (client_port, peer_port) = (free_port()?, free_port()?);
        let scheme = if with_tls { "https" } else { "http" };
        let endpoint = format!("{scheme}://127.0.0.1:{client_port}");
        let peer = format!("http://127.0.0.1:{peer_port}");

        let mut command = Command::new(program);
        command.arg(format!("--data-dir={}", folder.path().join("data").display()));
        command.arg(format!("--listen-client-urls={endpoint}"));
        command.arg(format!("--advertise-client-urls={endpoint}"));
        command.arg(format!("--listen-peer-urls={peer}"));
        command.arg(format!("--initial-advertise-peer-urls={peer}"));
        command.arg(format!("--initial-cluster=default={peer}"));
        // Its gateway to JSON would dial it with the server's certificate as a client's.
        command.arg("--enable-grpc-gateway=false");
        if with_tls {
            let file = |name: &str| folder.path().join(name).display().to_string();
            command.arg(format!("--cert-file={}", file("server.pem")));
            command.arg(format!("--key-file={}", file("server-key.pem")));
            command.arg(format!("--trusted-ca-file={}", file("ca.pem")));
            command.arg("--client-cert-auth");
        }
        // An operator's shell may have some of its own.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ETCD") {
                command.env_remove(&name);
            }
        }
        let process = Process::spawn("etcd", command, &folder.path().join("etcd.log"))?;
        let client = EtcdClient::new(channel(&endpoint, tls.as_ref())?);
        let etcd = Self { process, client, endpoint, tls, folder };
        etcd.come_up().await?;
        Ok(etcd)
    }

    async fn come_up(&self) -> Result {
        let up = eventually("etcd answers", PATIENCE, || async {
            if self.process.exited().is_some() {
                return Ok(Some(false));
            }
            Ok(self.client.keys("/").await.ok().map(|_| true))
        });
        match up.await {
            Ok(true) => Ok(()),
            Ok(false) => fail!("etcd has ended:\n{}", self.process.tail()),
            Err(error) => fail!("{error}:\n{}", self.process.tail()),
        }
    }

    /// Its URL.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// What is asked of it.
    pub fn client(&self) -> &EtcdClient {
        &self.client
    }

    /// The options with which a command of ours reaches it.
    pub fn options(&self) -> Vec<String> {
        let mut options = vec![format!("--endpoints={}", self.endpoint)];
        if let Some(tls) = &self.tls {
            options.push(format!("--cacert={}", tls.ca.display()));
            options.push(format!("--cert={}", tls.client.cert.display()));
            options.push(format!("--key={}", tls.client.key.display()));
        }
        options
    }

    /// The authority of its certificates, when it has any.
    pub fn ca(&self) -> Option<&Authority> {
        self.tls.as_ref().map(|tls| &tls.authority)
    }

    /// A folder that goes with it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Ends it with SIGKILL.
    pub fn kill(&self) {
        self.process.kill();
    }
}

// === impl Tls ===

impl Tls {
    fn make(folder: &Path) -> Result<Self> {
        let authority = Authority::new("etcd-ca")?;
        let ca = folder.join("ca.pem");
        std::fs::write(&ca, authority.pem())?;
        authority.server()?.write(folder, "server")?;
        let client = authority.client("kube-apiserver-etcd-client", Validity::Now)?;
        let client = client.write(folder, "client")?;
        Ok(Self { authority, ca, client })
    }
}

fn channel(endpoint: &str, tls: Option<&Tls>) -> Result<Channel> {
    let Some(tls) = tls else {
        return Ok(Endpoint::from_shared(endpoint.to_owned())?.connect_lazy());
    };
    let identity = crate::tls::Identity {
        cert_pem: std::fs::read_to_string(&tls.client.cert)?,
        key_pem: std::fs::read_to_string(&tls.client.key)?,
    };
    let mut config = tls.authority.client_config_as(&identity)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let address = endpoint.trim_start_matches("https://").to_owned();
    let dial = tower::service_fn(move |_: http::Uri| {
        let (connector, address) = (connector.clone(), address.clone());
        async move {
            let stream = tokio::net::TcpStream::connect(&address).await?;
            let name = rustls::pki_types::ServerName::from(std::net::Ipv4Addr::LOCALHOST);
            let stream = connector.connect(name.to_owned(), stream).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    // TLS is the connector's affair.
    let plain = endpoint.replacen("https", "http", 1);
    let endpoint = Endpoint::from_shared(plain).context("etcd's URL")?;
    Ok(endpoint.connect_with_connector_lazy(dial))
}
