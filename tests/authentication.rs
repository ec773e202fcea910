//! Tokens that end, are revoked, are replaced, or may do less than they should.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use lab::{Config, Daemon, DevNode, FaultProxy, Kms, eventually, policy_for};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tonic::Code;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(15);
const DEK: [u8; 32] = [7; 32];
const LOGIN: &str = "auth/approle/login";
const LOOKUP: &str = "auth/token/lookup-self";
const ACCEPTED: &str = "Vault has accepted the token.";

/// A node with the key `kube`, the policy `kms` for it, and the role `kms`.
struct Bao {
    node: DevNode,
    role_id: String,
    secret_id: String,
    folder: tempfile::TempDir,
}

impl Bao {
    async fn start(ttl: &str, max_ttl: &str) -> lab::Result<Self> {
        let node = DevNode::start().await?;
        node.create_keys(&["kube"]).await?;
        node.admin().write_policy("kms", &policy_for(&["kube"])).await?;
        let options =
            json!({ "token_policies": ["kms"], "token_ttl": ttl, "token_max_ttl": max_ttl });
        let role = node.admin().create_approle("kms", options).await?;
        let folder = tempfile::tempdir()?;
        let bao = Self { node, role_id: role.role_id, secret_id: role.secret_id, folder };
        replace(&bao.secret_file(), &bao.secret_id)?;
        Ok(bao)
    }

    fn secret_file(&self) -> PathBuf {
        self.folder.path().join("secret-id")
    }

    fn token_file(&self) -> PathBuf {
        self.folder.path().join("token")
    }

    /// A configuration without any way to log in.
    async fn bare(&self) -> lab::Result<Config> {
        Ok(self.node.config(&["kube"]).await?.without("roleID").without("secretIDFile"))
    }

    async fn config(&self) -> lab::Result<Config> {
        let secret_file = self.secret_file().display().to_string();
        let bare = self.bare().await?;
        Ok(bare.with("roleID", self.role_id.as_str()).with("secretIDFile", secret_file))
    }

    async fn token(&self) -> lab::Result<String> {
        self.node.admin().create_token(json!({ "policies": ["kms"], "ttl": "1h" })).await
    }

    fn logins(&self) -> usize {
        self.node.count_requests(LOGIN)
    }
}

/// Writes a file as those who own such files do: beside it, then by rename.
fn replace(path: &Path, text: &str) -> lab::Result {
    use std::os::unix::fs::PermissionsExt;
    let next = path.with_extension("next");
    fs::write(&next, text)?;
    fs::set_permissions(&next, fs::Permissions::from_mode(0o600))?;
    Ok(fs::rename(next, path)?)
}

/// Callers that decrypt, each a little after the answer to the last, until dropped.
struct Callers {
    good: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    running: JoinSet<Result<(), tonic::Status>>,
}

impl Callers {
    async fn start(daemon: &Daemon, count: usize) -> lab::Result<Self> {
        let cipher = daemon.kms().v1().encrypt(&DEK).await?;
        let (good, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let mut running = JoinSet::new();
        for _ in 0..count {
            let (kms, cipher) = (daemon.kms().v1(), cipher.clone());
            let (good, stop) = (Arc::clone(&good), Arc::clone(&stop));
            running.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(kms.decrypt(&cipher).await?, DEK);
                    good.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_millis(20)).await;
                }
                Ok(())
            });
        }
        Ok(Self { good, stop, running })
    }

    fn good(&self) -> usize {
        self.good.load(Ordering::Relaxed)
    }

    /// Waits for so many more good calls.
    async fn wait_more(&self, more: usize) -> lab::Result {
        let due = self.good() + more;
        eventually("callers go on", PATIENCE, || async { Ok((self.good() >= due).then_some(())) })
            .await
    }

    /// Stops them; the first that failed is an error.
    async fn finish(self) -> lab::Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        for ended in self.running.join_all().await {
            ended?;
        }
        Ok(self.good.load(Ordering::Relaxed))
    }
}

/// Calls until one succeeds.
async fn wait_good(kms: &Kms) -> lab::Result {
    eventually("a call succeeds", PATIENCE, || async {
        kms.v1().encrypt(&DEK).await?;
        Ok(Some(()))
    })
    .await
}

