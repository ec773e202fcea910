use secrecy::ExposeSecret as _;

use super::*;
use crate::config::settings::{AuthSettings, CertSettings, SecretId, SecretSource};

#[test]
fn the_oracle_plugins_own_example_is_taken_unchanged() {
    let case = Case::yaml(
        "keyNames:\n  - kube-secret-enc-key\ntransitPath: /transit\nca-cert: /home/me/ca.cert\n\
         addr: http://example.com:8200\ntoken: hvs.hunter2\n",
    )
    .oracle()
    .config_mode(0o644)
    .flags(Flags { socket: Some("/tmp/kms/socketfile.sock".into()), ..Flags::default() });
    let Loaded { settings, .. } = case.accepted();
    assert_eq!(settings.keyring.keks[0].name.as_str(), "kube-secret-enc-key");
    assert_eq!(settings.keyring.keks[0].mount, "transit");
    assert!(settings.clusters[0].allow_plaintext);
    assert_eq!(settings.clusters[0].tls.ca_file, None, "that plugin never read ca-cert");
    assert!(
        matches!(&settings.clusters[0].auth, AuthSettings::Token(t) if t.expose_secret() == "hvs.hunter2")
    );
    let warnings = case.warnings().join("\n");
    for expected in [
        "vkp.yaml:4:1: warning: ca-cert: there is no such key; it is ignored",
        "write vaultCACert",
        "vkp.yaml:5:7: warning: addr: `http://example.com:8200` sends tokens and keys",
        "vkp.yaml:6:8: warning: token: a secret stands in the configuration",
        "vkp.yaml:6:8: warning: token: vkp.yaml holds a secret, and every user",
    ] {
        assert!(warnings.contains(expected), "no `{expected}`:\n{warnings}");
    }
    assert!(!warnings.contains("hunter2"));
}

#[test]
fn the_oracle_form_forgives_what_that_plugin_forgave() {
    let case = Case::yaml(
        "KEYNAMES: kube\naddr: https://first\nADDR: https://v\ntoken: ''\nroleid: 0123\n\
         secretid: 4e5\nauthpath: /auth/\ntlsServerName: ~\nmadeUp: { a: [b] }\n",
    )
    .oracle();
    let settings = case.accepted().settings;
    assert_eq!(settings.keyring.keks[0].name.as_str(), "kube");
    assert_eq!(settings.clusters[0].addresses, ["https://v"]);
    let AuthSettings::AppRole(role) = &settings.clusters[0].auth else { panic!() };
    assert_eq!(role.mount, "approle");
    assert!(matches!(&role.role_id, SecretSource::Inline(id) if id.expose_secret() == "0123"));
    assert!(
        matches!(&role.secret_id, SecretId::Given(SecretSource::Inline(id)) if id.expose_secret() == "4e5")
    );
    let warnings = case.warnings().join("\n");
    assert!(warnings.contains("addr: the key stands here a second time"), "{warnings}");
    assert!(warnings.contains("madeUp: there is no such key; it is ignored"), "{warnings}");
}

#[test]
fn a_certificate_without_token_and_role_is_that_plugins_third_login() {
    let file = "keyNames: [k]\naddr: https://v\nclientcert: /c.pem\nclientkey: /k.pem\n";
    for (auth_path, mount) in [("", "cert"), ("authPath: /auth/k8s/\n", "k8s/cert")] {
        let case = Case::yaml(&format!("{file}{auth_path}")).oracle();
        let AuthSettings::Cert(cert) = case.accepted().settings.clusters[0].auth.clone() else {
            panic!("{auth_path}");
        };
        assert_eq!(cert, CertSettings { mount: mount.to_owned(), role: None });
    }
    // Beside a role or a token it only encrypts the way.
    let case = Case::yaml(&format!("{file}roleID: r\n")).oracle();
    assert!(matches!(case.accepted().settings.clusters[0].auth, AuthSettings::AppRole(_)));
    // And a token of the environment counts only where the file says nothing.
    let case = Case::yaml(file).oracle().env("VAULT_TOKEN", "hvs.x");
    assert!(matches!(case.accepted().settings.clusters[0].auth, AuthSettings::Token(_)));
}
