//! A FAKE of the one endpoint of a kube-apiserver that Vault's Kubernetes method asks:
//! TokenReview. What it knows of tokens is scripted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::{Value, json};

use crate::Result;
use crate::http_server::{Hangup, HttpServer};

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// An apiserver that reviews tokens and does nothing else. It is a fake, and named so.
#[derive(Debug)]
pub struct FakeTokenReview {
    server: HttpServer,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// The service account (`namespace:name`) of each good token.
    good: BTreeMap<String, String>,
    reviews: usize,
}

// === impl FakeTokenReview ===

impl FakeTokenReview {
    /// Starts one, in plain HTTP on loopback, that takes no token yet.
    pub async fn start() -> Result<Self> {
        let state = Arc::new(Mutex::new(State::default()));
        let seen = Arc::clone(&state);
        let server = HttpServer::start(None, move |request| {
            std::future::ready(review(&mut lock(&seen), &request))
        })
        .await?;
        Ok(Self { server, state })
    }

    /// What Vault is told as `kubernetes_host`.
    pub fn address(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// From now on `token` is that of the service account `name` in `namespace`.
    pub fn accept(&self, token: &str, namespace: &str, name: &str) {
        lock(&self.state).good.insert(token.to_owned(), format!("{namespace}:{name}"));
    }

    /// From now on no token is good.
    pub fn forget_all(&self) {
        lock(&self.state).good.clear();
    }

    /// How many reviews were asked for.
    pub fn reviews(&self) -> usize {
        lock(&self.state).reviews
    }
}

fn review(state: &mut State, request: &Request<Bytes>) -> Result<Response<Full<Bytes>>, Hangup> {
    let answer = |status: u16, body: &Value| {
        Response::builder()
            .status(status)
            .header("Content-Type", "application/json")
            .body(Full::new(body.to_string().into()))
            .map_err(|_| Hangup)
    };
    if request.uri().path() != PATH {
        return answer(404, &json!({ "kind": "Status", "status": "Failure", "code": 404 }));
    }
    state.reviews += 1;
    let mut review: Value = serde_json::from_slice(request.body()).unwrap_or_default();
    let account = review["spec"]["token"].as_str().and_then(|token| state.good.get(token));
    review["status"] = match account {
        Some(account) => json!({
            "authenticated": true,
            // As an apiserver does for a token that is good for them all.
            "audiences": review["spec"]["audiences"],
            "user": {
                "username": format!("system:serviceaccount:{account}"),
                "uid": "00000000-0000-0000-0000-000000000001",
                "groups": ["system:serviceaccounts", "system:authenticated"],
            },
        }),
        None => json!({ "authenticated": false, "error": "invalid bearer token" }),
    };
    answer(201, &review)
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
