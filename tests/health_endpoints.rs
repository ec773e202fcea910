//! What a daemon says of itself: `/livez`, `/readyz`, `/metrics` and its log.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lab::{Daemon, DevNode, FaultProxy, eventually};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tonic::Code;

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(20);
const DEK: [u8; 32] = [7; 32];
const DOCUMENTED: &str = include_str!("../docs/metrics.md");

/// Waits until `/readyz` answers this status with `words` in it; answers the body.
async fn wait_readyz(daemon: &Daemon, status: u16, words: &str) -> lab::Result<String> {
    eventually(&format!("/readyz answers {status} {words:?}"), PATIENCE, || async {
        let (got, body) = daemon.admin_get("/readyz").await?;
        if got != status || !body.contains(words) {
            lab::fail!("{got}: {body}");
        }
        Ok(Some(body))
    })
    .await
}

async fn is_live(daemon: &Daemon) -> lab::Result {
    assert_eq!(daemon.admin_get("/livez").await?, (200, "ok\n".to_owned()));
    Ok(())
}

#[tokio::test]
async fn livez_never_depends_on_vault_and_readyz_says_what_does_not_work() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube", "second"]).await?;
    let way = FaultProxy::start(bao.address()).await?;
    way.reset().await?;
    let config = bao.config(&["kube", "second"]).await?.addresses(&[way.https()]);
    let config = config.with("status", json!({ "grace": "4s" }));

    // One of its files is not whole yet.
    let folder = tempfile::tempdir()?;
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, "-----BEGIN CERTIFICATE-----\n")?;
    let config = config.with("vaultCACert", ca.display().to_string());
    let daemon = Daemon::start(DAEMON, config).await?;
    is_live(&daemon).await?;
    let body = wait_readyz(&daemon, 503, &ca.display().to_string()).await?;
    assert!(body.starts_with("[-] generation: "), "{body}");
    let starting = daemon.kms().v1().encrypt(&DEK).await.unwrap_err();
    assert_eq!(starting.code(), Code::Unavailable, "{starting}");
    assert!(starting.message().contains("is starting"), "{starting}");
    std::fs::copy(bao.ca_file(), &ca)?;

    // It is now, but Vault has never answered. The first login is given up after 10 s.
    let body = wait_readyz(&daemon, 503, &way.https()).await?;
    println!("{body}");
    assert!(body.starts_with("[-] status: KEK `kube` is not ready: "), "{body}");
    let faults: Vec<&str> = body.lines().next().unwrap_or_default().split("; ").collect();
    let distinct: BTreeSet<&str> = faults.iter().copied().collect();
    assert_eq!(faults.len(), distinct.len(), "the same again and again: {faults:?}");
    assert!(body.contains("\n[+] kek kube: ") && body.contains("\n[+] kek second: "), "{body}");

    // Vault is there.
    way.heal().await?;
    let body = wait_readyz(&daemon, 200, "kek second: second:v1:").await?;
    let key_id = daemon.kms().v2().status().await?.key_id;
    assert!(body.starts_with(&format!("[+] status: ok\n[+] kek kube: {key_id}\n")), "{body}");

    // A healthy daemon without a call stays ready, however short the grace.
    let until = Instant::now() + Duration::from_secs(6);
    while Instant::now() < until {
        assert_eq!(daemon.admin_get("/readyz").await?.0, 200, "not ready beside a healthy Vault");
        sleep(Duration::from_millis(50)).await;
    }

    // It goes away: nothing is said within the grace, then the reason.
    daemon.kms().v2().encrypt(&DEK, "uid").await?;
    way.reset().await?;
    let (status, _) = daemon.admin_get("/readyz").await?;
    assert_eq!(status, 200, "not ready within the grace");
    let body = wait_readyz(&daemon, 503, &way.https()).await?;
    println!("{body}");
    assert!(body.starts_with("[-] status: KEK `kube`: not proven for "), "{body}");
    is_live(&daemon).await?;
    let away = daemon.kms().v2().status().await?;
    assert_eq!(away.key_id, key_id, "Status keeps the key_id while Vault is away");
    assert!(away.healthz.starts_with("KEK `kube`: not proven for "), "{}", away.healthz);

    way.heal().await?;
    wait_readyz(&daemon, 200, "[+] status: ok\n").await?;
    Ok(())
}

/// One sample of the Prometheus text.
#[derive(Debug)]
struct Sample<'a> {
    name: &'a str,
    labels: BTreeMap<&'a str, &'a str>,
    value: f64,
}

