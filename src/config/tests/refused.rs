use super::*;

/// A file, and what each message about it must hold: place, key, cause, remedy.
#[track_caller]
fn each_says(cases: &[(&str, &[&str])]) {
    for (content, expected) in cases {
        let text = Case::yaml(content).refused();
        for part in *expected {
            assert!(text.contains(part), "no `{part}` for:\n{content}\nbut:\n{text}");
        }
    }
}

/// The same for lines that are added to a file that is good without them.
#[track_caller]
fn each_added_line_says(cases: &[(&str, &[&str])]) {
    for (line, expected) in cases {
        each_says(&[(&format!("{FLAT}{line}\n"), expected)]);
    }
}

#[test]
fn five_problems_are_reported_at_once_each_with_its_place() {
    let text = Case::yaml(
        "keyNames: [kube]\n\
         addr: vault:8200\n\
         tokenFile: /run/token\n\
         socket:\n\
         \x20 mod: '0660'\n\
         \x20 allowedUids: [root]\n\
         rotation: { refresh: 0s, activationDelay: 60 }\n",
    )
    .refused();
    assert_eq!(
        text,
        "\
vkp.yaml:2:7: error: addr: `vault:8200` does not say how to connect
    help: write https://vault:8200
vkp.yaml:5:3: error: socket.mod: there is no such key
    help: did you mean `mode`?
vkp.yaml:6:17: error: socket.allowedUids[0]: `root` is no user id
    help: write the number that `id -u <user>` prints
vkp.yaml:7:22: error: rotation.refresh: `0s` is out of range
    help: write a duration from 1s to 1h
vkp.yaml:7:43: error: rotation.activationDelay: `60` has no unit
    help: write `60s` for seconds; 1s to 1day are possible
5 errors"
    );
}

#[test]
fn a_file_that_is_no_configuration_is_named_for_what_it_is() {
    for (content, expected) in [
        (&b""[..], "vkp.yaml: error: the file is empty"),
        (b"# only words\n", "vkp.yaml: error: the file is empty"),
        (b"---\n", "vkp.yaml: error: the file is empty"),
        (b"{}", "vkp.yaml: error: the file is empty"),
        (b"\x7fELF\x02\x01\0\0", "vkp.yaml: error: the file is binary"),
        (b"keyNames: \xff\xfe", "vkp.yaml: error: the file is binary"),
        (b"hello", "vkp.yaml:1:1: error: the file does not begin with a key"),
        (b"- a\n- b\n", "vkp.yaml:1:1: error: the file does not begin with a key"),
        (b"keyNames: [kube\naddr: x\n", "error: this is not YAML"),
        (b"keyNames: [kube]\n\taddr: x\n", "vkp.yaml:2:"),
        (b"a: 1\n---\nb: 2\n", "vkp.yaml:2:1: error: a second document begins here"),
        (b"addr: &x https://v\nnamespace: *x\n", "vkp.yaml:2:12: error: aliases"),
        (b"addr: !env VAULT\n", "error: tags (`!name`) have no meaning here"),
    ] {
        let text = Case::new("vkp.yaml", content).refused();
        assert!(text.contains(expected), "{content:?}:\n{text}");
    }
    let deep = "a: ".to_owned() + &"[".repeat(100_000);
    assert!(Case::yaml(&deep).refused().contains("this is not YAML"));
    let large = "#".repeat(2 << 20);
    assert!(Case::yaml(&large).refused().contains("more than a configuration can have"));
}

#[test]
fn a_path_that_is_no_file_is_refused() {
    let mut case = Case::yaml(FLAT);
    case.sources.file = Some(case.files.config.parent().unwrap().to_owned());
    case.files.config = case.sources.file.clone().unwrap();
    assert!(case.load().unwrap_err().to_string().contains("this is a folder, not a file"));
    case.files.config.push("missing.yaml");
    case.sources.file = Some(case.files.config.clone());
    assert!(case.load().unwrap_err().to_string().contains("there is no such file"));
    let unreadable = case.files.config.clone();
    case.files.config = PathBuf::new();
    case.files.facts.insert(unreadable, FileFacts::Unreadable("Permission denied".into()));
    assert!(case.load().unwrap_err().to_string().contains("cannot be read: Permission denied"));
}

