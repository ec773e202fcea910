//! What an operator copies: the units, the manifests, and the policy that is printed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use lab::{Config, Daemon, DevNode};
use serde_json::{Value, json};

const DAEMON: &str = env!("CARGO_BIN_EXE_vault-kms-proxy");
const PATIENCE: Duration = Duration::from_secs(20);

fn config_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config")
}

/// What a command of ours prints; it must end well.
fn printed(command: &[&str], file: &Path) -> lab::Result<String> {
    let mut ours = Command::new(DAEMON);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["VAULT_", "BAO_", "OTEL_"].iter().any(|prefix| text.starts_with(prefix)) {
            ours.env_remove(&name);
        }
    }
    let output = ours.args(command).arg("--config").arg(file).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{command:?}: {said}{out}");
    Ok(out.into_owned())
}

fn written(folder: &Path, config: &Config) -> lab::Result<PathBuf> {
    let file = folder.join("config.yaml");
    std::fs::write(&file, config.to_string())?;
    Ok(file)
}

/// The rules of a policy without its words.
fn rules(policy: &str) -> BTreeSet<String> {
    let lines = policy.lines().filter(|line| !line.starts_with('#'));
    let text: String = lines.collect();
    text.split('}')
        .map(|rule| rule.split_whitespace().collect())
        .filter(|r: &String| !r.is_empty())
        .collect()
}

#[test]
fn systemd_takes_the_units() -> lab::Result {
    let version = Command::new("systemd-analyze").arg("--version").output();
    let Ok(version) = version else {
        println!("skipped: there is no systemd-analyze on this machine");
        return Ok(());
    };
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let version = version.split_whitespace().nth(1).and_then(|number| number.parse().ok());
    let has_notify_reload = version.is_some_and(|number: u32| number >= 253);
    let from = config_folder().join("systemd");
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let (service, socket) = ("vault-kms-proxy.service", "vault-kms-proxy.socket");
    let text = std::fs::read_to_string(from.join(service))?;
    let installed = "ExecStart=/usr/local/bin/vault-kms-proxy ";
    assert!(text.contains(installed), "{text}");
    std::fs::write(at(service), text.replace(installed, &format!("ExecStart={DAEMON} ")))?;
    std::fs::copy(from.join(socket), at(socket))?;
    let mut looks = vec!["as they are"];
    if has_notify_reload {
        looks.push("with notify-reload");
    } else {
        println!("without the drop-in for systemd 253 and later: this one is {version:?}");
    }
    for look in looks {
        if look == "with notify-reload" {
            let drop_in = format!("{service}.d");
            std::fs::create_dir(at(&drop_in))?;
            let name = format!("{drop_in}/notify-reload.conf");
            std::fs::copy(from.join(&name), at(&name))?;
        }
        let verified = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .args([at(service), at(socket)])
            .env("SYSTEMD_UNIT_PATH", format!("{}:", folder.path().display()))
            .output()?;
        let said = String::from_utf8_lossy(&verified.stderr);
        println!("{look}: {}", verified.status);
        // It ends well in spite of a key that it does not know; other units are not ours.
        assert!(verified.status.success() && !said.contains("vault-kms-proxy"), "{look}: {said}");
    }

    // The sandbox, in tenths of systemd's own measure: each line that is lost shows. What
    // remains is the network, which the daemon needs.
    let is_measured = version.is_some_and(|number: u32| number >= 250);
    if is_measured {
        let measured = Command::new("systemd-analyze")
            .args(["security", "--offline=yes", "--threshold=20", "--no-pager"])
            .arg(at(service))
            .output()?;
        let said = String::from_utf8_lossy(&measured.stdout);
        assert!(measured.status.success(), "it may do more than before: {said}");
    }

    let text = |name: &str| std::fs::read_to_string(from.join(name));
    let has = |text: &str, line: &str| text.lines().any(|l| l == line);
    let (service, socket) = (text(service)?, text(socket)?);
    for line in [
        "Type=notify",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "Restart=always",
        "StartLimitIntervalSec=0",
        "OOMScoreAdjust=-998",
        "LimitCORE=0",
        "Requires=vault-kms-proxy.socket",
        "WatchdogSec=60s",
        "TimeoutStopSec=30s",
        "Also=vault-kms-proxy.socket",
        // What it must be able to do in spite of the sandbox.
        "StateDirectory=vault-kms-proxy",
        "StateDirectoryMode=0700",
        "ReadWritePaths=-/run/vault-kms-proxy",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "SystemCallFilter=@system-service",
        "LimitNOFILE=65536",
    ] {
        assert!(has(&service, line), "no {line} in the service");
    }
    // It would take the socket's folder away at each stop.
    assert!(!service.lines().any(|line| line.starts_with("RuntimeDirectory")), "{service}");
    for unit in [&service, &socket] {
        let before = unit.lines().find(|line| line.starts_with("Before=")).unwrap_or_default();
        assert!(before.contains("kubelet.service"), "{unit}");
    }
    let drop_in = text("vault-kms-proxy.service.d/notify-reload.conf")?;
    assert!(has(&drop_in, "Type=notify-reload"), "{drop_in}");
    // Without it systemd would send the signal twice.
    assert!(has(&drop_in, "ExecReload="), "{drop_in}");
    for line in [
        "SocketMode=0600",
        "DirectoryMode=0755",
        "TriggerLimitIntervalSec=0",
        "WantedBy=sockets.target",
    ] {
        assert!(has(&socket, line), "no {line} in the socket");
    }
    // One path, in every place where it stands.
    let path = "/run/vault-kms-proxy/kms.sock";
    let example = std::fs::read_to_string(config_folder().join("vault-plugin.yaml"))?;
    assert!(has(&socket, &format!("ListenStream={path}")), "{socket}");
    assert_eq!(socket.matches("\nListen").count(), 1, "one can be served: {socket}");
    assert!(!socket.contains("\nAccept="), "{socket}");
    assert!(example.contains("\nstateDir: /var/lib/vault-kms-proxy"), "{example}");
    assert!(example.contains(&format!("path: {path} ")), "{example}");
    assert!(text("tmpfiles.conf")?.contains("\nd /run/vault-kms-proxy 0755 root root -\n"));
    Ok(())
}

