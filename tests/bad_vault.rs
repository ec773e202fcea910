//! A Vault that is away, wrong, or not what the configuration says: what Status and
//! Encrypt tell kube-apiserver, and that no secret is told with it.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::time::Duration;

use lab::{Config, Context, Daemon, DevNode, FakeVault, FaultProxy, Validity, policy_for};
use serde_json::json;
use tonic::{Code, Status};

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(40);
const DEK: [u8; 32] = [7; 32];

/// What is wrong, and what must be said about it.
struct Case<'a> {
    what: &'a str,
    config: Config,
    code: Code,
    /// Each in both messages.
    words: &'a [&'a str],
}

#[tokio::test]
async fn a_vault_that_is_away_is_named_with_its_fault() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube"]).await?;
    let config = bao.config(&["kube"]).await?;

    let closed = format!("https://127.0.0.1:{}", lab::free_port()?);
    let proxy = FaultProxy::start(bao.address()).await?;
    proxy.delay(Duration::from_secs(30));
    bao.seal().await?;
    check_all([
        Case {
            what: "nobody listens",
            config: config.clone().addresses(&[&closed]),
            code: Code::Unavailable,
            words: &["not ready", &closed, "cannot connect: connection refused"],
        },
        Case {
            what: "slow from the beginning",
            config: config.clone().addresses(&[proxy.https()]),
            code: Code::Unavailable,
            words: &["not ready", &proxy.https(), "no answer within the deadline|timed out"],
        },
        Case {
            what: "sealed",
            config,
            code: Code::Unavailable,
            words: &["not ready", bao.address(), "is sealed; unseal it"],
        },
    ])
    .await
}

#[tokio::test]
async fn a_vault_that_goes_away_later_is_named_with_its_fault() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube"]).await?;
    let proxy = FaultProxy::start(bao.address()).await?;
    let config = bao.config(&["kube"]).await?.addresses(&[proxy.https()]);
    let daemon = Daemon::start(DAEMON, config).await?;
    daemon.wait_ready(PATIENCE).await?;
    let made = daemon.kms().v1().encrypt(&DEK).await?;

    proxy.delay(Duration::from_secs(30));
    let slow = daemon.kms().timeout(Duration::from_millis(800));
    for refused in [
        slow.v1().encrypt(&DEK).await.unwrap_err(),
        slow.v1().decrypt(&made).await.unwrap_err(),
        slow.v2().encrypt(&DEK, "uid").await.unwrap_err(),
    ] {
        says(
            "slow later",
            &refused,
            Code::DeadlineExceeded,
            &[&proxy.https(), "no answer in time"],
        );
    }
    assert_eq!(daemon.kms().v2().status().await?.healthz, "ok", "within status.grace");

    proxy.refuse().await?;
    lab::eventually("calls say that the connection is refused", PATIENCE, || async {
        let refused = daemon.kms().v1().encrypt(&DEK).await.unwrap_err();
        Ok(refused.message().contains("refused").then_some(refused))
    })
    .await
    .map(|refused| says("refused later", &refused, Code::Unavailable, &[&proxy.https()]))?;

    proxy.heal().await?;
    assert_eq!(daemon.kms().v1().decrypt(&made).await?, DEK, "healed");
    Ok(())
}

#[tokio::test]
async fn a_certificate_that_is_not_the_one_due_is_told_with_its_remedy() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube"]).await?;
    let config = bao.config(&["kube"]).await?;
    let other = bao.folder().join("other-ca.pem");
    std::fs::write(&other, lab::Authority::new("other")?.pem())?;
    let served = async |validity| {
        FakeVault::start_with(&bao.ca().server_for(&["127.0.0.1"], validity)?).await
    };
    let expired = served(Validity::Expired).await?;
    let not_yet = served(Validity::NotYet).await?;

    let cases = [
        Case {
            what: "another authority",
            config: config.clone().with("vaultCACert", other.display().to_string()),
            code: Code::Unavailable,
            words: &["not ready", bao.address(), "TLS", "is not signed by the CA in vaultCACert"],
        },
        Case {
            what: "expired",
            config: config.clone().addresses(&[expired.address()]),
            code: Code::Unavailable,
            words: &["not ready", &expired.address(), "TLS", "expired"],
        },
        Case {
            what: "not yet valid",
            config: config.clone().addresses(&[not_yet.address()]),
            code: Code::Unavailable,
            words: &["not ready", &not_yet.address(), "TLS", "check this machine's clock"],
        },
        Case {
            what: "another name",
            config: config.clone().with("tlsServerName", "vault.example"),
            code: Code::Unavailable,
            words: &[
                "not ready",
                bao.address(),
                "TLS",
                "is for 127.0.0.1, ::1, localhost, not for vault.example; set tlsServerName",
            ],
        },
        Case {
            what: "http where there is TLS",
            config: config.clone().addresses(&[bao.address().replace("https", "http")]),
            code: Code::Unavailable,
            words: &["not ready", "the answer is not Vault's", "whether it is http:// or https://"],
        },
        Case {
            what: "https where there is no TLS",
            config: config.addresses(&[bao.http().replace("http", "https")]),
            code: Code::Unavailable,
            words: &["not ready", "TLS"],
        },
    ];
    check_all(cases).await?;
    assert!(expired.received().is_empty() && not_yet.received().is_empty(), "nothing was sent");
    Ok(())
}

