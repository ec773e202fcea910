//! A secret id behind a wrapping token: looked at, unwrapped once, kept, and refused with
//! the reason when somebody else was there first.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lab::{Config, Daemon, DevNode, FaultProxy, eventually, policy_for};
use serde_json::json;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(20);
const DEK: [u8; 32] = [7; 32];
const ACCEPTED: &str = "Vault has accepted the token.";
const UNWRAP: &str = "sys/wrapping/unwrap";
const LOGIN: &str = "auth/approle/login";

struct Bao {
    node: DevNode,
    role_id: String,
    folder: tempfile::TempDir,
}

// === impl Bao ===

impl Bao {
    async fn start() -> lab::Result<Self> {
        let node = DevNode::start().await?;
        node.create_keys(&["kube"]).await?;
        node.admin().write_policy("kms", &policy_for(&["kube"])).await?;
        let options = json!({ "token_policies": ["kms"], "token_ttl": "1h" });
        let role_id = node.admin().create_approle("kms", options).await?.role_id;
        Ok(Self { node, role_id, folder: tempfile::tempdir()? })
    }

    fn wrapping_file(&self) -> PathBuf {
        self.folder.path().join("wrapped")
    }

    fn state_dir(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn kept(&self) -> PathBuf {
        self.state_dir().join("secret-id.default.json")
    }

    fn config(&self) -> Config {
        let role = json!({
            "roleID": self.role_id, "wrappedSecretIDFile": self.wrapping_file().display().to_string(),
        });
        Config::new()
            .keys(&["kube"])
            .addresses(&[self.node.address()])
            .with("vaultCACert", self.node.ca_file().display().to_string())
            .with("admin", json!({ "listen": "127.0.0.1:0" }))
            .with("stateDir", self.state_dir().display().to_string())
            .with("auth", json!({ "appRole": role }))
    }

    /// Brings a wrapping token for what `path` answers, as its deliverer does; answers it.
    async fn deliver(&self, path: &str) -> lab::Result<String> {
        let token = self.wrap(path).await?;
        write_private(&self.wrapping_file(), &token)?;
        Ok(token)
    }

    async fn wrap(&self, path: &str) -> lab::Result<String> {
        self.node.admin().wrap(path, json!({}), Duration::from_secs(300)).await
    }

    fn requests(&self, path: &str) -> usize {
        self.node.count_requests(path)
    }

    async fn check(&self, code: i32) -> lab::Result<String> {
        let file = self.folder.path().join("checked.yaml");
        write_private(&file, &self.config().to_string())?;
        let file = file.display().to_string();
        let output = tokio::task::spawn_blocking(move || {
            let arguments = ["check", "--online", "--timeout", "5s", "--config", &file];
            Command::new(DAEMON).args(arguments).env_clear().output()
        });
        let output = output.await??;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(code), "{printed}");
        Ok(printed)
    }
}

fn write_private(path: &Path, text: &str) -> lab::Result {
    let next = path.with_extension("next");
    fs::write(&next, text)?;
    fs::set_permissions(&next, fs::Permissions::from_mode(0o600))?;
    Ok(fs::rename(next, path)?)
}

async fn works(daemon: &Daemon) -> lab::Result {
    daemon.wait_ready(PATIENCE).await?;
    let cipher = daemon.kms().v1().encrypt(&DEK).await?;
    assert_eq!(daemon.kms().v1().decrypt(&cipher).await?, DEK);
    Ok(())
}

const SECRET_ID: &str = "auth/approle/role/kms/secret-id";