fn yaml(path: &Path) -> lab::Result<Value> {
    let text = std::fs::read_to_string(path)?;
    match serde_saphyr::from_str(&text) {
        Ok(value) => Ok(value),
        Err(error) => Err(lab::Error::new(format!("{}: {error}", path.display()))),
    }
}

#[test]
fn the_manifests_say_what_the_daemon_needs() -> lab::Result {
    let folder = config_folder().join("kubernetes");
    let pod = yaml(&folder.join("static-pod.yaml"))?;
    let spec = &pod["spec"];
    assert_eq!(
        (&pod["kind"], &pod["metadata"]["namespace"]),
        (&json!("Pod"), &json!("kube-system"))
    );
    assert_eq!(spec["hostNetwork"], true);
    assert_eq!(spec["dnsPolicy"], "Default");
    assert_eq!(spec["priorityClassName"], "system-node-critical");
    let container = &spec["containers"][0];
    assert_eq!(container["livenessProbe"]["httpGet"]["path"], "/livez");
    assert_eq!(container["livenessProbe"]["httpGet"]["port"], 9480);
    assert_eq!(container["livenessProbe"]["httpGet"]["host"], "127.0.0.1");
    let defaults = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config/defaults.yaml");
    assert_eq!(yaml(&defaults)?["admin"]["listen"], "127.0.0.1:9480", "where it is asked");
    // Whoever breaks in finds a process without powers, and no token of the cluster's.
    assert_eq!(spec["automountServiceAccountToken"], false);
    for shared in ["hostPID", "hostIPC", "shareProcessNamespace", "serviceAccountName"] {
        assert!(spec[shared].is_null(), "{shared}");
    }
    let powers = &container["securityContext"];
    assert_eq!(
        powers,
        &json!({
            "runAsUser": 0,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
            "seccompProfile": { "type": "RuntimeDefault" },
        })
    );
    assert!(container["resources"]["limits"]["cpu"].is_null(), "a throttled one is slow");
    assert!(container["readinessProbe"].is_null() && container["startupProbe"].is_null());
    let volumes = spec["volumes"].as_array().expect("a list");
    for volume in volumes {
        let path = volume["hostPath"]["path"].as_str().expect("a path");
        assert!(!path.ends_with(".sock"), "the folder is mounted, not the socket: {path}");
        let mounts = container["volumeMounts"].as_array().expect("a list");
        let mount = mounts.iter().find(|mount| mount["name"] == volume["name"]);
        let mount = mount.expect("it is mounted");
        assert_eq!(mount["mountPath"], path);
        // The other two are written to.
        let is_read_only = mount["readOnly"] == true;
        assert_eq!(is_read_only, path.starts_with("/etc/"), "{path}");
    }
    let paths = ["/run/vault-kms-proxy", "/etc/vault-kms-proxy", "/var/lib/vault-kms-proxy"];
    let named = volumes.iter().filter_map(|v| v["hostPath"]["path"].as_str());
    assert_eq!(named.collect::<Vec<_>>(), paths);

    // The API version of each provider, in order; the first one writes.
    for (name, order) in [
        ("encryption-v2", vec!["v2", "identity"]),
        ("encryption-v1", vec!["v1", "identity"]),
        ("encryption-v1-to-v2-step-1", vec!["v1", "v2", "identity"]),
        ("encryption-v1-to-v2-step-2", vec!["v2", "v1", "identity"]),
    ] {
        let config = yaml(&folder.join(format!("{name}.yaml")))?;
        assert_eq!(config["kind"], "EncryptionConfiguration", "{name}");
        assert_eq!(config["apiVersion"], "apiserver.config.k8s.io/v1", "{name}");
        assert_eq!(config["resources"].as_array().map(Vec::len), Some(1), "{name}");
        assert_eq!(config["resources"][0]["resources"], json!(["secrets"]), "{name}");
        let providers = config["resources"][0]["providers"].as_array().expect("a list");
        let mut names = BTreeSet::new();
        let mut found = Vec::new();
        for provider in providers {
            // kube-apiserver takes one kind for each, and fields that it does not know for errors.
            assert_eq!(provider.as_object().map(serde_json::Map::len), Some(1), "{name}");
            let Some(kms) = provider.get("kms") else {
                assert_eq!(provider, &json!({ "identity": {} }), "{name}");
                found.push("identity");
                continue;
            };
            let known = ["apiVersion", "cachesize", "endpoint", "name", "timeout"];
            let fields = kms.as_object().into_iter().flat_map(serde_json::Map::keys);
            let unknown: Vec<_> = fields.filter(|field| !known.contains(&field.as_str())).collect();
            assert!(unknown.is_empty(), "{name}: {unknown:?}");
            found.push(kms["apiVersion"].as_str().expect("a text"));
            assert_eq!(kms["endpoint"], "unix:///run/vault-kms-proxy/kms.sock", "{name}");
            assert_eq!(kms["timeout"], "3s", "{name}");
            // kube-apiserver refuses a cache for v2.
            assert_eq!(kms.get("cachesize").is_some(), kms["apiVersion"] == "v1", "{name}");
            let is = if kms["apiVersion"] == "v1" { "vault" } else { "vault-v2" };
            assert_eq!(kms["name"], is, "{name}: a name goes into etcd");
            assert!(names.insert(is), "{name}: kube-apiserver wants names that differ");
        }
        assert_eq!(found, order, "{name}");
    }
    Ok(())
}

