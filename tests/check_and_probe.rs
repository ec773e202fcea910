//! The commands that an operator runs before and beside the daemon: what they print, and
//! their exit codes.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lab::{Config, Daemon, DevNode, policy_for};
use serde_json::json;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(15);

/// How a command ended: its code, and what it printed on stdout and stderr.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

/// Runs a command as an operator would; prints it with what it printed.
async fn run<A: AsRef<str>>(arguments: &[A]) -> lab::Result<Ran> {
    let arguments: Vec<String> = arguments.iter().map(|a| a.as_ref().to_owned()).collect();
    println!("$ vault-kms-proxy {}", arguments.join(" "));
    let output = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(DAEMON);
        command.args(arguments).env_clear().output()
    });
    let output = output.await??;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let (out, err) = (text(output.stdout), text(output.stderr));
    let code = output.status.code().unwrap_or(-1);
    println!("{out}{err}(exit code {code})\n");
    Ok(Ran { code, out, err })
}

/// Writes a configuration beside others and runs `check --online` on it.
async fn check_online(folder: &Path, config: impl ToString) -> lab::Result<Ran> {
    let file = write(folder, config)?;
    run(&["check", "--config", &file, "--online", "--timeout", "2s"]).await
}

fn write(folder: &Path, config: impl ToString) -> lab::Result<String> {
    let file: PathBuf = folder.join("vault-plugin.yaml");
    private(&file, &config.to_string())?;
    Ok(file.display().to_string())
}

/// Writes a file that only its owner may read.
fn private(file: &Path, content: &str) -> lab::Result {
    std::fs::write(file, content)?;
    Ok(std::fs::set_permissions(file, PermissionsExt::from_mode(0o600))?)
}

#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}

#[tokio::test]
async fn check_shows_every_problem_at_once_with_its_place() -> lab::Result {
    let folder = tempfile::tempdir()?;
    let file = write(
        folder.path(),
        "keyNames: [kube]\n\
         addr: vault:8200\n\
         tokenFile: /run/token\n\
         socket:\n\
         \x20 mod: '0660'\n\
         \x20 allowedUids: [root]\n\
         rotation: { refresh: 0s, activationDelay: 60 }\n",
    )?;
    for command in ["check", "serve"] {
        let ran = run(&[command, "--config", &file]).await?;
        assert_eq!(ran.code, 64);
        for place in ["2:7", "5:3", "6:17", "7:22", "7:43"] {
            has(&ran.err, &[&format!("{file}:{place}: error: ")]);
        }
        has(&ran.err, &["help: did you mean `mode`?", "5 errors"]);
        assert_eq!(ran.out, "");
    }

    // The annotated example, with its files in a folder of ours.
    let example = include_str!("../config/vault-plugin.yaml");
    let here = format!("{}/", folder.path().display());
    let authority = lab::Authority::new("example")?;
    std::fs::write(folder.path().join("ca.pem"), authority.pem())?;
    authority.client("kms", lab::Validity::Now)?.write(folder.path(), "client")?;
    private(&folder.path().join("secret-id"), "a secret id")?;
    let file = write(folder.path(), example.replace("/etc/vault-kms-proxy/", &here))?;
    let ran = run(&["check", "--config", &file]).await?;
    assert_eq!(ran.code, 0, "the annotated example");
    has(&ran.out, &["no error", "Encrypts with kube-2026; decrypts with kube-2026, kube-2025."]);

    let ran = run(&["check", "--config", "/nowhere/vault-plugin.yaml"]).await?;
    assert_eq!(ran.code, 64);
    has(&ran.err, &["/nowhere/vault-plugin.yaml"]);
    Ok(())
}

