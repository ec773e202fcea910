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
    read(bytes, &DecryptHints::default(), &configured)
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
        match read(b"vault:v3:AAEC", &hints, &configured).unwrap() {
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
fn what_others_wrote_is_refused_by_name() {
    assert!(complaint(b"1\x01\x02\x02\x00x\xff").contains("aws-encryption-provider"));
    assert!(complaint(b"vault:-:dmF1bHQ6djE6QUFFQw==\nawskms:-:").contains("Trousseau"));
    let bao = |hints: DecryptHints| {
        read(b"vault:v1:AAEC", &hints, &[name("kube")]).unwrap_err().to_string()
    };
    let annotations = [("provider.kms.openbao.org".to_owned(), b"openbao".to_vec())].into();
    let annotated = DecryptHints { annotations, ..DecryptHints::default() };
    assert!(bao(annotated).contains("bao-kms-provider"));
    let key_id = "obk2.ig7zS9_yvQrdlcvWgJUhA5q_fQYupc5jRX5MzhAMQSk".to_owned();
    assert!(bao(DecryptHints { key_id, ..DecryptHints::default() }).contains("bao-kms-provider"));
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
    use base64::Engine as _;
    for plaintext in [1, 4, 32, 33, 700] {
        let payload = base64::engine::general_purpose::STANDARD.encode(vec![0; plaintext + 28]);
        let ciphertext = VaultCiphertext::try_new(1, &payload).unwrap();
        for format in [WriteFormat::Named, WriteFormat::Vault] {
            let written = write(format, &name("kube"), &ciphertext).len();
            assert_eq!(least_length(format, &name("kube"), plaintext), written);
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        kek in "[A-Za-z0-9][A-Za-z0-9_.-]{0,127}|vault|awskms|debug|1|v1|obk2\\.[a-z]{1,9}",
        version in 1..=u32::MAX,
        payload in proptest::collection::vec(any::<u8>(), 1..200),
    ) {
        use base64::Engine as _;
        let payload = base64::engine::general_purpose::STANDARD.encode(payload);
        let ciphertext = VaultCiphertext::try_new(version, &payload).unwrap();
        for format in [WriteFormat::Named, WriteFormat::Vault] {
            let written = write(format, &name(&kek), &ciphertext);
            let annotations = [(KEK_ANNOTATION.to_owned(), kek.clone().into_bytes())].into();
            let key_id = format!("{kek}:v{version}:0123456789abcdef");
            for hints in [DecryptHints::default(), DecryptHints { key_id, annotations }] {
                let form = super::read(&written, &hints, &[name(&kek)]).unwrap();
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
