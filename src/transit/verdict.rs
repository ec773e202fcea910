//! What an answer of Vault or OpenBao means: for the address that gave it
//! ([`classify`]) and, once it is final, for whoever asked ([`refusal`]).
//!
//! Texts change between versions, so they are matched by their telling part, and a text
//! that nobody knows falls back on the class of its status. Three rules shape the table:
//!
//! * A standby may be a few hundred milliseconds behind. What sounds final but may only
//!   be old (`encryption key not found`, `version is too new`) is [`Verdict::Stale`]: it
//!   is final when the active node says it. So is `message authentication failed`, for a key
//!   that was made again or restored is another one. That costs one more request for each
//!   such answer, and nothing for a good one.
//! * What is not in Vault's form was written by something before it (a proxy, a load
//!   balancer), whatever its status: other addresses may lead past it.
//! * No leader is nobody's fault. During an election every node says so, and to count it
//!   against each would leave no node to ask when the election is over.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};

use super::{Refusal, wire};
use crate::cluster::{Answer, Classify, Elsewhere, Fault, Operation, Verb, Verdict, words};

/// The soonest that a node without a leader is worth another try.
const ELECTION: Duration = Duration::from_millis(250);

/// The soonest that a node that lacks the index we have seen is worth another try.
const CATCH_UP: Duration = Duration::from_millis(100);

/// How long a node that limits us is left alone when it does not say.
const RATE_LIMIT: Duration = Duration::from_secs(1);

/// Longest `Retry-After` that is believed.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);

/// How long a locked namespace is left alone: an administrator locked it.
const LOCKED: Duration = Duration::from_secs(5);

/// What something before Vault has written.
const NOT_VAULTS: &str =
    "the answer is not Vault's; check the address and whether it is http:// or https://";

/// [`classify`] as the cluster's stack calls it.
#[derive(Clone, Copy, Debug, Default)]
pub struct TransitVerdicts;

/// What an answer means for the address that gave it and for the call.
///
/// `headers` matter for `Retry-After` only. A body in which a batch's items have errors
/// of their own is final whatever its status: it is to be read item by item.
pub fn classify(verb: Verb, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Verdict {
    if verb == Verb::Health {
        return classify_health(status);
    }
    if status.is_success() {
        return classify_success(verb, body);
    }
    let errors = words::errors(body);
    let text = Text::of(errors.as_deref());
    match status.as_u16() {
        400 | 500 if has_batch_results(body) => Verdict::Final,
        300..=399 => elsewhere("redirects to the active node").after(ELECTION).into(),
        403 if errors.is_none() => elsewhere("refused by something before Vault").fault().into(),
        400..=407 | 409..=411 | 413..=428 | 430..=471 if errors.is_none() => {
            elsewhere(NOT_VAULTS).into()
        }
        400 => classify_bad_request(verb, text),
        403 => classify_forbidden(verb, text),
        404 if verb == Verb::ReadKey && !text.has("no handler for route") => {
            Verdict::Stale("the key was not found")
        }
        404 | 405 => Verdict::Stale("there is no such mount, namespace or path"),
        408 => elsewhere("gave up waiting").maybe_served().after(ELECTION).into(),
        412 => elsewhere("is behind what was seen elsewhere").after(CATCH_UP).into(),
        429 if text.has("quota") => {
            elsewhere("limits our rate").after(retry_after(headers, RATE_LIMIT)).into()
        }
        429 => {
            let pause = retry_after(headers, CATCH_UP);
            elsewhere("is behind what was seen elsewhere").after(pause).into()
        }
        472 => elsewhere("is a disaster recovery secondary").eject().into(),
        473 => elsewhere("is a performance standby that does not serve this").into(),
        474 => elsewhere("is a standby without its active node").after(ELECTION).into(),
        530 => elsewhere("was removed from its cluster").eject().into(),
        500..=599 => classify_server_error(status, text),
        _ => Verdict::Final,
    }
}

/// What a final answer refuses, in terms of what an operator can do about it. To be asked
/// about answers without success only.
pub fn refusal(verb: Verb, answer: &Answer) -> Refusal {
    refusal_of(verb, answer.status, words::errors(&answer.body).as_deref())
}

/// What the error of one of a batch's items means, as if it had been a single call's.
pub(super) fn classify_item(verb: Verb, error: &str) -> Verdict {
    classify_bad_request(verb, Text::of(Some(&[error.to_owned()])))
}

/// What the error of one of a batch's items refuses, once it is final.
pub(super) fn refusal_of_item(verb: Verb, status: StatusCode, error: &str) -> Refusal {
    refusal_of(verb, status, Some(&[error.to_owned()]))
}

/// Whether an answer says that the request was larger than the server takes.
pub(super) fn is_too_large(answer: &Answer) -> Option<TooLarge> {
    if answer.status == StatusCode::PAYLOAD_TOO_LARGE {
        return Some(TooLarge::InBytes);
    }
    let errors = words::errors(&answer.body);
    let is_complex = Text::of(errors.as_deref()).has("high complexity");
    (is_complex && answer.status.is_client_error()).then_some(TooLarge::InStrings)
}

/// Whether an address has failed in a way that may lie in the form of what it was sent: it
/// was there and answered, but not as Vault answers.
pub(super) fn may_be_about_the_form(fault: &Fault) -> bool {
    match fault {
        Fault::Broken(_) => true,
        Fault::Elsewhere { status, verdict } => {
            let is_server_error = *status == 500 && verdict.at_fault && !verdict.eject;
            is_server_error || *status == 403 || verdict.reason == NOT_VAULTS
        }
        _ => false,
    }
}

fn refusal_of(verb: Verb, status: StatusCode, errors: Option<&[String]>) -> Refusal {
    let text = Text::of(errors);
    let said = || words::shortened(errors.unwrap_or_default());
    let known = [
        ("message authentication failed", Refusal::WrongKey),
        ("too old", Refusal::TooOld),
        ("version is too new", Refusal::TooNew),
        ("encryption key not found", Refusal::KeyNotFound),
        ("soft-deleted", Refusal::KeyDeleted),
        ("soft deleted", Refusal::KeyDeleted),
        ("less than the minimum encryption key version", Refusal::BelowMinimumEncryption),
        ("higher than the latest key version", Refusal::AboveLatest),
    ];
    if let Some((_, refusal)) = known.into_iter().find(|(part, _)| text.has(part)) {
        return refusal;
    }
    let is_configuration = ["no handler for route", "unsupported operation", "unsupported path"]
        .iter()
        .any(|part| text.has(part))
        || (text.has("namespace") && text.has("not found"));
    match status.as_u16() {
        _ if is_configuration => Refusal::Misconfigured(said()),
        403 if text.has("permission denied") => Refusal::PolicyDenied,
        404 if verb == Verb::ReadKey => Refusal::KeyNotFound,
        404 | 405 => Refusal::Misconfigured(said()),
        status => Refusal::BadRequest(format!("{} (HTTP {status})", said())),
    }
}

/// Vault's error texts in lower case, as one string to search.
struct Text(String);

/// Of what a request had too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TooLarge {
    /// JSON keys and strings (OpenBao's `max_request_json_strings`).
    InStrings,
    /// Bytes.
    InBytes,
}