#[tokio::test]
async fn a_configuration_that_does_not_fit_vault_is_told_with_its_remedy() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube"]).await?;
    bao.admin().create_key_with("derived", json!({ "derived": true })).await?;
    bao.admin().create_key_with("rsa", json!({ "type": "rsa-2048" })).await?;
    let config = bao.config(&["kube"]).await?;
    let token = async |name: &str, policy: &str| -> lab::Result<Config> {
        bao.admin().write_policy(name, policy).await?;
        let options = json!({ "policies": [name], "ttl": "1h" });
        Ok(config.clone().token(&bao.admin().create_token(options).await?))
    };
    let wide = "path \"*\" { capabilities = [\"create\", \"read\", \"update\", \"list\"] }";
    let creating = policy_for(&["typo"]).replacen("\"update\"", "\"create\", \"update\"", 1);

    let cases = [
        Case {
            what: "wrong mount",
            config: token("wide", wide).await?.with("transitPath", "nowhere"),
            code: Code::Unavailable,
            words: &["nowhere/kube", "no Transit engine", "check transitPath", bao.address()],
        },
        Case {
            what: "wrong mount, narrow policy",
            config: config.clone().with("transitPath", "nowhere"),
            code: Code::Unavailable,
            words: &["nowhere/kube", "policy", bao.address()],
        },
        Case {
            what: "wrong namespace",
            config: config.clone().with("namespace", "nowhere"),
            code: Code::Unavailable,
            words: &["namespace not found", "check `namespace`", bao.address()],
        },
        Case {
            what: "a wrong secret id",
            config: config.clone().without("secretIDFile").with("secretID", "hunter2-hunter2"),
            code: Code::Unavailable,
            words: &["invalid role or secret ID", bao.address()],
        },
        Case {
            what: "a wrong token",
            config: config.clone().token("hvs.hunter2-hunter2"),
            code: Code::Unavailable,
            words: &["does not accept the token", "put another into the configuration"],
        },
        Case {
            what: "a missing key",
            config: token("creating", &creating).await?.keys(&["typo"]),
            code: Code::Unavailable,
            words: &["no such key", "vault write -f transit/keys/typo", bao.address()],
        },
        Case {
            what: "a derived key",
            config: config.clone().token(bao.root_token()).keys(&["derived"]),
            code: Code::Unavailable,
            words: &["not ready", "derived=false"],
        },
        Case {
            what: "an RSA key",
            config: config.clone().token(bao.root_token()).keys(&["rsa"]),
            code: Code::Unavailable,
            words: &["not ready", "rsa-2048", "aes256-gcm96"],
        },
    ];
    check_all(cases).await?;
    let typo = bao.admin().request("GET", "transit/keys/typo", &json!(null)).await?;
    assert_eq!(typo.status, 404, "a key was created: {typo}");
    Ok(())
}

