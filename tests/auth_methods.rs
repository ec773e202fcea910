//! Every way to log in, against a real OpenBao: it works, `check --online` agrees, and a
//! login that is refused says why and follows what its file holds next.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lab::{Config, Daemon, DevNode, FakeTokenReview, TokenIssuer, eventually, policy_for};
use serde_json::{Value, json};

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(20);
const DEK: [u8; 32] = [7; 32];
const ACCEPTED: &str = "Vault has accepted the token.";

/// A node with the key `kube` and the policy `kms` for it.
struct Bao {
    node: DevNode,
    folder: tempfile::TempDir,
}

// === impl Bao ===

impl Bao {
    async fn start() -> lab::Result<Self> {
        let node = DevNode::start().await?;
        node.create_keys(&["kube"]).await?;
        node.admin().write_policy("kms", &policy_for(&["kube"])).await?;
        Ok(Self { node, folder: tempfile::tempdir()? })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A configuration with this block `auth`.
    fn config(&self, auth: Value) -> Config {
        Config::new()
            .keys(&["kube"])
            .addresses(&[self.node.address()])
            .with("vaultCACert", self.node.ca_file().display().to_string())
            .with("admin", json!({ "listen": "127.0.0.1:0" }))
            .with("auth", auth)
    }

    async fn enable(&self, method: &str, mount: &str) -> lab::Result {
        self.node.admin().write(&format!("sys/auth/{mount}"), json!({ "type": method })).await?;
        Ok(())
    }

    async fn write(&self, path: &str, body: Value) -> lab::Result {
        self.node.admin().write(path, body).await.map(drop)
    }

    /// Has `check --online` look at `config`; answers what it printed.
    async fn check(&self, config: &Config, code: i32) -> lab::Result<String> {
        let file = self.at("checked.yaml");
        write_private(&file, &config.to_string())?;
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

/// A daemon on `config` that has encrypted and decrypted.
async fn serving(config: &Config) -> lab::Result<Daemon> {
    let daemon = Daemon::start(DAEMON, config).await?;
    daemon.wait_ready(PATIENCE).await?;
    works(&daemon).await?;
    Ok(daemon)
}

async fn works(daemon: &Daemon) -> lab::Result {
    let cipher = daemon.kms().v1().encrypt(&DEK).await?;
    assert_eq!(daemon.kms().v1().decrypt(&cipher).await?, DEK);
    Ok(())
}

fn write_private(path: &Path, text: &str) -> lab::Result {
    fs::write(path, text)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o600))?)
}

/// A folder as a kubelet keeps it: what is mounted are links through `..data`, and `..data`
/// is replaced by rename.
struct Volume(PathBuf);

// === impl Volume ===

impl Volume {
    fn new(folder: PathBuf, text: &str) -> lab::Result<Self> {
        fs::create_dir(&folder)?;
        symlink("..data/token", folder.join("token"))?;
        let volume = Self(folder);
        volume.replace(text)?;
        Ok(volume)
    }

    fn replace(&self, text: &str) -> lab::Result {
        let number = fs::read_dir(&self.0)?.count();
        let next = format!("..version_{number}");
        fs::create_dir(self.0.join(&next))?;
        write_private(&self.0.join(&next).join("token"), text)?;
        symlink(&next, self.0.join("..data_tmp"))?;
        Ok(fs::rename(self.0.join("..data_tmp"), self.0.join("..data"))?)
    }

    fn file(&self) -> String {
        self.0.join("token").display().to_string()
    }
}

/// Seconds since 1970, so many from now.
fn in_seconds(seconds: i64) -> i64 {
    vault_kms_proxy::clock::node_time().0 + seconds
}

