//! `/livez` and `/readyz`.

use std::borrow::Cow;
use std::fmt;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;

use super::running::Running;
use super::{AdminState, TEXT};

/// Knows what works and what runs. Asked at each request, so it answers from memory.
pub trait Readiness: fmt::Debug + Send + Sync + 'static {
    /// What was looked at, in an order that stays.
    fn checks(&self) -> Vec<Check>;

    /// The configuration that runs.
    fn running(&self) -> Running;
}

/// One thing that works or does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What it is, in a word, such as `socket` or `kek/kube`.
    pub name: Cow<'static, str>,
    /// Whether it works.
    pub ok: bool,
    /// Why not, or what an operator may want to know; no secret, one line.
    pub detail: String,
}

/// The process runs and its async threads answer: nothing else is asked, so that no
/// outage of Vault ever restarts the daemon.
pub(super) async fn live() -> impl IntoResponse {
    (TEXT, "ok\n")
}

/// 200 when every check is well, else 503; each check on a line of its own.
pub(super) async fn ready(State(state): State<AdminState>) -> impl IntoResponse {
    let checks = state.readiness.checks();
    let status = if checks.iter().all(|check| check.ok) {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let lines: String = checks.iter().map(|check| format!("{check}\n")).collect();
    (status, TEXT, lines)
}

// === impl Check ===

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, ok, detail } = self;
        write!(f, "[{}] {name}", if *ok { '+' } else { '-' })?;
        if !detail.is_empty() {
            f.write_str(": ")?;
        }
        // A detail may quote an answer of Vault; a line stays a line.
        detail
            .chars()
            .try_for_each(|c| if c.is_control() { f.write_str(" ") } else { write!(f, "{c}") })
    }
}
