//! Catches a call's panic, counts it, and answers INTERNAL.

use std::any::Any;

use tonic::Status;
use tonic::body::Body;
use tower_http::catch_panic::{CatchPanicLayer, ResponseForPanic};

use crate::kms::failure::CallFailure;
use crate::telemetry::metrics::{self, Metric};

/// The layer that catches panics.
pub type GuardLayer = CatchPanicLayer<CountAndAnswer>;

/// Counts a panic and makes its answer.
#[derive(Clone, Copy, Debug)]
pub struct CountAndAnswer;

/// Builds the layer.
pub fn guard() -> GuardLayer {
    CatchPanicLayer::custom(CountAndAnswer)
}

// === impl CountAndAnswer ===

impl ResponseForPanic for CountAndAnswer {
    type ResponseBody = Body;

    fn response_for_panic(&mut self, _: Box<dyn Any + Send + 'static>) -> http::Response<Body> {
        // The panic hook has already logged message and place.
        metrics::add(Metric::Panics, 1, &[]);
        tracing::error!("A call panicked; it was answered with INTERNAL. Please report this bug.");
        Status::from(CallFailure::Panicked).into_http()
    }
}

#[cfg(test)]
mod tests {
    use tower::{Layer, ServiceExt};

    use super::*;

    #[tokio::test]
    async fn a_panic_is_answered_with_internal() {
        let service = tower::service_fn(|_: http::Request<Body>| async {
            assert_eq!(1, 2, "a bug");
            Ok::<_, std::convert::Infallible>(http::Response::new(Body::empty()))
        });
        let answer =
            guard().layer(service).oneshot(http::Request::new(Body::empty())).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "13");
    }
}
