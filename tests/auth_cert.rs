//! The client certificate as the login, and files of certificates that change while the
//! daemon runs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use lab::{Authority, Config, Daemon, DevNode, Validity, eventually, policy_for};
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(30);
const DEK: [u8; 32] = [7; 32];
const ACCEPTED: &str = "Vault has accepted the token.";
const CHANGED: &str = "The files of certificates have changed";
const LOGIN: &str = "auth/cert/login";

/// A node that takes the clients of this year's authority and of next year's, each by a
/// role of its own.
struct Bao {
    node: DevNode,
    this_year: Authority,
    next_year: Authority,
    folder: tempfile::TempDir,
}

// === impl Bao ===

impl Bao {
    async fn start() -> lab::Result<Self> {
        let node = DevNode::start().await?;
        node.create_keys(&["kube"]).await?;
        let admin = node.admin();
        admin.write_policy("kms", &policy_for(&["kube"])).await?;
        admin.write("sys/auth/cert", json!({ "type": "cert" })).await?;
        let (this_year, next_year) =
            (Authority::new("clients, this year")?, Authority::new("clients, next year")?);
        for (role, authority) in [("this-year", &this_year), ("next-year", &next_year)] {
            let role = format!("auth/cert/certs/{role}");
            let options = json!({
                "certificate": authority.pem(), "token_policies": "kms", "token_ttl": "1h",
            });
            admin.write(&role, options).await?;
        }
        fs::copy(node.ca_file(), node.folder().join("trusted.pem"))?;
        Ok(Self { node, this_year, next_year, folder: tempfile::tempdir()? })
    }

    /// Certificate and key in one file.
    fn combined(&self) -> PathBuf {
        self.folder.path().join("client.pem")
    }

    fn trusted(&self) -> PathBuf {
        self.node.folder().join("trusted.pem")
    }

    fn show(&self, authority: &Authority) -> lab::Result {
        let identity = authority.client("kms-0", Validity::Now)?;
        replace(&self.combined(), &format!("{}{}", identity.cert_pem, identity.key_pem))
    }

    fn config(&self) -> Config {
        let client = self.combined().display().to_string();
        Config::new()
            .keys(&["kube"])
            .addresses(&[self.node.address()])
            .with("vaultCACert", self.trusted().display().to_string())
            .with("clientCert", client.as_str())
            .with("clientKey", client)
    }

    fn daemon_config(&self, auth: Value) -> Config {
        let admin = json!({ "listen": "127.0.0.1:0" });
        self.config().with("admin", admin).with("auth", auth)
    }

    async fn check(&self, config: &Config, more: &str, code: i32) -> lab::Result<String> {
        let file = self.folder.path().join("checked.yaml");
        replace(&file, &config.to_string())?;
        let arguments = format!("check --online --timeout 5s --config {} {more}", file.display());
        let output = tokio::task::spawn_blocking(move || {
            Command::new(DAEMON).args(arguments.split_whitespace()).env_clear().output()
        });
        let output = output.await??;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(code), "{printed}");
        Ok(printed)
    }
}

/// Writes a file beside its place, and renames it there.
fn replace(path: &Path, text: &str) -> lab::Result {
    let next = path.with_extension("next");
    fs::write(&next, text)?;
    fs::set_permissions(&next, fs::Permissions::from_mode(0o600))?;
    Ok(fs::rename(next, path)?)
}

async fn works(daemon: &Daemon) -> lab::Result {
    let cipher = daemon.kms().v1().encrypt(&DEK).await?;
    assert_eq!(daemon.kms().v1().decrypt(&cipher).await?, DEK);
    Ok(())
}

/// Takes the token away and waits for the login that follows.
async fn log_in_anew(bao: &Bao, daemon: &Daemon) -> lab::Result {
    let mark = daemon.log_mark();
    bao.node.admin().revoke_prefix(LOGIN).await?;
    let _ = daemon.kms().v1().encrypt(&DEK).await;
    daemon.wait_for_log_after(mark, ACCEPTED, PATIENCE).await?;
    works(daemon).await
}

