//! Broken configurations, reloaded under load: the old one stays, no call fails, and the log,
//! the metric, `/readyz` and `/configz` say which line is wrong, why, and what to write.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use lab::{Callers, Config, Daemon, DevNode, REFUSED, RELOADED};
use serde_json::{Value, json};

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(30);

/// The last two exist in name only: one is not in Vault, the other signs.
const KEYS: [&str; 4] = ["kube-2025", "kube-2026", "kube-lost", "kube-signs"];

/// One way to be wrong.
struct Wrong {
    what: &'static str,
    /// What the file holds; `None` when there is none.
    text: Option<String>,
    /// The beginning of the line that is named; empty for the file as a whole.
    line: &'static str,
    /// What is said of it.
    says: Vec<String>,
}

fn wrong(what: &'static str, text: impl ToString, line: &'static str, says: &[&str]) -> Wrong {
    let says = says.iter().map(ToString::to_string).collect();
    Wrong { what, text: Some(text.to_string()), line, says }
}

/// What an operator may get wrong in `config`, which runs.
fn all_wrong(config: &Config, folder: &Path, nobody: &str) -> lab::Result<Vec<Wrong>> {
    let path = |name: &str| folder.join(name).display().to_string();
    let with = |key: &str, value: Value| config.clone().with(key, value);
    std::fs::write(path("not.pem"), "no certificate\n")?;
    std::fs::write(path("other-ca.pem"), lab::Authority::new("another")?.pem())?;
    std::fs::write(path("open"), "a secret")?;
    std::fs::set_permissions(path("open"), std::fs::Permissions::from_mode(0o644))?;
    let list = json!(KEYS);
    let first = |name: &str| {
        let mut names = KEYS.to_vec();
        names.sort_by_key(|known| *known != name);
        with("keyNames", json!(names))
    };
    let mut all = vec![
        wrong("no YAML", "addr: [https://127.0.0.1\nkeyNames: [kube]\n", "keyNames", &["YAML"]),
        wrong("a binary file", "\0\0\0\0", "", &["the file is binary, not text"]),
        wrong("an empty file", "", "", &["the file is empty"]),
        wrong(
            "an unknown key",
            format!("{config}keyname: kube\n"),
            "keyname:",
            &["keyname: there is no such key; did you mean `keyNames`?"],
        ),
        wrong(
            "a key that stands twice",
            format!("{config}addr: https://127.0.0.1:1\n"),
            "addr: https",
            &["addr: "],
        ),
        wrong("a value of the wrong type", with("log", json!(["debug"])), "log:", &["log: "]),
        wrong("no key", with("keyNames", json!([])), "keyNames:", &["keyNames: there is no key"]),
        wrong(
            "a name twice",
            with("keyNames", json!([KEYS[0], KEYS[1], KEYS[2], KEYS[3], KEYS[0]])),
            "keyNames:",
            &["keyNames[4]: the key `kube-2025` stands in keyNames[0] already"],
        ),
        wrong(
            "a key that is gone",
            with("keyNames", json!([KEYS[0], KEYS[2], KEYS[3]])),
            "keyNames:",
            &["the key `kube-2026` is gone", "write `retired: [kube-2026]`"],
        ),
        wrong(
            "a new key that encrypts",
            with("keyNames", json!(["new", KEYS[0], KEYS[1], KEYS[2], KEYS[3]])),
            "keyNames:",
            &["keyNames[0]: the key `new` would encrypt at once", "and reload on every node"],
        ),
        wrong(
            "a key that encrypts and is retired",
            with("retired", json!([KEYS[0]])),
            "retired:",
            &["retired[0]: `kube-2025` is the first of keyNames"],
        ),
        wrong(
            "a cluster that is not there",
            with("keyNames", json!([{ "name": "kube-2025", "cluster": "vaultt" }])),
            "keyNames:",
            &["there is no cluster `vaultt`"],
        ),
        wrong(
            "an address without a scheme",
            with("addr", json!("127.0.0.1:8200")),
            "addr:",
            &["addr: `127.0.0.1:8200` does not say how to connect; write https://127.0.0.1:8200"],
        ),
        wrong(
            "plain text over the network",
            with("addr", json!("http://192.0.2.1:8200")),
            "addr:",
            &["addr: `http://192.0.2.1:8200` sends tokens and keys over the network unencrypted"],
        ),
        wrong(
            "a duration without sense",
            with("shutdownGrace", json!("soon")),
            "shutdownGrace:",
            &["shutdownGrace: `soon` is no duration; write a number and a unit"],
        ),
        wrong(
            "a log level that is none",
            with("log", json!({ "level": "loud,=" })),
            "log:",
            &["log.level: `loud,=` is no log level"],
        ),
        wrong(
            "a file that is not there",
            with("vaultCACert", json!("/nowhere/ca.pem")),
            "vaultCACert:",
            &["vaultCACert: there is no file /nowhere/ca.pem"],
        ),
        wrong(
            "a file that is no certificate",
            with("vaultCACert", json!(path("not.pem"))),
            "vaultCACert:",
            &["vaultCACert: cluster default: ", "not.pem holds no certificate"],
        ),
        wrong(
            "an authority that did not sign the server's certificate",
            with("vaultCACert", json!(path("other-ca.pem"))),
            "vaultCACert:",
            &["vaultCACert: cluster default: ", "certificate"],
        ),
        wrong(
            "a secret that cannot be read",
            with("secretIDFile", json!(folder.display().to_string())),
            "secretIDFile:",
            &["secretIDFile: ", "is a folder, not a file"],
        ),
        wrong(
            "a secret that everybody can read",
            with("secretIDFile", json!(path("open"))),
            "secretIDFile:",
            &["secretIDFile: ", "every user of this machine can open it", "chmod o-rwx"],
        ),
        wrong(
            "another version of Status",
            with("statusVersion", json!("v2beta1")),
            "statusVersion:",
            &["statusVersion: it cannot change while the daemon runs, from v2 to v2beta1; "],
        ),
        wrong(
            "another folder for the state",
            with("stateDir", json!(path("state"))),
            "stateDir:",
            &["stateDir: it cannot change while the daemon runs, from nothing to ", "restart"],
        ),
        wrong(
            "an address where nobody listens",
            with("addr", json!(format!("https://{nobody}"))).keys(&KEYS),
            "addr:",
            &["addr: cluster default: ", nobody, "refused"],
        ),
        wrong(
            "a token that Vault does not know",
            config.clone().token("s.unknown"),
            "token:",
            &["token: cluster default: no token: Vault does not accept the token"],
        ),
        wrong(
            "a role that Vault does not know",
            with("roleID", json!("6a174c20-f6de-a53c-74d2-6018fcceff64")),
            "secretIDFile:",
            &["secretIDFile: cluster default: no token: "],
        ),
        wrong(
            "a first key that Vault does not have",
            first("kube-lost"),
            "keyNames:",
            &["keyNames[0]: KEK `kube-lost`", "`check --online` shows what it lacks"],
        ),
        wrong(
            "a first key that cannot encrypt",
            first("kube-signs"),
            "keyNames:",
            &["keyNames[0]: KEK `kube-signs`", "ed25519"],
        ),
        wrong(
            "a socket where somebody else listens",
            with("socket", json!({ "path": path("foreign.sock") })),
            "socket:",
            &["socket.path: another process answers at ", "foreign.sock"],
        ),
        wrong(
            "a socket in a folder that is not there",
            with("socket", json!({ "path": "/nowhere/kms.sock" })),
            "socket:",
            &["socket.path: folder /nowhere of socket /nowhere/kms.sock does not exist"],
        ),
        wrong(
            "a group that is not there",
            with("socket", json!({ "path": path("kms.sock"), "group": "no-such-group" })),
            "socket:",
            &["socket.group: group `no-such-group` of socket "],
        ),
    ];
    let what = "no file at all";
    all.push(Wrong { what, text: None, line: "", says: vec!["there is no such file".into()] });
    assert_eq!(config.get("keyNames"), Some(&list));
    Ok(all)
}

