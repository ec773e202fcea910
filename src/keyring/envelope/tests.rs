use proptest::prelude::*;

use super::*;

fn name(text: &str) -> KekName {
    KekName::try_new(text).unwrap()
}

fn vault(text: &str) -> VaultCiphertext {
    VaultCiphertext::parse(text).unwrap()
}

fn read_by(keks: &[&str], bytes: &[u8]) -> Result<Form, KeyringError> {
    let configured: Vec<_> = keks.iter().map(|kek| name(kek)).collect();
    Reader { keks: &configured, bao: None }.read(bytes, &DecryptHints::default())
}

fn complaint(bytes: &[u8]) -> String {
    read_by(&["kube"], bytes).unwrap_err().to_string()
}

// Frozen: a ciphertext of any release must be readable for ever.
#[test]
fn what_is_written_is_frozen() {
    let ciphertext = vault("vault:v12:AAEC");
    assert_eq!(write(WriteFormat::Named, &name("kube-2026"), &ciphertext), b"kube-2026:v12:AAEC");
    assert_eq!(write(WriteFormat::Vault, &name("kube-2026"), &ciphertext), b"vault:v12:AAEC");
}

#[test]
fn a_ciphertext_names_its_kek_or_says_that_it_does_not() {
    let ciphertext = vault("vault:v3:AAEC");
    for (text, kek) in [("kube:v3:AAEC", "kube"), ("a.b_c-d:v3:AAEC", "a.b_c-d")] {
        let form = read_by(&["other", "kube", "a.b_c-d"], text.as_bytes()).unwrap();
        assert_eq!(form, Form::Named { kek: name(kek), ciphertext: ciphertext.clone() });
    }
    let form = read_by(&["kube"], b"vault:v3:AAEC").unwrap();
    assert_eq!(form, Form::Bare { first: None, ciphertext: ciphertext.clone() });
    let form = read_by(&["kube", "vault"], b"vault:v3:AAEC").unwrap();
    assert_eq!(form, Form::Bare { first: Some(name("vault")), ciphertext });
}

#[test]
fn our_annotation_says_which_kek_a_bare_ciphertext_is_of() {
    let configured = [name("vault"), name("kube")];
    let annotated = |kek: &[u8]| {
        let annotations = [(KEK_ANNOTATION.to_owned(), kek.to_vec())].into();
        let hints = DecryptHints { key_id: String::new(), annotations };
        let reader = Reader { keks: &configured, bao: None };
        match reader.read(b"vault:v3:AAEC", &hints).unwrap() {
            Form::Bare { first, .. } => first,
            Form::Named { .. } => None,
        }
    };
    assert_eq!(annotated(b"kube"), Some(name("kube")));
    assert_eq!(annotated(b"no such KEK"), Some(name("vault")));
    assert_eq!(annotated(b"\xff"), Some(name("vault")));
}

#[test]
fn a_kek_that_is_not_configured_is_named() {
    for text in ["older:v1:AAEC", "0_x.y-z:v4294967295:AAEC", "-odd.:v1:AAEC"] {
        let error = read_by(&["kube", "kube-2"], text.as_bytes()).unwrap_err();
        let KeyringError::UnknownKek { named, configured } = error else {
            panic!("{text}: {error}");
        };
        assert_eq!(Some(named.as_str()), text.split(':').next());
        assert_eq!(configured, "kube, kube-2");
    }
}

#[test]
fn what_nobody_here_can_decrypt_is_refused_by_name() {
    let trousseau = |lines: &[u8]| complaint(lines);
    for (bytes, said) in [
        (&b"1\x01\x02\x02\x00x\xff"[..], "aws-encryption-provider; only AWS KMS"),
        (b"vault:-:\n", "Trousseau without anything that Vault answered; the data key is lost"),
        (b"vault:-:", "the data key is lost, and nothing can decrypt the object"),
        (b"awskms:-:\xff\x00\nvault:-:\n", "only its provider awskms can decrypt it"),
        (b"azurekms:-:AAEC\n", "Trousseau without Vault; only its provider azurekms can"),
        (b"debug:-:\n", "Trousseau and is empty"),
        (b"vault:-:AAEC\n", "does not hold base64 of a ciphertext of Transit"),
        (b"vault:-:%%%%\n", "it was cut or changed after it was written"),
    ] {
        assert!(trousseau(bytes).contains(said), "{said}: {}", complaint(bytes));
    }
}