/// The samples; labels whose values hold a quote are not looked for here.
fn samples(text: &str) -> Vec<Sample<'_>> {
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    let parse = |line| {
        let (series, value) = str::rsplit_once(line, ' ')?;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels = labels.trim_end_matches('}').split("\",").filter(|l| !l.is_empty());
        let labels = labels.filter_map(|l| l.trim_end_matches('"').split_once("=\"")).collect();
        Some(Sample { name, labels, value: value.parse().ok()? })
    };
    lines.map(|line| parse(line).unwrap_or_else(|| panic!("no sample: {line}"))).collect()
}

/// The sum of all series of `name` with these labels; an error when there is none.
fn value(text: &str, name: &str, labels: &[(&str, &str)]) -> lab::Result<f64> {
    let fits = |sample: &Sample<'_>| {
        sample.name == name && labels.iter().all(|(k, v)| sample.labels.get(k) == Some(v))
    };
    let values: Vec<f64> = samples(text).iter().filter(|s| fits(s)).map(|s| s.value).collect();
    if values.is_empty() {
        lab::fail!("no series of {name} with {labels:?} in:\n{text}");
    }
    Ok(values.iter().sum())
}

#[tokio::test]
async fn metrics_count_calls_and_attempts_and_are_all_documented() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube"]).await?;
    let daemon = Daemon::start(DAEMON, bao.config(&["kube"]).await?).await?;
    daemon.wait_ready(PATIENCE).await?;
    let kms = daemon.kms();
    let cipher = kms.v1().encrypt(&DEK).await?;
    let key_id = kms.v2().status().await?.key_id;
    let request = lab::proto::v2::DecryptRequest {
        ciphertext: cipher,
        uid: "uid".to_owned(),
        key_id,
        annotations: [("kek.vault-kms-proxy.io".to_owned(), b"kube".to_vec())].into(),
    };
    assert_eq!(kms.v2().decrypt_request(request).await?, DEK);
    let unknown = kms.v1().decrypt(b"nobody:v1:AAECAwQF").await.unwrap_err();
    assert_eq!(unknown.code(), Code::FailedPrecondition);

    let text = daemon.metrics().await?;
    let call = "rpc_server_call_duration_seconds";
    for (api, method, code) in
        [("v1", "Encrypt", "0"), ("v2", "Decrypt", "0"), ("v1", "Decrypt", "9")]
    {
        let labels = [("api", api), ("rpc_method", method), ("rpc_grpc_status_code", code)];
        assert_eq!(value(&text, &format!("{call}_count"), &labels)?, 1.0, "{labels:?}");
        let sum = value(&text, &format!("{call}_sum"), &labels)?;
        assert!(sum > 0.0 && sum < 3.0, "{labels:?}: {sum} s");
        let highest = [labels.as_slice(), &[("le", "+Inf")]].concat();
        assert_eq!(value(&text, &format!("{call}_bucket"), &highest)?, 1.0, "{highest:?}");
        let least = [labels.as_slice(), &[("le", "0.0001")]].concat();
        let quick = value(&text, &format!("{call}_bucket"), &least)?;
        assert!(quick == 0.0 || code == "9", "a call to Vault within 0.1 ms");
    }
    for api in ["v1", "v2"] {
        assert_eq!(value(&text, "vault_kms_proxy_calls_in_flight", &[("api", api)])?, 0.0);
    }
    // The daemon's own canary encrypts and decrypts as well.
    for verb in ["encrypt", "decrypt"] {
        let labels = [
            ("cluster", "default"),
            ("server_address", bao.address()),
            ("verb", verb),
            ("reason", "first"),
            ("outcome", "answer"),
        ];
        let attempts = value(&text, "vault_kms_proxy_attempt_duration_seconds_count", &labels)?;
        let labels = [("cluster", "default"), ("verb", verb)];
        let calls = value(&text, "vault_kms_proxy_call_attempts_count", &labels)?;
        let sum = value(&text, "vault_kms_proxy_call_attempts_sum", &labels)?;
        assert!(attempts >= 2.0 && attempts == calls && calls == sum, "{attempts} {calls} {sum}");
    }
    let login = [("cluster", "default"), ("method", "appRole"), ("result", "ok")];
    assert_eq!(value(&text, "vault_kms_proxy_logins_total", &login)?, 1.0);
    let ttl = value(&text, "vault_kms_proxy_token_ttl_seconds", &[("cluster", "default")])?;
    assert_eq!(ttl, 3_600.0);
    assert_eq!(value(&text, "vault_kms_proxy_kek_active_version", &[("kek", "kube")])?, 1.0);
    let now = vault_kms_proxy::clock::node_time().0 as f64;
    for moment in ["kek_last_proof", "login_last_success"] {
        let at = value(&text, &format!("vault_kms_proxy_{moment}_seconds"), &[])?;
        assert!((now - 60.0..=now).contains(&at), "{moment}: {at}, now {now}");
    }

    // What else can be made to move, moves before the names are held against the document.
    daemon.sighup()?;
    daemon.wait_for_log("Reloaded; ", PATIENCE).await?;
    check_documented(&daemon.metrics().await?);
    Ok(())
}