fn classify_health(status: StatusCode) -> Verdict {
    match status.as_u16() {
        200..=299 | 429 | 473 => Verdict::Final,
        472 => elsewhere("is a disaster recovery secondary").eject().into(),
        474 => elsewhere("is a standby without its active node").after(ELECTION).into(),
        501 => elsewhere("is not initialised").eject().into(),
        503 => elsewhere("is sealed; unseal it").eject().into(),
        530 => elsewhere("was removed from its cluster").eject().into(),
        500..=599 => elsewhere("has a server error").fault().into(),
        300..=399 => elsewhere("redirects its health check").into(),
        _ => Verdict::Final,
    }
}

/// A success that holds nothing of what Vault's answer to `verb` holds came from something
/// else: a maintenance page, a login form. What is wrong within Vault's form is for those
/// who read it.
fn classify_success(verb: Verb, body: &[u8]) -> Verdict {
    #[derive(serde::Deserialize)]
    struct Body {
        data: Option<serde::de::IgnoredAny>,
        auth: Option<serde::de::IgnoredAny>,
    }
    let has = |part: fn(&Body) -> bool| serde_json::from_slice(body).is_ok_and(|b| part(&b));
    let is_vaults = match verb {
        Verb::Encrypt
        | Verb::Decrypt
        | Verb::ReadKey
        | Verb::LookupWrapping
        | Verb::Unwrap
        | Verb::LookupSelf
        | Verb::Capabilities => has(|b| b.data.is_some()),
        Verb::Login | Verb::RenewSelf => has(|b| b.auth.is_some()),
        // A revocation is answered with no body.
        Verb::Health | Verb::Read | Verb::RevokeSelf => true,
    };
    if is_vaults { Verdict::Final } else { elsewhere(NOT_VAULTS).fault().into() }
}

fn classify_bad_request(verb: Verb, text: Text) -> Verdict {
    let of_a_key = matches!(verb, Verb::Encrypt | Verb::Decrypt | Verb::ReadKey);
    if text.has("path disabled in replication dr secondary mode") {
        elsewhere("is a disaster recovery secondary").eject().into()
    } else if text.has("x-vault-index") || text.has("x-vault-inconsistent") {
        // It did not look at the request itself.
        elsewhere("does not understand the index that was sent").into()
    } else if of_a_key && text.has("version is too new") {
        Verdict::Stale("the key has no such version yet")
    } else if of_a_key && text.has("encryption key not found") {
        Verdict::Stale("the key was not found")
    } else if verb == Verb::Decrypt && text.has("message authentication failed") {
        // It may not have heard yet that the key was restored or made again.
        Verdict::Stale("another key made it, or it was damaged")
    } else if verb == Verb::Decrypt && text.has("too old") {
        Verdict::Stale("its version is below min_decryption_version")
    } else if of_a_key && (text.has("soft-deleted") || text.has("soft deleted")) {
        Verdict::Stale("the key was deleted (soft)")
    } else if verb == Verb::Encrypt && text.has("higher than the latest key version") {
        Verdict::Stale("the version is above the key's latest")
    } else if matches!(verb, Verb::LookupWrapping | Verb::Unwrap) {
        Verdict::Stale("the wrapping token is not known")
    } else {
        Verdict::Final
    }
}

