//! Values as kube-apiserver writes them, byte for byte.

use super::*;

/// Field `number` of a message, with these bytes in it.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    assert!(length < 128);
    [&[number << 3 | 2, length], content].concat()
}

fn v2(provider: &str, object: &[&[u8]]) -> Vec<u8> {
    [format!("k8s:enc:kms:v2:{provider}:").as_bytes(), &object.concat()].concat()
}

fn v1(provider: &str, ciphertext: &[u8], data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(ciphertext.len()).unwrap().to_be_bytes();
    [format!("k8s:enc:kms:v1:{provider}:").as_bytes(), &length, ciphertext, data].concat()
}

fn kms(stored: &[u8]) -> Kms<'_> {
    match Value::parse(stored) {
        Value::Kms(kms) => kms,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_v1_value_is_a_length_a_ciphertext_and_an_object() {
    let stored = b"k8s:enc:kms:v1:vault:\x00\x0ckube:v1:QQ==object";
    let value = kms(stored);
    let body = value.body.unwrap();
    assert_eq!((value.provider, value.api), ("vault", Api::V1));
    assert_eq!((body.ciphertext, body.data), (&b"kube:v1:QQ=="[..], &b"object"[..]));
    assert_eq!((body.source, body.key_id, body.annotations.iter().count()), (Source::Key, "", 0));
    let said = value.describe();
    assert_eq!((said.kek, said.version, said.key_id), (Some("kube"), Some(1), None));
    assert_eq!(said.writer, Writer::VaultKmsProxyOrOracle);
}

#[test]
fn a_v2_value_is_a_message_whose_parts_are_named() {
    // As kube-apiserver 1.29 and later write it, field for field.
    let stored = b"k8s:enc:kms:v2:vkp:\
        \x0a\x06object\
        \x12\x1ckube-2026:v3:0123456789abcdef\
        \x1a\x11kube-2026:v3:AAEC\
        \x22\x25\x0a\x18kek.vault-kms-proxy.io\x00\x00\x12\x09kube-2026\
        \x28\x01";
    // The annotation's name has 22 bytes, not 24: written by hand, it is wrong.
    assert_eq!(kms(stored).body, Err(Damage::NoObject));
    let stored = b"k8s:enc:kms:v2:vkp:\
        \x0a\x06object\
        \x12\x1dkube-2026:v3:0123456789abcdef\
        \x1a\x11kube-2026:v3:AAEC\
        \x22\x23\x0a\x16kek.vault-kms-proxy.io\x12\x09kube-2026\
        \x28\x01";
    let value = kms(stored);
    let body = value.body.unwrap();
    assert_eq!((value.provider, value.api), ("vkp", Api::V2));
    assert_eq!((body.ciphertext, body.data), (&b"kube-2026:v3:AAEC"[..], &b"object"[..]));
    assert_eq!((body.source, body.key_id), (Source::Seed, "kube-2026:v3:0123456789abcdef"));
    let annotations: Vec<_> = body.annotations.iter().collect();
    assert_eq!(annotations, [("kek.vault-kms-proxy.io", &b"kube-2026"[..])]);
    let said = value.describe();
    assert_eq!((said.kek, said.version), (Some("kube-2026"), Some(3)));
    assert_eq!(said.writer, Writer::VaultKmsProxy);
    assert_eq!(said.key_id, Some("kube-2026:v3:0123456789abcdef"));
}

#[test]
fn what_comes_later_is_passed_over_and_the_last_of_two_counts() {
    let stored = v2(
        "p",
        &[
            &field(3, b"old:v1:AAEC"),
            &field(9, b"news"),
            b"\x50\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", // field 10, the largest number
            b"\x59\x00\x00\x00\x00\x00\x00\x00\x00",         // field 11, eight bytes
            b"\x65\x00\x00\x00\x00",                         // field 12, four bytes
            &field(3, b"kube:v2:AAEC"),
            b"\x28\x07",
        ],
    );
    let body = kms(&stored).body.unwrap();
    assert_eq!(body.ciphertext, b"kube:v2:AAEC");
    assert_eq!(body.source, Source::Unknown(7));
}

#[test]
fn a_value_that_was_cut_is_called_so_and_one_without_a_data_key_is_lost() {
    let whole = v2("p", &[&field(1, b"object"), &field(3, b"kube:v1:AAEC"), b"\x28\x01"]);
    assert!(kms(&whole).body.is_ok());
    for length in "k8s:enc:kms:v2:p:".len()..whole.len() {
        // At a border between fields it is still a message.
        let at_border = [17, 25, 39].contains(&length);
        let cut = kms(&whole[..length]).body;
        assert_eq!(cut.is_ok(), length == 39, "{length}: {cut:?}");
        assert!(at_border || cut == Err(Damage::NoObject), "{length}: {cut:?}");
    }
    assert_eq!(kms(&v2("p", &[&field(1, b"object")])).body, Err(Damage::NoDataKey));
    assert_eq!(kms(&v1("p", b"", b"object")).body, Err(Damage::NoDataKey));
    for cut in
        [&b"k8s:enc:kms:v1:p:"[..], b"k8s:enc:kms:v1:p:\x00", b"k8s:enc:kms:v1:p:\x00\x05kube"]
    {
        assert_eq!(kms(cut).body, Err(Damage::Cut));
    }
}

#[test]
fn what_no_plugin_had_a_hand_in_is_named_too() {
    let aes = Local { provider: "aescbc", key: "key1", data: 3 };
    assert_eq!(Value::parse(b"k8s:enc:aescbc:v1:key1:\x00:\xff"), Value::Local(aes));
    let other = |provider| Value::Local(Local { provider, ..aes });
    assert_eq!(Value::parse(b"k8s:enc:aesgcm:v1:key1:\x00:\xff"), other("aesgcm"));
    assert_eq!(Value::parse(b"k8s:enc:secretbox:v1:key1:\x00:\xff"), other("secretbox"));
    for (stored, plain) in [
        (&b"k8s\x00\x0a\x0c"[..], Plain::Protobuf),
        (b"{\"kind\":\"Secret\"}", Plain::Json),
        (b"k8s:end", Plain::Other),
        (b"", Plain::Empty),
    ] {
        assert_eq!(Value::parse(stored), Value::Plain(plain));
        assert_eq!(Value::parse(stored).provider(), "identity");
    }
    for stored in [
        &b"k8s:enc:"[..],
        b"k8s:enc:kms:v1:",
        b"k8s:enc:kms:v3:p:x",
        b"k8s:enc:rot13:v1:k:x",
        b"k8s:enc:kms:v2:\xff:x",
    ] {
        assert_eq!(Value::parse(stored), Value::Unknown);
        assert_eq!(Value::parse(stored).describe(), None);
    }
}

#[test]
fn each_plugin_is_known_by_what_it_wrote() {
    let of = |ciphertext: &[u8], key_id: &str, annotations: &[(&str, &str)]| {
        let entry = |(name, value): &(&str, &str)| {
            field(4, &[field(1, name.as_bytes()), field(2, value.as_bytes())].concat())
        };
        let annotations: Vec<u8> = annotations.iter().flat_map(entry).collect();
        let (id, key) = (field(2, key_id.as_bytes()), field(3, ciphertext));
        let stored = v2("p", &[&id, &key, &annotations]);
        let said = kms(&stored).describe();
        (said.writer, said.kek.map(str::to_owned), said.version)
    };
    let ours = [("kek.vault-kms-proxy.io", "kube")];
    let kube = Some("kube".to_owned());
    assert_eq!(
        of(b"kube:v2:AAEC", "kube:v2:00", &ours),
        (Writer::VaultKmsProxy, kube.clone(), Some(2))
    );
    assert_eq!(
        of(b"vault:v2:AAEC", "kube:v2:00", &ours),
        (Writer::VaultKmsProxy, kube.clone(), Some(2))
    );
    assert_eq!(of(b"kube:v2:AAEC", "1", &[]), (Writer::VaultKmsProxyOrOracle, kube, Some(2)));
    assert_eq!(of(b"vault:v7:AAEC", "1710744203", &[]), (Writer::NamesNoKey, None, Some(7)));
    let kleidi = [("version.encryption.remote.io", "1")];
    assert_eq!(
        of(b"vault:v1:AAEC", "kleidi-kms-plugin_1_1714553158", &kleidi),
        (Writer::Kleidi, None, Some(1))
    );
    let bao = [("provider.kms.openbao.org", "openbao-transit")];
    assert_eq!(of(b"vault:v3:AAEC", "obk2.x", &bao), (Writer::BaoKmsProvider, None, Some(3)));
    assert_eq!(of(b"vault:v3:AAEC", "obk2.x", &[]), (Writer::BaoKmsProvider, None, Some(3)));
    // `vault:v12:AAEC`.
    let trousseau = b"awskms:-:AAEC\nvault:-:dmF1bHQ6djEyOkFBRUM=\n";
    assert_eq!(of(trousseau, "1", &[]), (Writer::Trousseau2, None, Some(12)));
    assert_eq!(of(b"vault:-:\n", "1", &[]), (Writer::Trousseau2, None, None));
    assert_eq!(of(b"1\x01\x02", "1", &[]), (Writer::AwsEncryptionProvider, None, None));
    assert_eq!(of(b"what?", "1", &[]), (Writer::Unknown, None, None));
}

#[test]
fn nothing_of_what_is_encrypted_is_printed() {
    let stored = v1("p", b"kube:v1:c2VjcmV0", b"secret data");
    let printed = format!("{:?}", Value::parse(&stored));
    assert!(printed.contains("16 bytes") && printed.contains("11 bytes"), "{printed}");
    assert!(!printed.contains("c2Vj") && !printed.contains("secret"), "{printed}");
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(
        head in "(k8s:enc:)?(kms:v1:|kms:v2:|aescbc:v1:)?([a-z]{0,3}:)?",
        tail in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
    ) {
        let stored = [head.as_bytes(), &tail].concat();
        let value = Value::parse(&stored);
        let _ = (value.provider(), value.describe());
        if let Value::Kms(Kms { body: Ok(body), .. }) = value {
            assert!(!body.ciphertext.is_empty());
            body.annotations.iter().for_each(drop);
        }
    }
}