/// Every family stands in docs/metrics.md, with its kind and its labels.
fn check_documented(text: &str) {
    let rows: BTreeMap<&str, Vec<&str>> = DOCUMENTED
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.split(" | ").collect::<Vec<_>>())
        .map(|cells| (cells[1].trim_matches('`'), cells))
        .collect();
    let families: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .filter(|(name, _)| *name != "target_info")
        .collect();
    assert!(families.len() >= 10, "{families:?}");
    for (name, kind) in families {
        let row = rows.get(name).unwrap_or_else(|| panic!("{name} is not in docs/metrics.md"));
        let kinds = if kind == "gauge" { ["gauge", "up-down counter"] } else { [kind, kind] };
        assert!(kinds.contains(&row[2]), "{name} is a {kind}, not a {}", row[2]);
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
        let documented: BTreeSet<String> =
            row[4].split(", ").map(|label| label.trim_matches('`').replace('.', "_")).collect();
        for sample in samples(text).iter().filter(|s| s.name.starts_with(name)) {
            for label in sample.labels.keys().filter(|label| **label != "le") {
                assert!(documented.contains(*label), "{name} has the label {label}");
            }
        }
    }
    assert!(text.contains("target_info{") && DOCUMENTED.contains("`target_info`"));
}

#[tokio::test]
async fn a_json_log_is_json_and_healthy_calls_leave_no_line() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube"]).await?;
    let way = FaultProxy::start(bao.address()).await?;
    let config = bao.config(&["kube"]).await?.addresses(&[way.https()]);
    let config = config.with("log", json!({ "format": "json", "level": "info" }));
    let daemon = Daemon::start(DAEMON, config.clone()).await?;
    daemon.wait_ready(PATIENCE).await?;
    daemon.wait_for_log("encrypts and decrypts", PATIENCE).await?;

    let mark = daemon.log_mark();
    let kms = daemon.kms();
    for _ in 0..25 {
        kms.v2().status().await?;
        let made = kms.v2().encrypt(&DEK, "uid").await?;
        kms.v2().decrypt(&made, "uid").await?;
        kms.v1().encrypt(&DEK).await?;
    }
    // The next line that is there for a reason: nothing came before it.
    daemon.write_config("keyNames: 3\n\"odd\\n\\u001b[31m\": true\n")?;
    daemon.sighup()?;
    daemon.wait_for_log_after(mark, "Reload failed", PATIENCE).await?;
    let log = daemon.log();
    let next = log[mark..].lines().next().unwrap_or_default();
    assert!(next.contains("Reload failed"), "a line for a healthy call: {next}");

    // Errors with lists, quotes and line ends in them.
    way.reset().await?;
    kms.v1().encrypt(&DEK).await.unwrap_err();
    daemon.wait_for_log("metadata could not be read", PATIENCE).await?;
    daemon.write_config(config.with("log", json!({ "format": "json", "level": "debug" })))?;
    daemon.stop().await?;

    let log = daemon.log();
    let mut levels = BTreeSet::new();
    for line in log.lines() {
        let Ok(Value::Object(entry)) = serde_json::from_str(line) else {
            panic!("no JSON object: {line}");
        };
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
        assert!(text("timestamp").ends_with('Z'), "{line}");
        assert!(text("target").starts_with("vault_kms_proxy"), "{line}");
        assert!(!text("message").is_empty(), "{line}");
        levels.insert(text("level").to_owned());
    }
    let due = ["ERROR", "INFO", "WARN"].map(str::to_owned).into();
    assert_eq!(levels, due, "{log}");
    assert!(log.lines().last().is_some_and(|line| line.contains("Stopped.")), "{log}");
    Ok(())
}
