//! etcd as it really answers: with TLS and client certificates, in pages at one revision, after
//! a compaction, and when a member is away; and what `census` makes of it.

#![allow(clippy::unwrap_used, reason = "a helper of tests fails the test")]

use std::time::Duration;

use lab::Etcd as Server;
use serde_json::Value;
use tokio::process::Command;
use vault_kms_proxy::config::settings::{ClientIdentity, TlsSettings};
use vault_kms_proxy::etcd::{Etcd, EtcdError, EtcdSettings, Range, Revision};

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const SECRETS: &[u8] = b"/registry/secrets/";

fn settings(server: &Server, endpoints: &[&str]) -> EtcdSettings {
    let file = |name: &str| server.folder().join(name);
    let client = ClientIdentity { cert_file: file("client.pem"), key_file: file("client-key.pem") };
    EtcdSettings {
        endpoints: endpoints.iter().map(|url| url.parse().unwrap()).collect(),
        tls: TlsSettings { ca_file: Some(file("ca.pem")), client: Some(client), server_name: None },
        timeout: Duration::from_secs(10),
    }
}

fn page(from: Option<&[u8]>, limit: u32, revision: Option<Revision>) -> Range<'_> {
    Range { prefix: SECRETS, from, limit, revision }
}

#[tokio::test]
async fn etcd_is_read_in_pages_of_one_revision_until_that_is_compacted() -> lab::Result {
    let server = Server::start_with_tls().await?;
    let values: Vec<_> = (0..25_u8)
        .map(|n| (format!("/registry/secrets/default/s{n:02}"), vec![n; 40]))
        .chain([("/registry/secretz".to_owned(), vec![0])])
        .collect();
    server.client().put_all(&values).await?;

    // The first member does not answer, and the next one is asked.
    let nobody = format!("https://127.0.0.1:{}", lab::free_port()?);
    let mut etcd = Etcd::try_new(&settings(&server, &[&nobody, server.endpoint()]))?;
    let first = etcd.range(page(None, 10, None)).await?;
    assert_eq!((first.entries.len(), first.more, first.count), (10, true, 25));
    assert_eq!(first.entries[0].name(), "/registry/secrets/default/s00");
    assert_eq!(first.entries[9].value, vec![9; 40]);

    // What is changed after the first page does not show in the next ones.
    server.client().put_all(&[(values[15].0.clone(), b"changed".to_vec())]).await?;
    let from = [&first.entries[9].key[..], b"\0"].concat();
    let at = Some(first.revision);
    let second = etcd.range(page(Some(&from), 100, at)).await?;
    assert_eq!((second.entries.len(), second.more, second.count), (15, false, 15));
    assert_eq!(second.entries[5].value, vec![15; 40]);
    let now = etcd.get(values[15].0.as_bytes()).await?.unwrap();
    assert_eq!(now.value, b"changed".as_slice());
    assert!(now.changed > first.revision);
    assert_eq!(etcd.get(b"/registry/secrets/none").await?, None);

    server.client().compact(server.client().revision().await?).await?;
    match etcd.range(page(Some(&from), 100, at)).await {
        Err(EtcdError::Compacted(revision)) => assert_eq!(revision, first.revision),
        other => panic!("{other:?}"),
    }

    // 40 values of 1 MiB do not fit into one answer.
    let large: Vec<_> = (0..40).map(|n| (format!("/large/{n:02}"), vec![b'x'; 1 << 20])).collect();
    for one in large.chunks(1) {
        server.client().put_all(one).await?;
    }
    let large = Range { prefix: b"/large/", from: None, limit: 100, revision: None };
    match etcd.range(large).await {
        Err(EtcdError::TooLarge { limit: 100 }) => {}
        other => panic!("{:?}", other.map(|page| page.entries.len())),
    }
    assert_eq!(etcd.range(Range { limit: 5, ..large }).await?.entries.len(), 5);
    Ok(())
}

