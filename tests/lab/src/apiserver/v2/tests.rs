use super::*;

fn object() -> EncryptedObject {
    EncryptedObject {
        encrypted_data: b"data".to_vec(),
        key_id: "k1".to_owned(),
        encrypted_dek_source: b"dek".to_vec(),
        annotations: BTreeMap::from([("a.b".to_owned(), b"c".to_vec())]),
        encrypted_dek_source_type: DekSourceType::HkdfSha256XnonceAesGcmSeed.into(),
    }
}

fn answer() -> EncryptResponse {
    EncryptResponse {
        ciphertext: b"kube:v1:QQ==".to_vec(),
        key_id: "kube:v1:0011".to_owned(),
        annotations: [("kek.vault-kms-proxy.io".to_owned(), b"kube".to_vec())].into(),
    }
}

#[test]
fn the_stored_object_has_the_apiservers_field_numbers() {
    let bytes = object().encode_to_vec();
    let due: &[u8] = b"\x0a\x04data\x12\x02k1\x1a\x03dek\x22\x08\x0a\x03a.b\x12\x01c\x28\x01";
    assert_eq!(bytes, due);
    assert_eq!(EncryptedObject::decode(due).unwrap(), object());
}

#[test]
fn an_object_opens_with_its_seed_and_with_a_plain_key() {
    let (seed, info) = ([1; KEY], [2; INFO]);
    let sealed = seal(&expand(&seed, &info).unwrap(), b"value", "/a").unwrap();
    let with_seed =
        EncryptedObject { encrypted_data: [info.as_slice(), &sealed].concat(), ..object() };
    assert_eq!(with_seed.encrypted_data.len(), INFO + 12 + 5 + 16);
    assert_eq!(open_object(&with_seed, &seed, "/a").unwrap(), b"value");
    assert!(open_object(&with_seed, &[9; KEY], "/a").is_err());
    assert!(open_object(&with_seed, &[1; 16], "/a").unwrap_err().to_string().contains("16 bytes"));

    let with_key = EncryptedObject {
        encrypted_data: seal(&seed, b"value", "/a").unwrap(),
        encrypted_dek_source_type: DekSourceType::AesGcmKey.into(),
        ..object()
    };
    assert_eq!(open_object(&with_key, &seed, "/a").unwrap(), b"value");
}

#[test]
fn a_good_answer_passes_and_each_broken_rule_is_named() {
    check_encrypted(&answer()).unwrap();
    let broken = [
        (EncryptResponse { ciphertext: Vec::new(), ..answer() }, "ciphertext of 0 bytes"),
        (EncryptResponse { ciphertext: vec![1; 1025], ..answer() }, "ciphertext of 1025 bytes"),
        (EncryptResponse { key_id: String::new(), ..answer() }, "key_id of 0 bytes"),
        (EncryptResponse { key_id: "k".repeat(1025), ..answer() }, "key_id of 1025 bytes"),
        (annotated("nodots", 1), "\"nodots\""),
        (annotated("Upper.io", 1), "\"Upper.io\""),
        (annotated("a..b", 1), "\"a..b\""),
        (annotated("a.io", 32 * 1024), "annotations of 32772 bytes"),
    ];
    for (answer, words) in broken {
        let error = check_encrypted(&answer).unwrap_err().to_string();
        assert!(error.contains(words), "{error} does not say {words}");
    }
}

fn annotated(name: &str, size: usize) -> EncryptResponse {
    EncryptResponse { annotations: [(name.to_owned(), vec![0; size])].into(), ..answer() }
}

#[test]
fn a_status_must_be_ok_and_name_a_key() {
    let good = StatusResponse {
        version: "v2".to_owned(),
        healthz: "ok".to_owned(),
        key_id: "k".to_owned(),
    };
    check_status(&good).unwrap();
    check_status(&StatusResponse { version: "v2beta1".to_owned(), ..good.clone() }).unwrap();
    for (bad, words) in [
        (StatusResponse { version: "v1".to_owned(), ..good.clone() }, "version"),
        (StatusResponse { healthz: "vault is away".to_owned(), ..good.clone() }, "vault is away"),
        (StatusResponse { key_id: String::new(), ..good.clone() }, "key_id of 0"),
    ] {
        let error = check_status(&bad).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
