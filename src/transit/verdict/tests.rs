use super::*;
use crate::cluster::testing::answer;
use Verb::{Capabilities, Decrypt, Encrypt, Health, Login, LookupSelf, ReadKey, RenewSelf};

/// What a row of the table expects, in one word each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Final,
    Token,
    Stale,
    /// Elsewhere: no fault.
    Other,
    /// Elsewhere: counts against the address.
    Fault,
    /// Elsewhere: opens the breaker.
    Eject,
}

use Expect::{Eject, Fault, Final, Other, Stale, Token};

fn word(verdict: &Verdict) -> Expect {
    match verdict {
        Verdict::Final => Final,
        Verdict::TokenRefused => Token,
        Verdict::Stale(_) => Stale,
        Verdict::Elsewhere(Elsewhere { eject: true, .. }) => Eject,
        Verdict::Elsewhere(Elsewhere { at_fault: true, .. }) => Fault,
        Verdict::Elsewhere(_) => Other,
    }
}

/// A body with one error.
fn error(text: &str) -> String {
    serde_json::json!({ "errors": [text] }).to_string()
}

fn verdict_of(verb: Verb, status: u16, body: &str) -> Verdict {
    let status = StatusCode::from_u16(status).unwrap();
    classify(verb, status, &HeaderMap::new(), body.as_bytes())
}

const DR: &str = "path disabled in replication DR secondary mode";
const ACL: &str = "1 error occurred:\n\t* permission denied\n\n";
const LEADERLESS: &str = "local node not active but active cluster node not found";
const ACTIVE_LOST: &str = "error performing token check: leadership lost";
const LOCKED_NAMESPACE: &str = "API access to this namespace has been locked by an administrator. \
    To unlock, use namespace unlock.";
const TOO_NEW: &str = "invalid ciphertext: version is too new";
const TOO_OLD: &str = "ciphertext or signature version is disallowed by policy (too old)";
const NOT_FOUND: &str = "encryption key not found";
const MAC: &str = "cipher: message authentication failed";
const ABOVE: &str = "requested version for encryption is higher than the latest key version";
const BELOW: &str =
    "requested version for encryption is less than the minimum encryption key version";
const NO_ROUTE: &str = "no handler for route \"transit/encrypt/kube\". route entry not found.";