#[tokio::test]
async fn a_policy_that_lacks_something_is_told_by_what_lacks_it() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube"]).await?;
    let config = bao.config(&["kube"]).await?;
    let without = async |part: &str| -> lab::Result<Daemon> {
        let policy = policy_for(&["kube"]);
        let lines = policy.lines().filter(|line| !line.contains(part));
        let policy: String = lines.map(|line| format!("{line}\n")).collect();
        bao.admin().write_policy("narrow", &policy).await?;
        let options = json!({ "policies": ["narrow"], "ttl": "1h" });
        let token = bao.admin().create_token(options).await?;
        Daemon::start(DAEMON, config.clone().token(&token)).await
    };
    let denied = ["key `transit/kube`: the token's policy does not allow it", "check --online"];

    let daemon = without("/encrypt/").await?;
    let kms = daemon.kms();
    let status = lab::eventually("Status says so", PATIENCE, || async {
        let refused = kms.v2().status().await.map(drop).err().context("Status was answered")?;
        Ok(refused.message().contains(denied[0]).then_some(refused))
    });
    says("no encrypt, Status", &status.await?, Code::FailedPrecondition, &denied);
    let refused = kms.v1().encrypt(&DEK).await.unwrap_err();
    says("no encrypt, v1 Encrypt", &refused, Code::PermissionDenied, &denied);
    let refused = kms.v2().encrypt(&DEK, "uid").await.unwrap_err();
    says("no encrypt, v2 Encrypt", &refused, Code::PermissionDenied, &denied);
    let old = bao.admin().encrypt("kube", &DEK).await?.replacen("vault:", "kube:", 1);
    assert_eq!(kms.v1().decrypt(old.as_bytes()).await?, DEK, "Decrypt is allowed");
    assert_eq!(daemon.stop().await?, 0);

    let daemon = without("/decrypt/").await?;
    let kms = daemon.kms();
    let refused = lab::eventually("Decrypt says so", PATIENCE, || async {
        let refused = kms.v1().decrypt(old.as_bytes()).await.map(drop).err();
        Ok(refused.filter(|refused| refused.message().contains(denied[0])))
    });
    says("no decrypt, Decrypt", &refused.await?, Code::PermissionDenied, &denied);
    // What cannot be decrypted again must not be stored.
    let unproven = lab::eventually("Encrypt says so", PATIENCE, || async {
        let refused = kms.v1().encrypt(&DEK).await.map(drop).err();
        Ok(refused.filter(|refused| refused.code() == Code::DataLoss))
    });
    for refused in [unproven.await?, kms.v2().encrypt(&DEK, "uid").await.map(drop).unwrap_err()] {
        says("no decrypt, Encrypt", &refused, Code::DataLoss, &["failed its proof", denied[0]]);
    }
    assert_eq!(daemon.stop().await?, 0);

    // Old policies of the Oracle plugin have no read: v1 works, v2 says why it does not.
    let daemon = without("/keys/").await?;
    let kms = daemon.kms();
    let cipher = lab::eventually("v1 encrypts", PATIENCE, || async {
        Ok(Some(kms.v1().encrypt(&DEK).await?))
    })
    .await?;
    assert_eq!(kms.v1().decrypt(&cipher).await?, DEK);
    daemon.wait_for_log("The token may not read the key", PATIENCE).await?;
    for refused in [
        kms.v2().status().await.map(drop).unwrap_err(),
        kms.v2().encrypt(&DEK, "uid").await.map(drop).unwrap_err(),
    ] {
        says("no read", &refused, Code::Unavailable, &["not ready", denied[0], denied[1]]);
    }
    assert_eq!(daemon.stop().await?, 0);
    Ok(())
}

#[track_caller]
fn says(what: &str, refused: &Status, code: Code, words: &[&str]) {
    let message = refused.message();
    println!("{what}: {:?}: {message}", refused.code());
    assert_eq!(refused.code(), code, "{what}: {message}");
    for words in words {
        assert!(message.contains(words), "{what}: no {words:?} in: {message}");
    }
}

/// Whether `message` has `words`, or one of those between `|`.
fn has(message: &str, words: &str) -> bool {
    words.split('|').any(|words| message.contains(words))
}

/// All at once, because each waits for a daemon that waits for Vault.
async fn check_all<'a>(cases: impl IntoIterator<Item = Case<'a>>) -> lab::Result {
    let all = futures_util::future::join_all(cases.into_iter().map(Case::check)).await;
    let failed: Vec<_> = all.into_iter().filter_map(Result::err).collect();
    if failed.is_empty() { Ok(()) } else { Err(lab::Error::new(format!("{failed:#?}"))) }
}

// === impl Case ===

impl Case<'_> {
    async fn check(self) -> lab::Result {
        let Self { what, config, code, words } = self;
        let daemon = Daemon::start(DAEMON, &config).await?;
        let (v1, v2) = (daemon.kms().v1(), daemon.kms().v2());
        let fits = |refused: &Status| {
            refused.code() == code && words.iter().all(|w| has(refused.message(), w))
        };
        let last = std::sync::Mutex::new(String::new());
        let told = lab::eventually(what, PATIENCE, || async {
            let refused = [
                v2.status().await.map(drop).err().context("Status was answered")?,
                v1.encrypt(&DEK).await.map(drop).err().context("v1 Encrypt was answered")?,
                v2.encrypt(&DEK, "uid").await.map(drop).err().context("v2 Encrypt was answered")?,
            ];
            *last.lock().unwrap() = format!("{refused:#?}");
            Ok(refused.iter().all(fits).then_some(refused))
        })
        .await;
        let Ok([status, encrypt, _]) = told else {
            lab::fail!("{what}: not {code:?} with {words:?} but {}", last.lock().unwrap());
        };
        println!("{what}:\n  Status  {:?}: {}", status.code(), status.message());
        println!("  Encrypt {:?}: {}", encrypt.code(), encrypt.message());
        assert_eq!(v1.version().await?.version, "v1beta1", "Version needs no Vault");
        let said = daemon.log() + status.message() + encrypt.message();
        for key in ["token", "secretID", "roleID"] {
            let secret = config.get(key).and_then(|value| value.as_str());
            assert!(!secret.is_some_and(|s| said.contains(s)), "{what}: {key} is in:\n{said}");
        }
        if let Some(file) = config.get("secretIDFile").and_then(|value| value.as_str()) {
            let secret = std::fs::read_to_string(file)?;
            assert!(!said.contains(secret.trim()), "{what}: the secret id is in:\n{said}");
        }
        assert_eq!(daemon.stop().await?, 0);
        Ok(())
    }
}