#[test]
fn trousseaus_line_for_vault_holds_a_whole_ciphertext() {
    // base64 of `vault:v3:AAEC`.
    let lines = [
        &b"vault:-:dmF1bHQ6djM6QUFFQw==\n"[..],
        b"vault:-:dmF1bHQ6djM6QUFFQw==",
        b"awskms:-:\xff\n\x00\nvault:-:dmF1bHQ6djM6QUFFQw==\n",
        b"vault:-:dmF1bHQ6djM6QUFFQw==\ndebug:-:x\n",
    ];
    for bytes in lines {
        let form = read_by(&["kube"], bytes).unwrap();
        assert_eq!(form, Form::Bare { first: None, ciphertext: vault("vault:v3:AAEC") });
    }
}

/// What bao-kms-provider's own documentation gives as an example.
fn bao() -> BaoKmsProvider {
    BaoKmsProvider {
        provider_name: "openbao-kms-workload-a".into(),
        cluster_id: "workload-a".into(),
        instance_id: "bao-prod-a".into(),
    }
}

const BAO_KEY_ID: &str = "obk2.ig7zS9_yvQrdlcvWgJUhA5q_fQYupc5jRX5MzhAMQSk";

fn bao_hints() -> DecryptHints {
    let annotations = [
        ("provider.kms.openbao.org", "openbao-transit"),
        ("key-id-hash.kms.openbao.org", "qCXYChOIPSWs7scJIduEDiNOYvEUJtFS1Rsbz1eAWY4"),
        ("transit-key-version.kms.openbao.org", "3"),
        ("transit-mount-hash.kms.openbao.org", "rXiCr_lOjsbykm0mDHAvUcVxQl_XcVnT61MesgcPnzc"),
        ("transit-key-hash.kms.openbao.org", "SwWS38Td_yyFNHaECzzHQP3CHFg60mklwtqYUwkx_IA"),
        ("plugin-version.kms.openbao.org", "0.1.0"),
        ("aad-version.kms.openbao.org", "v1"),
    ];
    let entry = |(name, value): (&str, &str)| (name.to_owned(), value.as_bytes().to_vec());
    DecryptHints {
        key_id: BAO_KEY_ID.into(),
        annotations: annotations.into_iter().map(entry).collect(),
    }
}

fn read_bao(bytes: &[u8], hints: &DecryptHints) -> Result<Form, KeyringError> {
    Reader { keks: &[name("kube")], bao: Some(&bao()) }.read(bytes, hints)
}

/// The associated data that go to Transit with `vault:v3:AAEC`.
fn bound_to(hints: &DecryptHints) -> String {
    let Ok(Form::Bare { first: None, ciphertext }) = read_bao(b"vault:v3:AAEC", hints) else {
        panic!("not read as one that names no key");
    };
    assert_eq!(ciphertext.to_vault(), "vault:v3:AAEC");
    String::from_utf8(STANDARD.decode(ciphertext.associated_data().unwrap()).unwrap()).unwrap()
}

// The check values were made with another program.
#[test]
fn what_bao_kms_provider_bound_its_ciphertexts_to_is_rebuilt() {
    let hash = bao_kms_provider::hash;
    assert_eq!(hash("workload-a"), "aJ87hdnMZbDZpJ86CnErao3FRzUhv5o8bqc5tCvFGyY");
    let derived_from = [
        "openbao-kubernetes-kms/key-id/v1",
        "openbao-kms-workload-a",
        "workload-a",
        "bao-prod-a",
        "transit-prod-primary",
        "01HXEXAMPLEKEYLINEAGEID",
        "3",
        "1715803200",
    ];
    let derived_from: String = derived_from.iter().flat_map(|part| [part, "\0"]).collect();
    assert_eq!(format!("obk2.{}", hash(&derived_from)), BAO_KEY_ID);

    assert_eq!(
        bound_to(&bao_hints()),
        "{\"aad_version\":\"v1\",\"purpose\":\"kubernetes-etcd-kms-v2\",\
         \"provider\":\"openbao-transit\",\"provider_name\":\"openbao-kms-workload-a\",\
         \"cluster_id_hash\":\"aJ87hdnMZbDZpJ86CnErao3FRzUhv5o8bqc5tCvFGyY\",\
         \"openbao_instance_hash\":\"D1mX5YANszQPDTOv6P3ATTTa_2Nc2_DQtRJO0ArNx1g\",\
         \"transit_mount_hash\":\"rXiCr_lOjsbykm0mDHAvUcVxQl_XcVnT61MesgcPnzc\",\
         \"transit_key_hash\":\"SwWS38Td_yyFNHaECzzHQP3CHFg60mklwtqYUwkx_IA\",\
         \"key_id_hash\":\"qCXYChOIPSWs7scJIduEDiNOYvEUJtFS1Rsbz1eAWY4\",\
         \"key_version\":\"3\"}"
    );

    // A namespace, where it has one, goes between the instance and the mount.
    let mut hints = bao_hints();
    let (namespace, hash) = ("openbao-namespace-hash.kms.openbao.org", hash("team-a"));
    hints.annotations.insert(namespace.into(), hash.clone().into_bytes());
    let bound = bound_to(&hints);
    let expected = format!("\",\"openbao_namespace_hash\":\"{hash}\",\"transit_mount_hash\":");
    assert!(bound.contains(&expected), "{bound}");
}

