//! Bounds how many Encrypt and Decrypt calls run at once. Further calls wait in line until
//! their deadline, because kube-apiserver never retries and most storms pass; only a line
//! that is itself full turns a call away at once. What is answered from memory passes by.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use http::{Request, Response};
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::{deadline_of, is_answered_from_memory};
use crate::clock::Deadline;
use crate::kms::failure::CallFailure;

/// How many calls may wait for each that runs. With the default of 1,024 at once that is
/// more than the streams that one kube-apiserver may open.
const WAITING_PER_RUNNING: usize = 8;

/// Bounds concurrent calls.
#[derive(Clone, Debug)]
pub struct LimitLayer {
    line: Arc<Line>,
}

/// See [`LimitLayer`].
#[derive(Clone, Debug)]
pub struct Limited<S> {
    line: Arc<Line>,
    inner: S,
}

#[derive(Debug)]
struct Line {
    running: Semaphore,
    at_once: usize,
    waiting: AtomicUsize,
}

/// A place in the line; given back when the call runs, fails or is dropped.
struct Place<'a>(&'a Line);

// === impl LimitLayer ===

impl LimitLayer {
    /// At most `at_once` calls run at a time; at least one.
    pub fn new(at_once: usize) -> Self {
        let at_once = at_once.clamp(1, Semaphore::MAX_PERMITS);
        let running = Semaphore::new(at_once);
        Self { line: Arc::new(Line { running, at_once, waiting: AtomicUsize::new(0) }) }
    }
}

impl<S> Layer<S> for LimitLayer {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Limited { line: Arc::clone(&self.line), inner }
    }
}

// === impl Limited ===

impl<S> Service<Request<Body>> for Limited<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The clone takes the place of the service that was polled ready.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let line = Arc::clone(&self.line);
        Box::pin(async move {
            if is_answered_from_memory(request.uri().path()) {
                return inner.call(request).await;
            }
            match line.admit(deadline_of(request.extensions())).await {
                Ok(_running) => inner.call(request).await,
                Err(failure) => Ok(Status::from(failure).into_http()),
            }
        })
    }
}

// === impl Line ===

impl Line {
    async fn admit(&self, deadline: Deadline) -> Result<SemaphorePermit<'_>, CallFailure> {
        if let Ok(permit) = self.running.try_acquire() {
            return Ok(permit);
        }
        let _place = self.wait_in_line()?;
        match tokio::time::timeout_at(deadline.instant(), self.running.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            // The semaphore is never closed; a closed one would mean the same for the caller.
            Ok(Err(_)) | Err(_) => Err(CallFailure::Overloaded(format!(
                "waited until the deadline behind {} running calls",
                self.at_once
            ))),
        }
    }

    fn wait_in_line(&self) -> Result<Place<'_>, CallFailure> {
        let bound = self.at_once.saturating_mul(WAITING_PER_RUNNING);
        let place = Place(self);
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= bound {
            return Err(CallFailure::Overloaded(format!("{bound} calls wait in line already")));
        }
        Ok(place)
    }
}

// === impl Place ===

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::time::Duration;

    use tower::ServiceExt;

    use super::*;

    /// Calls that each take one second.
    fn slow(
        at_once: usize,
    ) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send> + Clone
    {
        LimitLayer::new(at_once).layer(tower::service_fn(|_: Request<Body>| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, Infallible>(Response::new(Body::empty()))
        }))
    }

    fn call(path: &str, patience: Duration) -> Request<Body> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = path.parse().unwrap();
        request.extensions_mut().insert(Deadline::after(patience));
        request
    }

    fn code(answer: &Response<Body>) -> Option<&str> {
        answer.headers().get("grpc-status").map(|v| v.to_str().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_waits_in_line_and_runs_when_there_is_room() {
        let service = slow(1);
        let encrypt = || call("/v2.KeyManagementService/Encrypt", Duration::from_millis(2_500));
        let (a, b) = tokio::join!(service.clone().oneshot(encrypt()), service.oneshot(encrypt()));
        assert_eq!((code(&a.unwrap()), code(&b.unwrap())), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_waited_until_its_deadline_is_resource_exhausted() {
        let service = slow(1);
        let encrypt = || call("/v2.KeyManagementService/Encrypt", Duration::from_millis(500));
        let (a, b) = tokio::join!(service.clone().oneshot(encrypt()), service.oneshot(encrypt()));
        assert_eq!((code(&a.unwrap()), code(&b.unwrap())), (None, Some("8")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_line_turns_away_at_once_and_status_passes_it() {
        let service = slow(1);
        let encrypt = || call("/v1beta1.KeyManagementService/Encrypt", Duration::from_secs(60));
        let line: Vec<_> = (0..=WAITING_PER_RUNNING)
            .map(|_| tokio::spawn(service.clone().oneshot(encrypt())))
            .collect();
        tokio::task::yield_now().await;
        let turned_away = service.clone().oneshot(encrypt()).await.unwrap();
        assert_eq!(code(&turned_away), Some("8"));
        let status = call("/v2.KeyManagementService/Status", Duration::from_secs(1));
        assert_eq!(code(&service.oneshot(status).await.unwrap()), None);
        for waiting in line {
            assert_eq!(code(&waiting.await.unwrap().unwrap()), None);
        }
    }
}
