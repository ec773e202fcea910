//! What an answer says about the address that gave it.
//!
//! The step knows no body: it asks the injected [`Classify`] and turns its verdict into
//! what the layers above act on. Only a final answer passes as a success.

use std::sync::Arc;

use super::error::{AttemptError, Fault, Word};
use super::operation::{AddressIndex, Attempt, Classify, Operation, Verdict};
use super::step::{Ended, Step};

/// Lets final answers of one address through and turns the others into faults.
#[derive(Clone)]
pub struct Judge {
    judge: Arc<dyn Classify>,
    index: AddressIndex,
}

// === impl Judge ===

impl Judge {
    /// Answers of the address `index` go by `judge`.
    pub fn new(judge: Arc<dyn Classify>, index: AddressIndex) -> Self {
        Self { judge, index }
    }
}

impl Step for Judge {
    type Note = Arc<Operation>;

    fn going(&self, attempt: &mut Attempt) -> Arc<Operation> {
        Arc::clone(&attempt.call.operation)
    }

    fn ended(&self, operation: Arc<Operation>, result: Ended) -> Ended {
        let answer = result?;
        let address = answer.address.clone();
        let fault = match self.judge.classify(&operation, &answer) {
            Verdict::Final if operation.needs_active && answer.status.is_success() => {
                let reason = "the active node's word was asked for";
                Fault::Stale { reason, word: Word::Anyones, answer: Box::new(answer) }
            }
            Verdict::Final => return Ok(answer),
            Verdict::TokenRefused => Fault::TokenRefused,
            Verdict::Elsewhere(verdict) => {
                Fault::Elsewhere { status: answer.status.as_u16(), verdict }
            }
            Verdict::Stale(reason) => {
                Fault::Stale { reason, word: Word::Anyones, answer: Box::new(answer) }
            }
        };
        Err(AttemptError { address, index: self.index, fault })
    }
}

#[cfg(test)]
mod tests {
    use tower::{Layer as _, ServiceExt as _};

    use super::super::operation::{Answer, Elsewhere};
    use super::super::stack::testing::{answer, attempt, sealed};
    use super::super::step::StepLayer;
    use super::*;

    struct Always(Verdict);

    impl Classify for Always {
        fn classify(&self, _: &Operation, _: &Answer) -> Verdict {
            self.0.clone()
        }
    }

    async fn judged(verdict: Verdict) -> Result<Answer, AttemptError> {
        let inner = tower::service_fn(|_: Attempt| async { Ok(answer(503)) });
        let layer = StepLayer(Judge::new(Arc::new(Always(verdict)), AddressIndex(3)));
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