#[test]
fn what_bao_kms_provider_wrote_is_never_taken_for_a_bare_one() {
    // Known by either.
    for hints in [
        DecryptHints { key_id: String::new(), ..bao_hints() },
        DecryptHints { annotations: Default::default(), ..bao_hints() },
    ] {
        let error = read_bao(b"vault:v3:AAEC", &hints).unwrap_err();
        assert!(error.to_string().contains("written by bao-kms-provider, "), "{error}");
    }
    let keks = [name("kube")];
    let error = Reader { keks: &keks, bao: None }.read(b"vault:v3:AAEC", &bao_hints());
    let Err(KeyringError::NotConfigured(said)) = error else { panic!("{error:?}") };
    assert!(said.contains("legacy.baoKmsProvider: providerName, clusterId and instanceId"));
}

#[test]
fn annotations_of_bao_kms_provider_that_do_not_fit_are_named() {
    let refused = |name: &str, value: &str| {
        let mut hints = bao_hints();
        hints.annotations.insert(format!("{name}.kms.openbao.org"), value.into());
        read_bao(b"vault:v3:AAEC", &hints).unwrap_err().to_string()
    };
    for (name, value, said) in [
        ("aad-version", "v2", "a form of its associated data that this version does not know"),
        ("transit-key-version", "4", "name different key versions"),
        ("key-id-hash", "aJ87hdnMZbDZpJ86CnErao3FRzUhv5o8bqc5tCvFGyY", "is not the one in its"),
        ("transit-mount-hash", "\",\"a\":\"", "transit-mount-hash.kms.openbao.org that is no hash"),
        ("transit-key-hash", "", "lacks the annotation transit-key-hash.kms.openbao.org"),
        ("openbao-namespace-hash", "AAEC", "that is no hash"),
    ] {
        assert!(refused(name, value).contains(said), "{name}: {}", refused(name, value));
    }
    let error = read_bao(b"kube:v3:AAEC", &bao_hints()).unwrap_err();
    assert!(error.to_string().contains("does not have its form"), "{error}");
}

#[test]
fn anything_else_is_described_by_its_shape() {
    let cases: [(&[u8], &str); 12] = [
        (b"", "(0 bytes) is empty"),
        (b"\x00\xff", "is binary"),
        (b" kube:v1:AAEC", "is binary"),
        (b":v1:AAEC", "begins with a colon"),
        (b"1", "is 1 printable byte and no colon"),
        (b"kube", "is 4 printable bytes and no colon"),
        (b"kube\xff", "begins with 4 printable bytes and no colon, then others"),
        (b"kube:1:AAEC", "begins with 4 printable bytes and a colon"),
        (b"kube:v:AAEC", "begins with 4 printable bytes and a colon"),
        (b"kube:v1:\xff", "begins with 4 printable bytes and a colon"),
        (b"no/name:v1:AAEC", "begins with 7 printable bytes and a colon"),
        (b"k8s:enc:kms:v1:", "begins with 3 printable bytes and a colon"),
    ];
    for (bytes, shape) in cases {
        assert!(complaint(bytes).contains(shape), "{shape}: {}", complaint(bytes));
    }
}

#[test]
fn a_damaged_ciphertext_of_a_known_form_is_called_damaged() {
    for text in ["kube:v1:", "kube:v1:AAE", "kube:v1:AAEC\n", "vault:v1:%%%%"] {
        assert!(complaint(text.as_bytes()).contains("no base64"), "{text}");
    }
    for text in ["kube:v0:AAEC", "kube:v01:AAEC", "kube:v4294967296:AAEC", "vault:v00:AAEC"] {
        assert!(complaint(text.as_bytes()).contains("key version"), "{text}");
    }
}

#[test]
fn what_kube_apiserver_cannot_have_stored_is_refused_unread() {
    let mut longest = b"kube:v1:".to_vec();
    longest.resize(LONGEST_V1 - 3, b'A');
    assert!(read_by(&["kube"], &longest).is_ok());
    longest.resize(LONGEST_V1 + 1, b'A');
    assert!(complaint(&longest).contains("65536 bytes"));
}

#[test]
fn the_least_length_is_what_aes_gcm_makes() {
    for plaintext in [1, 4, 32, 33, 700] {
        let payload = STANDARD.encode(vec![0; plaintext + 28]);
        let ciphertext = VaultCiphertext::try_new(1, &payload).unwrap();
        for format in [WriteFormat::Named, WriteFormat::Vault] {
            let written = write(format, &name("kube"), &ciphertext).len();
            assert_eq!(least_length(format, &name("kube"), plaintext), written);
        }
    }
}