#[tokio::test]
async fn members_of_two_clusters_are_not_taken_for_one() -> lab::Result {
    let (one, other) = (Server::start().await?, Server::start().await?);
    for server in [&one, &other] {
        server.client().put_all(&[("/registry/secrets/a/b".into(), b"k8s".to_vec())]).await?;
    }
    let both = [one.endpoint(), other.endpoint()];
    let away = format!("http://127.0.0.1:{}", lab::free_port()?);
    let plain = |endpoints: &[&str]| EtcdSettings {
        endpoints: endpoints.iter().map(|url| url.parse().unwrap()).collect(),
        tls: TlsSettings::default(),
        timeout: Duration::from_secs(10),
    };
    let mut etcd = Etcd::try_new(&plain(&[both[0], &away]))?;
    etcd.check_members(b"/registry/").await?;
    let mut etcd = Etcd::try_new(&plain(&both))?;
    let error = etcd.check_members(b"/registry/").await.unwrap_err().to_string();
    let said = format!("{} belongs to another etcd cluster than {}", name(both[1]), name(both[0]));
    assert!(error.starts_with(&said), "{error}");

    // Nor when the first one ends while it is read.
    let mut etcd = Etcd::try_new(&plain(&both))?;
    assert_eq!(etcd.range(page(None, 10, None)).await?.count, 1);
    one.kill();
    match etcd.range(page(None, 10, None)).await {
        Err(EtcdError::TwoClusters { .. }) => {}
        other => panic!("{other:?}"),
    }

    let options = ["--endpoints", &both.join(","), "--require-none-on=kube"];
    let output = Command::new(DAEMON).arg("census").args(options).output().await?;
    assert_eq!(output.status.code(), Some(2), "one is away: {output:?}");
    Ok(())
}

fn name(endpoint: &str) -> &str {
    endpoint.trim_end_matches('/')
}

async fn said(settings: EtcdSettings) -> lab::Result<String> {
    let mut etcd = Etcd::try_new(&settings)?;
    let error = etcd.range(page(None, 1, None)).await.map(|page| page.count).unwrap_err();
    Ok(error.to_string())
}

#[tokio::test]
async fn what_is_wrong_with_the_way_to_etcd_is_said() -> lab::Result {
    let server = Server::start_with_tls().await?;
    let good = settings(&server, &[server.endpoint()]);
    let mut anonymous = good.clone();
    anonymous.tls.client = None;
    let told = said(anonymous).await?;
    assert!(told.contains("give --cert and --key"), "{told}");

    let mut doubting = good.clone();
    let other = server.folder().join("other.pem");
    std::fs::write(&other, lab::Authority::new("another")?.pem())?;
    doubting.tls.ca_file = Some(other);
    let told = said(doubting).await?;
    assert!(told.contains("not signed by the CA in --cacert"), "{told}");

    let mut missing = good.clone();
    missing.tls.ca_file = Some("/nonexistent/ca.pem".into());
    let error = Etcd::try_new(&missing).unwrap_err().to_string();
    assert!(error.contains("cannot read /nonexistent/ca.pem"), "{error}");

    server.kill();
    let told = said(good).await?;
    let endpoint = server.endpoint();
    assert!(told.contains(&format!("{endpoint}: connection refused")), "{told}");
    Ok(())
}

/// Exit code, standard output, and the most memory it had, in KiB, as far as was seen.
async fn run(server: &Server, what: &str, arguments: &[&str]) -> lab::Result<(i32, String, u64)> {
    let mut command = Command::new(DAEMON);
    command.arg(what).args(server.options()).args(arguments).kill_on_drop(true);
    command.env_remove("VAULT_KMS_PROXY_CONFIG").stdout(std::process::Stdio::piped());
    let mut child = command.spawn()?;
    let pid = child.id();
    let mut out = child.stdout.take().unwrap();
    let mut text = String::new();
    let reading = tokio::io::AsyncReadExt::read_to_string(&mut out, &mut text);
    let mut reading = std::pin::pin!(reading);
    let mut peak = 0;
    while tokio::time::timeout(Duration::from_millis(10), &mut reading).await.is_err() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", pid.unwrap_or(0)));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        peak = peak.max(now.unwrap_or(0));
    }
    Ok((child.wait().await?.code().unwrap_or(-1), text, peak))
}

/// With a configuration of these keys, of which the first encrypts.
async fn census(server: &Server, arguments: &[&str]) -> lab::Result<(i32, String, u64)> {
    let file = server.folder().join("vault-plugin.yaml");
    let token = server.folder().join("token");
    let text = format!(
        "addr: https://127.0.0.1:1\nauth: {{ tokenFile: {} }}\n\
         keyNames: [kube-2026, kube-2025, kube-2030, {{ name: again, transitKey: kube-2025 }}]\n",
        token.display()
    );
    std::fs::write(&file, text)?;
    let file = file.display().to_string();
    run(server, "census", &[&["--config", &file], arguments].concat()).await
}

