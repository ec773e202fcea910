//! What an answer says about the address that gave it.
//!
//! The layer knows no body: it asks the injected [`Classify`] and turns its verdict into
//! what the layers above act on. Only a final answer passes as a success.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tower::{Layer, Service};

use super::error::{AttemptError, Fault, Word};
use super::operation::{AddressIndex, Answer, Attempt, Classify, Verdict};

/// Makes [`Judge`]s for one address.
#[derive(Clone)]
pub struct JudgeLayer {
    judge: Arc<dyn Classify>,
    index: AddressIndex,
}

/// Lets final answers through and turns the others into faults.
#[derive(Clone)]
pub struct Judge<S> {
    inner: S,
    judge: Arc<dyn Classify>,
    index: AddressIndex,
}

// === impl JudgeLayer ===

impl JudgeLayer {
    /// Answers of the address `index` go by `judge`.
    pub fn new(judge: Arc<dyn Classify>, index: AddressIndex) -> Self {
        Self { judge, index }
    }
}

impl<S> Layer<S> for JudgeLayer {
    type Service = Judge<S>;

    fn layer(&self, inner: S) -> Judge<S> {
        Judge { inner, judge: Arc::clone(&self.judge), index: self.index }
    }
}

// === impl Judge ===

impl<S> Service<Attempt> for Judge<S>
where
    S: Service<Attempt, Response = Answer, Error = AttemptError>,
    S::Future: Send + 'static,
{
    type Response = Answer;
    type Error = AttemptError;
    type Future = BoxFuture<'static, Result<Answer, AttemptError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), AttemptError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, attempt: Attempt) -> Self::Future {
        let operation = Arc::clone(&attempt.call.operation);
        let (judge, index) = (Arc::clone(&self.judge), self.index);
        let answering = self.inner.call(attempt);
        async move {
            let answer = answering.await?;
            let fault = match judge.classify(&operation, &answer) {
                Verdict::Final => return Ok(answer),
                Verdict::TokenRefused => Fault::TokenRefused,
                Verdict::Elsewhere(verdict) => {
                    Fault::Elsewhere { status: answer.status.as_u16(), verdict }
                }
                Verdict::Stale(reason) => {
                    let address = answer.address.clone();
                    let answer = Box::new(answer);
                    let fault = Fault::Stale { reason, word: Word::Anyones, answer };
                    return Err(AttemptError { address, index, fault });
                }
            };
            Err(AttemptError { address: answer.address, index, fault })
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::super::operation::Elsewhere;
    use super::super::stack::testing::{answer, attempt, sealed};
    use super::*;
    use tower::ServiceExt as _;

    struct Always(Verdict);

    impl Classify for Always {
        fn classify(&self, _: &super::super::operation::Operation, _: &Answer) -> Verdict {
            self.0.clone()
        }
    }

    async fn judged(verdict: Verdict) -> Result<Answer, AttemptError> {
        let inner = tower::service_fn(|_: Attempt| async { Ok(answer(503)) });
        let layer = JudgeLayer::new(Arc::new(Always(verdict)), AddressIndex(3));
        layer.layer(inner).oneshot(attempt()).await
    }

    #[tokio::test]
    async fn only_a_final_answer_is_a_success() {
        assert_eq!(judged(Verdict::Final).await.unwrap().status, 503);
        let refused = judged(Verdict::TokenRefused).await.unwrap_err();
        assert!(matches!(refused.fault, Fault::TokenRefused));
        let stale = judged(Verdict::Stale("too new")).await.unwrap_err();
        assert!(matches!(stale.fault, Fault::Stale { reason: "too new", .. }));
        let verdict: Elsewhere = sealed();
        let elsewhere = judged(Verdict::Elsewhere(verdict)).await.unwrap_err();
        assert_eq!(elsewhere.index, AddressIndex(3));
        assert!(matches!(elsewhere.fault, Fault::Elsewhere { status: 503, .. }));
    }
}
