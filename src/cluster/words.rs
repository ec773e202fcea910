//! What Vault says in its own words, made fit for a log line.
//!
//! Error texts can echo what was sent. Nothing that may be a token, a secret id or
//! key material leaves this module, whatever Vault put into its answer.

use serde::Deserialize;

/// Longest text that is handed on, in characters.
const LONGEST: usize = 200;

/// A run of letters this long that is not plainly words is taken for a secret.
const SUSPICIOUS: usize = 16;

/// Prefixes of Vault's and OpenBao's tokens.
const TOKEN_PREFIXES: [&str; 5] = ["hvs.", "hvb.", "hvr.", "s.", "b."];

/// The texts in the body's `errors`; `None` when the body is not in Vault's form, so that
/// something between us and Vault may have written it.
pub fn errors(body: &[u8]) -> Option<Vec<String>> {
    #[derive(Deserialize)]
    struct Body {
        errors: Vec<String>,
    }
    serde_json::from_slice::<Body>(body).ok().map(|b| b.errors)
}

/// Vault's texts in one line of at most 200 characters, without anything that looks like
/// a secret.
pub fn shortened(errors: &[String]) -> String {
    let joined = errors.join("; ");
    if joined.trim().is_empty() {
        return "no reason given".to_owned();
    }
    let mut line = String::new();
    for word in joined.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        push_without_secrets(&mut line, word);
    }
    if line.chars().count() > LONGEST {
        line = line.chars().take(LONGEST - 1).collect();
        line.push('…');
    }
    line
}

fn push_without_secrets(line: &mut String, word: &str) {
    let is_run = |c: char| c.is_ascii_alphanumeric() || "+/=_-.".contains(c);
    let mut rest = word;
    while !rest.is_empty() {
        let run = rest.find(|c| !is_run(c)).unwrap_or(rest.len());
        let other = rest[run..].find(is_run).unwrap_or(rest.len() - run);
        let (run, others) = (&rest[..run], &rest[run..run + other]);
        rest = &rest[run.len() + others.len()..];
        line.push_str(if looks_secret(run) { "[hidden]" } else { run });
        line.extend(others.chars().filter(|c| !c.is_control()));
    }
}

fn looks_secret(run: &str) -> bool {
    let is_token = TOKEN_PREFIXES
        .iter()
        .any(|p| run.strip_prefix(p).is_some_and(|tail| tail.trim_end_matches('.').len() >= 8));
    let is_padded = run.len() >= 4 && run.ends_with('=');
    is_token || is_padded || (run.len() >= SUSPICIOUS && !is_plain_words(run))
}

/// Whether each part between `-`, `_`, `.` and `/` is all lower-case letters, all
/// upper-case letters, one capitalised word, or a number: then it is a name or a path.
fn is_plain_words(run: &str) -> bool {
    run.split(['-', '_', '.', '/']).all(|part| {
        let tail = part.get(1..).unwrap_or_default();
        let all = |test: fn(&u8) -> bool, of: &str| of.as_bytes().iter().all(test);
        part.len() < 40
            && (all(u8::is_ascii_lowercase, tail) && all(u8::is_ascii_alphabetic, part)
                || all(u8::is_ascii_uppercase, part)
                || (part.len() < 12 && all(u8::is_ascii_digit, part))
                || is_version(part))
    })
}

/// `v1`, `v12`: as in `/v1/auth`.
fn is_version(part: &str) -> bool {
    part.len() <= 4 && part.strip_prefix('v').is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_secret_is_hidden() {
        for secret in [
            "hvs.CAESIJlU02LQZq",
            "hvs.CAESIJlU",
            "s.sHXUr5Vb",
            "s.sHXUr5VbSyYpkUPdRoZ6wpxx",
            "b.AAAAAQKr9Dq2iUd0vJ5R6",
            "6a174c20-f6de-a53c-74d2-6018fcceff64",
            "c2VjcmV0IHNlZWQgb2YgdGhpcnR5IHR3byBieXRlcyE",
            "cGluZw==",
            "0123456789abcdef0123456789abcdef",
        ] {
            for text in [secret.to_owned(), format!("bad input \"{secret}\":"), {
                format!("vault:v1:{secret}, denied")
            }] {
                let line = shortened(&[text]);
                assert!(!line.contains(secret), "{line}");
                assert!(line.contains("[hidden]"), "{line}");
            }
        }
    }

    #[test]
    fn what_an_operator_needs_stays() {
        for text in [
            "no handler for route \"transit/encrypt/kube-secret-enc-key-2026\"",
            "ciphertext version is disallowed by policy (too old)",
            "encryption key not found",
            "unsupported path; see /v1/auth/approle/login.",
        ] {
            assert_eq!(shortened(&[text.to_owned()]), text);
        }
    }

    #[test]
    fn texts_are_one_line_and_bounded() {
        let line = shortened(&["1 error occurred:\n\t* permission denied\n\n".to_owned()]);
        assert_eq!(line, "1 error occurred: * permission denied");
        assert_eq!(shortened(&["a \u{1b}[31m b ".repeat(200)]).chars().count(), LONGEST);
        assert_eq!(shortened(&[]), "no reason given");
    }
}