/// What each plugin writes, over a key version and a payload.
fn forms(version: u32, payload: &[u8]) -> [(&'static str, Vec<u8>); 6] {
    let payload = STANDARD.encode(payload);
    let bare = format!("vault:v{version}:{payload}");
    [
        ("named", format!("kube-2026:v{version}:{payload}").into_bytes()),
        ("bare", bare.clone().into_bytes()),
        ("trousseau", format!("vault:-:{}\n", STANDARD.encode(&bare)).into_bytes()),
        ("trousseau", [b"awskms:-:\xff\n", &b"vault:-:"[..], bare.as_bytes()].concat()),
        ("trousseau", b"vault:-:\n".to_vec()),
        ("aws", [b"1\x01\x02", payload.as_bytes()].concat()),
    ]
}

fn recognised(bytes: &[u8], beside: Beside<'_>) -> &'static str {
    match Written::recognise(bytes, beside) {
        Some(Written::Named { .. }) => "named",
        Some(Written::Bare(_)) => "bare",
        Some(Written::Trousseau(_)) => "trousseau",
        Some(Written::AwsEncryptionProvider) => "aws",
        Some(Written::BaoKmsProvider(_)) => "bao",
        None => "none",
    }
}

proptest! {
    #[test]
    fn each_form_is_recognised_as_its_own_and_no_other(
        version in 1..=u32::MAX,
        payload in proptest::collection::vec(any::<u8>(), 1..200),
        key_id in "[ -~]{0,40}|1|kleidi-kms-plugin_1_1714553158|kube:v1:0123456789abcdef",
    ) {
        prop_assume!(!key_id.starts_with("obk2."));
        for (form, bytes) in forms(version, &payload) {
            let beside = Beside { key_id: &key_id, bao_annotation: false };
            prop_assert_eq!(recognised(&bytes, beside), form);
            // Only its annotation and its key_id make one bao-kms-provider's.
            let annotated = Beside { key_id: &key_id, bao_annotation: true };
            prop_assert_eq!(recognised(&bytes, annotated), "bao");
            let named = Beside { key_id: BAO_KEY_ID, bao_annotation: false };
            prop_assert_eq!(recognised(&bytes, named), "bao");
        }
        for (form, bytes) in forms(version, &payload).into_iter().take(3) {
            let found = match Written::recognise(&bytes, Beside::default()) {
                Some(Written::Named { parts, .. } | Written::Bare(parts)) => parts.number(),
                Some(Written::Trousseau(lines)) => lines.version(),
                _ => None,
            };
            prop_assert_eq!(found, Some(version), "{}", form);
            prop_assert!(read_by(&["kube-2026"], &bytes).is_ok(), "{}", form);
        }
    }

    #[test]
    fn what_is_written_is_read_back(
        kek in "[A-Za-z0-9][A-Za-z0-9_.-]{0,127}|vault|awskms|debug|1|v1|obk2\\.[a-z]{1,9}",
        version in 1..=u32::MAX,
        payload in proptest::collection::vec(any::<u8>(), 1..200),
    ) {
        let payload = STANDARD.encode(payload);
        let ciphertext = VaultCiphertext::try_new(version, &payload).unwrap();
        for format in [WriteFormat::Named, WriteFormat::Vault] {
            let written = write(format, &name(&kek), &ciphertext);
            let annotations = [(KEK_ANNOTATION.to_owned(), kek.clone().into_bytes())].into();
            let key_id = format!("{kek}:v{version}:0123456789abcdef");
            for hints in [DecryptHints::default(), DecryptHints { key_id, annotations }] {
                let keks = [name(&kek)];
                let form = Reader { keks: &keks, bao: None }.read(&written, &hints).unwrap();
                let (Form::Named { ciphertext: read, .. } | Form::Bare { ciphertext: read, .. }) =
                    form;
                prop_assert_eq!(&read, &ciphertext);
            }
        }
    }

    #[test]
    fn no_bytes_make_it_panic_or_show_in_its_errors(
        head in "(kube|vault|1|older|awskms)?(:v|:-:|:)?[0-9]{0,11}:?",
        tail in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let bytes = [head.as_bytes(), &tail].concat();
        // Whatever is printable in `tail` may stand in an unknown KEK's name, no more.
        if let Err(error) = read_by(&["kube"], &bytes) {
            let named = matches!(error, KeyringError::UnknownKek { .. });
            let text = error.to_string();
            let shown = tail.len() > 8 && text.as_bytes().windows(8).any(|w| tail.windows(8).any(|t| t == w));
            prop_assert!(named || !shown, "{}", text);
        }
    }
}
