//! A transport for unit tests: one address, whose answers a closure gives and whose
//! meaning the real verdicts tell.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{HeaderMap, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use super::operation::AddressIndex;
use super::operation::AddressName;
use super::{
    Answer, AttemptError, Call, CallError, CallErrorKind, Classify as _, Cluster, Fault, Operation,
    Transport, Verb, Verdict,
};
use crate::clock::{Deadline, Jitter};
use crate::config::settings::{
    AppRoleSettings, AuthSettings, ClusterName, ClusterSettings, SecretId, SecretSource,
    TlsSettings,
};
use crate::transit::TransitVerdicts;

/// What a request looked like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) verb: Verb,
    pub(crate) method: http::Method,
    pub(crate) path: String,
    pub(crate) namespace: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) body: String,
    pub(crate) needs_active: bool,
}

/// What the closure says.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Http(u16, String),
    Dated(u16, String, &'static str),
    Unreachable,
    /// No answer, not even at the deadline.
    Never,
}

type Script = dyn Fn(&Seen) -> Reply + Send + Sync;

/// One address by script. An answer takes 1 ms.
pub(crate) struct Scripted {
    script: Box<Script>,
    seen: Mutex<Vec<Seen>>,
}

/// An id in the form that Vault gives it.
pub(crate) const ROLE_ID: &str = "6a174c20-f6de-a53c-74d2-6018fcceff64";

/// An id in the form that Vault gives it.
pub(crate) const SECRET_ID: &str = "0d1f2e3a-aaaa-bbbb-cccc-1234567890ab";

/// A bare refusal, as for a token that is dead.
pub(crate) const BARE_403: &str = r#"{"errors":["permission denied"]}"#;

/// A policy's refusal.
pub(crate) const POLICY_403: &str =
    r#"{"errors":["1 error occurred:\n\t* permission denied\n\n"]}"#;

/// A Vault that knows which tokens live. Logins make `t1`, `t2`, and so on.
#[derive(Default)]
pub(crate) struct Vault {
    pub(crate) live: Mutex<HashSet<String>>,
    logins: AtomicU64,
    pub(crate) down: AtomicBool,
    /// Logins are refused: the secret id is not valid any more.
    pub(crate) rejects: AtomicBool,
    /// Logins that the secret id is still good for; 0 for any number.
    pub(crate) uses: AtomicU64,
}

/// The token of [`rooted`].
pub(crate) const ROOT: &str = "hvs.CAESIJroot4kube";

/// The deadline of an apiserver's call.
pub(crate) fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(3))
}

/// A reply with HTTP status 200.
pub(crate) fn ok(body: impl Into<String>) -> Reply {
    Reply::Http(200, body.into())
}

/// A reply to `auth/token/lookup-self`.
pub(crate) fn lookup(ttl: u64, renewable: bool) -> Reply {
    let expires = if ttl == 0 { "null" } else { "\"2030-01-01T00:00:00Z\"" };
    ok(format!(
        r#"{{"data":{{"ttl":{ttl},"creation_ttl":{ttl},"renewable":{renewable},"num_uses":0,
            "expire_time":{expires},"id":"x","policies":["kms"],"meta":{{"role_name":"kms"}}}}}}"#
    ))
}

/// A reply to a login or a renewal.
pub(crate) fn login(token: &str, ttl: u64, renewable: bool) -> Reply {
    ok(format!(
        r#"{{"auth":{{"client_token":"{token}","lease_duration":{ttl},"renewable":{renewable},
            "num_uses":0,"policies":["kms"],"metadata":{{"role_name":"kms"}}}},"data":null}}"#
    ))
}

/// An answer from nowhere.
pub(crate) fn answer(status: u16, body: &str) -> Answer {
    Answer {
        status: StatusCode::from_u16(status).unwrap(),
        headers: HeaderMap::new(),
        body: Zeroizing::new(body.as_bytes().to_vec()),
        address: address(),
    }
}

/// Settings of a cluster called `bao` in namespace `ops`.
pub(crate) fn settings(auth: AuthSettings) -> Arc<ClusterSettings> {
    Arc::new(ClusterSettings {
        name: ClusterName::try_new("bao").unwrap(),
        addresses: vec![http::Uri::from_static("https://b0:8200")],
        dns_servers: Vec::new(),
        namespace: Some("ops".to_owned()),
        auth_namespace: Some("ops".to_owned()),
        tls: TlsSettings::default(),
        auth,
        allow_plaintext: false,
        token_cache: None,
    })
}

/// A cluster with a root token and this script for everything but the lookup.
pub(crate) fn rooted(
    script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
) -> (Arc<Cluster>, Arc<Scripted>) {
    let token = AuthSettings::Token(SecretString::from(ROOT));
    cluster(token, move |seen| match seen.verb {
        Verb::LookupSelf => lookup(0, false),
        _ => script(seen),
    })
}

/// A cluster over `script`, without jitter.
pub(crate) fn cluster(
    auth: AuthSettings,
    script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
) -> (Arc<Cluster>, Arc<Scripted>) {
    cluster_of(settings(auth), script)
}

/// The same with other settings.
pub(crate) fn cluster_of(
    settings: Arc<ClusterSettings>,
    script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
) -> (Arc<Cluster>, Arc<Scripted>) {
    let scripted = Arc::new(Scripted { script: Box::new(script), seen: Mutex::default() });
    let transport = Arc::clone(&scripted) as Arc<dyn Transport>;
    (Cluster::new(settings, transport, Arc::new(Jitter::off())), scripted)
}