#[tokio::test]
async fn what_cannot_be_used_changes_nothing_and_says_why() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&KEYS[..2]).await?;
    bao.admin().create_key_with(KEYS[3], json!({ "type": "ed25519" })).await?;
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("kms.sock");
    let _foreign = UnixListener::bind(folder.path().join("foreign.sock"))?;
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let config = bao.config(&KEYS).await?.with("reloadTimeout", "2s");
    let config = config.with("socket", json!({ "path": socket.display().to_string() }));
    let daemon = Daemon::builder(DAEMON)
        .config(&config)
        .socket(&socket)
        .args(["serve", "--config", "{config}"])
        .start()
        .await?;
    daemon.wait_ready(PATIENCE).await?;
    let file = daemon.config_file().display().to_string();

    let nobody = format!("127.0.0.1:{}", lab::free_port()?);
    let mut all = all_wrong(&config, folder.path(), &nobody)?;
    let port = taken.local_addr()?.to_string();
    let text = config.clone().with("admin", json!({ "listen": port }));
    let says = [format!("admin.listen: {port} cannot be bound"), "free it".into()].to_vec();
    let what = "an admin port that is taken";
    all.push(Wrong { what, text: Some(text.to_string()), line: "admin:", says });

    let callers = Callers::start(&daemon.kms(), 8, &[]);
    callers.more(50, PATIENCE).await?;
    let mut counted = 0.0;
    for Wrong { what, text, line, says } in &all {
        let mark = daemon.log_mark();
        match text {
            Some(text) => daemon.write_config(text)?,
            None => std::fs::remove_file(daemon.config_file())?,
        }
        daemon.sighup()?;
        let told = daemon.wait_for_log_after(mark, REFUSED, PATIENCE).await?;
        let told = told.split_once(REFUSED).map_or("", |(_, why)| why.trim());
        println!("{what}:\n  {}\n", told.replace(&file, "config.yaml"));
        let lines = text.iter().flat_map(|text| text.lines()).enumerate();
        let number = lines.filter(|(_, text)| text.starts_with(line)).last().map(|(n, _)| n + 1);
        let place = match number {
            Some(number) if !line.is_empty() => format!("{file}:{number}:"),
            _ => format!("{file}: "),
        };
        assert!(told.contains(&place), "{what}: {place} is not in {told}");
        for words in says {
            assert!(told.contains(words), "{what}: {words:?} is not in {told}");
        }
        assert!(!told.contains("s.unknown"), "{told}");

        // The same in every place where it can be asked for.
        counted += 1.0;
        let count = |name, labels| daemon.metric(name, labels);
        assert_eq!(count("vault_kms_proxy_reloads_total", "result=\"failed\"").await?, counted);
        assert_eq!(count("vault_kms_proxy_reload_last_ok", "").await?, 0.0);
        let (status, checks) = daemon.admin_get("/readyz").await?;
        let told_there =
            format!("[+] configuration: generation 1; the last reload was refused: {told}");
        assert!(status == 200 && checks.contains(&told_there), "{checks}");
        let running: Value = serde_json::from_str(&daemon.admin_get("/configz").await?.1)?;
        assert_eq!(running["lastReload"]["refused"], told);
        assert_eq!(running["configuration"]["keyNames"][0]["name"], "kube-2025");

        let cipher = daemon.kms().v1().encrypt(&[7; 32]).await?;
        assert!(cipher.starts_with(b"kube-2025:v1:"), "{what}: the old configuration is gone");
        callers.more(8, PATIENCE).await?;
    }
    println!("{} kinds of broken configuration", all.len());

    let turned = ["kube-2026", "kube-2025", "kube-lost", "kube-signs"];
    daemon.reload(config.keys(&turned), RELOADED).await?;
    assert!(daemon.kms().v1().encrypt(&[7; 32]).await?.starts_with(b"kube-2026:v1:"));
    let (_, checks) = daemon.admin_get("/readyz").await?;
    assert!(checks.contains("[+] configuration: generation 2\n"), "{checks}");
    assert_eq!(daemon.metric("vault_kms_proxy_reload_last_ok", "").await?, 1.0);
    let seen = callers.finish().await;
    println!(
        "{} calls, {} failed, the slowest {:.0?}",
        seen.good,
        seen.failures.len(),
        seen.slowest
    );
    assert!(seen.failures.is_empty(), "{}", seen.failures_told());
    Ok(())
}
