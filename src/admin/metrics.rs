//! `/metrics`.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::{AdminState, TEXT};
use crate::telemetry::PrometheusText;

/// Every metric as it stands now.
pub(super) async fn metrics(State(state): State<AdminState>) -> Response {
    match state.prometheus.render() {
        Ok(text) => ([(header::CONTENT_TYPE, PrometheusText::CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "The metrics cannot be written.");
            (StatusCode::INTERNAL_SERVER_ERROR, TEXT, "The metrics cannot be written.\n")
                .into_response()
        }
    }
}