#[test]
fn toml_problems_have_places_too() {
    let text = Case::new(
        "vkp.toml",
        "keyNames = ['kube']\naddr = 'vault:8200'\ntokenFile = '/t'\n[socket]\n  mood = 1\n",
    )
    .refused();
    assert!(text.contains("vkp.toml:2:8: error: addr: `vault:8200` does not say"), "{text}");
    assert!(text.contains("vkp.toml:5:3: error: socket.mood: there is no such key"), "{text}");
    assert!(text.contains("did you mean `mode`?"), "{text}");
    let text = Case::new("vkp.toml", "token = hvs.abc\naddr = = 3\n").refused();
    assert!(text.contains("vkp.toml:1:9: error: this is not TOML"), "{text}");
    assert!(text.contains("vkp.toml:2:"), "both errors: {text}");
    assert!(!text.contains("hvs.abc"), "{text}");
}

#[test]
fn keys_that_do_not_exist_get_the_nearest_one_that_does() {
    each_added_line_says(&[
        (
            "keynames: [kube]",
            &["vkp.yaml:4:1: error: keynames: there is no such key", "`keyNames`"],
        ),
        ("vault-ca-cert: /ca", &["did you mean `vaultCACert`?"]),
        ("ca-cert: /ca", &["ca-cert: there is no such key", "write vaultCACert"]),
        ("shutdowngrase: 3s", &["did you mean `shutdownGrace`?"]),
        ("grace: 3s", &["it belongs into the block `status`"]),
        ("format: json", &["it belongs into the block `write` or `log`"]),
        ("status: { version: v2 }", &["write statusVersion, without a block around it"]),
        ("colour: red", &["remove it; the keys here are keyNames, addr, "]),
        ("log: { levle: info }", &["log.levle: there is no such key", "did you mean `level`?"]),
    ]);
}

#[test]
fn wrong_shapes_say_what_is_wanted() {
    each_added_line_says(&[
        ("socket: /run/x", &["socket: a block of keys is wanted, and this is a single value"]),
        ("socket: { path: [a] }", &["socket.path: a single value is wanted, and this is a list"]),
        ("socket: { allowedUids: 5 }", &["socket.allowedUids: a list is wanted"]),
        ("namespace: { a: b }", &["namespace: a single value is wanted, and this is a block"]),
        ("vaultCACert:", &["vkp.yaml:4:1: error: vaultCACert: there is no value"]),
        ("vaultCACert: ''", &["vaultCACert: there is no value"]),
        (
            "shutdownGrace: 5s\nshutdownGrace: 6s",
            &["vkp.yaml:5:1", "a second time; the first is at", ":4:1"],
        ),
        ("clusters: [a]", &["clusters: a block of names is wanted, and this is a list"]),
    ]);
    each_says(&[
        (
            "keyNames: kube\naddr: https://v\ntokenFile: /t",
            &["vkp.yaml:1:11: error: keyNames: a list is wanted"],
        ),
        (
            "keyNames: []\naddr: https://v\ntokenFile: /t",
            &["vkp.yaml:1:1: error: keyNames: there is no key"],
        ),
        (
            "keyNames: [{}]\naddr: https://v\ntokenFile: /t",
            &["keyNames[0].name: the key has no name"],
        ),
        (
            "keyNames: [[a]]\naddr: https://v\ntokenFile: /t",
            &["keyNames[0]: a single value is wanted"],
        ),
    ]);
}