#[test]
fn the_sample_policy_is_what_is_printed_for_the_sample_configuration() -> lab::Result {
    let folder = tempfile::tempdir()?;
    let text = std::fs::read_to_string(config_folder().join("vault-plugin.yaml"))?;
    let here = folder.path().display().to_string();
    let text =
        text.replace("/etc/vault-kms-proxy", &here).replace("/var/lib/", &format!("{here}/"));
    let file = folder.path().join("vault-plugin.yaml");
    for name in ["secret-id", "ca.pem", "client.pem", "client-key.pem"] {
        lab_private(&folder.path().join(name), "x")?;
    }
    lab_private(&file, &text)?;
    let now = printed(&["policy"], &file)?;
    let sample = config_folder().join("policy.hcl");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&sample, &now)?;
    }
    assert_eq!(std::fs::read_to_string(&sample)?, now, "UPDATE_DOCS=1 writes it anew");
    Ok(())
}

fn lab_private(path: &Path, text: &str) -> lab::Result {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text)?;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?)
}

#[tokio::test]
async fn every_test_runs_under_the_policy_that_is_printed() -> lab::Result {
    let bao = DevNode::start().await?;
    bao.create_keys(&["kube", "other"]).await?;
    let config = bao.config(&["kube", "other"]).await?;
    let folder = tempfile::tempdir()?;
    let file = written(folder.path(), &config)?;
    let policy = printed(&["policy"], &file)?;
    println!("{policy}");
    assert_eq!(rules(&policy), rules(&lab::policy_for(&["kube", "other"])));
    assert!(!policy.contains("\"create\"") && !policy.contains("\"delete\""), "{policy}");

    let elsewhere = written(folder.path(), &config.with("transitPath", "team/transit"))?;
    let policy = printed(&["policy"], &elsewhere)?;
    assert_eq!(rules(&policy), rules(&lab::policy_for_mount("team/transit", &["kube", "other"])));
    Ok(())
}