#[tokio::test]
async fn calls_go_on_over_renewals_and_over_the_max_ttl() -> lab::Result {
    let bao = Bao::start("4s", "12s").await?;
    let daemon = Daemon::start(DAEMON, bao.config().await?).await?;
    daemon.wait_ready(PATIENCE).await?;
    let callers = Callers::start(&daemon, 8).await?;
    let began = Instant::now();
    // The first token lives to 12 s at the very most, so this is another one's renewal.
    let what = "the second token was renewed";
    eventually(what, Duration::from_secs(40), || async {
        let requests = bao.node.audited();
        let second = requests.iter().rposition(|r| r.path == LOGIN).filter(|_| bao.logins() >= 2);
        let renewed = second.is_some_and(|at| {
            requests[at..].iter().any(|request| request.path == "auth/token/renew-self")
        });
        sleep(Duration::from_millis(200)).await;
        Ok(renewed.then_some(()))
    })
    .await?;
    let took = began.elapsed();
    let calls = callers.finish().await?;
    println!("{calls} calls in {took:?}, {} logins", bao.logins());
    assert_eq!(bao.logins(), 2, "one login a token");
    assert!(bao.node.count_requests("auth/token/renew-self") >= 3);
    // A call that was under way when the first token ended may have been refused. No more.
    assert!(bao.node.count_requests(LOOKUP) <= 1, "{} looks", bao.node.count_requests(LOOKUP));
    Ok(())
}

#[tokio::test]
async fn a_revoked_token_costs_one_login_and_no_call() -> lab::Result {
    let bao = Bao::start("1h", "24h").await?;
    let daemon = Daemon::start(DAEMON, bao.config().await?).await?;
    daemon.wait_ready(PATIENCE).await?;
    let callers = Callers::start(&daemon, 64).await?;
    callers.wait_more(500).await?;
    assert_eq!(bao.logins(), 1);

    let mark = daemon.log_mark();
    bao.node.admin().revoke_prefix(LOGIN).await?;
    daemon.wait_for_log_after(mark, "Vault has accepted the token.", PATIENCE).await?;
    // Longer than the least time between two logins.
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        callers.wait_more(64).await?;
    }
    let calls = callers.finish().await?;
    let lookups = bao.node.count_requests(LOOKUP);
    println!("{calls} calls, {lookups} lookups, {} logins", bao.logins());
    assert_eq!(bao.logins(), 2, "one login for all callers");
    assert_eq!(lookups, 1, "one look for all callers");
    assert!(daemon.log().contains("Vault no longer accepts the token."));
    Ok(())
}

#[tokio::test]
async fn a_token_that_expired_while_vault_was_away_is_replaced_by_one_login() -> lab::Result {
    let bao = Bao::start("4s", "24h").await?;
    let way = FaultProxy::start(bao.node.address()).await?;
    let config = bao.config().await?.addresses(&[&way.https()]);
    let daemon = Daemon::start(DAEMON, config).await?;
    daemon.wait_ready(PATIENCE).await?;
    let logins = bao.logins();
    way.refuse().await?;
    let kms = daemon.kms().timeout(Duration::from_millis(500));
    eventually("the token has expired", PATIENCE, || async {
        let refused = kms.v1().encrypt(&DEK).await.unwrap_err();
        Ok(refused.message().contains("the last one has expired").then_some(()))
    })
    .await?;
    way.heal().await?;
    wait_good(&daemon.kms()).await?;
    // Nobody asked after a token that could only be dead.
    assert_eq!((bao.logins(), bao.node.count_requests(LOOKUP)), (logins + 1, 0));
    Ok(())
}

#[tokio::test]
async fn a_policy_that_forbids_a_call_is_no_reason_to_log_in() -> lab::Result {
    let bao = Bao::start("1h", "24h").await?;
    let admin = bao.node.admin();
    let daemon = Daemon::start(DAEMON, bao.config().await?).await?;
    daemon.wait_ready(PATIENCE).await?;
    let kms = daemon.kms();
    let cipher = kms.v1().encrypt(&DEK).await?;

    let whole = policy_for(&["kube"]);
    let lines = whole.lines().filter(|line| !line.contains("decrypt"));
    admin.write_policy("kms", &lines.collect::<Vec<_>>().join("\n")).await?;
    let mut calls = JoinSet::new();
    for _ in 0..50 {
        let (kms, cipher) = (kms.v1(), cipher.clone());
        calls.spawn(async move { kms.decrypt(&cipher).await });
    }
    for answer in calls.join_all().await {
        let denied = answer.unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied, "{denied}");
        let hint = "the token's policy does not allow it; `vault-kms-proxy check --online` shows";
        assert!(denied.message().contains(hint), "{denied}");
    }
    // An Encrypt that cannot be proven is not handed out, and Status stops the writes.
    kms.v2().encrypt(&DEK, "uid").await.unwrap_err();
    let lost = kms.v2().status().await.unwrap_err();
    assert!(lost.message().contains("policy does not allow it"), "{lost}");
    assert_eq!((bao.logins(), bao.node.count_requests(LOOKUP)), (1, 0));

    admin.write_policy("kms", &whole).await?;
    daemon.wait_ready(PATIENCE).await?;
    assert_eq!(kms.v1().decrypt(&cipher).await?, DEK);
    assert_eq!((bao.logins(), bao.node.count_requests(LOOKUP)), (1, 0));
    Ok(())
}