#[test]
fn values_that_make_no_sense_say_what_would() {
    each_added_line_says(&[
        ("rotation: { refresh: 0s }", &["rotation.refresh: `0s` is out of range", "1s to 1h"]),
        ("rotation: { refresh: 2days }", &["out of range"]),
        ("rotation: { refresh: soon }", &["`soon` is no duration", "`30s`"]),
        ("rotation: { refresh: -1s }", &["`-1s` is no duration"]),
        ("shutdownGrace: 10", &["`10` has no unit", "write `10s`"]),
        ("calls: { maxConcurrent: 0 }", &["calls.maxConcurrent: `0` is no number", "1 to 65536"]),
        ("calls: { maxConcurrent: many }", &["`many` is no number"]),
        ("calls: { defaultDeadline: 1ms }", &["out of range"]),
        ("verifyEncrypt: never", &["`never` is none of the choices", "write `v2` or `always`"]),
        ("write: { format: oracle }", &["write `named` or `vault`"]),
        ("statusVersion: v3", &["write `v2` or `v2beta1`"]),
        ("status: { onOutage: error }", &["write `report` or `ok`"]),
        ("allowPlaintext: yes", &["allowPlaintext: `yes`", "write `true` or `false`"]),
        ("log: { level: loud=what }", &["log.level: `loud=what` is no log level"]),
        ("log: { format: xml }", &["write `text` or `json`"]),
        ("dns: { servers: [ns.example] }", &["dns.servers[0]: `ns.example` is no address", "5353"]),
        ("admin: { listen: 8080 }", &["`8080` is no address to listen on", "127.0.0.1:9480"]),
        ("traces: { endpoint: otel }", &["traces.endpoint: `otel` does not say how"]),
        ("traces: { protocol: udp }", &["traces.protocol: `udp` is none"]),
        ("traces: { sampleRatio: 2 }", &["traces.sampleRatio: `2` is no number", "from 0 to 1"]),
        ("traces: { sampleRatio: NaN }", &["traces.sampleRatio: `NaN` is no number"]),
        (
            "legacy: { baoKmsProvider: { providerName: 'a\"b', clusterId: c } }",
            &[
                "legacy.baoKmsProvider.providerName: `a\\\"b` cannot be such a name",
                "copy its provider name",
                "legacy.baoKmsProvider.instanceId: without it nothing",
                "copy its OpenBao instance id",
            ],
        ),
        ("legacy: { key: other }", &["legacy.key: `other` is not in keyNames", "one of kube"]),
        ("transitPath: a//b", &["transitPath: `a//b` is no path in Vault"]),
        ("transitPath: ../sys", &["transitPath: `../sys` is no path in Vault"]),
        ("namespace: a?b", &["namespace: `a?b` is no path in Vault"]),
        ("tlsServerName: 'vault:8200'", &["tlsServerName: `vault:8200` is no host name"]),
        ("stateDir: state", &["stateDir: `state` is a relative path"]),
    ]);
}

