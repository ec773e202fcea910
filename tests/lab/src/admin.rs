//! The API of a Vault or OpenBao, for the one who sets things up.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::tls::Authority;
use crate::{Context, Error, Result, fail};

mod verbs;

pub use self::verbs::{AppRole, KeyInfo, policy_for, policy_for_mount};

// Longer than an election with the default raft multiplier (19 s).
const PATIENCE: Duration = Duration::from_secs(40);
const ONE_TRY: Duration = Duration::from_secs(10);

/// An API client with a token. It asks the active node, and waits out an election.
///
/// Cheap to clone; [`Admin::with_token`], [`Admin::in_namespace`], [`Admin::at`] and
/// [`Admin::transit`] make changed ones.
#[derive(Clone)]
pub struct Admin {
    http: reqwest::Client,
    addresses: Arc<[String]>,
    token: String,
    namespace: Option<String>,
    wrap_ttl: Option<String>,
    mount: String,
}

/// One answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// The headers.
    pub headers: http::HeaderMap,
    /// The body; `Null` when it is empty or no JSON.
    pub body: Value,
}

// === impl Admin ===

impl Admin {
    pub(crate) fn new(addresses: &[String], authority: &Authority, token: &str) -> Result<Self> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(authority.client_config()?)
            .redirect(reqwest::redirect::Policy::none())
            // Tests share clusters, but each has its own runtime, and a pooled connection
            // dies with the runtime that made it.
            .pool_max_idle_per_host(0)
            .timeout(ONE_TRY)
            .no_proxy()
            .build()?;
        Ok(Self {
            http,
            addresses: addresses.into(),
            token: token.to_owned(),
            namespace: None,
            wrap_ttl: None,
            mount: "transit".to_owned(),
        })
    }

    /// The same with another token; an empty one sends none.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: token.to_owned(), ..self.clone() }
    }

    /// The same in a namespace.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Self {
        Self { namespace: Some(namespace.to_owned()), ..self.clone() }
    }

    /// The same, whose answers come wrapped.
    fn wrapped(&self, ttl: &str) -> Self {
        Self { wrap_ttl: Some(ttl.to_owned()), ..self.clone() }
    }

    /// The same, but asking this address alone.
    #[must_use]
    pub fn at(&self, address: &str) -> Self {
        Self { addresses: [address.to_owned()].into(), ..self.clone() }
    }

    /// The same with another mount for the Transit verbs (default: `transit`).
    #[must_use]
    pub fn transit(&self, mount: &str) -> Self {
        Self { mount: mount.to_owned(), ..self.clone() }
    }

    /// The token that it sends.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Where the Transit verbs find their keys.
    pub fn mount(&self) -> &str {
        &self.mount
    }

    /// The address of the active node, if one says that it is.
    pub async fn active(&self) -> Option<&str> {
        for address in self.addresses.iter() {
            let health = self.http.get(format!("{address}/v1/sys/health"));
            match health.timeout(Duration::from_secs(1)).send().await {
                Ok(reply) if reply.status() == 200 => return Some(address),
                _ => {}
            }
        }
        None
    }

    /// Sends one request and answers whatever came back; waits out an election.
    ///
    /// `path` is what follows `/v1/`; a `Null` body sends none. An `Err` means that no
    /// node answered.
    pub async fn request(&self, method: &str, path: &str, body: &Value) -> Result<Reply> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let address = match self.active().await {
                Some(active) => active,
                None => &self.addresses[0],
            };
            let sole = self.addresses.len() == 1;
            let why = match self.send(address, method, path, body).await {
                Ok(reply) if sole || !reply.is_passing() => return Ok(reply),
                Ok(reply) => reply.to_string(),
                Err(error) if sole => return Err(error),
                Err(error) => error.to_string(),
            };
            if Instant::now() >= deadline {
                fail!("{method} {path}: no active node within {PATIENCE:?}; the last: {why}");
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// As [`Admin::request`], but anything else than 2xx is an error that quotes it.
    pub async fn call(&self, method: &str, path: &str, body: Value) -> Result<Value> {
        let reply = self.request(method, path, &body).await?;
        if !(200..300).contains(&reply.status) {
            fail!("{method} {path}: {reply}");
        }
        Ok(reply.body)
    }

    /// Reads a path.
    pub async fn read(&self, path: &str) -> Result<Value> {
        self.call("GET", path, Value::Null).await
    }

    /// Writes to a path.
    pub async fn write(&self, path: &str, body: Value) -> Result<Value> {
        self.call("POST", path, body).await
    }

    async fn send(&self, address: &str, method: &str, path: &str, body: &Value) -> Result<Reply> {
        let url = format!("{address}/v1/{path}");
        let method = Method::from_bytes(method.as_bytes())?;
        let mut request = self.http.request(method, &url).header("X-Vault-Request", "true");
        if !self.token.is_empty() {
            request = request.header("X-Vault-Token", &self.token);
        }
        if let Some(namespace) = &self.namespace {
            request = request.header("X-Vault-Namespace", namespace);
        }
        if let Some(ttl) = &self.wrap_ttl {
            request = request.header("X-Vault-Wrap-TTL", ttl);
        }
        if !body.is_null() {
            request = request.json(body);
        }
        let reply = request.send().await.context(&url)?;
        let (status, headers) = (reply.status().as_u16(), reply.headers().clone());
        let bytes = reply.bytes().await.context(&url)?;
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Ok(Reply { status, headers, body })
    }
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin")
            .field("addresses", &self.addresses)
            .field("namespace", &self.namespace)
            .field("mount", &self.mount)
            .finish_non_exhaustive()
    }
}

// === impl Reply ===

impl Reply {
    /// The texts under `errors`.
    pub fn errors(&self) -> String {
        let list = self.body["errors"].as_array();
        let texts = list.into_iter().flatten().filter_map(Value::as_str);
        texts.collect::<Vec<_>>().join("; ")
    }

    /// Whether an election explains it.
    fn is_passing(&self) -> bool {
        let errors = self.errors();
        match self.status {
            307 | 502..=504 => true,
            429 => errors.is_empty(),
            500 => ["active", "leadership", "raft", "standby"].iter().any(|w| errors.contains(w)),
            _ => false,
        }
    }
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.status, self.errors())
    }
}

fn text(value: &Value, what: &str) -> Result<String> {
    value.as_str().map(str::to_owned).ok_or_else(|| Error::new(format!("no {what} in {value}")))
}
