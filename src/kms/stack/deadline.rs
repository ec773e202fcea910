//! Finds a call's deadline and sees that the call ends by it.
//!
//! Two moments matter. The call's own [`Deadline`], which everything below is given, lies
//! `MARGIN` before the caller's, so that what is known of each address can still be told.
//! The guard lies half that margin before the caller's, and only catches a call that does
//! not keep its deadline.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use pin_project_lite::pin_project;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::clock::{Deadline, Lane};
use crate::kms::failure::CallFailure;

/// The deadline of a kube-apiserver that was not told another.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(3);

/// How long before the caller's deadline ours lies. tonic's own timer answers CANCELLED at
/// the caller's deadline, which tells nobody anything.
const MARGIN: Duration = Duration::from_millis(50);

/// The longest that a call may run, whatever its caller allows: `grpc-timeout` can say
/// 11,000 years, and a call holds one of the places that [`super::limit`] counts.
const LONGEST: Duration = Duration::from_secs(60);

/// Gives each call its [`Deadline`].
#[derive(Clone, Copy, Debug)]
pub struct DeadlineLayer {
    default: Duration,
}

/// See [`DeadlineLayer`].
#[derive(Clone, Debug)]
pub struct WithDeadline<S> {
    default: Duration,
    inner: S,
}

pin_project! {
    /// A call that ends by its deadline.
    #[derive(Debug)]
    pub struct DeadlineFuture<F> {
        #[pin]
        call: F,
        #[pin]
        guard: tokio::time::Sleep,
    }
}

/// Reads `grpc-timeout`: one to eight digits and a unit.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3_600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

/// The lane of a gRPC method, such as `/v1beta1.KeyManagementService/Encrypt`.
fn lane_of(path: &str) -> Lane {
    if path.starts_with("/v1beta1.") { Lane::Objects } else { Lane::Keys }
}

// === impl DeadlineLayer ===

impl DeadlineLayer {
    /// `default` is for calls that bring no `grpc-timeout`.
    pub const fn new(default: Duration) -> Self {
        Self { default }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = WithDeadline<S>;

    fn layer(&self, inner: S) -> Self::Service {
        WithDeadline { default: self.default, inner }
    }
}

// === impl WithDeadline ===

impl<S> Service<Request<Body>> for WithDeadline<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = DeadlineFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let given = grpc_timeout(request.headers()).unwrap_or(self.default).min(LONGEST);
        // A caller that gives less than twice the margin gets half of what it gave.
        let margin = MARGIN.min(given / 2);
        let deadline = Deadline::after(given - margin).in_lane(lane_of(request.uri().path()));
        request.extensions_mut().insert(deadline);
        let guard = tokio::time::sleep(given - margin / 2);
        DeadlineFuture { call: self.inner.call(request), guard }
    }
}

// === impl DeadlineFuture ===

impl<F, E> Future for DeadlineFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(answer) = this.call.poll(cx) {
            return Poll::Ready(answer);
        }
        this.guard.poll(cx).map(|()| Ok(Status::from(CallFailure::Deadline).into_http()))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::ServiceExt;

    use super::*;

    fn timeout(text: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", text.parse().unwrap());
        grpc_timeout(&headers)
    }

    #[test]
    fn every_unit_of_grpc_timeout_is_read() {
        assert_eq!(timeout("1H"), Some(Duration::from_secs(3_600)));
        assert_eq!(timeout("2M"), Some(Duration::from_secs(120)));
        assert_eq!(timeout("3S"), Some(Duration::from_secs(3)));
        assert_eq!(timeout("4m"), Some(Duration::from_millis(4)));
        assert_eq!(timeout("2999876u"), Some(Duration::from_micros(2_999_876)));
        assert_eq!(timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in ["", "S", "1", "1s", "-1S", "123456789S", "1.5S", "+1S"] {
            assert_eq!(timeout(bad), None, "{bad}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_never_ends_is_answered_before_its_callers_deadline() {
        let service = tower::service_fn(|request: Request<Body>| async move {
            let deadline = *request.extensions().get::<Deadline>().unwrap();
            assert_eq!(deadline.remaining(), Duration::from_millis(950));
            std::future::pending::<Result<Response<Body>, Infallible>>().await
        });
        let mut request = Request::new(Body::empty());
        request.headers_mut().insert("grpc-timeout", "1S".parse().unwrap());
        let start = tokio::time::Instant::now();
        let service = DeadlineLayer::new(DEFAULT_DEADLINE).layer(service);
        let answer = service.oneshot(request).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "4");
        assert_eq!(start.elapsed(), Duration::from_millis(975));
    }

    #[tokio::test(start_paused = true)]
    async fn each_kms_version_has_its_lane() {
        for (path, lane) in [
            ("/v1beta1.KeyManagementService/Decrypt", Lane::Objects),
            ("/v2.KeyManagementService/Decrypt", Lane::Keys),
        ] {
            let service = tower::service_fn(|request: Request<Body>| async move {
                let lane = request.extensions().get::<Deadline>().unwrap().lane();
                let mut answer = Response::new(Body::empty());
                answer.extensions_mut().insert(lane);
                Ok::<_, Infallible>(answer)
            });
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = path.parse().unwrap();
            let service = DeadlineLayer::new(DEFAULT_DEADLINE).layer(service);
            let answer = service.oneshot(request).await.unwrap();
            assert_eq!(answer.extensions().get(), Some(&lane), "{path}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_call_runs_for_longer_than_a_minute() {
        let service = tower::service_fn(|_: Request<Body>| {
            std::future::pending::<Result<Response<Body>, Infallible>>()
        });
        let mut request = Request::new(Body::empty());
        request.headers_mut().insert("grpc-timeout", "99999999H".parse().unwrap());
        let start = tokio::time::Instant::now();
        let service = DeadlineLayer::new(DEFAULT_DEADLINE).layer(service);
        let answer = service.oneshot(request).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "4");
        assert_eq!(start.elapsed(), LONGEST - MARGIN / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_without_a_timeout_has_the_default() {
        let service = tower::service_fn(|request: Request<Body>| async move {
            let deadline = *request.extensions().get::<Deadline>().unwrap();
            assert_eq!(deadline.remaining(), Duration::from_millis(2_950));
            Ok::<_, Infallible>(Response::new(Body::empty()))
        });
        let service = DeadlineLayer::new(DEFAULT_DEADLINE).layer(service);
        service.oneshot(Request::new(Body::empty())).await.unwrap();
    }
}