#[tokio::test]
async fn a_signed_token_is_read_anew_at_each_login() -> lab::Result {
    let bao = Bao::start().await?;
    let issuer = TokenIssuer::new()?;
    bao.enable("jwt", "spire/jwt").await?;
    bao.write(
        "auth/spire/jwt/config",
        json!({ "jwt_validation_pubkeys": issuer.public_key_pem() }),
    )
    .await?;
    let role = json!({
        "role_type": "jwt", "user_claim": "sub", "bound_audiences": "vault",
        "bound_subject": "spiffe://example.org/kms", "token_policies": "kms", "token_ttl": "1h",
    });
    bao.write("auth/spire/jwt/role/kms", role).await?;
    let svid = |subject: &str, expires: i64| {
        issuer.sign(&json!({
            "sub": subject, "aud": ["vault"], "exp": in_seconds(expires), "iat": in_seconds(-600),
        }))
    };
    let good = svid("spiffe://example.org/kms", 300)?;
    // Beyond the leeway that OpenBao grants.
    let volume = Volume::new(bao.at("svid"), &svid("spiffe://example.org/kms", -500)?)?;
    let jwt = json!({ "mount": "spire/jwt", "role": "kms", "tokenFile": volume.file() });
    let config = bao.config(json!({ "jwt": jwt }));

    let printed = bao.check(&config, 1).await?;
    assert!(printed.contains("FAIL no token: JWT login refused"), "{printed}");
    let daemon = Daemon::start(DAEMON, &config).await?;
    let said = daemon.wait_for_log("JWT login refused", PATIENCE).await?;
    assert!(said.contains("have whoever writes the token's file write a new one"), "{said}");

    volume.replace(&good)?;
    daemon.wait_for_log(ACCEPTED, PATIENCE).await?;
    daemon.wait_ready(PATIENCE).await?;
    works(&daemon).await?;
    let printed = bao.check(&config, 0).await?;
    assert!(printed.contains("ok   JWT: a token with a ttl of 1h, renewable"), "{printed}");

    // The token is lost, and the file holds what the role does not allow, then nothing good.
    volume.replace(&svid("spiffe://example.org/other", 300)?)?;
    let mark = daemon.log_mark();
    bao.node.admin().revoke_prefix("auth/spire/jwt/login").await?;
    daemon.kms().v1().encrypt(&DEK).await.unwrap_err();
    daemon.wait_for_log_after(mark, "JWT login refused", PATIENCE).await?;
    volume.replace("no signed token")?;
    daemon.wait_for_log_after(mark, "it holds no signed token (JWT)", PATIENCE).await?;
    volume.replace(&good)?;
    daemon.wait_for_log_after(mark, ACCEPTED, PATIENCE).await?;
    works(&daemon).await?;
    assert!(!daemon.log().contains(&good), "the log holds a signed token");
    Ok(())
}

#[tokio::test]
async fn kubernetes_reviews_the_service_accounts_token() -> lab::Result {
    let bao = Bao::start().await?;
    let apiserver = FakeTokenReview::start().await?;
    let issuer = TokenIssuer::new()?;
    let token = |expires: i64| {
        issuer.sign(&json!({
            "iss": "https://kubernetes.default.svc",
            "iat": in_seconds(-600), "nbf": in_seconds(-600), "exp": in_seconds(expires),
            "sub": "system:serviceaccount:kube-system:kms", "aud": ["vault"],
            "kubernetes.io": {
                "namespace": "kube-system",
                "serviceaccount": { "name": "kms", "uid": "00000000-0000-0000-0000-000000000001" },
            },
        }))
    };
    let (first, second) = (token(3_600)?, token(7_200)?);
    bao.enable("kubernetes", "kubernetes").await?;
    let reviewer = json!({
        "kubernetes_host": apiserver.address(), "token_reviewer_jwt": token(86_400)?,
        "disable_local_ca_jwt": true, "kubernetes_ca_cert": bao.node.ca().pem(),
    });
    bao.write("auth/kubernetes/config", reviewer).await?;
    let role = json!({
        "bound_service_account_names": "kms", "bound_service_account_namespaces": "kube-system",
        "token_policies": "kms", "token_ttl": "1h",
    });
    bao.write("auth/kubernetes/role/kms", role).await?;
    apiserver.accept(&first, "kube-system", "kms");
    let volume = Volume::new(bao.at("serviceaccount"), &first)?;
    let kubernetes = json!({ "role": "kms", "tokenFile": volume.file() });
    let config = bao.config(json!({ "kubernetes": kubernetes }));

    let printed = bao.check(&config, 0).await?;
    assert!(printed.contains("neither can start without the other"), "{printed}");
    assert!(printed.contains("ok   Kubernetes: a token with a ttl of 1h"), "{printed}");
    let daemon = serving(&config).await?;
    assert!(apiserver.reviews() >= 2, "the login was not reviewed");

    // The service account's token ends, and a kubelet brings the next.
    apiserver.forget_all();
    apiserver.accept(&second, "kube-system", "kms");
    let mark = daemon.log_mark();
    bao.node.admin().revoke_prefix("auth/kubernetes/login").await?;
    daemon.kms().v1().encrypt(&DEK).await.unwrap_err();
    daemon.wait_for_log_after(mark, "Kubernetes login refused", PATIENCE).await?;
    volume.replace(&second)?;
    daemon.wait_for_log_after(mark, ACCEPTED, PATIENCE).await?;
    works(&daemon).await?;
    assert!(!daemon.log().contains(&first) && !daemon.log().contains(&second));
    Ok(())
}