#[test]
fn an_address_is_a_scheme_a_host_and_a_port() {
    let says = |addr: &str, expected: &str| {
        let text = Case::yaml(&format!("keyNames: [k]\ntokenFile: /t\naddr: {addr}\n")).refused();
        assert!(text.contains(expected), "{addr}:\n{text}");
        text
    };
    says("https://v:8200/v1/transit", "has a path\n    help: write https://v:8200;");
    says("tcp://v:8200", "neither https:// nor http://");
    says("'https://a:8200, https://b:8200'", "write a list: [https://a:8200");
    says("'https://'", "is no address");
    for addr in ["srv+http://v", "srv+https://v:8200", "srv+https://10.0.0.1", "srv+https://a@b"] {
        says(&format!("'{addr}'"), "it names no service in DNS");
    }
    says("srv+https://_vault._tcp.example", "DNS alone would say whose certificate is believed");
    says("'https://v:0'", "is no address");
    says("'https://v:99999'", "is no address");
    says("'https://v:'", "is no address");
    says("'https://[::1'", "is no address");
    says("'https://v host'", "is no address");
    says("[]", "addr: the list is empty");
    let many: Vec<_> = (0..65).map(|n| format!("https://v{n}")).collect();
    says(&format!("[{}]", many.join(", ")), "there are 65 addresses; a cluster has at most 64");
    says("[https://a, v]", "vkp.yaml:3:19: error: addr[1]: `v` does not say");
    let text = says("http://vault.example:8200", "unencrypted");
    assert!(text.contains("allowPlaintext: true"), "{text}");
    let text = says("https://admin:hunter2@v:8200", "must not hold a user name or a password");
    assert!(!text.contains("hunter2"), "{text}");
    let text = says("https://v:8200?token=hunter2", "must end before its `?`");
    assert!(!text.contains("hunter2"), "{text}");
    let text = Case::yaml("keyNames: [k]\ntokenFile: /t\n").refused();
    assert!(text.contains("vkp.yaml: error: addr: there is no address"), "{text}");
}

#[test]
fn one_way_to_log_in_is_wanted() {
    let flat = |auth: &str| format!("keyNames: [k]\naddr: https://v\n{auth}\n");
    each_says(&[
        (&flat(""), &["vkp.yaml: error: there is no way to log in", "tokenFile, or roleID"]),
        (
            &flat("auth: { cert: {} }"),
            &["vkp.yaml:3:9: error: auth.cert: the login needs a client certificate"],
        ),
        (
            &flat("tokenFile: /t\nauth: { jwt: { tokenFile: /j } }"),
            &["auth.jwt: this is a second way to log in, beside tokenFile"],
        ),
        (&flat("auth: { jwt: { role: r } }"), &["auth.jwt.tokenFile: the login needs a signed"]),
        (&flat("auth: { kubernetes: { mount: k } }"), &["auth.kubernetes.role: the login needs"]),
        (&flat("auth: { kuberntes: { role: k } }"), &["did you mean `kubernetes`?"]),
        (
            &flat("auth: { userpass: { username: u, passwordFle: /p } }"),
            &["did you mean `passwordFile`?", "auth.userpass.passwordFile: the login needs"],
        ),
        (
            &flat("authPath: auth/x\nauth: { jwt: { tokenFile: /j } }"),
            &["authPath: it has no effect on auth.jwt", "write auth.jwt.mount instead"],
        ),
        (
            &flat("auth: { appRole: { roleID: r, wrappedSecretIDFile: /w } }"),
            &[
                "auth.appRole.wrappedSecretIDFile: a wrapping token can be used once, and there \
                 is nowhere to keep",
                "write stateDir",
            ],
        ),
        (
            &flat("auth: { appRole: { roleID: r, wrappedSecretIDFile: /w, secretIDFile: /s } }"),
            &["both a secret id and a wrapped one are written"],
        ),
        (
            &flat("auth: { appRole: { wrappedSecretIDFile: /w } }\nstateDir: /var/lib/v"),
            &["auth.appRole.roleID: a secret id needs the role"],
        ),
        (
            &flat("token: abc\ntokenFile: /t"),
            &["vkp.yaml:4:12: error: tokenFile: this is a second way to log in, beside token"],
        ),
        (
            &flat("tokenFile: /t\nroleID: r"),
            &["roleID: this is a second way to log in, beside tokenFile"],
        ),
        (&flat("secretID: abc"), &["roleID: a secret id needs the role"]),
        (&flat("roleID: r\nroleIDFile: /r"), &["both roleID and roleIDFile are written"]),
        (&flat("roleID: r\nsecretID: s\nsecretIDFile: /s"), &["both secretID and secretIDFile"]),
        (&flat("token: 'two words'"), &["the token holds characters that no token has"]),
        (&flat("tokenFile: /t\nclientCert: /c"), &["clientCert: a certificate needs its key"]),
        (&flat("tokenFile: /t\nclientKey: /c"), &["clientKey: a key needs its certificate"]),
        (
            &flat("roleID: r\nauthPath: approle"),
            &["authPath: the login would be at approle/approle", "write auth/approle"],
        ),
        (
            "keyNames: [k]\nclusters:\n  a: { addr: https://v }\n",
            &["vkp.yaml:3:3: error: clusters.a.auth: there is no way to log in"],
        ),
        (
            "keyNames: [k]\nclusters:\n  a:\n",
            &["clusters.a.addr: there is no address", "clusters.a.auth: there is no way"],
        ),
        (
            "keyNames: [k]\nclusters: { a: { addr: https://v, auth: { tokenFile: /t, appRole: { roleID: r } } } }\n",
            &[
                "clusters.a.auth.appRole: this is a second way to log in, beside clusters.a.auth.tokenFile",
            ],
        ),
    ]);
}