#[tokio::test]
async fn census_counts_5000_objects_and_says_whether_a_key_is_still_needed() -> lab::Result {
    let server = Server::start_with_tls().await?;
    let objects: Vec<_> = (0..5_000).map(lab::apiserver::sample::object).collect();
    server.client().put_all(&objects).await?;

    let (code, text, peak) = census(&server, &["--output=json", "--rate=0"]).await?;
    let json: Value = serde_json::from_str(&text)?;
    assert_eq!((code, &json["objects"], &json["met"]), (0, &5_000.into(), &true.into()), "{text}");
    let on = |kek: Value, api: Value| -> u64 {
        let counts = json["counts"].as_array().unwrap().iter();
        let these = counts.filter(|count| count["kek"] == kek && count["api"] == api);
        these.map(|count| count["objects"].as_u64().unwrap()).sum()
    };
    assert_eq!(on("kube-2026".into(), "v2".into()), 1_250);
    assert_eq!(on("kube-2025".into(), "v2".into()), 1_250);
    assert_eq!(on("kube-2025".into(), "v1".into()), 1_250);
    assert_eq!(on(Value::Null, Value::Null), 1_250);
    // All of it is 10 MiB; a page is 4 MiB.
    assert!(peak < 100 << 10, "{peak} KiB");

    let (code, text, _) = census(&server, &["--require-none-on", "kube-2025"]).await?;
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("none on kube-2025: no\n  2,500 on it, such as /registry/secrets/"));
    assert!(text.contains("Not counted: backups"), "{text}");
    let v2 = ["--require-none-on=kube-2025:v2", "--require-none-on=k8s:enc:kms:v1:other"];
    assert_eq!(census(&server, &v2).await?.0, 0);

    // Only what was asked is counted, and a name that nothing has passes no gate.
    let gate = "--require-none-on=kube-2025";
    assert_eq!(census(&server, &["--resource=pods", gate]).await?.0, 0);
    let (code, text, _) = census(&server, &["--resource=pods,secret", gate]).await?;
    assert!(code == 2 && text.contains("no object of secret is stored"), "{code}: {text}");
    let spelt_wrong = "--require-none-on=kube-2052";
    let (code, text, _) = census(&server, &[spelt_wrong]).await?;
    assert!(code == 2 && text.contains("is it spelt right?"), "{code}: {text}");
    let (code, text, _) = run(&server, "census", &[spelt_wrong]).await?;
    assert!(code == 2 && text.contains("with --config"), "{code}: {text}");
    let (code, text, _) = census(&server, &["--require-none-on=again"]).await?;
    assert!(code == 2 && text.contains("2,500 on another name of what may be"), "{code}: {text}");
    let empty = ["--resource=pods", "--require-none-on=kube-2026"];
    let (code, text, _) = census(&server, &empty).await?;
    assert!(code == 2 && text.contains("the next object is on it"), "{code}: {text}");
    assert_eq!(census(&server, &["--require-none-on=k8s:enc:kms:v3"]).await?.0, 64);
    let (code, text, _) = census(&server, &["--prefix=/other", gate]).await?;
    assert!(code == 2 && text.contains("is that kube-apiserver's --etcd-prefix?"), "{text}");

    // One value that cannot be read, and nothing is sure any more.
    let damaged =
        ("/registry/secrets/default/damaged".to_owned(), b"k8s:enc:kms:v2:vault:\x0a".to_vec());
    server.client().put_all(&[damaged]).await?;
    let (code, text, _) = census(&server, &["--require-none-on=kube-2030"]).await?;
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("1 of an unknown form, such as /registry/secrets/default/damaged"));

    // One of them, looked at.
    let (key, _) = &objects[0];
    let (code, text, _) = run(&server, "inspect", &["--etcd", key]).await?;
    println!("{text}");
    assert_eq!(code, 0, "{text}");
    assert!(text.contains(key) && text.contains("KEK           kube-202"), "{text}");
    assert_eq!(run(&server, "inspect", &["--etcd", "/registry/none"]).await?.0, 1);

    server.kill();
    assert_eq!(census(&server, &["--etcd-timeout=1s"]).await?.0, 1);
    Ok(())
}
