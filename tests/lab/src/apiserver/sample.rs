//! Values in kube-apiserver's form, made quickly: what is encrypted in them is made up.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use prost::Message as _;

use super::v2::{DekSourceType, EncryptedObject};

/// The size of an object; most secrets are smaller, and those of Helm are larger.
const OBJECT: usize = 2_048;

/// Object number `n` and its key, of four kinds in turn: secrets of KMS v2 on `kube-2026` and
/// on `kube-2025`, secrets of KMS v1 on `kube-2025`, and pods that are not encrypted.
pub fn object(n: usize) -> (String, Vec<u8>) {
    let wrapped = |kek: &str| format!("{kek}:v1:{}", BASE64_STANDARD.encode([n as u8; 60]));
    let data = vec![n as u8; OBJECT];
    let v2 = |kek: &str| {
        let object = EncryptedObject {
            encrypted_data: data.clone(),
            key_id: format!("{kek}:v1:0123456789abcdef"),
            encrypted_dek_source: wrapped(kek).into_bytes(),
            annotations: [("kek.vault-kms-proxy.io".to_owned(), kek.into())].into(),
            encrypted_dek_source_type: DekSourceType::HkdfSha256XnonceAesGcmSeed.into(),
        };
        [b"k8s:enc:kms:v2:vault:".to_vec(), object.encode_to_vec()].concat()
    };
    let v1 = || {
        let cipher = wrapped("kube-2025").into_bytes();
        let length = (cipher.len() as u16).to_be_bytes();
        [b"k8s:enc:kms:v1:vault:".as_slice(), &length, &cipher, &data].concat()
    };
    let (resource, value) = match n % 4 {
        0 => ("secrets", v2("kube-2026")),
        1 => ("secrets", v2("kube-2025")),
        2 => ("secrets", v1()),
        _ => ("pods", data.clone()),
    };
    (format!("/registry/{resource}/namespace-{:03}/object-{n:08}", n % 500), value)
}