#[tokio::test]
async fn a_token_file_that_is_replaced_is_taken_up() -> lab::Result {
    let bao = Bao::start("1h", "24h").await?;
    let admin = bao.node.admin();
    let tokens = [bao.token().await?, bao.token().await?, bao.token().await?];
    replace(&bao.token_file(), &tokens[0])?;
    let config = bao.bare().await?.with("tokenFile", bao.token_file().display().to_string());
    let daemon = Daemon::start(DAEMON, config).await?;
    daemon.wait_ready(PATIENCE).await?;

    // In good time: the old one may go afterwards.
    let callers = Callers::start(&daemon, 8).await?;
    let mark = daemon.log_mark();
    replace(&bao.token_file(), &tokens[1])?;
    daemon.wait_for_log_after(mark, "Vault has accepted the token.", PATIENCE).await?;
    admin.revoke_token(&tokens[0]).await?;
    callers.wait_more(80).await?;

    // At the last moment: whoever is refused waits for the new one.
    replace(&bao.token_file(), &tokens[2])?;
    admin.revoke_token(&tokens[1]).await?;
    callers.wait_more(80).await?;
    callers.finish().await?;

    // And none in time.
    admin.revoke_token(&tokens[2]).await?;
    let kms = daemon.kms().timeout(Duration::from_millis(500));
    let refused = kms.v1().encrypt(&DEK).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    daemon.wait_for_log("have whoever writes the token file write another", PATIENCE).await?;
    replace(&bao.token_file(), &format!("{}\n", bao.token().await?))?;
    wait_good(&kms).await?;
    assert_eq!(bao.logins(), 0);
    Ok(())
}

#[tokio::test]
async fn a_static_token_that_is_revoked_says_what_to_do_and_does_not_storm() -> lab::Result {
    let bao = Bao::start("1h", "24h").await?;
    let token = bao.token().await?;
    let config = bao.bare().await?;
    let daemon = Daemon::start(DAEMON, config.clone().token(&token)).await?;
    daemon.wait_ready(PATIENCE).await?;
    bao.node.admin().revoke_token(&token).await?;

    let looked = bao.node.count_requests(LOOKUP);
    let began = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..16 {
        let kms = daemon.kms().timeout(Duration::from_millis(400)).v1();
        callers.spawn(async move {
            let mut last = None;
            while last.is_none() || began.elapsed() < Duration::from_secs(5) {
                let refused = kms.encrypt(&DEK).await.unwrap_err();
                // Cancelled is this client's own word, on a machine that is too busy for it.
                last = Some(refused).filter(|r| r.code() != Code::Cancelled).or(last);
            }
            last.expect("the loop ends with one")
        });
    }
    for last in callers.join_all().await {
        assert_eq!(last.code(), Code::Unavailable, "{last}");
        let remedy = "put another into the configuration and reload";
        assert!(last.message().contains(remedy), "{last}");
        assert!(!last.message().contains(&token), "{last}");
    }
    let looks = bao.node.count_requests(LOOKUP) - looked;
    println!("{looks} lookups in {:?}", began.elapsed());
    assert!((1..=5).contains(&looks), "{looks} lookups in 5 s");
    let refused = bao.node.count_requests("transit/encrypt");
    assert!(refused < 100, "calls with a token that is dead go to Vault: {refused}");

    daemon.write_config(config.token(&bao.token().await?))?;
    daemon.sighup()?;
    wait_good(&daemon.kms()).await?;
    assert!(!daemon.log().contains(&token), "the log holds a token");
    Ok(())
}