#[test]
fn every_row_of_the_answer_table_holds() {
    let rows: &[(&str, Verb, u16, &str, Expect)] = &[
        ("sealed", Decrypt, 503, "Vault is sealed", Eject),
        ("sealed, while logging in", Login, 503, "Vault is sealed", Eject),
        ("not initialised", Decrypt, 503, "Vault is not initialized", Eject),
        ("DR secondary by text", Decrypt, 400, DR, Eject),
        ("DR secondary by text and 5xx", Decrypt, 500, DR, Eject),
        ("DR secondary by status", Decrypt, 472, "", Eject),
        ("performance standby", Decrypt, 473, "", Other),
        ("standby without active node", Decrypt, 474, "", Other),
        ("removed node", Decrypt, 530, "", Eject),
        ("no active node", Encrypt, 500, LEADERLESS, Other),
        ("leadership lost", Decrypt, 500, ACTIVE_LOST, Other),
        ("no active Vault", Decrypt, 503, "no active Vault instance found", Other),
        ("node not active", RenewSelf, 503, "node is not active", Other),
        ("bad gateway", Decrypt, 502, "", Fault),
        ("gateway timeout", Decrypt, 504, "", Fault),
        ("redirect to the active node", Encrypt, 307, "", Other),
        ("another redirect", ReadKey, 302, "", Other),
        ("behind the index", Decrypt, 412, "required index state not present", Other),
        ("rate limit", Encrypt, 429, "request path \"transit/\": rate limit quota exceeded", Other),
        ("ciphertext of a version not known yet", Decrypt, 400, TOO_NEW, Stale),
        ("key not known yet, encrypt", Encrypt, 400, NOT_FOUND, Stale),
        ("key not known yet, decrypt", Decrypt, 400, NOT_FOUND, Stale),
        ("policy on encrypt, or key not known yet", Encrypt, 403, ACL, Stale),
        ("version not known yet", Encrypt, 400, ABOVE, Stale),
        ("an index it cannot read", Decrypt, 400, "failed to decode \"X-Vault-Index\"", Other),
        ("two indices", Encrypt, 400, "expected at most one value for \"X-Vault-Index\"", Other),
        ("version below the minimum", Encrypt, 400, BELOW, Final),
        ("bare permission denied", Decrypt, 403, "permission denied", Token),
        ("bare, encrypt", Encrypt, 403, "permission denied", Token),
        ("bare, lookup", LookupSelf, 403, "permission denied", Token),
        ("invalid token", Decrypt, 403, "invalid token", Token),
        (
            "invalid token in a list",
            Encrypt,
            403,
            "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n",
            Token,
        ),
        ("bad token", Decrypt, 403, "bad token", Token),
        ("policy", Decrypt, 403, ACL, Final),
        ("policy, key read", ReadKey, 403, ACL, Final),
        ("policy, lookup", LookupSelf, 403, ACL, Final),
        ("policy, capabilities", Capabilities, 403, ACL, Final),
        ("another 403 of Vault's", Decrypt, 403, "request failed: CIDR mismatch", Final),
        ("another key, or damage", Decrypt, 400, MAC, Stale),
        ("too old", Decrypt, 400, TOO_OLD, Stale),
        ("soft-deleted", Decrypt, 400, "soft-deleted key cannot be used", Stale),
        ("bad base64", Decrypt, 400, "invalid ciphertext: could not decode base64", Final),
        ("no prefix", Decrypt, 400, "invalid ciphertext: no prefix", Final),
        ("derived key", Encrypt, 400, "missing 'context' for key derivation", Final),
        ("too many strings", Encrypt, 400, "refused JSON input due to high complexity", Final),
        ("too large", Encrypt, 413, "request body too large", Final),
        ("malformed batch", Encrypt, 500, "failed to parse batch input: 1 error", Final),
        ("malformed batch item", Decrypt, 500, "'[0].associated_data' expected string", Final),
        ("another 5xx", Decrypt, 500, "internal error", Fault),
        ("another 5xx without words", Decrypt, 599, "", Fault),
        ("no such mount", Encrypt, 404, NO_ROUTE, Stale),
        ("no such mount, key read", ReadKey, 404, NO_ROUTE, Stale),
        ("method not allowed", Encrypt, 405, "unsupported operation", Stale),
        ("no such namespace", Encrypt, 404, "namespace not found", Stale),
        ("locked namespace", Decrypt, 503, LOCKED_NAMESPACE, Other),
        ("rejected secret id", Login, 400, "invalid role or secret ID", Final),
        ("wrong mount of a login, or not known yet", Login, 403, "permission denied", Stale),
        ("not renewable", RenewSelf, 400, "lease is not renewable", Final),
        ("batch token", RenewSelf, 400, "batch tokens cannot be renewed", Final),
        ("request timeout", Decrypt, 408, "", Other),
        ("another 4xx", Decrypt, 418, "", Final),
    ];
    for (name, verb, status, text, expected) in rows {
        let verdict = verdict_of(*verb, *status, &error(text));
        assert_eq!(word(&verdict), *expected, "row `{name}`: {verdict:?}");
    }
}

