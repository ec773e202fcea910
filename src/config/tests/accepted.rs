use std::time::Duration;

use secrecy::ExposeSecret as _;

use super::*;
use crate::config::settings::{
    AuthSettings, CertSettings, JwtSettings, KubernetesSettings, SecretId, SecretSource,
    SocketAddress,
};

#[test]
fn the_shortest_file_that_works_gets_every_default() {
    let case = Case::yaml("keyNames: [kube]\naddr: https://v:8200\ntokenFile: /run/vault/token\n");
    let Loaded { settings, warnings, .. } = case.accepted();
    assert_eq!(warnings, []);
    assert_eq!(
        settings.socket.address,
        SocketAddress::Path("/run/vault-kms-proxy/kms.sock".into())
    );
    assert_eq!(settings.socket.mode, 0o600);
    assert_eq!(settings.keyring.keks[0].name.as_str(), "kube");
    assert_eq!(settings.keyring.keks[0].transit_key, "kube");
    assert_eq!(settings.keyring.keks[0].mount, "transit");
    assert_eq!(settings.keyring.rotation.refresh, Duration::from_secs(30));
    assert_eq!(settings.keyring.rotation.activation_delay, Duration::from_secs(60));
    assert_eq!(settings.clusters[0].name.as_str(), "default");
    assert_eq!(settings.clusters[0].addresses, ["https://v:8200"]);
    assert!(
        matches!(&settings.clusters[0].auth, AuthSettings::TokenFile(p) if p == Path::new("/run/vault/token"))
    );
    assert_eq!(settings.kms.default_deadline, Duration::from_secs(3));
    assert_eq!(settings.admin.unwrap().to_string(), "127.0.0.1:9480");
    assert_eq!(settings.traces, None);
    assert_eq!(settings.state_dir, None);
}

#[test]
fn an_app_role_takes_its_secret_from_a_file() {
    let case = Case::yaml(
        "keyNames: [kube]\naddr: [https://a:8200, https://b:8200]\nroleID: r-1\n\
         secretIDFile: /etc/vkp/secret-id\nauthPath: /auth/k8s/\n",
    );
    let loaded = case.accepted();
    assert_eq!(loaded.settings.clusters[0].addresses.len(), 2);
    let AuthSettings::AppRole(role) = &loaded.settings.clusters[0].auth else { panic!() };
    assert_eq!(role.mount, "k8s/approle");
    assert!(matches!(&role.role_id, SecretSource::Inline(id) if id.expose_secret() == "r-1"));
    assert!(
        matches!(&role.secret_id, SecretId::Given(SecretSource::File(p)) if p == Path::new("/etc/vkp/secret-id"))
    );
}

