use std::path::PathBuf;

use super::testing::{Authority, Valid, write};
use super::*;
use crate::config::settings::ClientIdentity;

fn with_ca(ca: PathBuf) -> TlsSettings {
    TlsSettings { ca_file: Some(ca), ..TlsSettings::default() }
}

fn message(settings: &TlsSettings) -> String {
    LoadedTls::read(settings).unwrap_err().to_string()
}

#[test]
fn without_a_ca_the_public_ones_are_trusted() {
    assert!(public_authorities().len() > 50);
    LoadedTls::read(&TlsSettings::default()).unwrap();
}

#[test]
fn equal_bytes_are_equal_wherever_they_were_read() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("ca");
    let one = with_ca(authority.write(folder.path(), "one.pem"));
    let two = with_ca(authority.write(folder.path(), "two.pem"));
    assert_eq!(LoadedTls::read(&one).unwrap(), LoadedTls::read(&two).unwrap());
    let other = with_ca(Authority::new("other").write(folder.path(), "other.pem"));
    assert_ne!(LoadedTls::read(&one).unwrap(), LoadedTls::read(&other).unwrap());
    let named = TlsSettings { server_name: Some("vault".into()), ..one.clone() };
    assert_ne!(LoadedTls::read(&one).unwrap(), LoadedTls::read(&named).unwrap());
}

#[test]
fn each_unusable_file_is_named_with_its_cause() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let authority = Authority::new("ca");
    let (cert, key) = authority.issue("client", Valid::Now).write(path, "client");
    let (_, other_key) = authority.issue("other", Valid::Now).write(path, "other");
    let text = write(path, "text.pem", "no certificate here\n");
    let broken = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
    let broken = write(path, "broken.pem", broken);
    let client = |cert_file: &PathBuf, key_file: &PathBuf| TlsSettings {
        client: Some(ClientIdentity { cert_file: cert_file.clone(), key_file: key_file.clone() }),
        ..TlsSettings::default()
    };

    let table = [
        (with_ca(path.join("absent.pem")), "absent.pem: No such file"),
        (with_ca(path.to_owned()), "it is a directory"),
        (with_ca(text.clone()), "text.pem holds no certificate (PEM"),
        (with_ca(broken), "broken.pem is not a PEM file of certificates"),
        (with_ca(key.clone()), "client.key holds no certificate"),
        (client(&cert, &cert), "client.crt holds no private key"),
        (client(&cert, &other_key), "other.key does not fit the certificate in"),
        (client(&text, &key), "text.pem holds no certificate"),
        (
            TlsSettings { server_name: Some("a b".into()), ..TlsSettings::default() },
            "tlsServerName `a b` is neither",
        ),
    ];
    for (settings, expected) in table {
        let message = message(&settings);
        assert!(message.contains(expected), "{message}");
    }
    LoadedTls::read(&client(&cert, &key)).unwrap();
}

#[test]
fn debug_shows_no_key() {
    let folder = tempfile::tempdir().unwrap();
    let (cert_file, key_file) =
        Authority::new("ca").issue("client", Valid::Now).write(folder.path(), "client");
    let client = Some(ClientIdentity { cert_file, key_file });
    let loaded = LoadedTls::read(&TlsSettings { client, ..TlsSettings::default() }).unwrap();
    let shown = format!("{loaded:?}");
    assert_eq!(
        shown,
        "LoadedTls { private_ca: false, client_certificate: true, server_name: None, .. }"
    );
}
