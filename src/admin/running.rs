//! `/configz`: what runs, for whoever wants to know what a reload would change.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::{AdminState, TEXT};
use crate::config::load::Flags;
use crate::config::outline::Outline;

/// The configuration that runs, without secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Running {
    /// The program's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// The file that its configuration comes from.
    pub file: Option<String>,
    /// The flags that go over it.
    pub flags: Flags,
    /// The generation in force; `None` until the first is built.
    pub generation: Option<u64>,
    /// What is in force.
    pub configuration: Option<Outline>,
    /// What the process started with, which holds for what only a restart changes.
    pub started_with: Outline,
    /// Why the last accepted configuration runs and not the file; `None` when the file does.
    #[serde(default)]
    pub fallback: Option<String>,
    /// How the last reload ended; `None` when there was none.
    pub last_reload: Option<LastReload>,
}

/// How a reload ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastReload {
    /// When, in seconds since 1970 by this machine's clock.
    pub time: i64,
    /// Why the running configuration stayed; `None` when the new one took over.
    pub refused: Option<String>,
}

/// What runs, as JSON.
pub(super) async fn running(State(state): State<AdminState>) -> Response {
    match serde_json::to_vec_pretty(&state.readiness.running()) {
        Ok(mut json) => {
            json.push(b'\n');
            let headers =
                [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
            (headers, json).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "The running configuration cannot be shown.");
            (StatusCode::INTERNAL_SERVER_ERROR, TEXT, "It cannot be shown; see the log.\n")
                .into_response()
        }
    }
}