#[test]
fn keys_and_clusters_must_fit_together() {
    let two = "clusters:\n  bao: { addr: https://b, auth: { tokenFile: /t } }\n  old: { addr: https://o, auth: { tokenFile: /t } }\n";
    each_says(&[
        (
            &format!("keyNames: [kube]\n{two}"),
            &["keyNames[0].cluster: there are several clusters", "one of bao, old"],
        ),
        (
            &format!("keyNames: [{{ name: k, cluster: boa }}]\n{two}"),
            &["keyNames[0].cluster: there is no cluster `boa`", "did you mean `bao`?"],
        ),
        (
            &format!("keyNames: [{{ name: k, clusters: [bao, old, bao] }}]\n{two}"),
            &["keyNames[0].clusters[2]: the cluster `bao` stands here twice", "order of failover"],
        ),
        (
            &format!("keyNames: [{{ name: k, clusters: [bao, odl] }}]\n{two}"),
            &["keyNames[0].clusters[1]: there is no cluster `odl`", "did you mean `old`?"],
        ),
        (
            &format!("keyNames: [{{ name: k, cluster: bao, clusters: [bao] }}]\n{two}"),
            &["it means the same as `cluster`"],
        ),
        (
            &format!("keyNames: [{{ name: k, cluster: bao, mount: a, transitPath: b }}]\n{two}"),
            &["it means the same as `mount`"],
        ),
        (
            &format!("{FLAT}{two}"),
            &[
                "addr: it describes the one cluster of a file without `clusters`",
                "clusters.<name>.addr",
                "tokenFile: it describes",
            ],
        ),
        ("keyNames: [k]\nclusters: {}\n", &["clusters: there is no cluster"]),
        (
            "keyNames: [k]\nclusters: { 'a b': { addr: https://v, auth: { tokenFile: /t } } }\n",
            &["`a b` is not a usable name"],
        ),
        (
            "keyNames: [kube, kube]\naddr: https://v\ntokenFile: /t\n",
            &["vkp.yaml:1:18: error: keyNames[1]: the key `kube` stands in keyNames[0] already"],
        ),
        (
            "keyNames: ['my:key']\naddr: https://v\ntokenFile: /t\n",
            &["keyNames[0]: `my:key` is not a usable name"],
        ),
        (
            "keyNames: [{ name: k, transitKey: a/b }]\naddr: https://v\ntokenFile: /t\n",
            &["keyNames[0].transitKey: `a/b` cannot be the name"],
        ),
        (
            "keyNames: [{ name: k, activeVersion: 0 }]\naddr: https://v\ntokenFile: /t\n",
            &["keyNames[0].activeVersion: `0` is no number"],
        ),
    ]);
}