#[tokio::test]
async fn a_secret_id_that_is_wrong_or_destroyed_is_replaced_without_a_restart() -> lab::Result {
    let bao = Bao::start("1h", "24h").await?;
    let admin = bao.node.admin();
    replace(&bao.secret_file(), "11111111-2222-3333-4444-555555555555")?;
    let daemon = Daemon::start(DAEMON, bao.config().await?).await?;
    let kms = daemon.kms().timeout(Duration::from_millis(500));
    let said = daemon.wait_for_log("AppRole login refused", PATIENCE).await?;
    let remedy = "write a new one and check roleID and its mount";
    assert!(said.contains("invalid role or secret ID") && said.contains(remedy), "{said}");
    let refused = kms.v1().encrypt(&DEK).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    // Calls press on, logins do not: a role is locked out after five failures.
    let until = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until {
        kms.v1()
            .decrypt(b"kube:v1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
            .await
            .unwrap_err();
    }
    assert!(bao.logins() <= 2, "{} logins", bao.logins());

    replace(&bao.secret_file(), &bao.secret_id)?;
    wait_good(&kms).await?;
    let logins = bao.logins();

    // The usual way of an expired secret: it shows when the token ends.
    admin.destroy_secret_id("kms", &bao.secret_id).await?;
    wait_good(&kms).await?;
    let mark = daemon.log_mark();
    admin.revoke_prefix(LOGIN).await?;
    let refused = daemon.wait_for_log_after(mark, "AppRole login refused", PATIENCE);
    kms.v1().encrypt(&DEK).await.unwrap_err();
    refused.await?;
    replace(&bao.secret_file(), &admin.new_secret_id("kms").await?)?;
    wait_good(&kms).await?;
    assert!(bao.logins() <= logins + 3, "{} more logins", bao.logins() - logins);

    // One that is used up: it logs in once, and at the next end of a token no more.
    let once = admin.write("auth/approle/role/kms/secret-id", json!({ "num_uses": 1 })).await?;
    replace(&bao.secret_file(), once["data"]["secret_id"].as_str().unwrap())?;
    for end in [ACCEPTED, "AppRole login refused"] {
        let mark = daemon.log_mark();
        admin.revoke_prefix(LOGIN).await?;
        let _ = kms.v1().encrypt(&DEK).await;
        daemon.wait_for_log_after(mark, end, PATIENCE).await?;
    }
    replace(&bao.secret_file(), &admin.new_secret_id("kms").await?)?;
    wait_good(&kms).await?;
    assert!(!daemon.log().contains(&bao.secret_id), "the log holds a secret id");
    assert!(daemon.is_running());
    Ok(())
}

#[tokio::test]
async fn the_login_goes_to_the_configured_mount_and_namespace() -> lab::Result {
    let node = DevNode::start().await?;
    node.admin().create_namespace("platform").await?;
    let admin = node.admin().in_namespace("platform").transit("kms/transit");
    admin.mount_transit().await?;
    admin.create_key("kube").await?;
    admin.write_policy("kms", &lab::policy_for_mount("kms/transit", &["kube"])).await?;
    admin.write("sys/auth/team-a/approle", json!({ "type": "approle" })).await?;
    let role = "auth/team-a/approle/role/kms";
    admin.write(role, json!({ "token_policies": ["kms"], "token_ttl": "1h" })).await?;
    let role_id = admin.read(&format!("{role}/role-id")).await?;
    let secret_id = admin.write(&format!("{role}/secret-id"), json!({})).await?;
    let config = Config::new()
        .keys(&["kube"])
        .addresses(&[node.address()])
        .with("vaultCACert", node.ca_file().display().to_string())
        .with("admin", json!({ "listen": "127.0.0.1:0" }))
        .with("roleID", role_id["data"]["role_id"].clone())
        .with("secretID", secret_id["data"]["secret_id"].clone())
        .with("namespace", "platform")
        .with("transitPath", "kms/transit");

    let wrong = Daemon::start(DAEMON, config.clone()).await?;
    let said = wrong.wait_for_log("login refused", PATIENCE).await?;
    assert!(said.contains("the auth method is mounted at the configured path"), "{said}");
    wrong.stop().await?;

    let daemon = Daemon::start(DAEMON, config.with("authPath", "auth/team-a")).await?;
    daemon.wait_ready(PATIENCE).await?;
    let cipher = daemon.kms().v1().encrypt(&DEK).await?;
    assert_eq!(daemon.kms().v1().decrypt(&cipher).await?, DEK);
    let login = node.audited().into_iter().rfind(|r| r.path.ends_with("approle/login")).unwrap();
    assert!(login.path.ends_with("auth/team-a/approle/login"), "{}", login.path);
    assert_eq!(login.entry["request"]["namespace"]["path"], "platform/");
    Ok(())
}

#[tokio::test]
async fn a_token_that_will_end_is_warned_of_and_serves_until_then() -> lab::Result {
    let bao = Bao::start("1h", "24h").await?;
    let config = bao.bare().await?;
    for (options, warning) in [
        (json!({ "policies": ["kms"], "ttl": "1h", "num_uses": 500 }), "number of uses"),
        (json!({ "policies": ["kms"], "ttl": "1h", "type": "batch" }), "token will end"),
        (json!({ "policies": ["kms"], "ttl": "1h", "renewable": false }), "token will end"),
    ] {
        let token = bao.node.admin().create_token(options).await?;
        let daemon = Daemon::start(DAEMON, config.clone().token(&token)).await?;
        println!("{}", daemon.wait_for_log(warning, PATIENCE).await?);
        daemon.wait_ready(PATIENCE).await?;
        assert!(!daemon.log().contains(&token), "the log holds a token");
        daemon.kill();
    }
    Ok(())
}