#[tokio::test]
async fn several_clusters_and_namespaces_have_a_policy_each_and_it_is_enough() -> lab::Result {
    let bao = DevNode::start().await?;
    let admin = bao.admin();
    admin.create_namespace("platform").await?;
    let inner = admin.in_namespace("platform");
    inner.mount_transit().await?;
    inner.create_key("inner").await?;
    bao.create_keys(&["outer"]).await?;
    let outer = bao.config(&["outer"]).await?;
    let role = admin
        .create_approle(
            "printed",
            json!({
                "token_policies": ["printed"], "token_no_default_policy": true, "token_ttl": "1h",
            }),
        )
        .await?;
    let folder = tempfile::tempdir()?;
    let secret_id = folder.path().join("secret-id");
    lab_private(&secret_id, &role.secret_id)?;
    let app_role = |id: &Value, secret: &Value| json!({ "roleID": id, "secretIDFile": secret });
    let get = |key: &str| outer.get(key).cloned().unwrap_or_default();
    let one = json!({
        "addr": get("addr"), "vaultCACert": get("vaultCACert"), "namespace": "platform",
        "auth": {
            "namespace": "root",
            "appRole": app_role(&json!(role.role_id), &json!(secret_id.display().to_string())),
        },
    });
    let two = json!({
        "addr": get("addr"), "vaultCACert": get("vaultCACert"),
        "auth": { "appRole": app_role(&get("roleID"), &get("secretIDFile")) },
    });
    let config = Config::new()
        .with(
            "keyNames",
            json!([
                { "name": "inner", "cluster": "one" },
                { "name": "outer", "cluster": "two" },
                // The same key under another name: each path stands once.
                { "name": "again", "transitKey": "inner", "cluster": "one" },
            ]),
        )
        .with("clusters", json!({ "one": one, "two": two }))
        .with("admin", json!({ "listen": "off" }));
    let file = written(folder.path(), &config)?;
    let both = printed(&["policy"], &file)?;
    println!("{both}");
    let headings: Vec<_> = both.lines().filter(|line| line.starts_with("# cluster ")).collect();
    assert_eq!(headings, ["# cluster one", "# cluster two"], "{both}");
    let of = |cluster| printed(&["policy", "--cluster", cluster], &file);
    assert_eq!(both, format!("{}\n{}", of("one")?, of("two")?));
    assert_eq!(rules(&of("two")?), rules(&lab::policy_for(&["outer"])));

    let policy = of("one")?;
    assert_eq!(policy.matches("path \"platform/transit/encrypt/inner\"").count(), 1, "{policy}");
    admin.write_policy("printed", &policy).await?;
    let checked = printed(&["check", "--online"], &file)?;
    assert!(checked.contains("everything is as it should be"), "{checked}");
    let daemon = Daemon::start(DAEMON, &config).await?;
    daemon.wait_ready(PATIENCE).await?;
    let made = daemon.kms().v1().encrypt(&[7; 32]).await?;
    assert_eq!(daemon.kms().v1().decrypt(&made).await?, [7; 32]);

    // No key is made with it, whatever the name.
    let token = admin.create_token(json!({ "policies": ["printed"] })).await?;
    let stranger = inner.with_token(&token);
    assert!(stranger.encrypt("typo", b"x").await.is_err());
    assert!(stranger.create_key("typo").await.is_err());
    assert!(inner.key("typo").await.is_err(), "a key was made");
    Ok(())
}
