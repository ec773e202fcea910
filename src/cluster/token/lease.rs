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

/// A token that a login brought.
#[derive(Debug)]
pub(super) struct Grant {
    pub(super) token: SecretString,
    pub(super) lease: Lease,
    /// What Vault calls the role that logged in, when it says.
    pub(super) role: Option<String>,
}

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
    meta: Option<Meta>,
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
    metadata: Option<Meta>,
}

/// What a method says of who logged in; each has its own words for it.
#[derive(Deserialize)]
struct Meta {
    role_name: Option<serde_json::Value>,
}

/// `GET auth/token/lookup-self`.
pub(super) fn lookup_request(link: &Link) -> Arc<Operation> {
    let path = "/v1/auth/token/lookup-self".to_owned();
    Arc::new(Operation {
        needs_active: false,
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
        needs_active: false,
        verb: Verb::RenewSelf,
        method: Method::POST,
        path: "/v1/auth/token/renew-self".to_owned(),
        namespace: link.namespace().cloned(),
        body: Some(Zeroizing::new(body.into_bytes())),
    })
}

/// `POST auth/token/revoke-self`.
pub(super) fn revoke_request(link: &Link) -> Arc<Operation> {
    Arc::new(Operation {
        needs_active: false,
        verb: Verb::RevokeSelf,
        method: Method::POST,
        path: "/v1/auth/token/revoke-self".to_owned(),
        namespace: link.namespace().cloned(),
        body: None,
    })
}

/// Reads the answer to a lookup, and what it calls the role that logged in.
pub(super) fn of_lookup(body: &[u8]) -> Option<(Lease, Option<String>)> {
    let LookupData { ttl, creation_ttl, renewable, num_uses, expire_time, meta } =
        serde_json::from_slice::<LookupBody>(body).ok()?.data;
    let is_unlimited = ttl == 0 && expire_time.is_none();
    let lease = Lease {
        ttl: (!is_unlimited).then(|| seconds(ttl)),
        granted: seconds(creation_ttl.max(ttl)),
        renewable,
        uses: num_uses,
    };
    Some((lease, meta.and_then(Meta::role)))
}

/// Reads the answer to a login or a renewal.
pub(super) fn of_login(body: &[u8]) -> Option<Grant> {
    let AuthData { client_token, lease_duration, renewable, num_uses, metadata } =
        serde_json::from_slice::<AuthBody>(body).ok()?.auth;
    let ttl = seconds(lease_duration);
    let lease =
        Lease { ttl: (!ttl.is_zero()).then_some(ttl), granted: ttl, renewable, uses: num_uses };
    let is_sendable =
        !client_token.is_empty() && client_token.bytes().all(|b| b.is_ascii_graphic());
    let role = metadata.and_then(Meta::role);
    is_sendable.then(|| Grant { token: SecretString::from(client_token), lease, role })
}

// === impl Meta ===

impl Meta {
    fn role(self) -> Option<String> {
        Some(self.role_name?.as_str()?.to_owned())
    }
}

fn seconds(ttl: u64) -> Duration {
    Duration::from_secs(ttl.min(LONGEST_TTL))
}