#[test]
fn the_structured_form_places_each_key_in_its_cluster() {
    let case = Case::yaml(
        "
keyNames:
  - { name: kube-2026, transitKey: kube, cluster: bao, epoch: 7 }
  - { name: old, clusters: [vault], mount: /team/transit/, namespace: other/ns/ }
  - { name: older, cluster: vault }
clusters:
  vault: { addr: 'https://v:8200/', namespace: ops, transitPath: kms, auth: { tokenFile: /t } }
  bao:
    addr: [https://b0:8200, https://b1:8200]
    tlsServerName: bao.example
    auth: { appRole: { roleIDFile: /r, secretIDFile: /s, mount: auth/k8s } }
legacy: { key: old, baoKmsProvider: { providerName: p-a, clusterId: '7', instanceId: bao-a } }
socket: { path: unix:///run/kms.sock, mode: 0660, group: kube-apiserver, allowedUids: [0, 65534] }
",
    );
    let Loaded { settings, warnings, .. } = case.accepted();
    assert_eq!(warnings, []);
    let names: Vec<_> = settings.clusters.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["vault", "bao"], "the file's order");
    let [first, second, third] = &settings.keyring.keks[..] else { panic!() };
    assert_eq!((first.transit_key.as_str(), first.mount.as_str()), ("kube", "transit"));
    assert_eq!((first.epoch.as_deref(), first.clusters[0].as_str()), (Some("7"), "bao"));
    assert_eq!(
        (second.mount.as_str(), second.namespace.as_deref()),
        ("team/transit", Some("other/ns"))
    );
    assert_eq!((third.mount.as_str(), third.namespace.as_deref()), ("kms", Some("ops")));
    assert_eq!(settings.keyring.legacy_key.unwrap().as_str(), "old");
    let bao = settings.keyring.bao_kms_provider.unwrap();
    assert_eq!([bao.provider_name, bao.cluster_id, bao.instance_id], ["p-a", "7", "bao-a"]);
    assert_eq!(settings.clusters[0].addresses, ["https://v:8200"]);
    assert_eq!(settings.clusters[1].tls.server_name.as_deref(), Some("bao.example"));
    let AuthSettings::AppRole(role) = &settings.clusters[1].auth else { panic!() };
    assert_eq!(role.mount, "k8s");
    assert_eq!(settings.socket.address, SocketAddress::Path("/run/kms.sock".into()));
    assert_eq!((settings.socket.mode, settings.socket.allowed_uids), (0o660, Some(vec![0, 65534])));
}

#[test]
fn a_key_in_several_clusters_has_a_place_in_each_of_them() {
    let two = "clusters:\n  bao: { addr: https://b, namespace: ops, auth: { tokenFile: /t } }\n  \
               old: { addr: https://o, transitPath: kms, auth: { tokenFile: /t } }\n";
    let keys = "keyNames:\n- { name: a, clusters: [old, bao] }\n\
                - { name: b, clusters: [bao, old], mount: m, namespace: n }\n";
    let settings = Case::yaml(&format!("{keys}{two}")).accepted().settings;
    let [a, b] = &settings.keyring.keks[..] else { panic!() };
    let place = |kek: &crate::config::settings::KekSettings, n| {
        let there = kek.in_cluster(n);
        format!("{} {:?} {}", there.clusters[0], there.namespace, there.mount)
    };
    assert_eq!([place(a, 0), place(a, 1)], ["old None kms", "bao Some(\"ops\") transit"]);
    assert_eq!([place(b, 0), place(b, 1)], ["bao Some(\"n\") m", "old Some(\"n\") m"]);
}

#[test]
fn every_spelling_of_a_socket_that_kube_apiserver_knows_is_read() {
    for (written, expected) in [
        ("/run/kms.sock", SocketAddress::Path("/run/kms.sock".into())),
        ("unix:///run/kms.sock", SocketAddress::Path("/run/kms.sock".into())),
        ("unix:/run/kms.sock", SocketAddress::Path("/run/kms.sock".into())),
        ("'@kms'", SocketAddress::Abstract("kms".into())),
        ("unix:///@kms", SocketAddress::Abstract("kms".into())),
        ("unix:@kms", SocketAddress::Abstract("kms".into())),
    ] {
        let case = Case::yaml(&format!("{FLAT}socket: {{ path: {written}, allowedUids: [0] }}\n"));
        assert_eq!(case.accepted().settings.socket.address, expected, "{written}");
    }
}

#[test]
fn scalars_are_taken_as_written() {
    let case = Case::yaml(
        "keyNames: [2026, 1e3, no]\naddr: https://v\nnamespace: 0x10\nroleID: 0123\n\
         secretIDFile: /s\nadmin: { listen: off }\nsocket: { mode: 660 }\n",
    );
    let settings = case.accepted().settings;
    let names: Vec<_> = settings.keyring.keks.iter().map(|k| k.name.as_str()).collect();
    assert_eq!(names, ["2026", "1e3", "no"]);
    assert_eq!(settings.clusters[0].namespace.as_deref(), Some("0x10"));
    let AuthSettings::AppRole(role) = &settings.clusters[0].auth else { panic!() };
    assert!(matches!(&role.role_id, SecretSource::Inline(id) if id.expose_secret() == "0123"));
    assert_eq!((settings.admin, settings.socket.mode), (None, 0o660));
}

#[test]
fn toml_says_the_same_as_yaml() {
    let toml = Case::new(
        "vkp.toml",
        "keyNames = ['kube', { name = 'old', transitKey = 'k' }]\naddr = 'https://v'\n\
         tokenFile = '/t'\nshutdownGrace = '20s'\n\
         [socket]\nmode = 0o660\nallowedUids = [0, 65_534]\n[traces]\nsampleRatio = 0.5\n",
    );
    let yaml = Case::yaml(
        "keyNames: [kube, { name: old, transitKey: k }]\naddr: https://v\ntokenFile: /t\n\
         shutdownGrace: 20s\nsocket: { mode: '0660', allowedUids: [0, 65534] }\n\
         traces: { sampleRatio: 0.5 }\n",
    );
    let (toml, yaml) = (toml.accepted().settings, yaml.accepted().settings);
    assert_eq!(format!("{toml:?}"), format!("{yaml:?}"));
}

#[test]
fn a_token_file_may_come_later_than_the_daemon() {
    let case = Case::yaml(FLAT).file("/t", FileFacts::Missing);
    let warnings = case.warnings();
    assert!(warnings.len() == 1, "{warnings:?}");
    assert!(warnings[0].starts_with("vkp.yaml:3:12: warning: tokenFile: there is no file /t yet"));
}

#[test]
fn what_is_allowed_but_unwise_is_said() {
    for (lines, expected) in [
        ("socket: { mode: '0666' }", "socket.mode: mode 0666 lets every user of this machine dial"),
        (
            "socket: { path: '@x', allowedUids: [0], mode: '0660' }",
            "socket.mode: an abstract socket has no file",
        ),
        (
            "admin: { listen: '0.0.0.0:9480' }",
            "admin.listen: 0.0.0.0:9480 can be reached from other machines",
        ),
        (
            "rotation: { refresh: 5m }",
            "rotation.activationDelay: nodes read a key's versions less often",
        ),
    ] {
        let warnings = Case::yaml(&format!("{FLAT}{lines}\n")).warnings();
        assert!(warnings.len() == 1 && warnings[0].contains(expected), "{lines}: {warnings:?}");
    }
    let warnings = Case::yaml(
        "keyNames: [{ name: k, cluster: a, activeVersion: 3 }]\nclusters:\n  \
         a: { addr: [https://a, https://a/], auth: { token: hunter2 } }\n  \
         b: { addr: https://b, auth: { tokenFile: /t } }\n",
    )
    .warnings();
    let starts: Vec<_> = warnings.iter().map(|w| w.lines().next().unwrap()).collect();
    assert_eq!(
        starts,
        [
            "vkp.yaml:1:50: warning: keyNames[0].activeVersion: a pinned version does not follow rotations",
            "vkp.yaml:3:26: warning: clusters.a.addr[1]: `https://a/` stands here twice",
            "vkp.yaml:3:54: warning: clusters.a.auth.token: a secret stands in the configuration",
            "vkp.yaml:4:3: warning: clusters.b: no key uses this cluster",
        ]
    );
}

#[test]
fn plain_http_is_for_this_machine_or_on_request() {
    for addr in ["http://127.0.0.1:8200", "http://localhost:8200", "http://[::1]:8200"] {
        let case = Case::yaml(&format!("keyNames: [k]\naddr: {addr}\ntokenFile: /t\n"));
        assert!(!case.accepted().settings.clusters[0].allow_plaintext, "{addr}");
    }
    let case = Case::yaml("keyNames: [k]\naddr: http://v\ntokenFile: /t\nallowPlaintext: true\n");
    assert!(case.accepted().settings.clusters[0].allow_plaintext);
}

#[test]
fn names_of_services_and_servers_that_know_them_are_taken() {
    let case = Case::yaml(
        "keyNames: [k]\naddr: [srv+https://_vault._tcp.example/, https://v:8200]\ntokenFile: /t\n\
         tlsServerName: vault.example\ndns: { servers: [10.0.0.53, '127.0.0.1:5353', '[::1]:54'] }\n",
    );
    let loaded = case.accepted();
    let cluster = &loaded.settings.clusters[0];
    assert_eq!(cluster.addresses, ["srv+https://_vault._tcp.example", "https://v:8200"]);
    let servers: Vec<_> = cluster.dns_servers.iter().map(ToString::to_string).collect();
    assert_eq!(servers, ["10.0.0.53:53", "127.0.0.1:5353", "[::1]:54"]);
}

#[test]
fn each_way_to_log_in_is_read_with_its_usual_mount() {
    let auth = |auth: &str| {
        let file = format!(
            "keyNames: [k]\naddr: https://v\nnamespace: ops\nclientCert: /c\nclientKey: /k\n\
             stateDir: /var/lib/vkp\nauth: {auth}\n"
        );
        let settings = Case::yaml(&file).accepted().settings;
        let cluster = settings.clusters[0].clone();
        (cluster.auth.clone(), cluster.auth_namespace.clone())
    };
    let ops = Some("ops".to_owned());

    let (read, namespace) = auth("{ kubernetes: { role: kms } }");
    let AuthSettings::Kubernetes(kubernetes) = read else { panic!("{read:?}") };
    let token_file = "/var/run/secrets/kubernetes.io/serviceaccount/token".into();
    let (mount, role) = ("kubernetes".to_owned(), "kms".to_owned());
    assert_eq!(kubernetes, KubernetesSettings { mount, role, token_file });
    assert_eq!(namespace, ops);

    let (read, namespace) = auth("{ namespace: root, jwt: { mount: auth/spire, tokenFile: /s } }");
    let AuthSettings::Jwt(jwt) = read else { panic!("{read:?}") };
    let token_file = "/s".into();
    assert_eq!(jwt, JwtSettings { mount: "spire".to_owned(), role: None, token_file });
    assert_eq!(namespace, None);

    let (read, namespace) = auth("{ namespace: team/a, cert: { role: kms } }");
    let AuthSettings::Cert(cert) = read else { panic!("{read:?}") };
    assert_eq!(cert, CertSettings { mount: "cert".to_owned(), role: Some("kms".to_owned()) });
    assert_eq!(namespace.as_deref(), Some("team/a"));
    let (read, _) = auth("{ namespace: team/a }");
    assert!(matches!(read, AuthSettings::Cert(_)), "a certificate and nothing else is the login");

    let (read, _) = auth("{ userpass: { username: kms, passwordFile: /p } }");
    let AuthSettings::Userpass(user) = read else { panic!("{read:?}") };
    assert_eq!((user.mount.as_str(), user.username.as_str()), ("userpass", "kms"));
    assert_eq!(user.password.file(), Some(Path::new("/p")));

    let (read, _) = auth("{ appRole: { roleID: r, wrappedSecretIDFile: /w } }");
    let AuthSettings::AppRole(role) = read else { panic!("{read:?}") };
    let SecretId::Wrapped { token, kept_in } = role.secret_id else { panic!() };
    assert_eq!(token.file(), Some(Path::new("/w")));
    assert_eq!(kept_in, Path::new("/var/lib/vkp/secret-id.default.json"));
}

#[test]
fn kubernetes_auth_is_warned_of_the_loop_and_secrets_of_being_inline() {
    let auth = |auth: &str| {
        let file = format!("keyNames: [k]\naddr: https://v\nstateDir: /var/lib/v\nauth: {auth}\n");
        Case::yaml(&file).warnings()
    };
    let warnings = auth("{ kubernetes: { role: kms } }");
    assert!(warnings.len() == 1 && warnings[0].contains("neither can start without the other"));
    for (auth_block, twin) in [
        ("{ userpass: { username: kms, password: hunter2 } }", "passwordFile"),
        ("{ appRole: { roleID: r, wrappedSecretID: hunter2 } }", "wrappedSecretIDFile"),
    ] {
        let warnings = auth(auth_block);
        let expected = format!("name that in {twin}");
        assert!(warnings.len() == 1 && warnings[0].contains(&expected), "{warnings:?}");
        assert!(!warnings[0].contains("hunter2"));
    }
}
