use std::time::Duration;

use secrecy::ExposeSecret as _;

use super::*;
use crate::config::settings::{AuthSettings, LogFormat, OtlpProtocol, SocketAddress};

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let case = Case::yaml(&format!(
        "{FLAT}socket: {{ path: /file.sock, mode: '0660' }}\nlog: {{ level: warn, format: json }}\n\
         shutdownGrace: 1s\nreloadTimeout: 1s\n"
    ))
    .env("VAULT_KMS_PROXY_SOCKET__PATH", "/env.sock")
    .env("VAULT_KMS_PROXY_LOG__LEVEL", "debug")
    .env("vault_kms_proxy_shutdowngrace", "2s")
    .env("VAULT_KMS_PROXY_KEY_NAMES", "[a, { name: b, transitKey: c }]")
    .env("VAULT_KMS_PROXY_ADDR", "[https://a, https://b]")
    .env("VAULT_KMS_PROXY_SOCKET__ALLOWED_UIDS", "65534")
    .flags(Flags { socket: Some("/flag.sock".into()), ..Flags::default() });
    let Loaded { settings, warnings, .. } = case.accepted();
    assert_eq!(warnings, []);
    assert_eq!(settings.socket.address, SocketAddress::Path("/flag.sock".into()));
    assert_eq!((settings.socket.mode, settings.socket.allowed_uids), (0o660, Some(vec![65534])));
    assert_eq!((settings.log.filter.as_str(), settings.log.format), ("debug", LogFormat::Json));
    assert_eq!(settings.shutdown_grace, Duration::from_secs(2));
    assert_eq!(settings.reload.timeout, Duration::from_secs(1));
    assert_eq!(settings.keyring.keks.len(), 2);
    assert_eq!(settings.keyring.keks[1].transit_key, "c");
    assert_eq!(settings.clusters[0].addresses, ["https://a", "https://b"]);
}

#[test]
fn the_environment_reaches_into_a_named_cluster() {
    let case = Case::yaml(
        "keyNames: [k]\nclusters: { bao: { addr: https://b, auth: { tokenFile: /t } } }\n",
    )
    .env("VAULT_KMS_PROXY_CLUSTERS__BAO__TLS_SERVER_NAME", "bao.example");
    let cluster = &case.accepted().settings.clusters[0];
    assert_eq!(cluster.tls.server_name.as_deref(), Some("bao.example"));
    assert_eq!(cluster.addresses, ["https://b"]);
}

#[test]
fn a_problem_in_the_environment_or_a_flag_names_it() {
    let case = Case::yaml(FLAT)
        .env("VAULT_KMS_PROXY_SHUTDOWN_GRACE", "soon")
        .flags(Flags { log_format: Some("xml".into()), ..Flags::default() });
    let text = case.refused();
    assert!(text.contains("environment variable VAULT_KMS_PROXY_SHUTDOWN_GRACE: error: shutdownGrace: `soon` is no duration"), "{text}");
    assert!(text.contains("flag --log-format: error: log.format: `xml` is none"), "{text}");
}

#[test]
fn a_variable_that_names_no_key_is_reported_unless_it_is_kubernetes_own() {
    let case = Case::yaml(FLAT)
        .env("VAULT_KMS_PROXY_SOKET__PATH", "/x")
        .env("VAULT_KMS_PROXY_SERVICE_HOST", "10.0.0.1")
        .env("VAULT_KMS_PROXY_PORT_443_TCP", "tcp://10.0.0.1:443")
        .env("VAULT_KMS_PROXY_CONFIG", "/etc/x.yaml");
    let warnings = case.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("VAULT_KMS_PROXY_SOKET__PATH: warning: this names no key"));
    assert!(warnings[0].contains("did you mean `socket`?"));
}

