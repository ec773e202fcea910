use super::*;

fn seed() -> Plaintext {
    Plaintext::new(b"0123456789abcdef0123456789abcdef".to_vec())
}

/// An encrypt's answer whose ciphertext has `length` bytes.
fn encrypted(version: u32, length: usize, rest: &str) -> String {
    let payload = STANDARD.encode(vec![7; length]);
    format!(r#"{{"data":{{"ciphertext":"vault:v{version}:{payload}"{rest}}}}}"#)
}

#[test]
fn an_encrypt_request_is_the_plaintext_and_the_pin() {
    let ping = Plaintext::new(b"ping".to_vec());
    assert_eq!(&*encrypt_request(&ping, None), br#"{"plaintext":"cGluZw=="}"#);
    assert_eq!(&*encrypt_request(&ping, Some(7)), br#"{"plaintext":"cGluZw==","key_version":7}"#);
}

#[test]
fn a_request_with_key_material_never_outgrows_its_buffer() {
    for length in [0, 1, 2, 3, 4, 32, 1_000, 65_535] {
        let plaintext = Plaintext::new(vec![9; length]);
        for pin in [None, Some(1), Some(u32::MAX)] {
            let body = encrypt_request(&plaintext, pin);
            assert_eq!(body.len(), body.capacity(), "{length} {pin:?}");
        }
    }
}

#[test]
fn a_decrypt_request_is_the_ciphertext_as_vault_wrote_it() {
    let ciphertext = VaultCiphertext::parse("vault:v3:AAEC").unwrap();
    assert_eq!(&*decrypt_request(&ciphertext), br#"{"ciphertext":"vault:v3:AAEC"}"#);
    assert_eq!(
        &*decrypt_request(&ciphertext.bound_to(b"{}")),
        br#"{"ciphertext":"vault:v3:AAEC","associated_data":"e30="}"#
    );
}

#[test]
fn an_encrypt_answer_is_taken_when_version_and_length_are_right() {
    for (length, nonce) in [(60, Some(12)), (60, None), (72, Some(24)), (72, None)] {
        let body = encrypted(3, length, r#","key_version":3"#);
        let taken = encrypt_answer(body.as_bytes(), &seed(), Some(3), nonce).unwrap();
        assert_eq!(taken.version(), 3);
    }
    let without_version = encrypted(3, 60, "");
    assert!(encrypt_answer(without_version.as_bytes(), &seed(), Some(3), None).is_ok());
    assert!(encrypt_answer(without_version.as_bytes(), &seed(), None, None).is_ok());
}

#[test]
fn an_encrypt_answer_that_is_wrong_in_any_way_is_thrown_away() {
    let rows: &[(&str, String, &str)] = &[
        ("another version", encrypted(2, 60, ""), "key version 2 although version 3"),
        ("versions disagree", encrypted(3, 60, r#","key_version":4"#), "said that it was version"),
        ("too short", encrypted(3, 59, ""), "59 bytes"),
        ("too long", encrypted(3, 61, ""), "61 bytes"),
        ("the nonce of another type", encrypted(3, 72, ""), "72 bytes"),
        ("no ciphertext", r#"{"data":{}}"#.to_owned(), "does not hold a ciphertext"),
        ("no data", "{}".to_owned(), "does not hold a ciphertext"),
        ("data is null", r#"{"data":null}"#.to_owned(), "does not hold a ciphertext"),
        ("a number", r#"{"data":{"ciphertext":5}}"#.to_owned(), "does not hold a ciphertext"),
        ("empty", r#"{"data":{"ciphertext":""}}"#.to_owned(), "not of the form"),
        ("the plaintext", r#"{"data":{"ciphertext":"c2VlZA=="}}"#.to_owned(), "not of the form"),
        ("not JSON", "<html>".to_owned(), "not JSON"),
        ("cut short", r#"{"data":{"ciphertext":"vault:v3"#.to_owned(), "not JSON"),
        ("nothing", String::new(), "not JSON"),
    ];
    for (name, body, says) in rows {
        let Wrong(wrong) =
            encrypt_answer(body.as_bytes(), &seed(), Some(3), Some(12)).expect_err(name);
        assert!(wrong.contains(says), "{name}: {wrong}");
        assert!(!wrong.contains("c2VlZA"), "{name}: {wrong}");
    }
}

#[test]
fn a_decrypt_answer_is_its_plaintext() {
    let body = br#"{"request_id":"x","data":{"plaintext":"cGluZw=="}}"#;
    assert_eq!(decrypt_answer(body).unwrap().expose(), b"ping");
    let escaped = br#"{"data":{"plaintext":"cGluZw\u003d\u003d"}}"#;
    assert_eq!(decrypt_answer(escaped).unwrap().expose(), b"ping");
}

#[test]
fn a_decrypt_answer_without_plaintext_is_thrown_away() {
    for (name, body, says) in [
        ("empty", r#"{"data":{"plaintext":""}}"#, "an empty plaintext"),
        ("missing", r#"{"data":{}}"#, "does not hold a plaintext"),
        ("null", r#"{"data":{"plaintext":null}}"#, "does not hold a plaintext"),
        ("a list", r#"{"data":{"plaintext":["cGluZw=="]}}"#, "does not hold a plaintext"),
        ("no base64", r#"{"data":{"plaintext":"secret seed"}}"#, "not base64"),
        ("binary", "\u{0}\u{1}", "not JSON"),
    ] {
        let Wrong(wrong) = decrypt_answer(body.as_bytes()).expect_err(name);
        assert!(wrong.contains(says), "{name}: {wrong}");
        assert!(!wrong.contains("cGlu") && !wrong.contains("seed"), "{name}: {wrong}");
    }
}

#[test]
fn key_metadata_of_a_symmetric_key_is_read() {
    let body = br#"{"data":{"allow_plaintext_backup":false,"auto_rotate_period":0,
        "deletion_allowed":false,"derived":false,"exportable":false,"imported_key":false,
        "keys":{"2":1715803200,"3":1715889600},"latest_version":3,"min_available_version":0,
        "min_decryption_version":2,"min_encryption_version":0,"name":"kube",
        "soft_deleted":false,"supports_encryption":true,"type":"aes256-gcm96"}}"#;
    let key = key_answer(body).unwrap();
    assert_eq!(
        key.versions,
        BTreeMap::from([(2, UnixSeconds(1_715_803_200)), (3, UnixSeconds(1_715_889_600))])
    );
    assert_eq!((key.latest_version, key.min_decryption_version), (3, 2));
    assert_eq!((key.min_encryption_version, key.key_type.as_str()), (0, "aes256-gcm96"));
    assert!(!key.derived && !key.soft_deleted);
}

#[test]
fn key_metadata_of_an_asymmetric_key_is_read_too() {
    let body = br#"{"data":{"keys":{"1":{"creation_time":"2024-05-16T00:00:00.5Z","name":"P-256",
        "public_key":"..."}},"latest_version":1,"type":"ecdsa-p256"}}"#;
    let key = key_answer(body).unwrap();
    assert_eq!(key.versions, BTreeMap::from([(1, UnixSeconds(1_715_817_600))]));
    assert_eq!(key.key_type, "ecdsa-p256");
}

#[test]
fn key_metadata_that_makes_no_sense_is_thrown_away() {
    for (name, body) in [
        ("no keys", r#"{"data":{"latest_version":1}}"#),
        ("empty keys", r#"{"data":{"keys":{},"latest_version":1}}"#),
        ("version 0", r#"{"data":{"keys":{"0":1},"latest_version":1}}"#),
        ("a name for a number", r#"{"data":{"keys":{"one":1},"latest_version":1}}"#),
        ("no time", r#"{"data":{"keys":{"1":{"creation_time":"soon"}},"latest_version":1}}"#),
        ("time as text", r#"{"data":{"keys":{"1":"1715803200"},"latest_version":1}}"#),
        ("no latest", r#"{"data":{"keys":{"1":1715803200}}}"#),
        ("negative", r#"{"data":{"keys":{"1":1715803200},"latest_version":-1}}"#),
        ("errors", r#"{"errors":[]}"#),
    ] {
        assert!(key_answer(body.as_bytes()).is_err(), "{name}");
    }
}

#[test]
fn capabilities_are_those_of_the_path() {
    let path = "team/transit/encrypt/kube";
    assert_eq!(&*capabilities_request(path), br#"{"paths":["team/transit/encrypt/kube"]}"#);
    for body in [
        r#"{"data":{"capabilities":["update"],"team/transit/encrypt/kube":["update"]}}"#,
        r#"{"data":{"capabilities":["update"]}}"#,
    ] {
        assert_eq!(capabilities_answer(body.as_bytes(), path).unwrap(), ["update"], "{body}");
    }
    for body in ["{}", r#"{"data":{}}"#, r#"{"data":{"capabilities":"root"}}"#] {
        assert!(capabilities_answer(body.as_bytes(), path).is_err(), "{body}");
    }
}
