//! What must not be seen: plaintexts, and the rules that keep them out of sight.

use std::fmt;

use zeroize::Zeroizing;

/// A data-encryption key or seed in the clear. Wiped when dropped; `Debug` shows its
/// length only; comparison takes the same time wherever two of one length differ.
#[derive(Clone)]
pub struct Plaintext(Zeroizing<Vec<u8>>);

// === impl Plaintext ===

impl Plaintext {
    /// Takes the bytes over; the caller keeps no copy.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for the two places that need them: the request to Vault and the
    /// answer to kube-apiserver.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Vec<u8>> for Plaintext {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(bytes)
    }
}

impl PartialEq for Plaintext {
    fn eq(&self, other: &Self) -> bool {
        let differing = self.0.iter().zip(other.0.iter()).fold(0, |seen, (a, b)| seen | (a ^ b));
        self.0.len() == other.0.len() && differing == 0
    }
}

impl Eq for Plaintext {}

impl fmt::Debug for Plaintext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plaintext({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_the_length_only() {
        assert_eq!(format!("{:?}", Plaintext::new(b"seed".to_vec())), "Plaintext(4 bytes)");
    }

    #[test]
    fn equal_means_same_length_and_same_bytes() {
        assert_eq!(Plaintext::new(vec![1, 2]), Plaintext::new(vec![1, 2]));
        assert_ne!(Plaintext::new(vec![1, 2]), Plaintext::new(vec![1, 3]));
        assert_ne!(Plaintext::new(vec![1, 2]), Plaintext::new(vec![1, 2, 0]));
    }
}