/// AppRole with both ids.
pub(crate) fn app_role() -> AuthSettings {
    AuthSettings::AppRole(AppRoleSettings {
        mount: "approle".to_owned(),
        role_id: SecretSource::Inline(ROLE_ID.into()),
        secret_id: SecretId::Given(SecretSource::Inline(SECRET_ID.into())),
    })
}

/// A configured token.
pub(crate) fn static_token(token: &str) -> AuthSettings {
    AuthSettings::Token(token.into())
}

/// A cluster that logs in with AppRole at a Vault whose tokens live for `ttl` seconds.
pub(crate) fn logged_in(ttl: u64, renewable: bool) -> (Arc<Cluster>, Arc<Scripted>, Arc<Vault>) {
    let vault = Arc::new(Vault::default());
    let answering = Arc::clone(&vault);
    let (cluster, scripted) =
        cluster(app_role(), move |seen| answering.answer(seen, ttl, renewable));
    (cluster, scripted, vault)
}

/// Any call that needs a token.
pub(crate) fn decrypt() -> Operation {
    Operation {
        needs_active: false,
        verb: Verb::Decrypt,
        method: http::Method::POST,
        path: "/v1/transit/decrypt/kube".to_owned(),
        namespace: None,
        body: None,
    }
}

/// Until shortly after `seconds` from now.
pub(crate) async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds) + Duration::from_millis(50)).await;
}

fn address() -> AddressName {
    AddressName::of(&http::Uri::from_static("https://b0:8200"))
}

// === impl Vault ===

impl Vault {
    /// No token lives any more.
    pub(crate) fn revoke_all(&self) {
        self.live.lock().unwrap().clear();
    }

    /// Answers with leases of `ttl` seconds.
    pub(crate) fn answer(&self, seen: &Seen, ttl: u64, renewable: bool) -> Reply {
        if self.down.load(Ordering::Relaxed) {
            return Reply::Unreachable;
        }
        if seen.verb == Verb::Login && self.rejects.load(Ordering::Relaxed) {
            return Reply::Http(400, r#"{"errors":["invalid role or secret ID"]}"#.to_owned());
        }
        if seen.verb == Verb::Login {
            let token = format!("t{}", self.logins.fetch_add(1, Ordering::Relaxed) + 1);
            self.live.lock().unwrap().insert(token.clone());
            return login(&token, ttl, renewable);
        }
        let token = seen.token.clone().expect("everything but a login has a token");
        if !self.live.lock().unwrap().contains(&token) {
            return Reply::Http(403, BARE_403.to_owned());
        }
        match seen.verb {
            Verb::LookupSelf => lookup(ttl, renewable),
            Verb::RenewSelf => login(&token, ttl, renewable),
            Verb::RevokeSelf => {
                self.live.lock().unwrap().remove(&token);
                Reply::Http(204, String::new())
            }
            Verb::Read => {
                assert_eq!(seen.path, "/v1/auth/approle/role/kms/secret-id/lookup");
                let uses = self.uses.load(Ordering::Relaxed);
                ok(format!(r#"{{"data":{{"secret_id_num_uses":{uses}}}}}"#))
            }
            _ => ok(r#"{"data":{}}"#),
        }
    }
}

// === impl Scripted ===

impl Scripted {
    /// Every request so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests of this kind there were.
    pub(crate) fn count(&self, verb: Verb) -> usize {
        self.seen.lock().unwrap().iter().filter(|seen| seen.verb == verb).count()
    }

    fn judge(call: &Call, reply: Reply) -> Result<Answer, CallError> {
        let fail = |kind, fault: Option<Fault>| CallError {
            cluster: ClusterName::try_new("bao").unwrap(),
            kind,
            attempts: fault
                .map(|fault| AttemptError { address: address(), index: AddressIndex(0), fault })
                .into_iter()
                .collect(),
        };
        let (status, body, date) = match reply {
            Reply::Http(status, body) => (status, body, None),
            Reply::Dated(status, body, date) => (status, body, Some(date)),
            Reply::Unreachable | Reply::Never => {
                let fault = Fault::Connection("connection refused".to_owned());
                return Err(fail(CallErrorKind::Exhausted, Some(fault)));
            }
        };
        let mut answer = answer(status, &body);
        if let Some(date) = date {
            answer.headers.insert(http::header::DATE, http::HeaderValue::from_static(date));
        }
        match TransitVerdicts.classify(&call.operation, &answer) {
            Verdict::Final => Ok(answer),
            Verdict::TokenRefused => {
                Err(fail(CallErrorKind::TokenRefused, Some(Fault::TokenRefused)))
            }
            Verdict::Stale(_) => Err(fail(CallErrorKind::Agreed(Box::new(answer)), None)),
            Verdict::Elsewhere(verdict) => {
                Err(fail(CallErrorKind::Exhausted, Some(Fault::Elsewhere { status, verdict })))
            }
        }
    }
}

impl Transport for Scripted {
    fn call(&self, call: Call) -> BoxFuture<'_, Result<Answer, CallError>> {
        let operation = &call.operation;
        let body = operation.body.as_ref().map(|b| String::from_utf8(b.to_vec()).unwrap());
        let seen = Seen {
            verb: operation.verb,
            method: operation.method.clone(),
            path: operation.path.clone(),
            namespace: operation.namespace.clone(),
            token: call.token.as_ref().map(|t| t.expose_secret().to_owned()),
            body: body.unwrap_or_default(),
            needs_active: operation.needs_active,
        };
        self.seen.lock().unwrap().push(seen.clone());
        let reply = (self.script)(&seen);
        Box::pin(async move {
            if matches!(reply, Reply::Never) {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
            Self::judge(&call, reply)
        })
    }
}