#[test]
fn the_environment_alone_is_enough() {
    let mut case = Case::yaml("")
        .env("VAULT_KMS_PROXY_KEY_NAMES", "kube")
        .env("BAO_ADDR", "https://bao:8200")
        .env("VAULT_ADDR", "https://vault:8200")
        .env("VAULT_NAMESPACE", "ops")
        .env("VAULT_CLIENT_CERT", "/cert")
        .env("BAO_CLIENT_KEY", "/key")
        .env("VAULT_TOKEN", "hvs.hunter2");
    case.sources.file = None;
    let settings = case.accepted().settings;
    let cluster = &settings.clusters[0];
    assert_eq!(cluster.addresses, ["https://bao:8200"], "BAO_ comes first");
    assert_eq!(cluster.namespace.as_deref(), Some("ops"));
    assert!(cluster.tls.client.is_some());
    assert!(matches!(&cluster.auth, AuthSettings::Token(t) if t.expose_secret() == "hvs.hunter2"));
    let warnings = case.warnings();
    assert!(
        warnings[0].starts_with(
            "environment variable VAULT_TOKEN: warning: token: a secret stands in the environment"
        ),
        "{warnings:?}"
    );
    assert!(!warnings[0].contains("hunter2") && !format!("{settings:?}").contains("hunter2"));
}

#[test]
fn the_tools_variables_only_fill_in_what_the_file_leaves_out() {
    let case = Case::yaml(
        "keyNames: [k]\naddr: https://file\ntokenFile: /t\nclientCert: /c\nclientKey: /k\n",
    )
    .env("VAULT_ADDR", "https://env")
    .env("VAULT_TOKEN", "hvs.hunter2")
    .env("VAULT_CLIENT_KEY", "/other")
    .env("VAULT_CACERT", "/ca");
    let cluster = &case.accepted().settings.clusters[0];
    assert_eq!(cluster.addresses, ["https://file"]);
    assert!(matches!(&cluster.auth, AuthSettings::TokenFile(_)));
    assert_eq!(cluster.tls.client.as_ref().unwrap().key_file, Path::new("/k"));
    assert_eq!(cluster.tls.ca_file.as_deref(), Some(Path::new("/ca")));

    let structured =
        "keyNames: [k]\nclusters: { a: { addr: https://a, auth: { tokenFile: /t } } }\n";
    let case = Case::yaml(structured).env("VAULT_ADDR", "https://env").env("VAULT_TOKEN", "x");
    assert_eq!(case.accepted().settings.clusters[0].addresses, ["https://a"]);
    let case = Case::yaml(FLAT).env("VAULT_SKIP_VERIFY", "true");
    assert!(
        case.warnings()[0].contains("VAULT_SKIP_VERIFY: warning: certificates are always verified")
    );
}

#[test]
fn open_telemetrys_variables_switch_traces_on() {
    let endpoint = |case: Case| {
        let traces = case.accepted().settings.traces.unwrap();
        (traces.endpoint.to_string(), traces.protocol)
    };
    let case = || Case::yaml(FLAT).env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel:4317");
    assert_eq!(endpoint(case()), ("http://otel:4317/".into(), OtlpProtocol::Grpc));
    let http = case().env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
    assert_eq!(endpoint(http), ("http://otel:4317/v1/traces".into(), OtlpProtocol::Http));
    // A signal's own endpoint is a whole URL.
    for own in ["http://t:4318/v1/traces", "http://t:4318/in/the/wild"] {
        let case = case().env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", own);
        assert_eq!(endpoint(case), (own.into(), OtlpProtocol::Http));
    }
    let path = Case::yaml(FLAT).env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel:4317/tenant");
    assert!(path.warnings()[0].contains("gRPC knows no path; /tenant is ignored"));
    let file = Case::yaml(&format!("{FLAT}traces: {{ endpoint: 'off' }}\n"))
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel:4317");
    assert_eq!(file.accepted().settings.traces, None);
}

#[test]
fn a_protocol_for_other_programs_is_no_problem_while_there_are_no_traces() {
    let case = Case::yaml(FLAT).env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json");
    assert_eq!(case.accepted().settings.traces, None);
    let case = case.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel:4318");
    let text = case.refused();
    assert!(
        text.contains("OTEL_EXPORTER_OTLP_PROTOCOL: error: traces.protocol: `http/json`"),
        "{text}"
    );
}

#[test]
fn debug_shows_no_secret_of_any_source() {
    let case = Case::yaml("keyNames: [k]\naddr: https://v\nroleID: r\nsecretID: hunter2\n")
        .env("VAULT_TOKEN", "hunter3");
    let shown = format!("{:?}{:?}", case.sources, case.accepted());
    assert!(shown.contains("VAULT_TOKEN"), "{shown}");
    assert!(!shown.contains("hunter2") && !shown.contains("hunter3"), "{shown}");
}
