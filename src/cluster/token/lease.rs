//! What Vault says about a token, in a login, a lookup and a renewal.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use secrecy::SecretString;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::cluster::authenticate::Link;
use crate::cluster::{Operation, Verb};

/// How long a token lives and what can be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    /// Time left; `None` when it never expires.
    pub(super) ttl: Option<Duration>,
    /// The ttl that it was made with, which a renewal asks for again.
    pub(super) granted: Duration,
    /// It can be renewed.
    pub(super) renewable: bool,
    /// It dies after this many uses; 0 when it does not.
    pub(super) uses: u64,
}

/// Longest ttl that is counted with (a hundred years), so that no sum overflows.
const LONGEST_TTL: u64 = 100 * 366 * 24 * 3_600;

#[derive(Deserialize)]
struct LookupBody {
    data: LookupData,
}

#[derive(Deserialize)]
struct LookupData {
    ttl: u64,
    #[serde(default)]
    creation_ttl: u64,
    #[serde(default)]
    renewable: bool,
    #[serde(default)]
    num_uses: u64,
    expire_time: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct AuthBody {
    auth: AuthData,
}

#[derive(Deserialize)]
struct AuthData {
    client_token: String,
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
    #[serde(default)]
    num_uses: u64,
}

/// `GET auth/token/lookup-self`.
pub(super) fn lookup_request(link: &Link) -> Arc<Operation> {
    let path = "/v1/auth/token/lookup-self".to_owned();
    Arc::new(Operation {
        verb: Verb::LookupSelf,
        method: Method::GET,
        path,
        namespace: link.namespace().cloned(),
        body: None,
    })
}

/// `POST auth/token/renew-self`, for as long as the token was made for. Without an
/// increment Vault would take its own default, which may be longer than the operator
/// meant; a periodic token ignores it.
pub(super) fn renew_request(link: &Link, granted: Duration) -> Arc<Operation> {
    let body = format!("{{\"increment\":{}}}", granted.as_secs());
    Arc::new(Operation {
        verb: Verb::RenewSelf,
        method: Method::POST,
        path: "/v1/auth/token/renew-self".to_owned(),
        namespace: link.namespace().cloned(),
        body: Some(Zeroizing::new(body.into_bytes())),
    })
}

/// Reads the answer to a lookup.
pub(super) fn of_lookup(body: &[u8]) -> Option<Lease> {
    let LookupData { ttl, creation_ttl, renewable, num_uses, expire_time } =
        serde_json::from_slice::<LookupBody>(body).ok()?.data;
    let is_unlimited = ttl == 0 && expire_time.is_none();
    Some(Lease {
        ttl: (!is_unlimited).then(|| seconds(ttl)),
        granted: seconds(creation_ttl.max(ttl)),
        renewable,
        uses: num_uses,
    })
}

/// Reads the answer to a login or a renewal.
pub(super) fn of_login(body: &[u8]) -> Option<(SecretString, Lease)> {
    let AuthData { client_token, lease_duration, renewable, num_uses } =
        serde_json::from_slice::<AuthBody>(body).ok()?.auth;
    let ttl = seconds(lease_duration);
    let lease =
        Lease { ttl: (!ttl.is_zero()).then_some(ttl), granted: ttl, renewable, uses: num_uses };
    let is_sendable =
        !client_token.is_empty() && client_token.bytes().all(|b| b.is_ascii_graphic());
    is_sendable.then(|| (SecretString::from(client_token), lease))
}

fn seconds(ttl: u64) -> Duration {
    Duration::from_secs(ttl.min(LONGEST_TTL))
}