fn classify_forbidden(verb: Verb, text: Text) -> Verdict {
    let of_the_token = ["invalid token", "bad token", "token is expired", "token has expired"]
        .iter()
        .any(|part| text.has(part));
    // A policy's denial comes as a list of one; a token's comes bare.
    let of_the_policy = text.has("1 error occurred") && text.has("permission denied");
    match verb {
        // No token was sent. A mount that is not there is answered so, and so it is by a
        // standby that has not heard of it and has lost its leader.
        Verb::Login => Verdict::Stale("the login was refused"),
        Verb::LookupWrapping | Verb::Unwrap => Verdict::Stale("the wrapping token was refused"),
        _ if of_the_token => Verdict::TokenRefused,
        // A key that is not known yet would be created, which the policy forbids.
        Verb::Encrypt if of_the_policy => Verdict::Stale("the token's policy does not allow it"),
        _ if of_the_policy => Verdict::Final,
        _ if text.has("permission denied") => Verdict::TokenRefused,
        _ => Verdict::Final,
    }
}

fn classify_server_error(status: StatusCode, text: Text) -> Verdict {
    let is_leaderless = [
        "local node not active",
        "active cluster node not found",
        "leadership lost",
        "no active vault instance found",
        "node is not active",
        "node not active",
    ];
    if text.has("is sealed") {
        elsewhere("is sealed; unseal it").eject().into()
    } else if text.has("path disabled in replication dr secondary mode") {
        elsewhere("is a disaster recovery secondary").eject().into()
    } else if text.has("not initialized") {
        elsewhere("is not initialised").eject().into()
    } else if is_leaderless.iter().any(|part| text.has(part)) {
        elsewhere("has no active node").after(ELECTION).into()
    } else if text.has("namespace") && text.has("locked") {
        elsewhere("has locked this namespace for its API").after(LOCKED).into()
    } else if text.has("failed to parse batch input") || text.has("associated_data") {
        Verdict::Final // a batch that must be sent one by one
    } else if matches!(status.as_u16(), 502 | 504) {
        elsewhere("could not be reached through its gateway")
            .fault()
            .maybe_served()
            .after(ELECTION)
            .into()
    } else {
        elsewhere("has a server error").fault().maybe_served().into()
    }
}

pub(super) fn has_batch_results(body: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Body {
        data: Data,
    }
    #[derive(serde::Deserialize)]
    struct Data {
        batch_results: Vec<serde::de::IgnoredAny>,
    }
    serde_json::from_slice::<Body>(body).is_ok_and(|b| !b.data.batch_results.is_empty())
}

/// `Retry-After` in seconds, when it is a number; nothing sends it as a date.
fn retry_after(headers: &HeaderMap, otherwise: Duration) -> Duration {
    headers
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .map_or(otherwise, |seconds| Duration::from_secs(seconds).min(LONGEST_RETRY_AFTER))
}

const fn elsewhere(reason: &'static str) -> Elsewhere {
    Elsewhere { reason, at_fault: false, eject: false, maybe_served: false, again_after: None }
}

// === impl TransitVerdicts ===

impl Classify for TransitVerdicts {
    fn classify(&self, operation: &Operation, answer: &Answer) -> Verdict {
        let is_batch = operation.body.as_ref().is_some_and(|body| wire::is_batch(body));
        if is_batch && answer.status == StatusCode::PAYLOAD_TOO_LARGE {
            return Verdict::Final; // whoever says so: smaller ones may pass
        }
        let verdict = classify(operation.verb, answer.status, &answer.headers, &answer.body);
        let is_by_item = is_batch && !answer.status.is_success();
        match verdict {
            // With an error of some item it is no success, but it is not the active node's
            // word either.
            Verdict::Final
                if operation.needs_active && is_by_item && has_batch_results(&answer.body) =>
            {
                Verdict::Stale("some items of the batch have errors")
            }
            verdict => verdict,
        }
    }
}

// === impl Text ===

impl Text {
    fn of(errors: Option<&[String]>) -> Self {
        Self(errors.unwrap_or_default().join("\n").to_ascii_lowercase())
    }

    fn has(&self, part: &str) -> bool {
        self.0.contains(part)
    }
}

// === impl Elsewhere ===

impl Elsewhere {
    const fn fault(mut self) -> Self {
        self.at_fault = true;
        self
    }

    const fn eject(mut self) -> Self {
        self.at_fault = true;
        self.eject = true;
        self
    }

    const fn maybe_served(mut self) -> Self {
        self.maybe_served = true;
        self
    }

    const fn after(mut self, pause: Duration) -> Self {
        self.again_after = Some(pause);
        self
    }
}

impl From<Elsewhere> for Verdict {
    fn from(elsewhere: Elsewhere) -> Self {
        Self::Elsewhere(elsewhere)
    }
}

#[cfg(test)]
mod tests;