#[tokio::test]
async fn it_is_unwrapped_once_and_serves_every_later_login() -> lab::Result {
    let bao = Bao::start().await?;
    let first = bao.deliver(SECRET_ID).await?;

    // Looking does not use it up.
    for _ in 0..2 {
        let printed = bao.check(0).await?;
        assert!(printed.contains("ok   AppRole: the wrapping token is good"), "{printed}");
        assert!(printed.contains("warn no login was tried"), "{printed}");
    }
    assert_eq!((bao.requests(UNWRAP), bao.requests(LOGIN)), (0, 0));
    assert!(!bao.kept().exists());

    let daemon = Daemon::start(DAEMON, bao.config()).await?;
    works(&daemon).await?;
    assert_eq!((bao.requests(UNWRAP), bao.requests(LOGIN)), (1, 1));
    let mode = fs::metadata(bao.kept())?.permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    assert_eq!(fs::metadata(bao.state_dir())?.permissions().mode() & 0o777, 0o700);

    // A lost token, and a process that knows nothing but the file.
    let mark = daemon.log_mark();
    bao.node.admin().revoke_prefix(LOGIN).await?;
    let _ = daemon.kms().v1().encrypt(&DEK).await;
    daemon.wait_for_log_after(mark, ACCEPTED, PATIENCE).await?;
    daemon.stop().await?;
    let printed = bao.check(0).await?;
    assert!(printed.contains("ok   AppRole: a token with a ttl of 1h, renewable"), "{printed}");
    fs::remove_file(bao.wrapping_file())?;
    let daemon = Daemon::start(DAEMON, bao.config()).await?;
    works(&daemon).await?;
    assert_eq!((bao.requests(UNWRAP), bao.requests(LOGIN)), (1, 4));

    // The next one is unwrapped at the next login, if not before; the old one serves no more.
    let kept = fs::read_to_string(bao.kept())?;
    let second = bao.deliver(SECRET_ID).await?;
    let mark = daemon.log_mark();
    bao.node.admin().revoke_prefix(LOGIN).await?;
    let _ = daemon.kms().v1().encrypt(&DEK).await;
    daemon.wait_for_log_after(mark, ACCEPTED, PATIENCE).await?;
    works(&daemon).await?;
    assert_eq!(bao.requests(UNWRAP), 2);
    assert_ne!(fs::read_to_string(bao.kept())?, kept);

    // One that somebody else has unwrapped is told of, and takes nothing away.
    let third = bao.wrap(SECRET_ID).await?;
    bao.node.admin().with_token(&third).write(UNWRAP, json!({})).await?;
    let mark = daemon.log_mark();
    write_private(&bao.wrapping_file(), &third)?;
    bao.node.admin().revoke_prefix(LOGIN).await?;
    let _ = daemon.kms().v1().encrypt(&DEK).await;
    let said = daemon.wait_for_log_after(mark, "somebody else may have", PATIENCE).await?;
    assert!(said.contains("logins go on with the secret ID that was unwrapped before"), "{said}");
    daemon.wait_for_log_after(mark, ACCEPTED, PATIENCE).await?;
    works(&daemon).await?;

    let secret = serde_json::from_str::<serde_json::Value>(&fs::read_to_string(bao.kept())?)?;
    for secret in [&first, &second, &third, secret["secretId"].as_str().unwrap_or_default()] {
        assert!(secret.len() > 10 && !daemon.log().contains(secret), "the log holds a secret");
    }
    Ok(())
}

#[tokio::test]
async fn what_must_not_be_unwrapped_is_refused_with_the_reason() -> lab::Result {
    let bao = Bao::start().await?;

    // Used up by somebody else.
    let used = bao.deliver(SECRET_ID).await?;
    bao.node.admin().with_token(&used).write(UNWRAP, json!({})).await?;
    let printed = bao.check(1).await?;
    assert!(printed.contains("used up or has expired"), "{printed}");
    let daemon = Daemon::start(DAEMON, bao.config()).await?;
    let said = daemon.wait_for_log("cannot unwrap the secret ID", PATIENCE).await?;
    for words in ["used up or has expired", "somebody else may have", "compromised"] {
        assert!(said.contains(words), "{said}");
    }

    // Something else in its place: it is not even unwrapped.
    let unwraps = bao.requests(UNWRAP);
    bao.deliver("sys/wrapping/wrap").await?;
    let said = daemon.wait_for_log("wraps what was made at sys/wrapping/wrap", PATIENCE).await?;
    assert!(said.contains("not a secret ID of auth/approle"), "{said}");
    assert_eq!((bao.requests(UNWRAP), bao.requests(LOGIN)), (unwraps, 0));

    // Nowhere to keep it: it stays whole, and is unwrapped once there is a place.
    fs::remove_dir_all(bao.state_dir())?;
    fs::write(bao.state_dir(), "in the way")?;
    let mark = daemon.log_mark();
    bao.deliver(SECRET_ID).await?;
    daemon
        .wait_for_log_after(mark, "the unwrapped secret ID cannot be kept there", PATIENCE)
        .await?;
    assert_eq!((bao.requests(UNWRAP), bao.requests(LOGIN)), (unwraps, 0));
    fs::remove_file(bao.state_dir())?;
    daemon.wait_for_log_after(mark, ACCEPTED, PATIENCE).await?;
    works(&daemon).await?;
    assert_eq!((bao.requests(UNWRAP), bao.requests(LOGIN)), (unwraps + 1, 1));
    Ok(())
}

#[tokio::test]
async fn a_stop_in_the_middle_of_an_unwrap_waits_for_what_comes_out() -> lab::Result {
    let bao = Bao::start().await?;
    bao.deliver(SECRET_ID).await?;
    let way = FaultProxy::start(bao.node.address()).await?;
    way.delay(Duration::from_secs(2));
    let config = bao.config().addresses(&[&way.https()]);

    let daemon = Daemon::start(DAEMON, &config).await?;
    let unwrapped = || async { Ok((bao.requests(UNWRAP) == 1).then_some(())) };
    eventually("Vault has unwrapped it", PATIENCE, unwrapped).await?;
    assert_eq!(daemon.stop().await?, 0);
    let kept = fs::read_to_string(bao.kept())?;
    assert!(kept.contains("secretId"), "the secret id is lost");
    way.heal().await?;
    let daemon = Daemon::start(DAEMON, &config).await?;
    works(&daemon).await?;
    assert_eq!(bao.requests(UNWRAP), 1);
    Ok(())
}