#[tokio::test]
async fn a_bad_command_line_ends_with_64_and_help_teaches() -> lab::Result {
    for bad in [&["chekc"][..], &["serve", "--confg", "x"], &["probe"], &[]] {
        let ran = run(bad).await?;
        assert_eq!(ran.code, 64, "{bad:?}");
        has(&ran.err, &["Usage: vault-kms-proxy"]);
    }
    has(&run(&["chekc"]).await?.err, &["a similar subcommand exists: 'check'"]);
    has(&run(&["serve", "--confg", "x"]).await?.err, &["a similar argument exists: '--config'"]);
    let ran = run(&["probe", "--socket", "/x", "--kubernetes", "1.9"]).await?;
    assert_eq!(ran.code, 64);
    has(&ran.err, &["write 1.10 or later, such as 1.34"]);

    for (command, parts) in [
        (&["--help"][..], &["Exit codes: 0 done, 1 failed, 64 bad", "-socketFile PATH"][..]),
        (&["serve", "--help"], &["vault-kms-proxy serve --config", "SIGHUP", "Environment"]),
        (&["check", "--help"], &["vault-kms-proxy check --config", "--online", "Exit codes"]),
        (
            &["probe", "--help"],
            &["vault-kms-proxy probe --socket", "--kubernetes 1.28", "Exit codes"],
        ),
    ] {
        let ran = run(command).await?;
        assert_eq!((ran.code, ran.err.as_str()), (0, ""));
        has(&ran.out, parts);
        has(&ran.out, &["Examples:\n"]);
    }
    Ok(())
}

#[tokio::test]
async fn check_online_says_what_is_right_and_what_to_write() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube", "old"]).await?;
    bao.admin().create_key_with("derived", json!({ "derived": true })).await?;
    let config = bao.config(&["kube", "old"]).await?;
    let folder = bao.folder();
    let with_policy = async |policy: &str, ttl: &str| -> lab::Result<Config> {
        let name = format!("p{}", policy.len());
        bao.admin().write_policy(&name, policy).await?;
        let token = bao.admin().create_token(json!({ "policies": [name], "ttl": ttl })).await?;
        let file = folder.join("token");
        private(&file, &token)?;
        let bare = config.clone().without("roleID").without("secretIDFile");
        Ok(bare.keys(&["kube"]).with("tokenFile", file.display().to_string()))
    };
    let policy = policy_for(&["kube"]);

    let ran = check_online(folder, &config).await?;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    has(
        &ran.out,
        &[
            "no error, no warning. Encrypts with kube; decrypts with kube, old.",
            "\ncluster default\n",
            &format!("  ok   {}: active, ", bao.address()),
            "  ok   AppRole: a token with a ttl of 1h, renewable\n",
            "\nKEK kube (transit/kube)\n",
            "  ok   the policy grants encrypt, decrypt and reading the key\n",
            "  ok   aes256-gcm96, latest version v1",
            "  ok   a test value was encrypted with v1 and decrypted\n",
            "\nKEK old (transit/old)\n",
            "\neverything is as it should be\n",
        ],
    );
    assert!(!ran.out.contains("warn") || ran.out.matches("warn").count() == 1, "{}", ran.out);

    let creating = policy.replacen("\"update\"", "\"create\", \"update\"", 1);
    let ran = check_online(folder, with_policy(&creating, "24h").await?).await?;
    assert_eq!(ran.code, 0);
    has(
        &ran.out,
        &["  warn the policy grants create on transit/encrypt/kube", "grant update only"],
    );

    let undecrypting: String =
        policy.lines().filter(|l| !l.contains("/decrypt/")).map(|l| format!("{l}\n")).collect();
    let ran = check_online(folder, with_policy(&undecrypting, "24h").await?).await?;
    assert_eq!(ran.code, 1);
    has(
        &ran.out,
        &[
            "  FAIL the policy lacks: path \"transit/decrypt/kube\" { capabilities = [\"update\"] }\n",
            "  FAIL decrypt: the policy does not allow it; add: path \"transit/decrypt/kube\"",
        ],
    );

    let ran = check_online(folder, with_policy(&policy, "5m").await?).await?;
    assert_eq!(ran.code, 0);
    has(&ran.out, &["  warn token file: the token has a ttl of ", "raise the ttl"]);

    let root = config.clone().token(bao.root_token());
    let ran = check_online(folder, &root).await?;
    assert_eq!(ran.code, 0);
    has(&ran.out, &["  warn token: the token never expires; is it a root token?"]);
    has(
        &ran.out,
        &[
            ":5:8: warning: token: a secret stands in the configuration",
            "makes missing keys by itself: `vault write transit/config/keys disable_upsert=true`",
        ],
    );

    // A key that is not there, and one that must not be used: with a token that could make one.
    let ran = check_online(folder, root.clone().keys(&["typo", "derived"])).await?;
    assert_eq!(ran.code, 1);
    has(
        &ran.out,
        &[
            "  FAIL its metadata: key `transit/typo`: no such key in Transit; make it with `vault \
         write -f transit/keys/typo`",
            "  FAIL the key is derived",
        ],
    );
    let typo = bao.admin().request("GET", "transit/keys/typo", &json!(null)).await?;
    assert_eq!(typo.status, 404, "check made a key: {typo}");

    let other = folder.join("other-ca.pem");
    std::fs::write(&other, lab::Authority::new("other")?.pem())?;
    let ca = config.clone().with("vaultCACert", other.display().to_string());
    let ran = check_online(folder, &ca).await?;
    assert_eq!(ran.code, 1);
    let wrong = format!("  FAIL {}: TLS: its certificate is not signed by", bao.address());
    let no_token = format!("  FAIL no token: {}: TLS: ", bao.address());
    has(&ran.out, &[&wrong, &no_token]);

    let ca = config.clone().with("vaultCACert", folder.join("none.pem").display().to_string());
    let ran = check_online(folder, &ca).await?;
    assert_ne!(ran.code, 0);
    has(&(ran.out + &ran.err), &["none.pem"]);

    bao.seal().await?;
    let ran = check_online(folder, &config).await?;
    assert_eq!(ran.code, 1);
    has(&ran.out, &[&format!("  FAIL {}: sealed; unseal it\n", bao.address()), "FAIL no token: "]);
    Ok(())
}