#[test]
fn every_row_that_is_more_than_a_text_holds() {
    let batch = r#"{"data":{"batch_results":[{"error":"encryption key not found"}]}}"#;
    let rows: &[(&str, Verb, u16, &str, Expect)] = &[
        ("batch with failed items", Decrypt, 400, batch, Final),
        ("batch with failed items, 500", Decrypt, 500, batch, Final),
        ("key not known yet, read", ReadKey, 404, r#"{"errors":[]}"#, Stale),
        ("index not reached", Decrypt, 429, r#"{"errors":[]}"#, Other),
        ("403 of something in between", Decrypt, 403, "<html>Forbidden</html>", Fault),
        ("503 of something in between", Decrypt, 503, "<html>Unavailable</html>", Fault),
        ("empty 500", Decrypt, 500, "", Fault),
        ("errors that are no list", Decrypt, 400, r#"{"errors":"no"}"#, Other),
        ("binary", Decrypt, 400, "\u{0}\u{1}\u{2}", Other),
        ("plain HTTP at a TLS port", Login, 400, "Client sent an HTTP request", Other),
        ("404 of something in between", ReadKey, 404, "<html>Not Found</html>", Other),
        ("a proxy that wants a login", Decrypt, 407, "", Other),
        ("success", Encrypt, 200, r#"{"data":{"ciphertext":""}}"#, Final),
        ("success of a login", Login, 200, r#"{"auth":{},"data":null}"#, Final),
        ("a maintenance page", Encrypt, 200, "<html>back soon</html>", Fault),
        ("a maintenance page for logins", Login, 200, "<html>back soon</html>", Fault),
        ("JSON of something else", Decrypt, 200, r#"{"status":"ok"}"#, Fault),
        ("no data", ReadKey, 200, r#"{"data":null}"#, Fault),
        ("JSON that is cut short", Decrypt, 200, r#"{"data":{"plaintext":"cGlu"#, Fault),
        ("nothing", Decrypt, 204, "", Fault),
    ];
    for (name, verb, status, body, expected) in rows {
        let verdict = verdict_of(*verb, *status, body);
        assert_eq!(word(&verdict), *expected, "row `{name}`: {verdict:?}");
    }
}

#[test]
fn every_row_of_health_holds() {
    for (name, status, expected) in [
        ("active", 200, Final),
        ("standby", 429, Final),
        ("performance standby", 473, Final),
        ("DR secondary", 472, Eject),
        ("standby without active node", 474, Other),
        ("uninitialised", 501, Eject),
        ("sealed", 503, Eject),
        ("removed", 530, Eject),
        ("another 5xx", 500, Fault),
        ("a namespace header", 400, Final),
        ("redirect", 307, Other),
    ] {
        let verdict = verdict_of(Health, status, r#"{"sealed":true}"#);
        assert_eq!(word(&verdict), expected, "row `{name}`: {verdict:?}");
    }
}

#[test]
fn retry_after_is_honoured_within_reason() {
    let quota = error("rate limit quota exceeded");
    for (value, seconds) in [("7", 7), ("86400", 30), ("soon", 1), ("", 1), ("-1", 1)] {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, value.parse().unwrap());
        let status = StatusCode::TOO_MANY_REQUESTS;
        let Verdict::Elsewhere(verdict) = classify(Decrypt, status, &headers, quota.as_bytes())
        else {
            panic!("a rate limit is no final answer");
        };
        assert_eq!(verdict.again_after, Some(Duration::from_secs(seconds)), "{value}");
    }
}

#[test]
fn an_election_is_tried_again_after_a_quarter_of_a_second() {
    for (status, text) in [(500, LEADERLESS), (500, ACTIVE_LOST), (502, ""), (307, "")] {
        let Verdict::Elsewhere(verdict) = verdict_of(Decrypt, status, &error(text)) else {
            panic!("{status} {text} is no final answer");
        };
        assert_eq!(verdict.again_after, Some(Duration::from_millis(250)), "{status} {text}");
    }
}

#[test]
fn what_a_gateway_says_leaves_open_whether_vault_has_served_the_request() {
    let rows = [
        (408, "", true),
        (500, "no such words", true),
        (502, "", true),
        (503, "", true),
        (504, "", true),
        (307, "", false),
        (412, "", false),
        (429, "rate limit quota exceeded", false),
        (473, "", false),
        (500, LEADERLESS, false),
        (503, "Vault is sealed", false),
    ];
    for (status, text, maybe_served) in rows {
        let Verdict::Elsewhere(verdict) = verdict_of(Login, status, &error(text)) else {
            panic!("{status} {text} is no final answer");
        };
        assert_eq!(verdict.maybe_served, maybe_served, "{status} {text}");
    }
}

#[test]
fn every_refusal_is_told_by_its_kind() {
    let rows: &[(&str, Verb, u16, &str, Refusal)] = &[
        ("another key", Decrypt, 400, MAC, Refusal::WrongKey),
        ("too old", Decrypt, 400, TOO_OLD, Refusal::TooOld),
        ("too new", Decrypt, 400, TOO_NEW, Refusal::TooNew),
        ("no key", Decrypt, 400, NOT_FOUND, Refusal::KeyNotFound),
        ("no key, read", ReadKey, 404, "", Refusal::KeyNotFound),
        ("soft-deleted", Encrypt, 400, "soft-deleted key cannot be used", Refusal::KeyDeleted),
        ("policy", Decrypt, 403, ACL, Refusal::PolicyDenied),
        ("below", Encrypt, 400, BELOW, Refusal::BelowMinimumEncryption),
        ("above", Encrypt, 400, ABOVE, Refusal::AboveLatest),
    ];
    for (name, verb, status, text, expected) in rows {
        let refused = refusal(*verb, &answer(*status, &error(text)));
        assert_eq!(refused, *expected, "row `{name}`");
    }
    for (name, verb, status, text) in [
        ("no mount", Encrypt, 404, NO_ROUTE),
        ("no mount, read", ReadKey, 404, NO_ROUTE),
        ("no namespace", Encrypt, 404, "namespace not found"),
        ("wrong method", Encrypt, 405, "unsupported operation"),
    ] {
        let refused = refusal(verb, &answer(status, &error(text)));
        assert!(matches!(refused, Refusal::Misconfigured(_)), "row `{name}`: {refused}");
    }
}

#[test]
fn other_refusals_keep_vaults_words_but_no_secret() {
    let text = "plaintext \"c2VjcmV0IHNlZWQgb2YgdGhpcnR5IHR3byBieXRlcyE=\" has no context";
    let refused = refusal(Encrypt, &answer(400, &error(text)));
    let Refusal::BadRequest(said) = refused else { panic!("{refused}") };
    assert_eq!(said, "plaintext \"[hidden]\" has no context (HTTP 400)");
    let silent = refusal(Encrypt, &answer(413, "<html>too large</html>"));
    assert_eq!(silent, Refusal::BadRequest("no reason given (HTTP 413)".to_owned()));
}
