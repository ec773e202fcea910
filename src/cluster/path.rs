//! URL paths from names that operators choose.

/// One segment of a path.
pub(crate) fn encode_segment(segment: &str) -> String {
    if matches!(segment, "." | "..") {
        // Would be taken for a step up by whatever normalises the path.
        return segment.replace('.', "%2E");
    }
    let mut encoded = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// A path whose slashes are separators, such as a mount.
pub(crate) fn encode(path: &str) -> String {
    path.split('/').map(encode_segment).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_keep_their_slashes_and_names_lose_them() {
        assert_eq!(encode("team a/transit"), "team%20a/transit");
        assert_eq!(encode_segment("a/b?c#d%ü"), "a%2Fb%3Fc%23d%25%C3%BC");
        assert_eq!(encode("a/../b"), "a/%2E%2E/b");
        assert_eq!(encode_segment("kube-2026_x.y~z"), "kube-2026_x.y~z");
    }
}