#[tokio::test]
async fn the_certificate_is_the_login_and_a_renewed_one_is_shown_without_a_reload() -> lab::Result {
    let bao = Bao::start().await?;
    bao.show(&bao.this_year)?;
    let config = bao.daemon_config(json!({ "cert": {} }));
    let printed = bao.check(&config, "", 0).await?;
    assert!(printed.contains("ok   TLS certificate: a token with a ttl of 1h"), "{printed}");
    // The Oracle plugin's file, whose third login it is.
    let printed = bao.check(&bao.config(), "--oracle", 0).await?;
    assert!(printed.contains("ok   TLS certificate: a token with a ttl of 1h"), "{printed}");
    // A role that the certificate does not fit.
    let other = bao.daemon_config(json!({ "cert": { "role": "next-year" } }));
    let printed = bao.check(&other, "", 1).await?;
    assert!(printed.contains("check clientCert against the certificates"), "{printed}");

    let daemon = Daemon::start(DAEMON, &config).await?;
    daemon.wait_ready(PATIENCE).await?;
    works(&daemon).await?;

    // Next year's is shown by every connection from then on.
    let mark = daemon.log_mark();
    bao.show(&bao.next_year)?;
    daemon.wait_for_log_after(mark, CHANGED, PATIENCE).await?;
    let gone = bao.node.admin().call("DELETE", "auth/cert/certs/this-year", Value::Null);
    gone.await?;
    log_in_anew(&bao, &daemon).await?;

    // Half of a pair is told, and the whole one before it serves on.
    let mark = daemon.log_mark();
    let whole = fs::read_to_string(bao.combined())?;
    let half = &whole[..whole.find("-----BEGIN PRIVATE").unwrap_or_default()];
    replace(&bao.combined(), half)?;
    let said = daemon.wait_for_log_after(mark, "cannot be used", PATIENCE).await?;
    assert!(said.contains("client.pem holds no private key"), "{said}");
    log_in_anew(&bao, &daemon).await?;
    let failed = daemon.metric("vault_kms_proxy_tls_reloads_total", "result=\"failed\"").await?;
    assert!(failed >= 1.0, "{failed}");
    Ok(())
}

#[tokio::test]
async fn an_authority_that_is_replaced_with_overlap_needs_no_reload() -> lab::Result {
    let bao = Bao::start().await?;
    bao.show(&bao.this_year)?;
    let daemon = Daemon::start(DAEMON, bao.daemon_config(json!({ "cert": {} }))).await?;
    daemon.wait_ready(PATIENCE).await?;
    let next = Authority::new("servers, next year")?;
    let mark = daemon.log_mark();
    replace(&bao.trusted(), &format!("{}{}", bao.node.ca().pem(), next.pem()))?;
    daemon.wait_for_log_after(mark, CHANGED, PATIENCE).await?;
    works(&daemon).await?;

    // This year's authority goes before the server's turn: it is told and not used.
    let mark = daemon.log_mark();
    replace(&bao.trusted(), next.pem())?;
    let said = daemon.wait_for_log_after(mark, "no address accepts them", PATIENCE).await?;
    assert!(said.contains("trusted.pem") && said.contains("not signed by the CA"), "{said}");
    works(&daemon).await?;
    let refused = daemon.metric("vault_kms_proxy_tls_reloads_total", "result=\"refused\"").await?;
    assert!(refused >= 1.0, "{refused}");
    replace(&bao.trusted(), &format!("{}{}", bao.node.ca().pem(), next.pem()))?;

    // The server's turn, and then this year's authority goes.
    next.server()?.write(bao.node.folder(), "server")?;
    bao.node.hang_up()?;
    let trusting = TlsConnector::from(Arc::new(next.client_config()?));
    eventually("the server shows its new certificate", PATIENCE, || async {
        let stream = TcpStream::connect(bao.node.authority()).await?;
        let name = ServerName::try_from("127.0.0.1")?;
        Ok(trusting.connect(name, stream).await.is_ok().then_some(()))
    })
    .await?;
    let mark = daemon.log_mark();
    replace(&bao.trusted(), next.pem())?;
    daemon.wait_for_log_after(mark, CHANGED, PATIENCE).await?;
    works(&daemon).await?;
    Ok(())
}