#[tokio::test]
async fn a_user_logs_in_and_a_wrong_password_is_not_tried_until_vault_locks_them_out() -> lab::Result
{
    let bao = Bao::start().await?;
    bao.enable("userpass", "people").await?;
    let user = json!({ "password": "correct horse", "token_policies": "kms", "token_ttl": "1h" });
    bao.write("auth/people/users/kms", user).await?;
    let file = bao.at("password");
    write_private(&file, "correct horse\n")?;
    let user = json!({
        "mount": "auth/people", "username": "kms", "passwordFile": file.display().to_string(),
    });
    let config = bao.config(json!({ "userpass": user }));
    let printed = bao.check(&config, 0).await?;
    assert!(printed.contains("ok   userpass: a token with a ttl of 1h"), "{printed}");
    serving(&config).await?.stop().await?;

    write_private(&file, "battery staple")?;
    let login = "auth/people/login/kms";
    let before = bao.node.count_requests(login);
    let daemon = Daemon::start(DAEMON, &config).await?;
    let said = daemon.wait_for_log("Userpass login refused", PATIENCE).await?;
    assert!(said.contains("invalid user name or password"), "{said}");
    let kms = daemon.kms().timeout(Duration::from_millis(200));
    for _ in 0..20 {
        kms.v1().encrypt(&DEK).await.unwrap_err();
    }
    let tries = bao.node.count_requests(login) - before;
    assert!(tries <= 2, "{tries} tries");
    write_private(&file, "correct horse")?;
    daemon.wait_for_log(ACCEPTED, PATIENCE).await?;
    daemon.wait_ready(PATIENCE).await?;
    works(&daemon).await?;
    assert!(!daemon.log().contains("battery staple"));
    Ok(())
}

#[tokio::test]
async fn a_login_and_its_keys_may_be_in_different_namespaces() -> lab::Result {
    let bao = Bao::start().await?;
    let admin = bao.node.admin();
    admin.create_namespace("platform").await?;
    let inner = admin.in_namespace("platform");
    inner.mount_transit().await?;
    inner.create_key("inner").await?;
    // A policy of the root namespace reaches into the one below.
    let policy: String = policy_for(&["inner"]).replace("\"transit/", "\"platform/transit/");
    admin.write_policy("reaching", &policy).await?;
    bao.enable("userpass", "userpass").await?;
    let user = json!({ "password": "pw", "token_policies": "reaching", "token_ttl": "2h" });
    bao.write("auth/userpass/users/kms", user).await?;
    let user = json!({ "username": "kms", "password": "pw" });
    let config = bao
        .config(json!({ "namespace": "root", "userpass": user }))
        .keys(&["inner"])
        .with("namespace", "platform");
    let printed = bao.check(&config, 0).await?;
    assert!(printed.contains("userpass: a token with a ttl of 2h, renewable"), "{printed}");
    serving(&config).await?.stop().await?;

    // Without it the login is sought beside the keys, where it is not.
    let printed = bao.check(&config.with("auth", json!({ "userpass": user })), 1).await?;
    assert!(printed.contains("Userpass login refused"), "{printed}");
    Ok(())
}

#[tokio::test]
async fn a_token_file_behind_a_volumes_links_is_followed() -> lab::Result {
    let bao = Bao::start().await?;
    let admin = bao.node.admin();
    let token = || admin.create_token(json!({ "policies": ["kms"], "ttl": "1h" }));
    let (first, second) = (token().await?, token().await?);
    let volume = Volume::new(bao.at("token"), &first)?;
    let config = bao.config(json!({ "tokenFile": volume.file() }));
    let daemon = serving(&config).await?;
    let mark = daemon.log_mark();
    volume.replace(&second)?;
    daemon.wait_for_log_after(mark, ACCEPTED, PATIENCE).await?;
    admin.revoke_token(&first).await?;
    works(&daemon).await?;
    // Nobody had to be refused first.
    let was_refused = daemon.log().contains("Vault no longer accepts the token.");
    assert!(!was_refused, "{}", daemon.log());
    eventually("the first token is gone", PATIENCE, || async {
        Ok(admin.lookup_token(&first).await.is_err().then_some(()))
    })
    .await
}
