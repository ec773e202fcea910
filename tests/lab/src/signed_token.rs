//! Signed tokens (JWT, ES256), as a SPIFFE agent or an apiserver hands them out.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};

use crate::Result;

/// Who signs tokens.
#[derive(Debug)]
pub struct TokenIssuer {
    key: KeyPair,
}

// === impl TokenIssuer ===

impl TokenIssuer {
    /// A new one; another call makes one whose tokens nobody takes.
    pub fn new() -> Result<Self> {
        Ok(Self { key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)? })
    }

    /// The public key as PEM, for whoever verifies.
    pub fn public_key_pem(&self) -> String {
        self.key.public_key_pem()
    }

    /// A token with these claims.
    pub fn sign(&self, claims: &Value) -> Result<String> {
        let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed =
            format!("{}.{}", encode(&json!({ "alg": "ES256", "typ": "JWT" })), encode(claims));
        let pkcs8 = self.key.serialize_der();
        let signer = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8)?;
        let signature = signer.sign(&SystemRandom::new(), signed.as_bytes())?;
        Ok(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
    }
}