#[tokio::test]
async fn probe_judges_as_a_kube_apiserver_of_the_version_does() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube"]).await?;
    let config = bao.config(&["kube"]).await?;
    let daemon = Daemon::start(DAEMON, &config).await?;
    daemon.wait_ready(PATIENCE).await?;
    let socket = daemon.socket().display().to_string();

    let ran = run(&["probe", "--socket", &socket, "--count", "5"]).await?;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let rows: Vec<&str> = ran.out.lines().collect();
    assert_eq!(rows[0], "api  call      calls        p50        p99      worst");
    for (row, begins) in rows[1..].iter().zip([
        "v1   Version       1 ",
        "v1   Encrypt       5 ",
        "v1   Decrypt       5 ",
        "v2   Status        5 ",
        "v2   Encrypt       5 ",
        "v2   Decrypt       5 ",
    ]) {
        assert!(row.starts_with(begins) && row.ends_with(" ms"), "{row}");
    }
    has(
        &ran.out,
        &[
            "\nv1: vault-kms-proxy 0.1.0 is sound for Kubernetes 1.34; ",
            "\nv2: the plugin is sound for Kubernetes 1.34; key_id kube:v1:",
        ],
    );

    let kubernetes_1_28 = ["--api", "v2", "--kubernetes", "1.28"];
    let url = format!("unix://{socket}");
    let ran = run(&[&["probe", "--socket", &url][..], &kubernetes_1_28].concat()).await?;
    assert_eq!(ran.code, 1);
    has(
        &ran.err,
        &[
            "v2 Status: Kubernetes 1.28 takes only version \"v2beta1\", not \"v2\"; set \
         `statusVersion: v2beta1`",
            "kube-apiserver would refuse this plugin",
        ],
    );

    let name = format!("@probe-{}", std::process::id());
    let ours = std::fs::metadata("/proc/self")?.uid();
    let socket = json!({ "allowedUids": [ours] });
    let old = config.with("statusVersion", "v2beta1").with("socket", socket);
    let daemon = Daemon::builder(DAEMON).config(old).socket(&name).start().await?;
    daemon.wait_ready(PATIENCE).await?;
    let probe = [&["probe", "--socket", &name][..], &kubernetes_1_28].concat();
    assert_eq!(run(&probe).await?.code, 0);

    daemon.kill();
    let ran = run(&["probe", "--socket", &name]).await?;
    assert_eq!(ran.code, 1);
    has(&ran.err, &[&format!("error: {name}: "), "does the plugin run"]);
    let ran = run(&["probe", "--socket", "/nowhere/kms.sock"]).await?;
    assert_eq!(ran.code, 1);
    has(&ran.err, &["error: /nowhere/kms.sock: No such file or directory"]);
    Ok(())
}