#[test]
fn a_socket_must_be_one_that_can_be_bound() {
    let long = format!("socket: {{ path: /run/{}.sock }}", "x".repeat(100));
    each_added_line_says(&[
        (&long, &["the path has 110 bytes; a socket's has at most 107"]),
        ("socket: { path: kms.sock }", &["socket.path: `kms.sock` is relative"]),
        ("socket: { path: /run/vkp/ }", &["`/run/vkp/` is a folder"]),
        ("socket: { path: tcp://127.0.0.1:1 }", &["is no unix socket"]),
        ("socket: { path: '@' }", &["an abstract name has 1 to 107 bytes"]),
        ("socket: { path: '@vkp' }", &["socket.allowedUids: every user of this machine can dial"]),
        ("socket: { mode: rw }", &["socket.mode: `rw` is no file mode"]),
        ("socket: { mode: '0999' }", &["`0999` is no file mode"]),
        ("socket: { mode: '07777' }", &["is no file mode"]),
        ("socket: { mode: '0444' }", &["mode 0444 shuts out the socket's own owner"]),
        ("socket: { allowedUids: [] }", &["an empty list lets nobody connect"]),
        ("socket: { allowedUids: [-1] }", &["`-1` is no user id"]),
    ]);
}

#[test]
fn files_that_are_named_must_be_there_and_closed_to_others() {
    let with = |path: &str, facts: FileFacts| {
        Case::yaml(&format!("{FLAT}vaultCACert: /ca\nclientCert: /cert\nclientKey: /key\n"))
            .file(path, facts)
            .refused()
    };
    let text = with("/ca", FileFacts::Missing);
    assert!(text.contains("vkp.yaml:4:14: error: vaultCACert: there is no file /ca"), "{text}");
    let text = with("/ca", FileFacts::Folder);
    assert!(text.contains("/ca is a folder, not a file"), "{text}");
    let text = with("/cert", FileFacts::Special);
    assert!(text.contains("clientCert: /cert is not a regular file"), "{text}");
    let text = with("/key", FileFacts::Unreadable("Permission denied".into()));
    assert!(text.contains("/key cannot be read: Permission denied"), "{text}");
    for secret in ["/key", "/t"] {
        let text = with(secret, FileFacts::Readable { mode: 0o644 });
        assert!(text.contains(&format!("{secret} holds a secret, and every user")), "{text}");
        assert!(text.contains(&format!("run: chmod o-rwx {secret}")), "{text}");
    }
    let text = Case::yaml(&format!("{FLAT}vaultCACert: ca.pem\n")).refused();
    assert!(text.contains("vaultCACert: `ca.pem` is a relative path"), "{text}");
}

#[test]
fn a_secret_in_a_file_that_everybody_reads_is_refused_and_not_shown() {
    let text = Case::yaml("keyNames: [k]\naddr: https://v\ntoken: hvs.hunter2\n")
        .config_mode(0o644)
        .refused();
    assert!(text.contains("vkp.yaml:3:8: error: token: vkp.yaml holds a secret"), "{text}");
    assert!(text.contains("(mode 0644)"), "{text}");
    assert!(text.contains("run: chmod o-rwx vkp.yaml"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn no_broken_line_gives_its_secret_away() {
    let secret = "hunter2";
    for line in [
        format!("token: [{secret}]"),
        format!("token: {{ {secret}: x }}"),
        format!("token: *{secret}"),
        format!("token: !{secret} x"),
        format!("token: '{secret}"),
        format!("token: \"{secret}\\q\""),
        format!("token: @{secret}"),
        format!("token: %{secret}"),
        format!("token: a {secret}"),
        format!("token: x: {secret}"),
        format!("roleID: r\nsecretID: [{secret}]"),
        format!("tokenFile: {secret}"),
        format!("roleID: r\nsecretIDFile: {secret}"),
    ] {
        for form in [FileForm::Ours, FileForm::Oracle] {
            let mut case = Case::yaml(&format!("keyNames: [k]\naddr: ftp://v\n{line}\n"));
            case.sources.form = form;
            let text = case.refused();
            assert!(!text.contains(secret), "{line}:\n{text}");
        }
    }
}
